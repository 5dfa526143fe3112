"""The recorded values of the authors' code, one test a case.

The folder is LIMBECK_GOLDEN, by default ../shared/golden/open beside the repository; any folder of the same layout
passes: an index.json and one .npz a method.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.methods.alone import hard_loss
from limbeck.methods.kd import soft_loss
from limbeck.methods.logits import logits_loss

FOLDER = Path(os.environ.get("LIMBECK_GOLDEN", Path(__file__).parents[1].parent / "shared" / "golden" / "open"))


def hinton_kd(case: Mapping[str, Tensor], options: Mapping[str, Any]) -> Tensor:
    return soft_loss(case["student_logits"], case["teacher_logits"], temperature=options["T"])


def hinton_kd_with_ce(case: Mapping[str, Tensor], options: Mapping[str, Any]) -> Tensor:
    soft = soft_loss(case["student_logits"], case["teacher_logits"], temperature=options["T"])
    return options["alpha"] * soft + (1 - options["alpha"]) * hard_loss(case["student_logits"], case["labels"])


def logits_mse(case: Mapping[str, Tensor], options: Mapping[str, Any]) -> Tensor:
    return logits_loss(case["student_logits"], case["teacher_logits"], average="elements")


OURS: Mapping[str, Callable[[Mapping[str, Tensor], Mapping[str, Any]], Tensor]] = {
    "hinton_kd": hinton_kd,
    "hinton_kd_with_ce": hinton_kd_with_ce,
    "logits_mse": logits_mse,
}
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
    inputs = {key: value.clone().requires_grad_(key in wanted) for key, value in stored.items() if "/" not in key}
    loss = OURS[method](inputs, case["hyperparameters"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), stored["loss"].reshape(()), rtol=1e-9, atol=1e-14)
    assert wanted
    floor = max(1e-10 * max(value.abs().max().item() for value in wanted.values()), 1e-15)
    for name, value in wanted.items():
        torch.testing.assert_close(
            inputs[name].grad, value, rtol=1e-7, atol=floor, msg=lambda text, n=name: f"{n}: {text}"
        )
