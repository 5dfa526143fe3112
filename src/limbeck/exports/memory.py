"""The peak memory of a network that a fresh process opens and runs.

Counted is the resident memory of the process: the most after the file is opened, less that before, when the runtime is
imported. It contains the weights, what the runtime makes of them, and the activations of one sample. Linux tells the
peak of a process; on other systems it is not known.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import torch
from torch import nn

from limbeck.core import LimbeckError
from limbeck.exports import EXPORTERS
from limbeck.exports.base import Load, Runner
from limbeck.exports.card import Reads

STUDENT = "torch"
"""Stands for a backend: a program that `torch.export.save` wrote, run by PyTorch."""

RUNS = 3
"""The samples that are run; a runtime may allocate more after the first."""

MOST = 2**33
"""The most bytes that a file may take: 8 GiB."""

SECONDS = 600
"""The longest time of a process."""

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(backend: str, file: Path, reads: Reads) -> int | None:
    """The bytes that a fresh process takes to open a file and to run random samples; None if it is not known.

    Args:
        backend: a name in `EXPORTERS`, or `STUDENT`.
        file: that the backend wrote.
        reads: the input.

    Raises:
        LimbeckError: the file cannot be run, or takes more than `MOST`.
    """
    if not (_RESET.exists() and sys.executable and (backend == STUDENT or EXPORTERS[backend].runtime is not None)):
        return None
    command = [sys.executable, "-P", "-m", __name__, backend, str(file), json.dumps(asdict(reads))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise LimbeckError(f"{file} cannot be run in {SECONDS} seconds") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
        raise LimbeckError(f"{file} cannot be run: {lines[-1]}")
    return int(done.stdout.splitlines()[-1])


def main(backend: str, file: Path, reads: Reads) -> None:
    """Measure in this process, and write the bytes to stdout."""
    sample = reads.random()
    if backend == STUDENT:
        load: Load = _program
        tiny = BytesIO()  # PyTorch imports what programs need with the first one
        torch.export.save(torch.export.export(nn.Identity(), (sample,)), tiny)
        _program(tiny)(sample)
    else:
        exporter = EXPORTERS[backend]
        load = exporter.loader(backend)
        if exporter.runtime is not None:
            exporter.runtime()
    _limit()
    _RESET.write_text("5")  # the peak becomes the present memory, see proc(5)
    before = _bytes("VmRSS")
    run = load(file)
    with torch.no_grad():
        for _ in range(RUNS):
            run(sample)
    sys.stdout.write(f"\n{_bytes('VmHWM') - before}\n")


def _program(file: Path | BytesIO) -> Runner:
    program: Runner = torch.export.load(file).module()
    return program


def _limit() -> None:
    """Let what exceeds `MOST` fail in this process."""
    import resource

    most, (_, hard) = _bytes("VmSize") + MOST, resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _bytes(key: str) -> int:
    """A size in the status of this process."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return 1024 * int(lines[key].split()[0])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Reads(**json.loads(sys.argv[3])))
