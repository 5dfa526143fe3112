"""What a recipe may name, and with which options: read from a file, so that a recipe is checked without torch.

`limbeck methods --write` writes the file from the functions' signatures; a test fails where it is out of date.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.options import Signature

FILE = Path(__file__).with_name("signatures.json")


class Names(NamedTuple):
    """Everything by its name."""

    methods: dict[str, Signature]
    models: dict[str, Signature]
    optimizers: dict[str, Signature]
    schedules: dict[str, Signature]
    presets: dict[str, dict[str, dict[str, Any]]]  # by method, then by the preset's name
    teacherless: list[str]  # the methods that need no teacher
    sources: dict[str, Signature]  # of data


@functools.cache
def known() -> Names:
    """What the file says."""
    return Names(**json.loads(FILE.read_text(encoding="utf-8")))
