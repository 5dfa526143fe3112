"""A recipe file to checked values, without torch."""
