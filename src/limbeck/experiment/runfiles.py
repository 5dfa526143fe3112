"""The files of a run folder: their names, whether they are intact, and how a run is deleted."""

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.core import LimbeckError
from limbeck.experiment.results import RESULT, NetworkResult, from_json
from limbeck.files.alone import LOCK
from limbeck.files.atomic import digest, read_sealed, replacing
from limbeck.recipe.blocks import Recipe
from limbeck.recipe.read import is_smoke, reread

STUDENT, LOG, RECIPE = "student.safetensors", "metrics.jsonl", "recipe.yaml"
ENVIRONMENT = "environment.json"
TABLE = "metrics.csv"
LOCKS = "locks"
"""The folder of the locks of a comparison or tuning, see `limbeck.experiment.trials`."""
CHECKPOINT = Path("checkpoint") / "last.pt"

_SEED = re.compile(r"seed\d+(-\d+)?")
_OF_NETWORK = re.compile(r"(result\.json|(student|teacher|outputs|after_[^/]*)\.safetensors)(\.tmp)?")
_OF_STORE = re.compile(r"(tap\d+-view\d+-shard\d+\.safetensors|manifest\.json|building\.json)(\..*)?")
REPORT = "report.html"
_OF_RUN = (RESULT, STUDENT, LOG, TABLE, RECIPE, REPORT, ENVIRONMENT, str(CHECKPOINT))


@dataclass(frozen=True)
class Network:
    """The content of a finished network's result.json."""

    result: NetworkResult
    files: Mapping[str, Mapping[str, Any]]  # by name, the size and sha256 of the weights beside it
    log: Mapping[str, Any]  # the number of its lines in the log, and their sha256
    recipe: str  # sha256 of the recipe that it was trained with


def holds_epoch(path: Path) -> bool:
    """Whether a folder holds a finished epoch of a run: a line of the log, a checkpoint, or a result."""
    if any((path / name).exists() for name in (CHECKPOINT, RESULT)):
        return True
    if (path / LOG).exists() and (not (path / LOG).is_file() or _has_line(path / LOG)):
        return True
    return any((folder / RESULT).exists() for folder in network_folders(path))


def holds_run_of(path: Path, recipe: Recipe) -> bool:
    """Whether a folder holds a run of the same name that may be replaced: its training was not longer.

    A smoke test replaces every earlier smoke test, and nothing else.
    """
    try:
        known = reread(path / RECIPE)
    except LimbeckError:
        return False
    short = is_smoke(known) if is_smoke(recipe) else known.train.epochs <= recipe.train.epochs
    return short and known.name == recipe.name


def network_folders(path: Path) -> Iterator[Path]:
    """The folders ``<arm>/seed<N>`` of a run; links are not followed."""
    for arm in _folders(path):
        yield from (folder for folder in _folders(arm) if _SEED.fullmatch(folder.name))


def read_network(folder: Path, name: str, *, trained_as: str | None = None) -> Network | None:
    """The content of the folder of the network ``name``; None if it is not finished, or has another ``trained_as``.

    Raises:
        LimbeckError: a file is damaged or missing, or belongs to another network.
    """
    file, again = folder / RESULT, f"delete {folder} to train {name} again"
    try:
        values = read_sealed(file)
    except LimbeckError as error:
        raise LimbeckError(f"{error}: {again}") from error
    if values is None or (trained_as is not None and values.get("trained_as") != trained_as):
        return None
    held = {key: values.pop(key, None) for key in ("files", "log", "recipe")}
    try:
        result = from_json(NetworkResult, values)
    except LimbeckError as error:
        raise LimbeckError(f"{file} contains no results of a network ({error}): {again}") from error
    if not (are_records(held["files"]) and is_summary(held["log"]) and result.weights_sha256):
        raise LimbeckError(f"{file} contains no results of a network: {again}")
    if result.name != name:
        raise LimbeckError(f"{file} belongs to {result.name}, not to {name}: move it back, or {again}")
    for weights, record in held["files"].items():
        if not holds(folder / weights, record):
            raise LimbeckError(f"{folder / weights} is missing, damaged or not the file that was written: {again}")
    return Network(result, held["files"], held["log"], str(held["recipe"]))


def holds(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether a file is bit-identical to the one that `file_record` was called on."""
    return digest(path, int(record["bytes"])) == str(record["sha256"])


def file_record(path: Path) -> dict[str, Any]:
    """A file's size and sha256."""
    size = path.stat().st_size
    return {"bytes": size, "sha256": digest(path, size)}


def are_records(value: Any) -> bool:
    """Whether a value maps file names without folders to what `file_record` returns."""
    return isinstance(value, dict) and all(
        isinstance(name, str)
        and Path(name).name == name
        and isinstance(record, dict)
        and type(record.get("bytes")) is int
        and isinstance(record.get("sha256"), str)
        for name, record in value.items()
    )


def is_summary(value: Any) -> bool:
    """Whether a value is what `limbeck.experiment.epochlog.EpochLog.summary` returns."""
    return isinstance(value, dict) and type(value.get("lines")) is int and isinstance(value.get("sha256"), str)


def copy_whole(source: Path, path: Path) -> bool:
    """Copy a file to ``path``; False if it is there already."""
    record = file_record(source)
    if holds(path, record):
        return False
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)
        if not holds(temporary, record):
            raise LimbeckError(f"{source} changed while it was copied")
    return True


def clear(path: Path) -> None:
    """Delete the run that a folder holds; other files stay, and links are not followed.

    Raises:
        LimbeckError: the folder has files but no recipe.yaml, so no run wrote it; or a file cannot be deleted.
    """
    if not path.exists():
        return
    if not (path / RECIPE).exists() and (not path.is_dir() or any(file.name != LOCK for file in path.iterdir())):
        raise LimbeckError(f"{path} holds no {RECIPE}, so it is not a run that can be replaced")
    try:
        for name in _OF_RUN:
            for file in (path / name, path / f"{name}.tmp"):
                _delete(file)
        _delete_empty(path / CHECKPOINT.parent)
        stores = [store for folder in _folders(path) if folder.name == "store" for store in _folders(folder)]
        for folder in [*network_folders(path), *stores]:
            for file in list(folder.iterdir()):
                if (_OF_NETWORK if _SEED.fullmatch(folder.name) else _OF_STORE).fullmatch(file.name):
                    _delete(file)
            _delete_empty(folder)
            _delete_empty(folder.parent)
    except OSError as error:
        raise LimbeckError(f"{error.filename} cannot be deleted: {error.strerror}") from error


def _folders(path: Path) -> list[Path]:
    inside = path.iterdir() if path.is_dir() else ()
    return [folder for folder in inside if folder.is_dir() and not folder.is_symlink()]


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        _delete_empty(path)
    else:
        path.unlink(missing_ok=True)


def _delete_empty(path: Path) -> None:
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        path.rmdir()


def _has_line(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\n" in file.read(2**20)
