"""The recorded values of the authors' code, one test a case.

The folder is LIMBECK_GOLDEN, by default ../shared/golden/open beside the repository; any folder of the same layout
passes: an index.json and one .npz a method.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recorded import Recorded, classes, connected, logits, maps, systems

FOLDER = Path(os.environ.get("LIMBECK_GOLDEN", Path(__file__).parents[1].parent / "shared" / "golden" / "open"))


OURS: Mapping[str, Recorded] = logits.OURS | maps.OURS | connected.OURS | classes.OURS | systems.OURS
"""From a recorded method to our function: ``(inputs, hyper-parameters) -> loss``."""


def recorded() -> list[Any]:
    if not (FOLDER / "index.json").is_file():
        reason = f"no recorded values in {FOLDER}: set LIMBECK_GOLDEN"
        return [pytest.param("", {}, marks=pytest.mark.skip(reason=reason), id="none")]
    methods = json.loads((FOLDER / "index.json").read_text())["methods"]
    absent = [
        pytest.param("", {}, marks=pytest.mark.skip(reason=f"{FOLDER} has no record of {name}"), id=f"{name}-none")
        for name in OURS
        if name not in methods
    ]
    return absent + [
        pytest.param(name, case, id=f"{name}-{case['case']}")
        for name in OURS
        if name in methods
        for case in methods[name]["cases"]
    ]


@pytest.mark.parametrize(("method", "case"), recorded())
def test_golden_value_and_every_gradient(method, case):
    with np.load(FOLDER / f"{method}.npz") as file:
        prefix = case["case"] + "/"
        stored = {key.removeprefix(prefix): torch.from_numpy(file[key]) for key in file.files if key.startswith(prefix)}
    wanted = {key.removeprefix("grad/"): value for key, value in stored.items() if key.startswith("grad/")}
    given = {key: value for key, value in stored.items() if key.partition("/")[0] not in ("grad", "part", "loss")}
    inputs = {key: value.clone().requires_grad_(key in wanted) for key, value in given.items()}
    loss = OURS[method](inputs, case["hyperparameters"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), stored["loss"].reshape(()), rtol=1e-9, atol=1e-14)
    assert wanted
    floor = max(1e-10 * max(value.abs().max().item() for value in wanted.values()), 1e-15)
    for name, value in wanted.items():
        torch.testing.assert_close(
            inputs[name].grad, value, rtol=1e-7, atol=floor, msg=lambda text, n=name: f"{n}: {text}"
        )
