"""The names that a recipe may use and their options, read from a file so that torch is not needed.

`limbeck methods --write` writes the file from the signatures of the functions. A test fails if the file is outdated.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.options import Signature

FILE = Path(__file__).with_name("signatures.json")


class Names(NamedTuple):
    """The content of the file."""

    methods: dict[str, Signature]
    models: dict[str, Signature]
    optimizers: dict[str, Signature]
    schedules: dict[str, Signature]
    presets: dict[str, dict[str, dict[str, Any]]]  # by method, then by the name of the preset
    teacherless: list[str]  # the methods that need no teacher
    sources: dict[str, Signature]  # of data


@functools.cache
def known() -> Names:
    """Return the content of the file."""
    return Names(**json.loads(FILE.read_text(encoding="utf-8")))
