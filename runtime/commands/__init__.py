"""One lot per command."""
