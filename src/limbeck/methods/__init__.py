"""The distillation methods: one file each, its losses first, then the function that returns stages, then its facts."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from limbeck.core import Method
from limbeck.methods.about import About

_FILES = (
    "alone",
    "kd",
    "fitnets",
    "fsp",
    "class_distance",
    "srrl",
    "logits",
    "mimic",
    "fitnets_one_stage",
    "at",
    "sp",
    "nst",
    "vid",
    "rkd",
    "pkt",
    "cc",
    "crd",
    "crd_in_batch",
    "dkd",
    "standardised",
    "dist",
    "mlkd",
    "cat_kd",
    "wsld",
    "ab",
    "ft",
    "ofd",
    "reviewkd",
    "semckd",
    "simkd",
    "mutual",
    "born_again",
    "assistants",
    "fine_tune",
)

_ABOUT: list[About] = [import_module(f"limbeck.methods.{file}").ABOUT for file in _FILES]

ABOUT: Mapping[str, About] = {about.function.__name__: about for about in _ABOUT}
"""The methods by name, in the order in which they are listed."""

METHODS: Mapping[str, Method] = {name: about.function for name, about in ABOUT.items()}

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    name: about.presets for name, about in ABOUT.items() if about.presets
}
"""Settings by name, for the methods that have published ones."""

TEACHERLESS = tuple(name for name, about in ABOUT.items() if not about.needs_teacher)
"""The methods that need no teacher."""
