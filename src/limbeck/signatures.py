"""What a recipe may name, and with which options: read from a file, so that a recipe is checked without torch.

The file is written from the functions' signatures by `limbeck methods --write`; a test tells when it is stale.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.options import Signature, signature

FILE = Path(__file__).with_name("signatures.json")


class Names(NamedTuple):
    """Everything by its name."""

    methods: dict[str, Signature]
    models: dict[str, Signature]
    optimizers: dict[str, Signature]
    schedules: dict[str, Signature]
    presets: dict[str, dict[str, dict[str, Any]]]  # by method, then by the preset's name
    teacherless: list[str]  # the methods that need no teacher
    sources: list[str]  # of data


@functools.cache
def known() -> Names:
    """What the file says."""
    return Names(**json.loads(FILE.read_text(encoding="utf-8")))


def stale() -> bool:
    """Whether the file says otherwise than it should."""
    return not FILE.exists() or FILE.read_text(encoding="utf-8") != written()


def written() -> str:
    """What the file should say."""
    from limbeck.data import SOURCES
    from limbeck.methods import METHODS, PRESETS, TEACHERLESS
    from limbeck.models import MODELS
    from limbeck.optimizers import OPTIMIZERS
    from limbeck.schedules import SCHEDULES

    tables = {"methods": METHODS, "models": MODELS, "optimizers": OPTIMIZERS, "schedules": SCHEDULES}
    names = {kind: {name: signature(function) for name, function in table.items()} for kind, table in tables.items()}
    parts = [f"{json.dumps(kind)}: {_lines(entries)}" for kind, entries in (names | {"presets": PRESETS}).items()]
    parts += [f'"teacherless": {json.dumps(TEACHERLESS)}', f'"sources": {json.dumps(list(SOURCES))}']
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(entries: Mapping[str, Any]) -> str:
    """An object with a line for each name."""
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()) + "\n}"
