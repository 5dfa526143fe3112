"""Entry point of ``python -m benchmarks.speed``: sets how threads wait, then runs the command."""

import os

from limbeck.cli import SPINS

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # as limbeck's commands do; read when torch is first imported

from benchmarks.speed.command import main

main()
