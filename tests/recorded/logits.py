"""Methods on logits alone."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from limbeck.methods.alone import hard_loss
from limbeck.methods.kd import soft_loss
from limbeck.methods.logits import logits_loss
from recorded import Case, Recorded


def hinton_kd(case: Case, options: Mapping[str, Any]) -> Tensor:
    return soft_loss(case["student_logits"], case["teacher_logits"], temperature=options["T"])


def hinton_kd_with_ce(case: Case, options: Mapping[str, Any]) -> Tensor:
    soft = soft_loss(case["student_logits"], case["teacher_logits"], temperature=options["T"])
    return options["alpha"] * soft + (1 - options["alpha"]) * hard_loss(case["student_logits"], case["labels"])


def logits_mse(case: Case, options: Mapping[str, Any]) -> Tensor:
    return logits_loss(case["student_logits"], case["teacher_logits"], average="elements")


OURS: Mapping[str, Recorded] = {
    "hinton_kd": hinton_kd,
    "hinton_kd_with_ce": hinton_kd_with_ce,
    "logits_mse": logits_mse,
}
