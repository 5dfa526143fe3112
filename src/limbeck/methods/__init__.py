"""The distillation methods: one file each, its losses first, then the function that returns stages."""

from collections.abc import Mapping
from typing import Any

from limbeck.core import Method
from limbeck.methods.alone import alone
from limbeck.methods.kd import PRESETS as KD_PRESETS
from limbeck.methods.kd import kd
from limbeck.methods.logits import logits

METHODS: Mapping[str, Method] = {
    "alone": alone,
    "kd": kd,
    "logits": logits,
}

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {"kd": KD_PRESETS}
"""Settings by name, for the methods that have published ones."""
