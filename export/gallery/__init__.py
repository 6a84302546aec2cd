"""clusters.parquet as one HTML page that works offline."""
