"""A run on disk: what is written there, and how it is verified when it is read again.

runs/<name>/
  recipe.yaml          the recipe with every default written out; running it again gives the same run
  environment.json     versions, hardware, commit, device and precision picked
  metrics.jsonl        one line an epoch
  checkpoint/last.pt   exact resume of the network in training
  store/               stored outputs of the teacher
  <arm>/seed<N>/       one folder a trained network: its weights and its result.json
  student.safetensors  the distilled student of the first seed
  result.json          the final figures
  .lock                is locked while a process trains here

Every file is written atomically, except for the log of epochs, which grows line by line. Every file that figures or
weights are read from has a hash: JSON in its last key, a checkpoint in the comment of its zip, weights and the log in
the network's result.json, or in the checkpoint until there is one. A hash detects damage and edits; it is not a
signature.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import SequenceMatcher
from hashlib import sha256
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from limbeck.core import LimbeckError
from limbeck.experiment.epochlog import EpochLog
from limbeck.experiment.kept_outputs import OUTPUTS, write_outputs
from limbeck.experiment.results import RESULT, NetworkResult, OtherSchema, RunResult, from_json, plain, read_values
from limbeck.experiment.runfiles import (
    CHECKPOINT,
    ENVIRONMENT,
    LOCKS,
    LOG,
    RECIPE,
    STUDENT,
    are_records,
    copy_whole,
    file_record,
    holds,
    holds_epoch,
    is_summary,
    read_network,
)
from limbeck.files import checkpoint
from limbeck.files.atomic import read, read_sealed, write, write_sealed
from limbeck.models import NetworkSpec, save_network
from limbeck.recipe.text import WHOLE_BYTES
from limbeck.train.loop import Epoch

CHECKPOINT_SHARE = 0.1
"""The largest share of a run's time that is spent on writing checkpoints."""

MOST_LINES, MOST_SIGNS = 2_000, 1_000
"""The most lines of a recipe, and characters of a line, of which the differences to another one are shown."""

SIBLINGS = 500
"""The most folders beside a run that `RunFolder.found` searches."""


def check_folder(path: Path, *, resume: bool, data: Path | None = None, compares: bool = False) -> bool:
    """Whether a folder holds a finished epoch of a run, which ``resume`` or nothing must be done with.

    It may hold a comparison only if it is for one, ``compares``.

    Raises:
        LimbeckError: it is no folder; it is the folder of the data or inside it; without ``resume``, it holds a run or
            cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise LimbeckError(f"{path} is not a folder: choose another one with --out")
    if data is not None and path.resolve().is_relative_to(data.resolve()):
        raise LimbeckError(f"{path} is in the folder of the data, {data}: choose another one with --out")
    if (path / LOCKS).is_dir() and not compares:
        raise LimbeckError(f"{path} holds a comparison, not a run: choose another folder with --out")
    begun = holds_epoch(path)
    if resume:  # perhaps only to read, as `limbeck cache verify` does
        return begun
    if begun:
        raise LimbeckError(
            f"{path} already holds a run: resume it with --resume, choose another folder with --out, or replace it "
            "with --overwrite"
        )
    parent = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    try:
        with TemporaryDirectory(dir=parent):
            pass
    except OSError as error:
        reason = f"nothing can be written in {parent} ({error.strerror})"
        raise LimbeckError(f"{path} cannot be written: {reason}: choose another folder with --out") from error
    return False


class RunFolder:
    """The run folder of one recipe, whose text has every default written out. The folder need not exist.

    The methods that write raise `NoSpace` if the disk is full.

    Attributes:
        path: the folder. notes: sentences on what was missing or damaged and is written again.

    Raises:
        LimbeckError: without ``resume``, the folder already holds a run; with it, the folder holds a run of another
            recipe, or a damaged file.
    """

    def __init__(self, path: Path, recipe: str, *, resume: bool) -> None:
        self.path = path
        self.notes: list[str] = []
        self._recipe, self._recipe_hash = recipe, sha256(recipe.encode()).hexdigest()
        self._checkpoint = path / CHECKPOINT
        self._results: dict[str, NetworkResult] = {}  # of the finished networks, by name
        self._files: dict[str, dict[str, Any]] = {}  # by network, what lies in its folder
        self._saved, self._save_after, self._trained = "", 0.0, False
        self._begun = check_folder(path, resume=resume)
        if self._begun:
            refuse_other_recipe(path, recipe, "run")
        self._log = EpochLog(path / LOG, kept=self._begun)
        self._state = self._read_checkpoint() if self._begun and self._checkpoint.exists() else None

    def open(self, environment: Mapping[str, Any]) -> None:
        """Create the folder and write what is known before training; the environments of earlier parts are kept.

        Raises:
            LimbeckError: the folder may not be written.
        """
        if self._begun and not (self.path / RECIPE).is_file():
            self.notes.append(f"{self.path / RECIPE} was missing and is written again")
        write(self.path / RECIPE, self._recipe)
        file = self.path / ENVIRONMENT
        before: dict[str, Any] = {}
        if self._begun:
            try:
                before = read_sealed(file) or {}
                lost = "" if before else "was missing"
            except LimbeckError:
                lost = "is damaged or was edited"
            if lost:
                self.notes.append(f"{file} {lost}: it is written again, without the environments of the run so far")
        earlier = before.pop("earlier", [])
        if before and before != environment:
            earlier = [*earlier, before]
        write_sealed(file, {**environment, "earlier": earlier} if earlier else environment)

    def result(self, name: str) -> NetworkResult | None:
        """A finished network's result, or None while it is not finished; its weights are whole then.

        Raises:
            LimbeckError: the figures, the weights or the network's lines in the log are damaged, or belong to another
                network or recipe.
        """
        if name in self._results or not self._begun:
            return self._results.get(name)
        folder = self.path / name
        found = read_network(folder, name)
        if found is None:
            return None
        if found.recipe != self._recipe_hash:
            raise LimbeckError(
                f"{folder / RESULT} belongs to a run of another recipe: delete {folder} to train {name} again"
            )
        if not self._log.check(name, found.log):
            self.notes.append(f"{self._log.path} has lost the epochs of {name}")
        self._files[name], self._results[name] = dict(found.files), found.result
        return found.result

    def write(self, name: str, file: str, network: nn.Module, spec: NetworkSpec) -> None:
        """Write a network's weights into its folder, and remember their hash, which `weights` and `result` check."""
        save_network(network, self.path / name / file, spec=spec)
        self._files.setdefault(name, {})[file] = file_record(self.path / name / file)

    def write_outputs(self, name: str, outputs: Mapping[str, Tensor]) -> None:
        """Write a network's outputs by split, like its weights."""
        self._files.setdefault(name, {})[OUTPUTS] = write_outputs(self.path / name / OUTPUTS, outputs)

    def finish(self, name: str, result: NetworkResult, weights: str) -> NetworkResult:
        """Write a finished network's result.json, and give its result with the hash of its file ``weights``."""
        self._log.sync()
        files = self._files[name]
        whole = replace(result, weights_sha256=files[weights]["sha256"])
        held = {"files": files, "log": self._log.summary(name), "recipe": self._recipe_hash}
        write_sealed(self.path / name / RESULT, plain(whole) | held)
        self._results[name] = whole
        return whole

    def weights(self, name: str, file: str) -> Path:
        """A file of weights, as it was written.

        Raises:
            LimbeckError: it is missing or damaged.
        """
        path = self.path / name / file
        record = self._files.get(name, {}).get(file)
        if record is None or not holds(path, record):
            raise LimbeckError(f"{path} is missing or damaged: delete {path.parent} to train {name} again")
        return path

    def state(
        self, name: str, check: Callable[[Mapping[str, Any]], None] = lambda state: None
    ) -> dict[str, Any] | None:
        """The training state of this network, None at its beginning; later epochs are dropped from the log.

        ``check`` is given the state, and raises LimbeckError if the training cannot resume from it.

        Raises:
            LimbeckError: the checkpoint or a file that belongs to it is damaged, or is of another training.
        """
        self._trained = True
        held, again = self._state, f"delete {self._checkpoint} to train {name} again from the first epoch"
        if held is None or held["job"] != name:
            if self._log.of(name):
                self.notes.append(f"{name} was started, but has neither a result nor a checkpoint: it is trained again")
            self._log.begin(name)
            self._log.sync()
            return None
        try:
            check(held["train"])
        except LimbeckError as error:
            raise LimbeckError(f"{self._checkpoint} does not fit this training: {error}: {again}") from error
        for file, record in held["files"].items():
            if not holds(self.path / name / file, record):
                raise LimbeckError(f"{self.path / name / file} is missing or damaged: {again}")
        if not self._log.check(name, held["log"]):
            self.notes.append(f"{self._log.path} has lost the epochs of {name} so far")
        self._log.sync()
        self._files[name] = dict(held["files"])
        self._state = None  # it is used once, and may be large
        state: dict[str, Any] = held["train"]
        return state

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to the log of epochs."""
        self._log.add(line)

    def save(self, name: str, state: Callable[[], dict[str, Any]], *, beside: int = 0) -> None:
        """Write the checkpoint for a network's first epoch, and then as often as `CHECKPOINT_SHARE` allows.

        ``beside`` is the number of other run folders that are written in the same time and share it. On resume, an
        epoch that is not in the checkpoint is trained again, with the same result. If the disk is full, the checkpoint
        before is whole.
        """
        start = time.monotonic()
        if start >= self._save_after or name != self._saved:
            self._log.sync()  # the checkpoint holds the hash of the lines
            held = {"files": self._files.get(name, {}), "log": self._log.summary(name), "recipe": self._recipe_hash}
            checkpoint.save(self._checkpoint, {"job": name, **held, "train": state()})
            end = time.monotonic()
            self._saved, self._save_after = name, end + (end - start) * (1 + beside) / CHECKPOINT_SHARE

    def conclude(self, runs: tuple[NetworkResult, ...], student: str, make: Callable[[], RunResult]) -> RunResult:
        """The run's own result, and the network ``student`` beside it; both are written unless they are there.

        The result must agree with the figures of every network, ``runs``. Otherwise ``make`` gives another one, after
        it has measured latencies.

        Raises:
            OtherSchema: another version of limbeck has written the result.
        """
        found = self._concluded(runs) if self._begun else None
        if copy_whole(self.weights(student, STUDENT), self.path / STUDENT) and found is not None:
            self.notes.append(f"{self.path / STUDENT} was missing or damaged, and is copied again")
        if found is None:
            found = make()
            write_sealed(self.path / RESULT, plain(found) | {"recipe": self._recipe_hash})
        return found

    def _concluded(self, runs: tuple[NetworkResult, ...]) -> RunResult | None:
        """The run's result.json if it is intact and agrees with these figures."""
        self._log.sync()
        file, found = self.path / RESULT, None
        try:
            values = read_values(self.path)
            if values is None:
                wrong = "was missing"
            else:
                recipe, found = values.pop("recipe", None), from_json(RunResult, values)
                same = json.dumps([plain(one) for one in found.runs]) == json.dumps([plain(one) for one in runs])
                wrong = "" if same and recipe == self._recipe_hash else "did not agree with the networks' results"
        except OtherSchema:
            raise
        except LimbeckError:
            wrong = "is damaged or was edited"
        if wrong:
            if not self._trained:  # else the run was not finished
                self.notes.append(f"{file} {wrong}: it is written again, and latencies are measured again")
            return None
        return found

    def take(self, name: str, trained_as: str) -> tuple[Path, NetworkResult] | None:
        """A run folder beside this one with an intact network of this name and this ``trained_as``.

        Its result is returned too. Its lines are copied from that run's log, if they are intact.
        """
        if not self.path.parent.is_dir():
            return None
        beside = sorted(islice(self.path.parent.iterdir(), SIBLINGS))
        for other in beside:
            if other.name != self.path.name and not other.is_symlink() and (other / name / RESULT).is_file():
                try:
                    network = read_network(other / name, name, trained_as=trained_as)
                except LimbeckError:  # damage there does not concern this run
                    continue
                if network is not None:
                    self._take_log(name, other)
                    return other, network.result
        return None

    def _take_log(self, name: str, other: Path) -> None:
        try:
            lines = EpochLog(other / LOG, kept=True).of(name)
        except LimbeckError:
            return
        self._log.begin(name)
        for line in lines:
            self._log.add(line)

    def _read_checkpoint(self) -> dict[str, Any]:
        try:
            state = checkpoint.load(self._checkpoint)
        except LimbeckError as error:
            raise LimbeckError(f"{error}: delete it to train its network again from the first epoch") from error
        kinds = {"job": str, "files": dict, "log": dict, "recipe": str, "train": dict}
        typed = state.keys() == kinds.keys() and all(isinstance(state[key], kind) for key, kind in kinds.items())
        if not (typed and are_records(state["files"]) and is_summary(state["log"])):
            raise LimbeckError(
                f"{self._checkpoint} is not a checkpoint of a run: delete it to train that network again"
            )
        if state["recipe"] != self._recipe_hash:
            raise LimbeckError(
                f"{self._checkpoint} belongs to a run of another recipe: delete it to train {state['job']} again"
            )
        return state


def refuse_other_recipe(path: Path, recipe: str, kind: str) -> None:
    """Raise LimbeckError if a folder has a recipe with another text; ``kind`` is what it holds."""
    found = read(path / RECIPE, WHOLE_BYTES)
    text = recipe if found is None else found.decode("utf-8", errors="replace").replace("\r\n", "\n")
    if text != recipe:
        differences = _differences(text, recipe)
        raise LimbeckError(f"{path} holds a {kind} of another recipe, so it cannot be resumed:\n{differences}")


def _differences(old: str, new: str) -> str:
    """The lines that differ, the shortest change first; at most 3 lines of each side of a change, and 12 in all."""
    before, after = _with_keys(old), _with_keys(new)
    steps = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    changes = [(before[a:b], after[c:d]) for kind, a, b, c, d in steps if kind != "equal"]
    lines: list[str] = []
    for gone, came in sorted(changes, key=lambda change: max(map(len, change))):
        for what, side in (("it has    ", gone), ("asked for ", came)):
            lines += [f"  {what}{line}" for line in side[:3]] + [f"  {what}..."] * (len(side) > 3)
    return "\n".join(lines[:12])


def _with_keys(text: str) -> list[str]:
    """The lines of a recipe with the keys of the blocks that they are in, such as ``train.epochs: 3``."""
    found, blocks = list[str](), list[tuple[int, str]]()  # the indentation and the key of the blocks
    for line in text.splitlines()[:MOST_LINES]:
        said = line.strip()[:MOST_SIGNS]
        depth = line.find(said) + said.startswith("- ")  # an item has the indentation of its key
        blocks = [block for block in blocks if block[0] < depth]
        found.append(("".join(f"{key}." for _, key in blocks) + said)[-MOST_SIGNS:])
        if said.endswith(":"):
            blocks.append((depth, said.removesuffix(":")))
    return found


def log_line(name: str, epoch: Epoch, validation: float | None, headline: str = "accuracy") -> dict[str, Any]:
    """One line of metrics.jsonl; ``headline`` names the figure of the validation split."""
    return {
        "job": name,
        "stage": epoch.stage,
        "stage_number": epoch.position,
        "epoch": epoch.number,
        "terms": dict(epoch.terms),
        "loss": epoch.loss,
        f"validation_{headline}": validation,
        "images_per_second": epoch.images / epoch.seconds,
        "seconds": epoch.seconds,
    }
