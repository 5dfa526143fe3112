"""Damages over every file of a finished run and its store, each followed by `limbeck run --resume`."""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import chdir, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.files import checkpoint
from limbeck.files.atomic import read_sealed

RECIPE = """\
name: tiny
data: {source: digits, limit: 64, validation: 0.25}
teacher: {model: {name: mlp, hidden: [8]}, train: {epochs: 1, batch_size: 16}}
student: {model: {name: mlp, hidden: [4]}}
method: kd
train: {epochs: 2, batch_size: 16}
seeds: [0, 1]
cache: {use: true}
evaluate: {latency_runs: 1}
device: cpu
precision: 32
compile: false
"""

RUN = Path("runs") / "tiny"
PATIENCE = 30.0
"""Seconds after which a command, which takes about one on an idle machine, counts as hung."""


class Hung(BaseException):
    """A command took longer than `PATIENCE`."""


def run(n, seed, *, tell=lambda text: None):
    """Do n damages, and count what came of them; ``tell`` gets a line for each that is not as it should be.

    Returns:
        ``damages``; of them ``refused`` with a message, and ``as before``, where the same weights and figures came out;
        and what must not be: ``undetected`` (others came out), ``tracebacks``, ``hangs`` and ``unnamed`` (the message
        does not name what was damaged).
    """
    chance, counts = random.Random(seed), Counter(damages=n)
    counts.update(dict.fromkeys(("refused", "as before", "undetected", "tracebacks", "hangs", "unnamed"), 0))
    with TemporaryDirectory() as folder, chdir(folder):
        Path("recipe.yaml").write_text(RECIPE)
        code, said = _command("run", "recipe.yaml")
        if code != 0:
            raise RuntimeError(said)
        shutil.copytree(RUN, "whole")
        expected = held(Path("whole"))
        for _ in range(n):
            shutil.rmtree(RUN)
            shutil.copytree("whole", RUN)
            what, named = _damage(chance)
            came = _outcome(expected, named)
            counts[came[0]] += 1
            if came[0] not in ("refused", "as before"):
                tell(f"{came[0]}: {what}: {came[1]}")
    return dict(counts)


def _outcome(expected, named):
    code, said = _command("run", "recipe.yaml", "--resume")
    if code in ("hangs", "tracebacks"):
        return code, said
    if code in (2, 3):
        return ("refused" if any(name in said for name in named) else "unnamed"), said
    found = held(RUN)
    differ = [name for name in expected if found[name] != expected[name]]
    # what nothing is read from may be lost, where it is told
    silent = [name for name in differ if name not in ("log", "environment") or f"note: {RUN}" not in said]
    return ("undetected", f"{', '.join(silent)} in {said}") if silent or code != 0 else ("as before", "")


def _command(*arguments):
    """The exit code of a command, or ``hangs`` or ``tracebacks``; and what it said."""
    with _alarm():
        try:
            result = CliRunner().invoke(app, arguments)
        except Hung:
            return "hangs", "no end"
    if isinstance(result.exception, Hung):
        return "hangs", "no end"
    said = result.output.replace("\n", " ")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return "tracebacks", repr(result.exception)
    return result.exit_code, said


@contextmanager
def _alarm():
    def ring(*_):
        raise Hung

    began, before = time.monotonic(), signal.signal(signal.SIGALRM, ring)
    left, _ = signal.setitimer(signal.ITIMER_REAL, PATIENCE)  # what the tests' own timeout has left
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1.0) if left else 0.0)
        signal.signal(signal.SIGALRM, before)


def held(folder):
    """All that a run came to, without what was timed."""
    figures = {str(path.relative_to(folder)): read_sealed(path) for path in folder.rglob("result.json")}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "figures": _untimed(figures),
        "weights": {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*t.safetensors")},
        "store": {path.name: _parsed(path) for path in (folder / "store").rglob("*") if path.is_file()},
        "log": sorted(json.dumps(_untimed(line)) for line in lines),
        "recipe": (folder / "recipe.yaml").read_text(),
        "environment": _of_the_machine(read_sealed(folder / "environment.json")),
    }


def _of_the_machine(environment):
    """Without the commit, which somebody may change meanwhile."""
    return {key: value for key, value in environment.items() if key not in ("commit", "earlier")}


def _parsed(path):
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()


def _untimed(value):
    if isinstance(value, list):
        return [_untimed(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    timed = {"sha256", "log", "seconds", "images_per_second", "latency"}
    return {key: _untimed(inner) for key, inner in value.items() if key not in timed}


def _damage(chance):
    """Damage the run; what was done, and the names of which a message must have one."""
    do = chance.choices([_file, _store, _folders, _state], [10, 4, 1, 3])[0]
    return do(chance)


def _file(chance):
    return _one(chance, [path for path in sorted(RUN.rglob("*")) if path.is_file() and "store" not in path.parts])


def _store(chance):
    """A damage of the store, which is read because a student is to be trained."""
    seed = chance.choice([0, 1])
    _untrained(seed, begun=chance.random() < 0.5)
    return _one(chance, sorted(RUN.glob(f"store/teacher-seed{seed}/*")))


def _untrained(seed, *, begun):
    """Take back that a student is finished; with ``begun`` its checkpoint stays."""
    (RUN / f"kd/seed{seed}/result.json").unlink()
    (RUN / "result.json").unlink()
    if not begun:
        (RUN / "checkpoint/last.pt").unlink()


def _one(chance, files):
    file, kind = chance.choice(files), chance.choice(list(_KINDS))
    others = _KINDS[kind](chance, file, files) or []
    return f"{file} {kind}", [file.name, f"{file.parent.name} ", *others]


def _flip(chance, file, files):
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def _cut(chance, file, files):
    os.truncate(file, chance.randrange(file.stat().st_size))


def _grow(chance, file, files):
    with file.open("ab") as opened:
        opened.write(chance.choice([b"\0", b"\n", b"{}", b"{}\n", b"x" * 4096, b'{"job": "kd/seed0"}\n']))


def _swap(chance, file, files):
    alike = [other for other in files if other.suffix == file.suffix and other != file] or files
    other = chance.choice(alike)
    data = file.read_bytes()
    file.write_bytes(other.read_bytes())
    if chance.random() < 0.5:
        other.write_bytes(data)
        return [other.name]
    return []


def _edit(chance, file, files):
    """Change a digit, as by hand."""
    data = bytearray(file.read_bytes())
    digits = [place for place, octet in enumerate(data) if octet in b"0123456789"]
    if digits:
        place = chance.choice(digits)
        data[place] = chance.choice([digit for digit in b"0123456789" if digit != data[place]])
    file.write_bytes(data)


def _line(chance, file, files):
    """Take out a line, or double it."""
    lines = file.read_bytes().splitlines(keepends=True)
    place = chance.randrange(len(lines))
    lines[place : place + 1] = [] if chance.random() < 0.5 else [lines[place]] * 2
    file.write_bytes(b"".join(lines))


def _instead(make):
    def replace(chance, file, files):
        file.unlink()
        make(file)

    return replace


_KINDS = {
    "with a flipped bit": _flip,
    "cut": _cut,
    "grown": _grow,
    "swapped": _swap,
    "with another digit": _edit,
    "with a line less or more": _line,
    "deleted": _instead(lambda file: None),
    "empty": _instead(lambda file: file.write_bytes(b"")),
    "as a folder": _instead(lambda file: file.mkdir()),
    "as a FIFO": _instead(lambda file: os.mkfifo(file)),
    "as a link to /dev/zero": _instead(lambda file: file.symlink_to("/dev/zero")),
    "as a link to nothing": _instead(lambda file: file.symlink_to("nothing")),
    "as a link to itself": _instead(lambda file: file.symlink_to(file.name)),
    "as nested JSON": _instead(lambda file: file.write_text("[" * 10**5)),
}


def _folders(chance):
    """Put a network's folder in the place of another, or swap the two, or take one away."""
    folders = sorted(path for path in RUN.glob("*/seed*"))
    one, other = chance.sample(folders, 2)
    kind = chance.choice(["instead of", "swapped with", "gone, and not"])
    one.rename("aside")
    if kind == "instead of":
        shutil.copytree(other, one)
        shutil.rmtree("aside")
    elif kind == "swapped with":
        other.rename(one)
        Path("aside").rename(other)
    else:
        shutil.rmtree("aside")
    return f"{other} {kind} {one}", [f"{one.parent.name}/{one.name}", f"{other.parent.name}/{other.name}"]


def _state(chance):
    """Edit the checkpoint of the last student, which is to be gone on from."""
    _untrained(1, begun=True)
    file = RUN / "checkpoint/last.pt"
    held = checkpoint.load(file)
    kind = chance.choice(list(_STATES))
    _STATES[kind](held)
    (checkpoint.save if chance.random() < 0.7 else lambda path, state: torch.save(state, path))(file, held)
    return f"{file} {kind}", ["last.pt"]


def _first(tensors):
    return next(name for name, tensor in tensors.items() if tensor.is_floating_point())


def _change(tensors, change):
    name = _first(tensors)
    tensors[name] = change(tensors[name])


_STATES = {
    "of stage -1": lambda held: held["train"].update(stage=-1),
    "of stage 1": lambda held: held["train"].update(stage=1),
    "of epoch 99": lambda held: held["train"].update(epoch=99),
    "of epoch 0": lambda held: held["train"].update(epoch=0),
    "of epoch True": lambda held: held["train"].update(epoch=True),
    "of epoch None": lambda held: held["train"].update(epoch=None),
    "without modules": lambda held: held["train"].update(modules={}),
    "without a modules key": lambda held: held["train"].pop("modules"),
    "with modules that are a list": lambda held: held["train"].update(modules=[]),
    "with a module less": lambda held: held["train"]["modules"].pop(_first(held["train"]["modules"])),
    "with a module more": lambda held: held["train"]["modules"].update(more=torch.zeros(2)),
    "of another shape": lambda held: _change(held["train"]["modules"], lambda one: one[..., :1]),
    "of another type": lambda held: _change(held["train"]["modules"], lambda one: one.double()),
    "with NaN": lambda held: _change(held["train"]["modules"], lambda one: one * torch.nan),
    "with a number for a tensor": lambda held: _change(held["train"]["modules"], lambda one: 3.0),
    "of another optimizer": lambda held: held["train"].update(
        optimizer=torch.optim.Adam([torch.zeros(2, requires_grad=True)]).state_dict()
    ),
    "without an optimizer": lambda held: held["train"].update(optimizer={}),
    "with an option of the optimizer changed": lambda held: held["train"]["optimizer"]["param_groups"][0].update(
        weight_decay=0.5
    ),
    "with the optimizer's parameters changed": lambda held: held["train"]["optimizer"]["param_groups"][0].update(
        params=[0]
    ),
    "without generators": lambda held: held["train"].update(generators={}),
    "with a generator of zeros": lambda held: held["train"]["generators"].update(cpu=torch.zeros(3)),
    "of another job": lambda held: held.update(job="kd/seed7"),
    "of no job": lambda held: held.update(job=3),
    "of another recipe": lambda held: held.update(recipe="0" * 64),
    "without a log": lambda held: held.pop("log"),
    "with files elsewhere": lambda held: held.update(files={"../x": {"bytes": 1, "sha256": "0"}}),
    "without a state": lambda held: held.update(train=None),
    "with an empty state": lambda held: held.update(train={}),
}
