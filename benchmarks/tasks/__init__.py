"""Tasks other than classification, on drawn data whose truth is known.

python -m benchmarks.tasks landmarks --smoke   # demonstrations of distillation: see docs/tasks.md
python -m benchmarks.tasks.drawn sheet.png     # a sheet of samples
"""
