"""The speed of a training step: limbeck's loop beside plain PyTorch loops, torchdistill, and the networks' own work.

python -m benchmarks.speed --quick
"""
