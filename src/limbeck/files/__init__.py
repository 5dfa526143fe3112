"""Read untrusted files with limits on time and memory, and write files atomically."""
