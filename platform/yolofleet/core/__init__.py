"""What every room may use: errors, retries, background loops, text, sizes, names of file formats."""
