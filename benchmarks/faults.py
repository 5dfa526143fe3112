"""Runs of two processes in which one is killed at a random moment, and that are resumed.

    python -m benchmarks.faults [--runs 40] [--seed 0]

Each run is killed once, with SIGKILL: the first process, the second, or torchrun. It is resumed with the command that
it has printed. The student's weights and the results must then be, to the bit, those of an undisturbed run, except
for what was timed. Prints a line for each run, and how many were equal. The exit code is 1 unless
at least one was killed and all of these were equal. For Linux.
"""

import argparse
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from limbeck.files.atomic import read_sealed

RECIPE = """\
name: tiny
data: {source: digits, limit: 200, validation: 0.25}
teacher: {model: resnet8, train: {epochs: 4, batch_size: 32, augment: {shift: 1}}}
student: {model: {name: mlp, hidden: [30]}}
method: kd
train: {epochs: 30, batch_size: 32, accumulate: 2, ema: 0.9}
evaluate: {latency_runs: 1}
allow: [chance]
precision: 32
device: cpu
"""
LAUNCHER = [sys.executable, "-m", "torch.distributed.run"]
RUN = ["--standalone", "--nproc-per-node", "2", "-m", "limbeck", "run", "recipe.yaml"]
ADVICE = "fails: torchrun "
VICTIMS = ("process 0", "process 1", "torchrun")
PATIENCE = 300.0
"""Seconds that a run may take to begin or to end."""


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start torchrun; what it prints is written to ``log``."""
    with log.open("wb") as file:
        settings = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*LAUNCHER, *arguments], stdout=file, stderr=subprocess.STDOUT, env=settings)


def wait(until: Callable[[], object], what: str) -> None:
    """Wait until a function returns a true value."""
    end = time.monotonic() + PATIENCE
    while not until():
        if time.monotonic() > end:
            raise TimeoutError(f"after {PATIENCE:.0f} s, {what}")
        time.sleep(0.01)


def workers(launcher: int) -> dict[int, int]:
    """The processes that torchrun has started, by their rank."""
    found = {}
    with suppress(FileNotFoundError, ProcessLookupError):  # they end
        for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
            lines = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            found.update({int(line[5:]): int(child) for line in lines if line.startswith(b"RANK=")})
    return found


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def untimed(value: Any) -> Any:
    """Values of a file of results, without latencies."""
    if isinstance(value, list):
        return [untimed(one) for one in value]
    if isinstance(value, dict):
        return {key: untimed(one) for key, one in value.items() if key != "latency"}
    return value


def held(folder: Path) -> tuple[bytes, Any]:
    """What is compared."""
    return (folder / "student.safetensors").read_bytes(), untimed(read_sealed(folder / "result.json"))


def epochs(folder: Path) -> int:
    """How many epochs of all networks a run has finished."""
    log = folder / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def undisturbed(folder: Path) -> tuple[bytes, Any]:
    """What a run comes to."""
    if start([*RUN, "--out", str(folder)], folder.with_suffix(".log")).wait(PATIENCE) != 0:
        raise RuntimeError(f"the undisturbed run fails: {folder.with_suffix('.log').read_text()}")
    return held(folder)


def disturbed(folder: Path, victim: str, moment: tuple[int, float], expected: tuple[bytes, Any]) -> str:
    """Kill a run so many epochs and seconds after it says how to resume, resume it, and say what it comes to."""
    log = folder.with_suffix(".log")
    launcher = start([*RUN, "--out", str(folder)], log)
    wait(lambda: launcher.poll() is not None or ADVICE in log.read_text(), "the run does not say how to resume")
    wait(lambda: launcher.poll() is not None or epochs(folder) >= moment[0], "the epoch has not ended")
    time.sleep(moment[1])
    ranks = workers(launcher.pid)
    if len(ranks) < 2:
        if launcher.wait(PATIENCE) != 0 or held(folder) != expected:
            return f"FAILED: ended by itself: {log.read_text()}"
        return "late: it had ended"
    os.kill(launcher.pid if victim == "torchrun" else ranks[VICTIMS.index(victim)], signal.SIGKILL)
    killed = time.monotonic()
    launcher.wait(PATIENCE)
    wait(lambda: not any(map(alive, ranks.values())), "a process still runs")
    took = time.monotonic() - killed
    if took > 60:
        return f"FAILED: the processes have ended after {took:.0f} s"
    said = next(line for line in log.read_text().splitlines() if ADVICE in line)
    again = start(["--standalone", *shlex.split(said.partition(ADVICE)[2])], log.with_suffix(".resumed.log"))
    if again.wait(PATIENCE) != 0:
        return f"FAILED: {log.with_suffix('.resumed.log').read_text()}"
    same = held(folder) == expected
    return f"{'equal' if same else 'FAILED: different'}; all had ended after {took:.1f} s"


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance, results = random.Random(asked.seed), list[str]()
    with TemporaryDirectory() as place:
        os.chdir(place)
        Path("recipe.yaml").write_text(RECIPE)
        expected = undisturbed(Path("whole"))
        total = epochs(Path("whole"))
        for number in range(asked.runs):
            victim, moment = chance.choice(VICTIMS), (chance.randrange(total), chance.uniform(0, 0.3))
            results.append(disturbed(Path(f"run{number}"), victim, moment, expected))
            when = f"{moment[1]:.2f} s after {moment[0]} of {total} epochs"
            print(f"{number + 1}/{asked.runs}: {victim} killed {when}: {results[-1]}", flush=True)
    equal, late = (sum(one.startswith(word) for one in results) for word in ("equal", "late"))
    print(f"{equal} of {len(results) - late} runs that were killed are equal; {late} had ended before")
    return int(equal == 0 or equal + late < len(results))


if __name__ == "__main__":
    sys.exit(main())
