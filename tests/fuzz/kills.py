"""Runs that are killed at random moments and resumed, again and again, compared with undisturbed ones."""

import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

RECIPE = """\
name: killed
data: {{source: digits, limit: 64, validation: 0.25, normalise: false}}
teacher:
  model: resnet14
  {teacher}
student:
  model: resnet8
method: {method}
train: {{epochs: 3, batch_size: 16, augment: {{shift: 1}}}}
evaluate: {{latency_runs: 1}}
device: cpu
precision: 32
compile: false
"""
TRAINED = "train: {epochs: 3, batch_size: 16, augment: {shift: 1}}"
METHODS = {
    "kd": TRAINED,
    "fitnets": TRAINED,
    "fsp": TRAINED,
    "srrl": TRAINED,
    "class_distance": "untrained: true",
}
"""The five systems' methods, and how the teacher of each comes about."""

THREADS = (1, 2)
PATIENCE = 300.0
"""Seconds that a run may take, undisturbed."""


def run(n, seed, *, tell=print):
    """Kill n runs of the five systems, in turns, with one and two threads, and compare what they end with.

    Each is a process of its own, forked from this one, which only imports: it must not have computed with torch.

    Returns:
        ``kills`` and ``runs`` that were killed; of these ``bit-identical``, ``different`` (weights or figures),
        ``failed`` (an error of a resumed run) and ``hangs``. Some processes end before they are killed: ``late``.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or two threads on a busy machine wait for each other
    import limbeck.experiment.run  # noqa: F401 (once, for all that is forked; it takes seconds)

    chance, counts = random.Random(seed), Counter(kills=n)
    counts.update(dict.fromkeys(("runs", "bit-identical", "different", "failed", "hangs", "late"), 0))
    cases = [(method, threads) for threads in THREADS for method in METHODS]
    with TemporaryDirectory() as folder, chdir(folder):
        whole, killed = {}, 0
        while killed < n:
            case = cases[counts["runs"] % len(cases)]
            if case not in whole:
                whole[case] = _undisturbed(*case)
            kills, came = _disturbed(case, whole[case], chance, n - killed, counts)
            killed += kills
            counts["runs"] += 1
            counts[came] += 1
            if came != "bit-identical":
                tell(f"{came}: {case[0]} with {case[1]} threads, after {kills} kills")
    return dict(counts)


def _undisturbed(method, threads):
    """The seconds of a run, and what it came to."""
    from fuzz.damages import held

    folder, start = Path(f"{method}-{threads}"), time.monotonic()
    if _wait(_start(method, threads, folder, resume=False), PATIENCE) != 0:
        raise RuntimeError(f"{method} with {threads} threads fails undisturbed")
    return time.monotonic() - start, held(folder)


def _disturbed(case, whole, chance, most, counts):
    """Kill a run a few times at random moments and let it end; how often it was killed, and what came of it."""
    from fuzz.damages import held

    seconds, expected = whole
    folder, kills, planned = Path("killed"), 0, min(most, chance.randint(1, 5))
    shutil.rmtree(folder, ignore_errors=True)
    while kills < planned:
        process = _start(*case, folder, resume=folder.exists())
        code = _wait(process, chance.uniform(0.0, 1.0) * seconds)
        if code is None:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            kills += 1
        elif code != 0:
            return kills, "failed"
        else:  # it was over before
            counts["late"] += 1
            break
    process = _start(*case, folder, resume=True)
    code = _wait(process, PATIENCE)
    if code is None:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return kills, "hangs"
    if code != 0:
        return kills, "failed"
    found = held(folder)
    same = all(found[part] == expected[part] for part in ("figures", "weights", "log"))
    return kills, "bit-identical" if same else "different"


def _start(method, threads, folder, *, resume):
    """Fork a process that does a run."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        import torch

        from limbeck.experiment.run import Experiment
        from limbeck.recipe.read import read

        torch.set_num_threads(threads)
        file = Path(f"{method}.yaml")
        if not file.exists():
            file.write_text(RECIPE.format(method=method, teacher=METHODS[method]))
        for _ in Experiment(read(file), folder, resume=resume).run():
            pass
        code = 0
    except BaseException:  # a child must not return into what forked it
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(process, seconds):
    """The exit code of a process; None where it runs on after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None
