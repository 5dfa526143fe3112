"""Training: one loop, and all that makes a step fast or keeps it exact."""
