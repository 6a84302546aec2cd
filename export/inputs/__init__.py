"""What is to be sorted: every kind of input as runs of images, and the child processes that decode them."""
