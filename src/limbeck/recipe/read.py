"""Read and validate a recipe file. All errors are reported at once, each with its line, value and allowed values."""

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from limbeck.errors import nearest
from limbeck.files.atomic import read as read_bytes
from limbeck.files.paths import expanded, near
from limbeck.options import Block, Checked, as_block, complete, keyword_model, validate, with_takers
from limbeck.recipe.blocks import (
    NAME,
    NAMED,
    CacheBlock,
    DataKeys,
    MemberBlock,
    Recipe,
    StudentBlock,
    TeacherBlock,
    TrainBlock,
    as_methods,
)
from limbeck.recipe.contradictions import contradictions, streaming_contradictions
from limbeck.recipe.of_teacher import explained, with_teacher
from limbeck.recipe.paths import missing
from limbeck.recipe.signatures import known
from limbeck.recipe.text import DEPTH, WHOLE_BYTES, line_of, plain, read_text
from limbeck.recipe.text import RecipeError as RecipeError
from limbeck.user_code import is_code
from limbeck.wording import Problem, shortened, shown

Place = tuple[str | int, ...]

SHOWN = 10
"""The most problems in one error message."""

SMOKE = "-smoke"
"""The end of the name of a recipe that `smoke` shortened."""

_NAMED: tuple[tuple[Place, str], ...] = (
    (("teacher", "model"), "model"),
    (("student", "model"), "model"),
    (("train", "optimizer"), "optimizer"),
    (("train", "schedule"), "schedule"),
    (("teacher", "train", "optimizer"), "optimizer"),
    (("teacher", "train", "schedule"), "schedule"),
)

_BLOCKS: Mapping[str, type[Checked]] = {
    "data": DataKeys,
    "teacher": TeacherBlock,
    "student": StudentBlock,
    "train": TrainBlock,
    "cache": CacheBlock,
}
"""Blocks whose keys a user may have written elsewhere."""


def read(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    allow: Sequence[str] = (),
    methods: Sequence[str] = (),
    check_paths: bool = False,
) -> Recipe:
    """Read and validate a recipe file. Torch is imported only to look up networks of timm and torchvision.

    Args:
        path: the YAML file.
        overrides: texts ``a.b=c`` that replace or add keys. The value c is YAML.
        seed: run only this seed.
        allow: checks whose failure is ignored, in addition to those of the recipe.
        methods: the names of methods to compare, ``a+b`` for two that are combined. Their options are those that the
            recipe gives, else the defaults.
        check_paths: whether the files, and the networks of timm and torchvision, that the recipe names must exist.

    Raises:
        RecipeError: the recipe is invalid. The message lists all problems.
    """
    if not path.exists():
        raise RecipeError(f"there is no recipe {path}{near(path)}")
    raw = _parse(read_text(path), str(path))
    labels: dict[Place, str] = {}
    for override in overrides:
        labels[_override(raw, override)] = f"--set {shortened(override)}"
    if seed is not None:
        raw["seeds"] = [seed]
        raw.pop("share_first_stage", None)
    for name in allow:
        listed = raw.setdefault("allow", [])
        labels[("allow", len(listed))] = f"--allow {shortened(name)}"
        raw["allow"] = [*listed, name]
    if methods:
        _compare(raw, methods)
        labels[("methods",)] = f"--methods {shortened(','.join(methods))}"
    listed = raw.get("methods")
    if "method" not in raw and isinstance(listed, list) and listed:
        raw["method"] = listed[0]
    recipe, problems = check(raw)
    if recipe is not None and check_paths:
        problems = missing(recipe)
    if recipe is None or problems:
        raise RecipeError(_listed(problems, raw, str(path), labels))
    return recipe


def check(raw: Mapping[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    """Return the recipe with all defaults filled in (None if it is invalid), and its problems."""
    names, raw = known(), with_teacher(raw)
    recipe, found = validate(Recipe, raw)
    problems = [explained(problem, raw) for problem in found]
    takers: dict[str, Collection[str]] = {path: block.model_fields for path, block in _BLOCKS.items()}
    takers["method"] = set[str]().union(*names.methods.values())
    takers["train.optimizer"] = set[str]().union(*names.optimizers.values())
    problems = [with_takers(problem, takers) for problem in problems]
    values: dict[str, Any] = recipe.model_dump(mode="json") if recipe else dict(raw)
    wrong = {problem.path for problem in problems}
    if ("method",) not in wrong and "method" in values:
        values["method"], found = complete_methods(values["method"])
        problems += found
    tables = {"model": names.models, "optimizer": names.optimizers, "schedule": names.schedules}
    others = values.get("networks")
    members = _at(values, ("teacher", "members"))
    more: list[Place] = [("networks", name, "model") for name in (others if isinstance(others, dict) else ())]
    more += [("teacher", "members", at, "model") for at in range(len(members) if isinstance(members, list) else 0)]
    for path, kind in (*_NAMED, *((path, "model") for path in more)):
        parent, block = _at(values, path[:-1]), as_block(_at(values, path))
        if block is None or path in wrong:
            continue
        name = block.get("name") if isinstance(block, dict) else None
        if kind == "model" and isinstance(name, str) and ":" in name:  # not of the zoo: building it checks its options
            filled, found = block, []
        else:
            filled, found = complete(block, tables[kind], kind=kind)
        problems += [Problem((*path, *problem.path), problem.message) for problem in found]
        if recipe and parent is not None:
            parent[path[-1]] = filled
    if ("data",) not in wrong:
        filled, found = _data(values.get("data"))
        problems += found
        if recipe:
            values["data"] = filled
    if recipe is None:
        return None, problems
    values["methods"], found = _compared(recipe.methods)
    problems += found
    problems += contradictions(recipe, names.teacherless)
    return (Recipe.model_validate(values, strict=False) if not problems else None), problems


def _data(block: Any) -> tuple[Any, list[Problem]]:
    """The block with every key of its source written out; those of a user's function are checked when it is called."""
    source = block.get("source") if isinstance(block, dict) else None
    if not isinstance(source, str):
        return block, []  # a problem of the recipe that is known
    sources = known().sources
    if is_code(source):
        problem = Problem(("data", "progress"), "progress is an argument of load and no key of a recipe: leave it out")
        return block, [problem] * ("progress" in block)
    if source not in sources:
        allowed = f"{nearest(source, sources)}, and path/to/file.py:function"
        return block, [Problem(("data", "source"), f"there is no source {shown(source)}: {allowed}")]
    if source in ("table", "masks") and block.get("task") == "segmentation":
        told = "got 'segmentation', the only task of source: masks: write source: masks without task:"
        return block, [Problem(("data", "task"), told)]
    values, problems = validate(keyword_model(sources[source], DataKeys), block)
    common = {(key,) for key in DataKeys.model_fields}  # whose problems the check of the whole recipe has found
    own = [with_takers(problem, sources) for problem in problems if problem.path[:1] not in common]
    if source in ("folder", "table") and values is not None:
        own += streaming_contradictions(values.model_dump())
    return values and values.model_dump(mode="json"), [Problem(("data", *one.path), one.message) for one in own]


def complete_methods(block: Any) -> tuple[dict[str, Any], list[Problem]]:
    """Return the block of the method, or of several combined methods, with every option, and its problems."""
    names, block = known(), as_methods(block)
    if "parts" not in block:
        filled, found = complete(block, names.methods, kind="method", presets=names.presets)
        return filled, [Problem(("method", *problem.path), problem.message) for problem in found]
    parts, problems = [], []
    renamed, name = len(block["parts"]) == 1, block["name"]
    if renamed and (not isinstance(name, str) or not re.fullmatch(NAME, name)):
        problems.append(Problem(("method", "as"), f"got {shown(name)}: it must be {NAMED}"))
    elif renamed and name in (*names.methods, "teacher", "member"):
        problems.append(Problem(("method", "as"), f"{shown(name)} is taken: choose another name"))
    for place, part in enumerate(block["parts"]):
        filled, found = complete(part, names.methods, kind="method", presets=names.presets)
        parts.append(filled)
        within = ("method",) if renamed else ("method", place)
        problems += [Problem((*within, *problem.path), problem.message) for problem in found]
    return {**block, "parts": parts}, problems


def _compared(blocks: Sequence[Block]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return the blocks of the methods that are compared, with every option."""
    filled, problems = [], []
    for place, block in enumerate(blocks):
        whole, found = complete_methods(block)
        filled.append(whole)
        problems += [Problem(("methods", place, *problem.path[1:]), problem.message) for problem in found]
    names = [block["name"] for block in blocks]
    problems += [
        Problem(("methods", place), f"{name} is listed twice: give one of them another name with as:")
        for place, name in enumerate(names)
        if name in names[:place]
    ]
    return filled, problems


def smoke(recipe: Recipe) -> Recipe:
    """Return a short version of the recipe: at most two epochs and 256 samples, and one seed."""

    def short(train: TrainBlock) -> TrainBlock:
        few = {"epochs": 2, "batch_size": 64, "warmup": 1}
        return train.model_copy(update={key: min(getattr(train, key), most) for key, most in few.items()})

    limit = min(recipe.data.limit or 256, 256)
    teacher = recipe.teacher
    if teacher and teacher.train:
        teacher = teacher.model_copy(update={"train": short(teacher.train)})
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}{SMOKE}",
            "data": recipe.data.model_copy(update={"limit": limit}),
            "teacher": teacher,
            "train": short(recipe.train),
            "method": _short_stages(recipe.method),
            "methods": tuple(map(_short_stages, recipe.methods)),
            "share_first_stage": False,
            "cache": recipe.cache.model_copy(update={"folder": None}),
            "seeds": recipe.seeds[:1],
            "evaluate": recipe.evaluate.model_copy(update={"latency_runs": 10}),
        }
    )


def is_smoke(recipe: Recipe) -> bool:
    """Whether a recipe has the name and the size of one that `smoke` returned."""
    return recipe.name.endswith(SMOKE) and smoke(recipe).model_copy(update={"name": recipe.name}) == recipe


def _short_stages(block: dict[str, Any]) -> dict[str, Any]:
    """Return the method with at most 2 epochs in every option that is a number of epochs."""
    short = {
        key: min(value, 2) if key.endswith("epochs") and isinstance(value, int) else value
        for key, value in block.items()
    }
    return short | ({"parts": [_short_stages(part) for part in block["parts"]]} if "parts" in block else {})


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with absolute paths and LIMBECK_DATA filled in, so that it works from any folder."""

    def whole(path: str | None) -> str | None:
        return None if path is None else str(expanded(path).absolute())

    def named(text: str) -> str:
        file, _, function = text.rpartition(":")
        return f"{whole(file)}:{function}" if is_code(text) else text

    def model(block: dict[str, Any] | None) -> dict[str, Any] | None:
        return {**block, "name": named(block["name"])} if block else block

    def trained(block: MemberBlock) -> dict[str, Any]:
        weights = None if block.weights is None else tuple(map(whole, block.weights))
        return {"weights": weights, "onnx": whole(block.onnx), "model": model(block.model)}

    def network(block: StudentBlock) -> StudentBlock:
        return block.model_copy(update={"weights": whole(block.weights), "model": model(block.model)})

    def found(text: str) -> str | None:
        path = Path(text)  # with a range of files, such as {0..9}, only the folder exists
        return whole(text) if path.exists() or ("{" in path.name and path.parent.is_dir()) else text

    data, teacher = recipe.data, recipe.teacher
    places = dict.fromkeys(("path", "validation_path", "test_path", "images"), found)
    texts: dict[str, Callable[[str], str | None]] = {**places, "transform": named}
    options = {key: texts[key](text) for key, text in data.options.items() if key in texts and isinstance(text, str)}
    root = whole(data.root or os.environ.get("LIMBECK_DATA"))
    data = data.model_copy(update={"root": root, "source": named(data.source), **options})
    if teacher is not None:
        members = tuple(one.model_copy(update=trained(one)) for one in teacher.listed) or teacher.members
        update = {**trained(teacher), "table": whole(teacher.table), "members": members}
        teacher = teacher.model_copy(update=update)
    student, others = network(recipe.student), {name: network(other) for name, other in recipe.networks.items()}
    cache = recipe.cache.model_copy(update={"folder": whole(recipe.cache.folder)})
    task = recipe.task.model_copy(
        update={key: text and named(text) for key in ("hard_loss", "metric") if (text := getattr(recipe.task, key))}
    )
    update = {"data": data, "student": student, "teacher": teacher, "networks": others, "cache": cache, "task": task}
    return recipe.model_copy(update=update)


def dump(recipe: Recipe) -> str:
    """Return the recipe as YAML. Reading the text again returns the same recipe."""
    yaml, text = YAML(typ="safe", pure=True), StringIO()
    yaml.default_flow_style = False
    setattr(yaml, "sort_base_mapping_type_on_output", False)  # noqa: B010 (typed as None); the order of networks: counts
    yaml.dump(recipe.model_dump(mode="json"), text)
    return text.getvalue()


def reread(path: Path) -> Recipe:
    """Read the recipe of a run folder. It contains every option, and its names are not checked.

    Raises:
        LimbeckError: the file is damaged, or has more than `WHOLE_BYTES`.
    """
    try:
        content = read_bytes(path, WHOLE_BYTES) or b""
        recipe, problems = validate(Recipe, _parse(content.decode(), str(path)))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is damaged: it is not UTF-8 text ({error})") from error
    if recipe is None:
        raise RecipeError(f"{path} is damaged: {problems[0].message}")
    return recipe


def _parse(text: str, name: str) -> dict[str, Any]:
    raw = plain(text, name)
    if not isinstance(raw, dict):
        raise RecipeError(f"{name}: a recipe must be a block of keys, got {shown(raw)}")
    return raw


def _compare(raw: dict[str, Any], methods: Sequence[str]) -> None:
    """Put these methods into a recipe, with the options that it has for them."""
    listed = raw.get("methods")
    blocks = [raw.get("method"), *(listed if isinstance(listed, list) else ())]
    known = {block.get("as", block.get("name")): block for block in map(as_block, blocks) if isinstance(block, dict)}
    raw["methods"] = []
    for name in methods:
        parts = [known.get(part, {"name": part}) for part in name.split("+")]
        raw["methods"].append(known.get(name, parts if len(parts) > 1 else parts[0]))


def _override(raw: dict[str, Any], override: str) -> tuple[str, ...]:
    key, equals, value = override.partition("=")
    path = tuple(key.split("."))
    label = f"--set {shortened(override)}"
    if not equals or not all(path):
        raise RecipeError(f"{label}: write it as key.key=value")
    if len(path) > DEPTH:
        raise RecipeError(f"{label}: the key has more than {DEPTH} parts")
    try:
        new = plain(value, label)
    except RecipeError as error:
        raise RecipeError(f"{label}: the value is not YAML: {str(error).rpartition(': ')[2]}") from error
    node = raw
    for part in path[:-1]:
        block = as_block(node.get(part))
        node[part] = block if isinstance(block, dict) else {}
        node = node[part]
    node[path[-1]] = new
    return path


def _at(values: Any, path: Place) -> Any:
    for part in path:
        listed = isinstance(values, list) and isinstance(part, int)
        values = values[part] if listed else values.get(part) if isinstance(values, dict) else None
    return values


def _label(problem: Problem, labels: Mapping[Place, str]) -> str | None:
    """Return the command-line option that causes a problem, if any."""
    for path, label in labels.items():
        unknown = problem.message.startswith("unknown key") and path[: len(problem.path)] == problem.path
        if problem.path[: len(path)] == path or unknown:
            return label
    return None


def _listed(problems: Sequence[Problem], raw: Any, name: str, labels: Mapping[Place, str]) -> str:
    """Return the first `SHOWN` messages, those on the command line before those on the file's lines."""
    found = []
    for problem in problems:
        label, line = _label(problem, labels), line_of(raw, problem.path)
        parts = (label or f"{name}:{line}", shortened(".".join(map(str, problem.path))), problem.message)
        found.append((0 if label else line, ": ".join(filter(None, parts))))
    lines = [message for _, message in sorted(found)]
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([*lines[:SHOWN], *more])
