"""The methods as a table and as pages, from their `ABOUT`, their signatures and the stages they return."""

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Group
from rich.table import Table
from torch import nn

from limbeck.core import LimbeckError, Schedule, Setup, Stage, Tap
from limbeck.data import SOURCES, arrays
from limbeck.data.sources import source_signature
from limbeck.errors import nearest
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training
from limbeck.methods import ABOUT, METHODS, PRESETS, TEACHERLESS
from limbeck.methods.about import About
from limbeck.models import MODELS, build
from limbeck.optimizers import OPTIMIZERS, sgd
from limbeck.options import signature
from limbeck.schedules import SCHEDULES, constant

EPOCHS = 100
"""The epochs of the recipe for which a page shows a method's stages."""

_SHAPE, _CLASSES = (3, 16, 16), 4
_GROUPS = ("Systems", "Without a teacher", "Reading logits", "Reading the classifier's input", "Reading layers inside")
_COLUMNS = {"method": 17, "year": 4, "paper": None, "stage: student's / others'": 28, "met": 5}
_LEGEND = (
    "stage: the tensors read from the student / from the other networks\n"
    "met: how many of the recorded values of the authors' code limbeck reproduces"
)
_READS = {1: "vector", 2: "tokens", 3: "map"}


@dataclass(frozen=True)
class Planned:
    """A method's stages with its default options and its example networks, and the setup it was given."""

    stages: tuple[Stage, ...]
    setup: Setup


def meanings(function: Callable[..., Any]) -> dict[str, str]:
    """The description of each argument under ``Args:`` in a function's docstring."""
    found: dict[str, list[str]] = {}
    for line in _sections(function).get("Args", []):
        name, colon, text = line.strip().partition(": ")
        if re.match(r" {4}\S", line) and colon:
            found[name] = [text]
        elif found:
            found[list(found)[-1]].append(line.strip())
    return {name: " ".join(lines).strip() for name, lines in found.items()}


@functools.cache
def recorded() -> Mapping[str, Mapping[str, Sequence[int]]]:
    """For each method its records of the authors' values: the number of cases reproduced, and the number of cases."""
    file = Path(__file__).parents[1] / "methods" / "recorded.json"
    found: Mapping[str, Mapping[str, Sequence[int]]] = json.loads(file.read_text(encoding="utf-8"))
    return found


@functools.cache
def planned(about: About) -> Planned:
    """A method's stages with its default options, for its example networks."""
    given: list[Setup] = []

    def watched(setup: Setup) -> tuple[Stage, ...]:
        given.append(setup)
        return about.function(setup)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        data = arrays(torch.randn(32, *_SHAPE), torch.arange(32) % _CLASSES)
        networks = {role: _network(role, model) for role, model in about.networks.items()}
        stages = plan(watched, networks, data, Training(EPOCHS, 8, sgd(lr=0.1), constant()))
    return Planned(stages, given[0])


def method_table() -> Group:
    """Every method: its year, its paper, its stages and what they read, and the recorded values it reproduces."""
    groups: dict[str, Table] = {}
    for name, about in ABOUT.items():
        plans, paper = planned(about), about.paper
        title = paper.title if paper else _summary(about)
        others = [role for role in plans.setup.networks if role != "student"]
        sides = (["student"], others)
        reads = [" / ".join(_reads(plans, [stage], side) or "-" for side in sides) for stage in plans.stages]
        reads = [f"{stage.name}: {read}" for stage, read in zip(plans.stages, reads, strict=True)]
        table = groups.setdefault(_group(about), Table(box=box.SIMPLE_HEAD, show_edge=False, expand=True))
        table.add_row(name, str(paper.year) if paper else "", title, "\n".join(reads), _met(name))
    for group, table in groups.items():
        table.title, table.title_justify, table.title_style, table.padding = group, "left", "bold", (0, 1, 0, 0)
        for column, (heading, width) in zip(table.columns, _COLUMNS.items(), strict=True):
            column.header, column.width, column.ratio, column.overflow = heading, width, None if width else 1, "fold"
    listed = [groups[group] for group in _GROUPS if group in groups]
    for table in listed[1:]:
        table.show_header = False
    return Group(*listed, _LEGEND)


def method_page(name: str) -> str:
    """A method in full, as Markdown: paper, stages, options, presets, recorded values, use."""
    if name not in ABOUT:
        raise LimbeckError(f"there is no method {name!r}: {nearest(name, ABOUT)}")
    about = ABOUT[name]
    source = f"{about.paper}." if about.paper else "This method is unpublished."
    blocks = [
        [f"# {name}", "", source, "", *_sections(about.function)[""], "", f"Tasks: {', '.join(about.tasks)}."],
        ["## Stages", "", *_stages(about)],
        ["## Options", "", *(_options(about) or ["This method has no options."])],
    ]
    presets = [
        f"- `{preset}`: " + ", ".join(f"{key} {_value(value)}" for key, value in options.items())
        for preset, options in about.presets.items()
    ]
    if presets:
        blocks.append(["## Presets", "", *presets])
    records = [f"- `{record}`: {met} of {cases}" for record, (met, cases) in recorded().get(name, {}).items()]
    if records:
        blocks.append(["## Recorded values of the authors' code that limbeck reproduces", "", *records])
    blocks.append(["## In a recipe", "", *_use(name, about)])
    return "\n\n".join("\n".join(block).strip() for block in blocks) + "\n"


def method_pages() -> dict[str, str]:
    """Every method's page and their index, by file name."""
    rows = ["| method | paper | stages | recorded |", "|---|---|---|---|"]
    for name, about in ABOUT.items():
        paper, star = about.paper, " *" if about.is_system else ""
        source = f"{paper.authors}, {paper.title} ({paper.year})" if paper else _summary(about)
        stages = ", ".join(stage.name for stage in planned(about).stages)
        rows.append(f"| [{name}]({name}.md){star} | {source} | {stages} | {_met(name)} |")
    head = [
        "# The methods",
        "",
        "Written by `limbeck methods --write docs/methods`. A star marks a complete system: all stages of its paper.",
        "",
    ]
    return {"index.md": "\n".join([*head, *rows]) + "\n", **{f"{name}.md": method_page(name) for name in ABOUT}}


def signatures() -> str:
    """The file that `limbeck.recipe.signatures` reads: every name that a recipe may use, with its options."""
    tables: Mapping[str, Mapping[str, Callable[..., Any]]] = {
        "methods": METHODS,
        "models": MODELS,
        "optimizers": OPTIMIZERS,
        "schedules": SCHEDULES,
    }
    names = {kind: {name: signature(function) for name, function in table.items()} for kind, table in tables.items()}
    parts = [f"{json.dumps(kind)}: {_lines(entries)}" for kind, entries in (names | {"presets": PRESETS}).items()]
    sources = {name: source_signature(source) for name, source in SOURCES.items()}
    parts += [f'"teacherless": {json.dumps(TEACHERLESS)}', f'"sources": {_lines(sources)}']
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(entries: Mapping[str, Any]) -> str:
    """A JSON object with one line for each name."""
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()) + "\n}"


@functools.cache
def _network(role: str, model: str) -> nn.Module:
    """One network for each role and model serves all methods, because planning does not change it."""
    return build(model, classes=_CLASSES, shape=_SHAPE)


def _group(about: About) -> str:
    if about.is_system:
        return _GROUPS[0]
    plans = planned(about)
    reads = _reads(plans, plans.stages, ["teacher"])
    kinds = {"": 1, "logits": 2}
    return _GROUPS[kinds.get(reads, 3 if set(reads.split(", ")) <= {"logits", "feature"} else 4)]


def _reads(plans: Planned, stages: Iterable[Stage], sources: Sequence[str]) -> str:
    """What the stages read from these networks, such as ``logits, 3 maps``."""
    taps = dict.fromkeys(tap for stage in stages for tap in stage.reads if tap.source in sources)
    kinds = [_kind(plans, tap) for tap in taps]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return ", ".join(kind if count == 1 else f"{count} {kind.removesuffix('s')}s" for kind, count in counts.items())


def _kind(plans: Planned, tap: Tap) -> str:
    seen = plans.setup.outline(tap.source)
    if tap in (Tap(tap.source), Tap(tap.source, seen.classifier)):
        return "logits"
    return "feature" if tap == seen.feature else _READS.get(len(plans.setup.shape(tap)), "tensor")


def _met(name: str) -> str:
    counts = list(recorded().get(name, {}).values())
    return f"{sum(met for met, _ in counts)}/{sum(cases for _, cases in counts)}" if counts else ""


def _summary(about: About) -> str:
    return _sections(about.function)[""][0]


def _sections(function: Callable[..., Any]) -> dict[str, list[str]]:
    """The lines of a docstring under ``Args:`` and the like; those before the first under the empty name."""
    found: dict[str, list[str]] = {"": []}
    for line in (inspect.getdoc(function) or "").splitlines():
        if re.fullmatch(r"(Args|Raises|Returns):", line):
            found[line[:-1]] = []
        else:
            found[list(found)[-1]].append(line)
    return found


def _stages(about: About) -> Iterator[str]:
    plans = planned(about)
    networks = " and ".join(f"{model} as {role}" for role, model in about.networks.items())
    yield f"With {networks}, on images {_SHAPE} of {_CLASSES} classes:"
    for number, stage in enumerate(plans.stages, start=1):
        learning = " and ".join(f"the {learner}" for learner in stage.learns) or "only the parameters of the losses"
        length = "" if stage.epochs == EPOCHS else f"; {stage.epochs} epochs if the recipe has {EPOCHS}"
        sweeps = "; a pass over the training set may precede an epoch" if stage.prepare is not None else ""
        yield from (
            "",
            f"{number}. `{stage.name}`: {learning} learn{'s' * (len(stage.learns) == 1)}{length}{sweeps}",
            "",
        )
        for label, term in stage.terms.items():
            reads = [f"{tap}{'' if tap.source == 'batch' else f' {plans.setup.shape(tap)}'}" for tap in term.reads]
            yield f"   - `{label}`, weight {_weight(term.weight)}, reads {', '.join(reads)}"


def _weight(weight: float | Schedule) -> str:
    return f"{weight:g}" if isinstance(weight, float | int) else f"{weight(0.0):g} to {weight(1.0):g}"


def _options(about: About) -> list[str]:
    documented, lines = meanings(about.function), []
    for key, option in signature(about.function).items():
        kind, value = option["type"].replace("Schedule", "schedule"), option["default"]
        default = _weight(value) if callable(value) else repr(value)
        lines.append(f"- `{key}: {kind} = {default}`: {documented.get(key, '')}")
    return lines


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['name']} ({', '.join(f'{key} {part}' for key, part in value.items() if key != 'name')})"
    return str(value)


def _use(name: str, about: About) -> Iterator[str]:
    numbers = [
        f"{key}: {option['default']}"
        for key, option in signature(about.function).items()
        if isinstance(option["default"], float | int) and not isinstance(option["default"], bool)
    ]
    yield from ("```yaml", f"method: {{{', '.join([f'name: {name}', *numbers[:2]])}}}")
    yield from (f"method: {{name: {name}, preset: {preset}}}" for preset in about.presets)
    others = [role for role in about.networks if role not in ("student", "teacher")]
    yield from (["networks:"] if others else [])
    yield from (f"  {role}: {{model: {about.networks[role]}}}" for role in others)
    listed = ", ".join(f'"{role}": module' for role in others)
    given = f", networks={{{listed}}}" if others else ""
    teacher = "teacher" if about.needs_teacher else "None"
    yield from ("```", "", f'In Python: `limbeck.distill({teacher}, student, data, method="{name}"{given})`.')
