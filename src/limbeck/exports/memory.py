"""What a fresh process finds when it opens a file: what the file says about itself, and the peak memory of its network.

Counted is the resident memory of the process: the most after the file is opened, less that before, when the runtime is
imported. It contains the weights, what the runtime makes of them, and the activations of one sample. Linux tells the
peak of a process; on other systems it is not known.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError
from limbeck.exports import EXPORTERS
from limbeck.exports.base import Exporter, Runner
from limbeck.exports.card import Reads
from limbeck.files.atomic import JSON_BYTES

STUDENT = "torch"
"""Stands for a backend: a program that `torch.export.save` wrote, run by PyTorch."""

RUNS = 3
"""The samples that are run; a runtime may allocate more after the first."""

MOST = 2**33
"""The most bytes that a file may take, on Linux: 8 GiB."""

SECONDS = 600
"""The longest time of a process."""

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def is_told(exporter: Exporter) -> bool:
    """Whether the peak memory of files of a backend can be measured here."""
    return _RESET.exists() and exporter.runtime is not None


def peak_memory(backend: str, file: Path, reads: Reads) -> int | None:
    """The bytes that a fresh process takes to open a file and to run random samples; None if they are not known.

    Args:
        backend: a name in `EXPORTERS`, or `STUDENT`.
        file: that the backend wrote.
        reads: the input.

    Raises:
        LimbeckError: the file cannot be run, or takes more than `MOST`.
    """
    peak: int | None = _in_a_process(backend, file, asdict(reads))
    return peak


def metadata_of(backend: str, file: Path) -> str:
    """What a file says about itself.

    Raises:
        LimbeckError: the file cannot be opened, or takes more than `MOST`.
    """
    return str(_in_a_process(backend, file, None))


def _in_a_process(backend: str, file: Path, reads: dict[str, Any] | None) -> Any:
    command = [sys.executable, "-P", "-m", __name__, backend, str(file)]
    try:
        done = subprocess.run(command, input=json.dumps(reads).encode(), capture_output=True, timeout=SECONDS)
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise LimbeckError(f"{file} cannot be run: {[f'its process ended with {done.returncode}', *lines][-1]}")
        return json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError) as error:
        raise LimbeckError(f"{file} cannot be run: {error}") from error


def main(backend: str, file: Path, reads: Reads | None) -> None:
    """Write to stdout, as JSON, the peak memory of a file that reads this; without, its metadata."""
    if reads is None:
        EXPORTERS[backend].loader(backend)
        _limit()
        found: str | int | None = EXPORTERS[backend].metadata(file)[: JSON_BYTES + 1]
    else:
        found = _peak(backend, file, reads.random())
    sys.stdout.write(f"\n{json.dumps(found)}\n")


def _peak(backend: str, file: Path, sample: Tensor) -> int | None:
    if backend == STUDENT:
        load: Callable[[Path], Runner] = _program
        tiny = BytesIO()  # PyTorch imports what programs need with the first one
        torch.export.save(torch.export.export(nn.Identity(), (sample,)), tiny)
        _program(tiny)(sample)
    else:
        exporter = EXPORTERS[backend]
        load = exporter.loader(backend)
        if exporter.runtime is not None:
            exporter.runtime()
    _limit()
    before = _before() if backend == STUDENT or is_told(EXPORTERS[backend]) else None
    run = load(file)
    with torch.no_grad():
        for _ in range(RUNS):
            run(sample)
    return None if before is None else _bytes("VmHWM") - before


def _before() -> int | None:
    """The present memory, which also becomes the peak, see proc(5); None if this is not allowed."""
    try:
        _RESET.write_text("5")
    except OSError:
        return None
    return _bytes("VmRSS")


def _program(file: Path | BytesIO) -> Runner:
    program: Runner = torch.export.load(file).module()
    return program


def _limit() -> None:
    """On Linux, let what exceeds `MOST` fail in this process."""
    if not _STATUS.exists():
        return
    import resource

    most, (_, hard) = _bytes("VmSize") + MOST, resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _bytes(key: str) -> int:
    """A size in the status of this process."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return 1024 * int(lines[key].split()[0])


if __name__ == "__main__":
    given = json.load(sys.stdin)
    main(sys.argv[1], Path(sys.argv[2]), None if given is None else Reads(**given))
