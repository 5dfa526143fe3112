"""A run on disk. Every file is written whole or not at all, except for the log of epochs, which grows line by line.

runs/<name>/
  recipe.yaml          the recipe with everything written out; running it again gives the same run
  environment.json     versions, hardware, commit, device and precision picked
  metrics.jsonl        one line an epoch
  checkpoint/last.pt   exact resume of the network that is being trained
  store/               outputs of the teacher that are kept
  <arm>/seed<N>/       one folder a trained network: its weights and its result.json
  student.safetensors  the distilled student of the first seed
  result.json          the final figures
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from limbeck import checkpoint
from limbeck.core import LimbeckError
from limbeck.train import Epoch
from limbeck.whole import write, write_json

LEFT_BY_RUNS = ("checkpoint", "metrics.jsonl", "result.json", "recipe.yaml")
"""What shows that a folder holds a run."""

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
        self._resume = resume
        self._saved, self._save_after = "", 0.0
        known = path / "recipe.yaml"
        if path.exists() and not path.is_dir():
            raise LimbeckError(f"{path} is no folder: give another one by --out")
        if not resume and any((path / name).exists() for name in LEFT_BY_RUNS):
            raise LimbeckError(
                f"{path} already holds a run: go on with it by --resume, or give another folder by --out"
            )
        if known.exists():
            text = known.read_bytes().decode("utf-8", errors="replace")
            if text != recipe:
                differences = _differences(text, recipe)
                raise LimbeckError(f"{path} holds a run of another recipe, so it cannot be resumed:\n{differences}")
        self._state: dict[str, Any] = (
            checkpoint.load(self._checkpoint) if resume and self._checkpoint.exists() else {"job": ""}
        )
        if not isinstance(self._state.get("job"), str) or ("train" in self._state) != bool(self._state["job"]):
            raise LimbeckError(f"{self._checkpoint} is no checkpoint of a run: delete it to train that network again")

    def open(self, environment: Mapping[str, Any]) -> None:
        """Create the folder and write what is known before training; what a resumed run had before is kept."""
        write(self.path / "recipe.yaml", self._recipe)
        file = self.path / "environment.json"
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        earlier = before.pop("earlier", [])
        if before and before != environment:
            earlier = [*earlier, before]
        write_json(file, {**environment, "earlier": earlier} if earlier else environment)

    def result(self, name: str) -> dict[str, Any] | None:
        """A finished network's figures, or None while it is not finished.

        Raises:
            LimbeckError: they are damaged.
        """
        file = self.path / name / "result.json"
        if not self._resume or not file.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            found["arm"], found["seed"], found["test"]["errors"], found["weights_sha256"]
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
        state = self._state["train"] if self._state["job"] == name else None
        text = self._log.read_bytes().decode("utf-8", errors="replace") if self._log.exists() else ""
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]  # the last may be cut short
        try:
            whole = [json.loads(line) for line in lines]
            kept = [line for line in whole if line["job"] != name or (state is not None and _reached(line, state))]
        except (ValueError, TypeError, KeyError) as error:
            raise LimbeckError(f"{self._log} is damaged ({error}): delete its broken lines") from error
        wanted = "".join(json.dumps(line) + "\n" for line in kept)
        if wanted != text:
            write(self._log, wanted)
        if state is not None:
            self._state = {"job": ""}  # it is needed once, and may be large
        return state

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to the log of epochs."""
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save(self, name: str, state: Callable[[], dict[str, Any]]) -> None:
        """Write the checkpoint: for a network's first epoch, and then unless it took more than its share of the time.

        An epoch that is not in the checkpoint is trained again on resume, to the same result.
        """
        start = time.monotonic()
        if start >= self._save_after or name != self._saved:
            checkpoint.save(self._checkpoint, {"job": name, "train": state()})
            end = time.monotonic()
            self._saved, self._save_after = name, end + (end - start) / CHECKPOINT_SHARE


def clear(path: Path, *, arms: Iterable[str]) -> None:
    """Delete the run of these arms that a folder holds; whatever else lies there stays."""
    for name in (*LEFT_BY_RUNS, *arms, "store", "environment.json", "student.safetensors"):
        if (path / name).is_dir():
            shutil.rmtree(path / name)
        else:
            (path / name).unlink(missing_ok=True)


def _reached(line: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    return (line["stage_number"], line["epoch"]) <= (state["stage"], state["epoch"])


def _differences(old: str, new: str) -> str:
    before, after = old.splitlines(), new.splitlines()
    gone = [f"  it has    {line.strip()}" for line in before if line not in after]
    came = [f"  asked for {line.strip()}" for line in after if line not in before]
    return "\n".join((gone + came)[:12])


def log_line(name: str, epoch: Epoch, validation: float | None) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    return {
        "job": name,
        "stage": epoch.stage,
        "stage_number": epoch.position,
        "epoch": epoch.number,
        "terms": dict(epoch.terms),
        "loss": epoch.loss,
        "validation_accuracy": validation,
        "images_per_second": epoch.images / epoch.seconds,
        "seconds": epoch.seconds,
    }
