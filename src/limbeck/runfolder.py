"""A run on disk. Every file is written whole or not at all, except for the log of epochs, which grows line by line.

runs/<name>/
  recipe.yaml          the recipe with everything written out; running it again gives the same run
  environment.json     versions, hardware, commit, device and precision picked
  metrics.jsonl        one line an epoch
  checkpoint/last.pt   exact resume of the network that is being trained
  <arm>/seed<N>/       one folder a trained network: its weights and its result.json
  student.safetensors  the distilled student of the first seed
  result.json          the final figures
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from limbeck import checkpoint
from limbeck.core import LimbeckError

CHECKPOINT_SHARE = 0.1
"""At most this share of a run's time goes into writing checkpoints."""


class RunFolder:
    """The run folder of one recipe.

    Args:
        path: the folder; it need not exist.
        recipe: the recipe's text, everything written out.
        resume: go on with what the folder holds.

    Raises:
        LimbeckError: without ``resume``, the folder already holds a run; with it, one of another recipe, or a
            damaged one.
    """

    def __init__(self, path: Path, recipe: str, *, resume: bool) -> None:
        self.path = path
        self._recipe = recipe
        self._checkpoint = path / "checkpoint" / "last.pt"
        self._log = path / "metrics.jsonl"
        self._save_after = 0.0
        known = path / "recipe.yaml"
        if path.exists() and not path.is_dir():
            raise LimbeckError(f"{path} is no folder: give another one by --out")
        if known.exists() and not resume:
            raise LimbeckError(
                f"{path} already holds a run: go on with it by --resume, or give another folder by --out"
            )
        if known.exists() and known.read_text() != recipe:
            raise LimbeckError(
                f"{path} holds a run of another recipe, so it cannot be resumed:\n"
                + _differences(known.read_text(), recipe)
            )
        self._state = checkpoint.load(self._checkpoint) if resume and self._checkpoint.exists() else None

    def open(self, environment: Mapping[str, Any]) -> None:
        """Create the folder and write what is known before training."""
        self.path.mkdir(parents=True, exist_ok=True)
        write(self.path / "recipe.yaml", self._recipe)
        write_json(self.path / "environment.json", environment)

    def job(self, name: str) -> Path:
        """The folder of one trained network."""
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def result(self, name: str) -> dict[str, Any] | None:
        """A finished network's figures, or None while it is not finished.

        Raises:
            LimbeckError: they are damaged.
        """
        file = self.path / name / "result.json"
        if not file.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(file.read_text())
            found["test"]
        except (ValueError, TypeError, KeyError) as error:
            raise LimbeckError(
                f"{file} is damaged ({type(error).__name__}): delete it, and {name} is trained again"
            ) from error
        return found

    def state(self, name: str) -> dict[str, Any] | None:
        """Where the training of this network stands, None at its beginning; later epochs leave the log.

        Raises:
            LimbeckError: the log is damaged, not only cut short.
        """
        state = self._state["train"] if self._state is not None and self._state["job"] == name else None
        text = self._log.read_text() if self._log.exists() else ""
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]  # the last may be cut short
        try:
            whole = [json.loads(line) for line in lines]
            kept = [line for line in whole if line["job"] != name or (state is not None and _reached(line, state))]
        except (ValueError, TypeError, KeyError) as error:
            raise LimbeckError(f"{self._log} is damaged ({error}): delete its broken lines") from error
        wanted = "".join(json.dumps(line) + "\n" for line in kept)
        if wanted != text:
            write(self._log, wanted)
        return state

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to the log of epochs."""
        with self._log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def save(self, name: str, state: Callable[[], dict[str, Any]]) -> None:
        """Write the checkpoint, unless that would take more than its share of the time.

        An epoch that is not in the checkpoint is trained again on resume, to the same result.
        """
        start = time.monotonic()
        if start >= self._save_after:
            checkpoint.save(self._checkpoint, {"job": name, "train": state()})
            end = time.monotonic()
            self._save_after = end + (end - start) / CHECKPOINT_SHARE


def clear(path: Path, *, arms: Iterable[str]) -> None:
    """Delete the run of these arms that a folder holds; whatever else lies there stays."""
    for name in (*arms, "checkpoint"):
        shutil.rmtree(path / name, ignore_errors=True)
    for name in ("environment.json", "metrics.jsonl", "student.safetensors", "result.json", "recipe.yaml"):
        (path / name).unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Write a text so that ``path`` always holds the whole old or the whole new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write plain values as JSON, for people to read too."""
    write(path, json.dumps(value, indent=2) + "\n")


def _reached(line: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    return (line["stage_number"], line["epoch"]) <= (state["stage"], state["epoch"])


def _differences(old: str, new: str) -> str:
    before, after = old.splitlines(), new.splitlines()
    gone = [f"  it has    {line.strip()}" for line in before if line not in after]
    came = [f"  asked for {line.strip()}" for line in after if line not in before]
    return "\n".join((gone + came)[:12])
