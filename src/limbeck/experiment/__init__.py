"""A recipe as a run: its networks and arms, what is checked before, the folder it writes."""
