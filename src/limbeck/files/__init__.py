"""Files that a user received or that a run writes: opened with bounds, written whole or not at all."""
