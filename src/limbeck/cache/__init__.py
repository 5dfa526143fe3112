"""A teacher's outputs: computed once and read back from disk, or given as a table of soft labels."""
