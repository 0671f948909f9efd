"""GSM8K for TensorFlow Datasets; `checksums.tsv` beside the builder pins the two files."""
