"""What knows nothing of microscopy: files written whole, downloads, processes, random numbers."""
