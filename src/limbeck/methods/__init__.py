"""The distillation methods: one file each, its losses first, then the function that returns stages."""

from collections.abc import Mapping
from typing import Any

from limbeck.core import Method
from limbeck.methods.alone import alone
from limbeck.methods.assistants import assistants
from limbeck.methods.born_again import born_again
from limbeck.methods.class_distance import class_distance
from limbeck.methods.fine_tune import fine_tune
from limbeck.methods.fitnets import fitnets, fitnets_one_stage
from limbeck.methods.fsp import fsp
from limbeck.methods.kd import PRESETS as KD_PRESETS
from limbeck.methods.kd import kd
from limbeck.methods.logits import logits
from limbeck.methods.mimic import mimic
from limbeck.methods.mutual import mutual
from limbeck.methods.srrl import srrl

METHODS: Mapping[str, Method] = {
    "alone": alone,
    "kd": kd,
    "fitnets": fitnets,
    "fsp": fsp,
    "class_distance": class_distance,
    "srrl": srrl,
    "logits": logits,
    "mimic": mimic,
    "fitnets_one_stage": fitnets_one_stage,
    "mutual": mutual,
    "born_again": born_again,
    "assistants": assistants,
    "fine_tune": fine_tune,
}

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {"kd": KD_PRESETS}
"""Settings by name, for the methods that have published ones."""

TEACHERLESS = ("alone", "fine_tune", "mutual")
"""The methods that need no teacher."""
