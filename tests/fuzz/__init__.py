"""Random damages and kills, for the tests and for `benchmarks/fuzz.py`."""
