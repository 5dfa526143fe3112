"""Tasks other than classification, on drawn data whose truth is known.

python -m benchmarks.tasks.drawn sheet.png
"""
