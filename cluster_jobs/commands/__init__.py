"""The command lines `stdac` and `stdac-grid`: above everything that they start, and imported by nothing of it."""
