"""Runs of two processes in which something fails, and that are resumed.

    python -m benchmarks.faults [--runs 40] [--seed 0]
    python -m benchmarks.faults --cases

Each run is killed once at a random moment, with SIGKILL: the first process, the second, or torchrun. It is resumed with
the command that it has printed. The student's weights and the results must then be, to the bit, those of an undisturbed
run, except for what was timed. Prints a line for each run, and how many were equal. The exit code is 1 unless at least
one was killed and all of these were equal. For Linux.

With ``--cases``, in the middle of a run: the disk of the first process is full; the second process pauses for 10
seconds; the processes are killed and a file of the store is damaged; a tar file is cut short. The run must go on, or
end with the right message and, once what is broken is mended, be resumed with the same result. The exit code is 1
unless all are equal.
"""

import argparse
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

import limbeck
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


def resumed(log: Path) -> tuple[int, str]:
    """Resume a run with the command that its log has; give the exit code and what is printed."""
    said, file = next(line for line in log.read_text().splitlines() if ADVICE in line), log.with_suffix(".resumed.log")
    code = start(["--standalone", *shlex.split(said.partition(ADVICE)[2])], file).wait(PATIENCE)
    return code, file.read_text()


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
    code, output = resumed(log)
    if code != 0:
        return f"FAILED: {output}"
    same = held(folder) == expected
    return f"{'equal' if same else 'FAILED: different'}; all had ended after {took:.1f} s"


@dataclass(frozen=True)
class Case:
    """What fails in the middle of a run."""

    harm: Callable[[Path, subprocess.Popen[bytes], dict[int, int]], None]  # folder, torchrun, processes by rank
    says: str | None = ""  # the run ends, and says this; None: it does not end
    refuses: str = ""  # the run cannot be resumed until this is mended, and says so
    mend: Callable[[], object] = lambda: None
    recipe: str = RECIPE


def fill_disk(folder: Path, launcher: subprocess.Popen[bytes], ranks: dict[int, int]) -> None:
    """Files of the first process may no longer have more than 12 KiB, as if the disk were full."""
    resource.prlimit(ranks[0], resource.RLIMIT_FSIZE, (12 * 1024, resource.RLIM_INFINITY))


def pause(folder: Path, launcher: subprocess.Popen[bytes], ranks: dict[int, int]) -> None:
    """The second process pauses for 10 seconds."""
    os.kill(ranks[1], signal.SIGSTOP)
    time.sleep(10)
    os.kill(ranks[1], signal.SIGCONT)


def stored(folder: Path) -> Path:
    """The largest file of the store of a run."""
    return max((folder / "store").rglob("*.*"), key=lambda file: file.stat().st_size)


def damage_store(folder: Path, launcher: subprocess.Popen[bytes], ranks: dict[int, int]) -> None:
    """The processes are killed, and the last byte of the largest file of the store is changed."""
    launcher.kill()
    wait(lambda: not any(map(alive, ranks.values())), "a process still runs")
    file = stored(folder)
    held = bytearray(file.read_bytes())
    held[-1] ^= 0xFF
    file.write_bytes(held)


def build_store() -> None:
    """Make the damaged file again, as the message says."""
    line = [sys.executable, "-m", "limbeck", "cache", "build", "recipe.yaml", "--out", "damaged-store"]
    subprocess.run(line, check=True, capture_output=True)


def cut_tar(folder: Path, launcher: subprocess.Popen[bytes], ranks: dict[int, int]) -> None:
    """A tar file loses its second half."""
    os.truncate("train-0.tar", Path("train-0.tar").stat().st_size // 2)


def write_tars() -> None:
    """200 digits in two tar files, and 50 others in a third."""
    digits = limbeck.load(source="digits", limit=250, validation=0).train
    images = digits.inputs[torch.arange(250)]
    for name, numbers in {"train-0": range(100), "train-1": range(100, 200), "test": range(200, 250)}.items():
        with tarfile.open(f"{name}.tar", "w") as archive:
            for number in numbers:
                image = BytesIO()
                Image.fromarray(images[number, 0].numpy()).save(image, "PNG")
                label = str(int(digits.targets[number])).encode()
                for ending, content in (("png", image.getvalue()), ("cls", label)):
                    header = tarfile.TarInfo(f"{number:06d}.{ending}")
                    header.size = len(content)
                    archive.addfile(header, BytesIO(content))


CASES = {
    "full disk": Case(fill_disk, says="cannot be written: File too large"),
    "straggler": Case(pause, says=None),
    "damaged store": Case(
        damage_store,
        refuses="is damaged: its numbers do not have the checksum",
        mend=build_store,
        recipe=f"{RECIPE}cache: true\n",
    ),
    "cut tar": Case(
        cut_tar,
        says="cut short",
        refuses="train-0.tar is cut short",
        mend=write_tars,
        recipe=RECIPE.replace(
            "{source: digits, limit: 200,", '{source: webdataset, path: "train-{0..1}.tar", test_path: test.tar,'
        ),
    ),
}


def outcome(name: str, case: Case) -> str:
    """Do the harm in the middle of a run, resume it, and say what it comes to."""
    Path("recipe.yaml").write_text(case.recipe)
    place = Path(name.replace(" ", "-"))
    expected = undisturbed(place.with_suffix(".whole"))
    half, log = epochs(place.with_suffix(".whole")) // 2, place.with_suffix(".log")
    launcher = start([*RUN, "--out", str(place)], log)
    wait(lambda: launcher.poll() is not None or epochs(place) >= half, "the epoch has not ended")
    case.harm(place, launcher, workers(launcher.pid))
    code = launcher.wait(PATIENCE)
    said = next((line for line in log.read_text().splitlines() if case.says and case.says in line), "")
    if (code == 0) != (case.says is None) or bool(said) != bool(case.says):
        return f"FAILED: ended with {code}: {log.read_text()}"
    if case.refuses:
        code, output = resumed(log)
        refusal = next((line for line in output.splitlines() if case.refuses in line), "")
        if code == 0 or not refusal:
            return f"FAILED: resumed with {code}: {output}"
        said = "; ".join(filter(None, (said, refusal)))
        case.mend()
    if case.says is not None:
        code, output = resumed(log)
        if code != 0:
            return f"FAILED: resumed with {code}: {output}"
    return f"{'equal' if held(place) == expected else 'FAILED: different'}; {said}"


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", action="store_true")
    asked = parser.parse_args()
    chance, results = random.Random(asked.seed), list[str]()
    with TemporaryDirectory() as place:
        os.chdir(place)
        if asked.cases:
            write_tars()
            for name, case in CASES.items():
                results.append(outcome(name, case))
                print(f"{name}: {results[-1]}", flush=True)
            return int(not all(one.startswith("equal") for one in results))
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
