"""Many trials: from a grid to finished folders."""
