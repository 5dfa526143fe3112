"""Our functions beside the recorded values: which cases a folder holds, and what a case is compared by."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recorded import METHOD_OF, Recorded, classes, connected, logits, maps, systems

FOLDER = Path(os.environ.get("LIMBECK_GOLDEN", Path(__file__).parents[2].parent / "shared" / "golden" / "open"))

OURS: Mapping[str, Recorded] = logits.OURS | maps.OURS | connected.OURS | classes.OURS | systems.OURS
"""From a record to our function: ``(inputs, hyper-parameters) -> loss``."""


class Value(NamedTuple):
    """One recorded case."""

    record: str
    case: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.record}-{self.case['case']}"


def index(folder: Path = FOLDER) -> Mapping[str, Any]:
    """What the folder says of itself; empty where there is none."""
    file = folder / "index.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def recorded(folder: Path = FOLDER) -> Iterator[Value]:
    """Every case of the folder, those of records unknown to us too."""
    for record, held in index(folder).get("methods", {}).items():
        for case in held["cases"]:
            yield Value(record, case)


def compare(value: Value, folder: Path = FOLDER) -> None:
    """Raise AssertionError unless our loss and every gradient are the recorded ones."""
    record, case = value
    assert record in OURS, f"no function of ours is compared with the record {record!r}: add it in tests/recorded"
    stored = _stored(record, case["case"], folder)
    wanted = {key.removeprefix("grad/"): tensor for key, tensor in stored.items() if key.startswith("grad/")}
    given = {key: tensor for key, tensor in stored.items() if key.partition("/")[0] not in ("grad", "part", "loss")}
    inputs = {key: tensor.clone().requires_grad_(key in wanted) for key, tensor in given.items()}
    loss = OURS[record](inputs, case["hyperparameters"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), stored["loss"].reshape(()), rtol=1e-9, atol=1e-14)
    assert wanted, "no gradient is recorded"
    floor = max(1e-10 * max(tensor.abs().max().item() for tensor in wanted.values()), 1e-15)
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            inputs[name].grad, tensor, rtol=1e-7, atol=floor, msg=lambda text, n=name: f"{n}: {text}"
        )


def counts(folder: Path = FOLDER) -> dict[str, dict[str, list[int]]]:
    """From our method to its records to [cases that pass, all cases]."""
    found: dict[str, dict[str, list[int]]] = {}
    for value in recorded(folder):
        pair = found.setdefault(METHOD_OF[value.record], {}).setdefault(value.record, [0, 0])
        pair[1] += 1
        try:
            compare(value, folder)
        except Exception:  # whatever a case fails by, it does not pass
            continue
        pair[0] += 1
    return {method: dict(sorted(records.items())) for method, records in sorted(found.items())}


def _stored(record: str, case: str, folder: Path) -> dict[str, Tensor]:
    prefix = f"{case}/"
    with np.load(folder / f"{record}.npz") as file:
        return {key.removeprefix(prefix): torch.from_numpy(file[key]) for key in file.files if key.startswith(prefix)}
