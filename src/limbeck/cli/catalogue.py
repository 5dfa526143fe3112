"""The methods as a table and as pages: what is told of them is read from their modules, signatures and stages."""

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

from limbeck.core import LimbeckError, Method, Schedule, Setup, Stage, Tap
from limbeck.data import SOURCES, arrays
from limbeck.errors import nearest
from limbeck.experiment.plan import Training, plan
from limbeck.methods import METHODS, PRESETS, TEACHERLESS
from limbeck.models import MODELS, build
from limbeck.optimizers import OPTIMIZERS, sgd
from limbeck.options import signature
from limbeck.schedules import SCHEDULES, constant

SYSTEMS = ("kd", "fitnets", "fsp", "srrl", "class_distance")
"""The whole systems, which are listed first; the other methods are their relatives."""

EPOCHS = 100
"""Of the recipe for which a page shows a method's stages."""

REFERENCE: Mapping[str, str] = {"student": "resnet8", "teacher": "resnet14"}
"""The networks for which a page shows a method's stages."""

CAST: Mapping[str, Mapping[str, str]] = {
    "alone": {"student": "resnet8"},
    "fine_tune": {"student": "resnet8"},
    "assistants": {"student": "resnet8", "teacher": "resnet20", "assistant": "resnet14"},
    "born_again": {"student": "resnet8", "teacher": "resnet8", "second": "resnet8"},
    "mutual": {"student": "resnet8", "peer": "resnet14"},
}
"""The same, for methods that take other networks."""

_SHAPE, _CLASSES = (3, 16, 16), 4
_GROUPS = ("Systems", "Without a teacher", "Reading logits", "Reading the classifier's input", "Reading layers inside")
_COLUMNS = {"method": 17, "year": 4, "paper": None, "stage: student's / others'": 28, "met": 5}
_LEGEND = (
    "stage: what it reads of the student / of the other networks\n"
    "met: recorded values of the authors' code that limbeck's gives, of all that are recorded"
)
_READS = {1: "vector", 2: "tokens", 3: "map"}


@dataclass(frozen=True)
class Citation:
    """Whose method it is, from the first line of its module."""

    authors: str
    title: str
    year: int
    arxiv: str  # "" where the paper is not there


@dataclass(frozen=True)
class Planned:
    """A method's stages by default for the reference networks, and what the method was given."""

    stages: tuple[Stage, ...]
    setup: Setup


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
def recorded() -> Mapping[str, Mapping[str, Sequence[int]]]:
    """From a method to the records of the authors' values: how many cases are met, and how many there are."""
    file = Path(__file__).parents[1] / "methods" / "recorded.json"
    found: Mapping[str, Mapping[str, Sequence[int]]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def planned(name: str) -> Planned:
    """A method's stages, as it gives them by default for its reference networks."""
    return _planned(name, METHODS[name])


@functools.cache
def _planned(name: str, method: Method) -> Planned:
    given: list[Setup] = []

    def watched(setup: Setup) -> tuple[Stage, ...]:
        given.append(setup)
        return method(setup)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        data = arrays(torch.randn(32, *_SHAPE), torch.arange(32) % _CLASSES)
        networks = {role: _network(role, model) for role, model in CAST.get(name, REFERENCE).items()}
        stages = plan(watched, networks, data, Training(EPOCHS, 8, sgd(lr=0.1), constant()))
    return Planned(stages, given[0])


def method_table() -> Group:
    """Every method: its year, paper, stages, what they read, and the recorded values that it meets."""
    groups: dict[str, Table] = {}
    for name in METHODS:
        plans, cited = planned(name), citation(name)
        title = cited.title if cited else _sections(METHODS[name])[""][0]
        others = [role for role in plans.setup.networks if role != "student"]
        sides = (["student"], others)
        reads = [" / ".join(_reads(plans, [stage], side) or "-" for side in sides) for stage in plans.stages]
        reads = [f"{stage.name}: {read}" for stage, read in zip(plans.stages, reads, strict=True)]
        table = groups.setdefault(_group(name, plans), Table(box=box.SIMPLE_HEAD, show_edge=False, expand=True))
        table.add_row(name, str(cited.year) if cited else "", title, "\n".join(reads), _met(name))
    for group, table in groups.items():
        table.title, table.title_justify, table.title_style, table.padding = group, "left", "bold", (0, 1, 0, 0)
        for column, (heading, width) in zip(table.columns, _COLUMNS.items(), strict=True):
            column.header, column.width, column.ratio, column.overflow = heading, width, None if width else 1, "fold"
    listed = [groups[group] for group in _GROUPS if group in groups]
    for table in listed[1:]:
        table.show_header = False
    return Group(*listed, _LEGEND)


def method_page(name: str) -> str:
    """A method in full, as Markdown: source, stages, options, presets, recorded values, use."""
    if name not in METHODS:
        raise LimbeckError(f"there is no method {name!r}: {nearest(name, METHODS)}")
    plans = planned(name)
    blocks = [
        [f"# {name}", "", _source(name), "", *_sections(METHODS[name])[""]],
        ["## Stages", "", *_stages(name, plans)],
        ["## Options", "", *(_options(name) or ["It has none."])],
    ]
    presets = [
        f"- `{preset}`: " + ", ".join(f"{key} {_value(value)}" for key, value in options.items())
        for preset, options in PRESETS.get(name, {}).items()
    ]
    if presets:
        blocks.append(["## Presets", "", *presets])
    records = [f"- `{record}`: {met} of {cases}" for record, (met, cases) in recorded().get(name, {}).items()]
    if records:
        blocks.append(["## Recorded values of the authors' code that are met", "", *records])
    blocks.append(["## In a recipe", "", *_use(name)])
    return "\n\n".join("\n".join(block).strip() for block in blocks) + "\n"


def method_pages() -> dict[str, str]:
    """Every method's page and their index, by file name."""
    rows = ["| method | paper | stages | recorded |", "|---|---|---|---|"]
    for name in METHODS:
        cited = citation(name)
        source = f"{cited.authors}, {cited.title} ({cited.year})" if cited else _sections(METHODS[name])[""][0]
        stages = ", ".join(stage.name for stage in planned(name).stages)
        rows.append(f"| [{name}]({name}.md){' *' if name in SYSTEMS else ''} | {source} | {stages} | {_met(name)} |")
    head = ["# The methods", "", "Written by `limbeck methods --write docs/methods`. With a star: a whole system.", ""]
    return {"index.md": "\n".join([*head, *rows]) + "\n", **{f"{name}.md": method_page(name) for name in METHODS}}


def signatures() -> str:
    """What `limbeck.recipe.signatures` reads: every name that a recipe may use, with its options."""
    tables: Mapping[str, Mapping[str, Callable[..., Any]]] = {
        "methods": METHODS,
        "models": MODELS,
        "optimizers": OPTIMIZERS,
        "schedules": SCHEDULES,
    }
    names = {kind: {name: signature(function) for name, function in table.items()} for kind, table in tables.items()}
    parts = [f"{json.dumps(kind)}: {_lines(entries)}" for kind, entries in (names | {"presets": PRESETS}).items()]
    parts += [f'"teacherless": {json.dumps(TEACHERLESS)}', f'"sources": {json.dumps(list(SOURCES))}']
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(entries: Mapping[str, Any]) -> str:
    """An object with a line for each name."""
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()) + "\n}"


@functools.cache
def _network(role: str, model: str) -> nn.Module:
    """One network a role serves all methods: planning leaves it as it was."""
    return build(model, classes=_CLASSES, shape=_SHAPE)


def _group(name: str, plans: Planned) -> str:
    if name in SYSTEMS:
        return _GROUPS[0]
    reads = _reads(plans, plans.stages, ["teacher"])
    kinds = {"": 1, "logits": 2}
    return _GROUPS[kinds.get(reads, 3 if set(reads.split(", ")) <= {"logits", "feature"} else 4)]


def _reads(plans: Planned, stages: Iterable[Stage], sources: Sequence[str]) -> str:
    """What the stages read of these networks, such as ``logits, 3 maps``."""
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


def _source(name: str) -> str:
    return (inspect.getdoc(inspect.getmodule(METHODS[name])) or "").partition("\n")[0]


def _sections(function: Callable[..., Any]) -> dict[str, list[str]]:
    """A documentation's lines under ``Args:`` and the like; what comes before under the empty name."""
    found: dict[str, list[str]] = {"": []}
    for line in (inspect.getdoc(function) or "").splitlines():
        if re.fullmatch(r"(Args|Raises|Returns):", line):
            found[line[:-1]] = []
        else:
            found[list(found)[-1]].append(line)
    return found


def _stages(name: str, plans: Planned) -> Iterator[str]:
    cast = " and ".join(f"{model} as {role}" for role, model in CAST.get(name, REFERENCE).items())
    yield f"With {cast}, on images {_SHAPE} of {_CLASSES} classes:"
    for number, stage in enumerate(plans.stages, start=1):
        learning = " and ".join(f"the {learner}" for learner in stage.learns) or "nothing but the terms' own layers"
        length = "" if stage.epochs == EPOCHS else f"; {stage.epochs} epochs where the recipe has {EPOCHS}"
        sweeps = "; before each epoch it goes over the training set" if stage.prepare is not None else ""
        yield from (
            "",
            f"{number}. `{stage.name}`: {learning} learn{'s' * (len(stage.learns) < 2)}{length}{sweeps}",
            "",
        )
        for label, term in stage.terms.items():
            reads = [f"{tap}{'' if tap.source == 'batch' else f' {plans.setup.shape(tap)}'}" for tap in term.reads]
            yield f"   - `{label}`, weight {_weight(term.weight)}, reads {', '.join(reads)}"


def _weight(weight: float | Schedule) -> str:
    return f"{weight:g}" if isinstance(weight, float | int) else f"{weight(0.0):g} to {weight(1.0):g}"


def _options(name: str) -> list[str]:
    documented, lines = meanings(METHODS[name]), []
    for key, option in inspect.signature(METHODS[name]).parameters.items():
        if option.kind is option.KEYWORD_ONLY:
            kind = inspect.formatannotation(option.annotation).replace(
                "collections.abc.Callable[[float], float]", "schedule"
            )
            default = _weight(option.default) if callable(option.default) else repr(option.default)
            lines.append(f"- `{key}: {kind} = {default}`: {documented.get(key, '')}")
    return lines


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['name']} ({', '.join(f'{key} {part}' for key, part in value.items() if key != 'name')})"
    return str(value)


def _use(name: str) -> Iterator[str]:
    numbers = [
        f"{key}: {option.default}"
        for key, option in inspect.signature(METHODS[name]).parameters.items()
        if isinstance(option.default, float | int) and not isinstance(option.default, bool)
    ]
    yield from ("```yaml", f"method: {{{', '.join([f'name: {name}', *numbers[:2]])}}}")
    yield from (f"method: {{name: {name}, preset: {preset}}}" for preset in PRESETS.get(name, {}))
    others = [role for role in CAST.get(name, {}) if role not in ("student", "teacher")]
    yield from (["networks:"] if others else [])
    yield from (f"  {role}: {{model: {CAST[name][role]}}}" for role in others)
    listed = ", ".join(f'"{role}": module' for role in others)
    given = f", networks={{{listed}}}" if others else ""
    teacher = "None" if name in TEACHERLESS else "teacher"
    yield from ("```", "", f'In Python: `limbeck.distill({teacher}, student, data, method="{name}"{given})`.')
