"""What there is to choose from: methods, networks and their layers, as tables and pages."""

import fnmatch
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from limbeck.core import LimbeckError, Outline, Stage, Tap, Term
from limbeck.data import arrays
from limbeck.evaluate import parameters
from limbeck.methods import METHODS, PRESETS
from limbeck.models import MODELS, build, layers
from limbeck.models import options as model_options
from limbeck.optimizers import sgd
from limbeck.options import nearest
from limbeck.outline import outline
from limbeck.schedules import constant
from limbeck.session import Training, plan, probe
from limbeck.whole import replacing

SYSTEMS = ("kd", "fitnets", "fsp", "srrl", "class_distance")
"""The five whole systems; the other methods are their relatives."""

REFERENCE = {"student": "resnet8", "teacher": "resnet14"}
"""The networks on which a method's stages and taps are shown."""

_SHAPE, _CLASSES = (3, 16, 16), 4


@dataclass(frozen=True)
class Citation:
    """Whose method it is, from the first line of its module."""

    authors: str
    title: str
    year: int
    arxiv: str  # "" where the paper is not there


@dataclass(frozen=True)
class Planned:
    """A method's stages on the reference networks."""

    stages: tuple[Stage, ...]
    shapes: Mapping[Tap, tuple[int, ...]]
    outlines: Mapping[str, Outline]


def citation(name: str) -> Citation | None:
    """The source that a method's module names; None where it names none."""
    line = _source(name)
    found = re.fullmatch(r'(?:[^":]+: )?(?P<authors>[^"]+), "(?P<title>[^"]+)" \((?P<year>\d{4})\)(?:, .+)?\.', line)
    arxiv = re.search(r"arXiv:(\d{4}\.\d{4,5})", line)
    return found and Citation(found["authors"], found["title"], int(found["year"]), arxiv[1] if arxiv else "")


def meanings(function: Callable[..., Any]) -> dict[str, str]:
    """What the ``Args:`` of a function's documentation say of each argument."""
    found: dict[str, list[str]] = {}
    for line in _sections(function).get("Args", []):
        name, colon, text = line.strip().partition(": ")
        if re.match(r" {4}\S", line) and colon:
            found[name] = [text]
        elif found:
            found[list(found)[-1]].append(line.strip())
    return {name: " ".join(lines).strip() for name, lines in found.items()}


@functools.cache
def recorded() -> Mapping[str, Mapping[str, tuple[int, int]]]:
    """From a method to the recorded values of the authors' code, by record: passed and all cases."""
    held = json.loads((Path(__file__).parent / "methods" / "recorded.json").read_text(encoding="utf-8"))
    return {method: {name: (passed, cases) for name, (passed, cases) in records.items()} for method, records in held.items()}


@functools.cache
def planned(name: str) -> Planned:
    """A method's stages, as it gives them by default for the reference networks."""
    samples = torch.randn(8, *_SHAPE, generator=torch.Generator().manual_seed(0))
    data = arrays(samples, torch.arange(8) % _CLASSES, test=samples_of_test(samples), validation=0)
    ...
