"""Read and validate recipe files without torch."""
