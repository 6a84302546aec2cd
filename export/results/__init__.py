"""What became of the images: the rows, the names of clusters, scores against the truth, drift since an earlier run."""
