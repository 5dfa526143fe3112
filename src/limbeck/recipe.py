"""A recipe file to checked values: every error at once, each with its line, the value got and what is allowed."""

import os
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from limbeck.blocks import Recipe, TrainBlock, as_methods
from limbeck.core import LimbeckError
from limbeck.data import SOURCES
from limbeck.errors import nearest
from limbeck.methods import METHODS, PRESETS, TEACHERLESS
from limbeck.models import MODELS
from limbeck.optimizers import OPTIMIZERS
from limbeck.options import Problem, as_block, complete, validate
from limbeck.schedules import SCHEDULES


class RecipeError(LimbeckError):
    """All that is wrong with a recipe."""


_NAMED: tuple[tuple[tuple[str, ...], str, Mapping[str, Any]], ...] = (
    (("teacher", "model"), "model", MODELS),
    (("student", "model"), "model", MODELS),
    (("train", "optimizer"), "optimizer", OPTIMIZERS),
    (("train", "schedule"), "schedule", SCHEDULES),
    (("teacher", "train", "optimizer"), "optimizer", OPTIMIZERS),
    (("teacher", "train", "schedule"), "schedule", SCHEDULES),
)


def read(path: Path, *, overrides: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """Read a recipe file.

    Args:
        path: the YAML file.
        overrides: ``a.b=c`` each, c read as YAML; they replace or add keys.
        seed: run this seed alone.

    Raises:
        RecipeError: whatever is wrong, all of it.
    """
    if not path.is_file():
        others = path.parent.glob("*.y*ml") if path.parent.is_dir() else ()
        raise RecipeError(f"there is no recipe {path}: {nearest(path.name, [other.name for other in others])}")
    try:
        raw = _parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is no recipe: it is not text ({error})") from error
    given: dict[tuple[str, ...], str] = {}
    for override in overrides:
        given[_override(raw, override)] = f"--set {override}"
    if seed is not None:
        raw["seeds"] = [seed]
        raw.pop("share_first_stage", None)
    recipe, problems = check(raw)
    if recipe is None or problems:
        raise RecipeError("\n".join(_located(problem, raw, str(path), given) for problem in problems))
    return recipe


def check(raw: Mapping[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    """The recipe as values, completed, and all that is wrong with it."""
    recipe, problems = validate(Recipe, raw)
    values: dict[str, Any] = recipe.model_dump(mode="json") if recipe else dict(raw)
    wrong = {problem.path for problem in problems}
    if ("method",) not in wrong and "method" in values:
        values["method"], found = _methods(values["method"])
        problems += found
    others = values.get("networks")
    names = list(others) if isinstance(others, dict) else []
    more = [(("networks", name, "model"), "model", MODELS) for name in names]
    for path, kind, table in (*_NAMED, *more):
        parent, block = _at(values, path[:-1]), _at(values, path)
        if block is None or path in wrong:
            continue
        if kind == "model" and _foreign(as_block(block)):
            filled, found = as_block(block), []
        else:
            filled, found = complete(block, table, kind=kind)
        problems += [Problem((*path, *problem.path), problem.message) for problem in found]
        if recipe and parent is not None:
            parent[path[-1]] = filled
    source = _at(values, ("data", "source"))
    if isinstance(source, str) and source not in SOURCES:
        problems.append(Problem(("data", "source"), f"there is no source {source!r}: {nearest(source, SOURCES)}"))
    if recipe is None:
        return None, problems
    problems += _contradictions(recipe)
    return (Recipe.model_validate(values, strict=False) if not problems else None), problems


def _methods(block: Any) -> tuple[dict[str, Any], list[Problem]]:
    """The method's block, or that of several methods together, with every option written out."""
    block = as_methods(block)
    if not isinstance(block, dict) or "parts" not in block:
        filled, found = complete(block, METHODS, kind="method", presets=PRESETS)
        return filled, [Problem(("method", *problem.path), problem.message) for problem in found]
    parts, problems = [], []
    for place, part in enumerate(block["parts"]):
        filled, found = complete(part, METHODS, kind="method", presets=PRESETS)
        parts.append(filled)
        problems += [Problem(("method", place, *problem.path), problem.message) for problem in found]
    if len(parts) < 2:
        problems.append(Problem(("method",), f"got a list of {len(parts)}: two methods or more are combined"))
    return {**block, "parts": parts}, problems


def smoke(recipe: Recipe) -> Recipe:
    """The recipe's own tiny version: two epochs on at most 256 samples, one seed."""

    def short(train: TrainBlock) -> TrainBlock:
        return train.model_copy(update={"epochs": min(train.epochs, 2), "batch_size": min(train.batch_size, 64)})

    limit = min(recipe.data.limit or 256, 256)
    teacher = recipe.teacher
    if teacher and teacher.train:
        teacher = teacher.model_copy(update={"train": short(teacher.train)})
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-smoke",
            "data": recipe.data.model_copy(update={"limit": limit}),
            "teacher": teacher,
            "train": short(recipe.train),
            "method": _short_stages(recipe.method),
            "share_first_stage": False,
            "cache": recipe.cache.model_copy(update={"folder": None}),
            "seeds": recipe.seeds[:1],
            "evaluate": recipe.evaluate.model_copy(update={"latency_runs": 10}),
        }
    )


def _short_stages(block: dict[str, Any]) -> dict[str, Any]:
    """The method with each stage's own number of epochs, if it has one, at most 2."""
    short = {
        key: min(value, 2) if key.endswith("epochs") and isinstance(value, int) else value
        for key, value in block.items()
    }
    return short | ({"parts": [_short_stages(part) for part in block["parts"]]} if "parts" in block else {})


def placed(recipe: Recipe) -> Recipe:
    """The recipe with whole paths, so that it is the same from any folder; LIMBECK_DATA is written out."""

    def whole(path: str | None) -> str | None:
        return None if path is None else str(Path(path).expanduser().absolute())

    def named(text: str) -> str:
        file, _, function = text.rpartition(":")
        return f"{whole(file)}:{function}" if file.endswith(".py") else text

    def model(block: dict[str, Any] | None) -> dict[str, Any] | None:
        return {**block, "name": named(block["name"])} if block else block

    data, student, teacher = recipe.data, recipe.student, recipe.teacher
    path = data.path if data.path is None or not Path(data.path).exists() else whole(data.path)
    root = whole(data.root or os.environ.get("LIMBECK_DATA"))
    transform = data.transform and named(data.transform)
    data = data.model_copy(update={"root": root, "path": path, "transform": transform})
    student = student.model_copy(update={"weights": whole(student.weights), "model": model(student.model)})
    if teacher is not None:
        weights = None if teacher.weights is None else tuple(map(whole, teacher.weights))
        table = whole(teacher.table)
        teacher = teacher.model_copy(update={"weights": weights, "table": table, "model": model(teacher.model)})
    others = {
        name: other.model_copy(update={"weights": whole(other.weights), "model": model(other.model)})
        for name, other in recipe.networks.items()
    }
    cache = recipe.cache.model_copy(update={"folder": whole(recipe.cache.folder)})
    update = {"data": data, "student": student, "teacher": teacher, "networks": others, "cache": cache}
    return recipe.model_copy(update=update)


def dump(recipe: Recipe) -> str:
    """The recipe as YAML; reading it again gives the same recipe."""
    yaml, text = YAML(typ="safe", pure=True), StringIO()
    yaml.default_flow_style = False
    setattr(yaml, "sort_base_mapping_type_on_output", False)  # noqa: B010 (typed as None); the order of networks: counts
    yaml.dump(recipe.model_dump(mode="json"), text)
    return text.getvalue()


def reread(path: Path) -> Recipe:
    """The recipe that a run folder holds: everything is written out, and names are not looked up.

    Raises:
        RecipeError: it is damaged.
    """
    try:
        recipe, problems = validate(Recipe, _parse(path.read_text(encoding="utf-8"), str(path)))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is damaged: it is not text ({error})") from error
    if recipe is None:
        raise RecipeError(f"{path} is damaged: {problems[0].message}")
    return recipe


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        raw = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{name}:{line}: {(error.problem or str(error)).splitlines()[0]}") from error
    except YAMLError as error:
        raise RecipeError(f"{name}: {str(error).splitlines()[0]}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{name}: a recipe is a block of keys, got {type(raw).__name__}")
    return raw


def _override(raw: dict[str, Any], override: str) -> tuple[str, ...]:
    key, equals, value = override.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path):
        raise RecipeError(f"--set {override}: write it as key.key=value")
    node = raw
    for part in path[:-1]:
        block = as_block(node.get(part))
        node[part] = block if isinstance(block, dict) else {}
        node = node[part]
    try:
        node[path[-1]] = YAML(typ="safe").load(value)
    except YAMLError as error:
        raise RecipeError(f"--set {override}: the value is not YAML") from error
    return path


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _foreign(block: Any) -> bool:
    """Whether a model comes from elsewhere, so that only building it can check its options."""
    return isinstance(block, dict) and ":" in str(block.get("name"))


def _contradictions(recipe: Recipe) -> list[Problem]:
    """What is right by itself and wrong together."""
    teacher, problems = recipe.teacher, []
    if teacher is None and recipe.method.get("name") not in TEACHERLESS:
        problems.append(Problem((), f"the method {recipe.method.get('name')} needs a teacher: block"))
    if (
        teacher is not None
        and not (teacher.weights or teacher.table)
        and (teacher.model is None or (teacher.train is None) is not teacher.untrained)
    ):
        problems.append(
            Problem(
                ("teacher",),
                "a teacher has weights:, or a model: and train: to be trained here, or a model: and untrained: true, "
                "or a table: of its soft labels",
            )
        )
    trained = teacher is not None and (teacher.train or teacher.members > 1 or teacher.untrained)
    if teacher is not None and teacher.weights and trained and teacher.init == "as_is":
        problems.append(
            Problem(
                ("teacher",),
                "a teacher with weights: is not trained: leave out train:, untrained: and members:, or say "
                "init: fine_tune to train it further, with a new classifier",
            )
        )
    if teacher is not None and teacher.init == "fine_tune" and not (teacher.weights and teacher.model and trained):
        problems.append(
            Problem(("teacher", "init"), "fine_tune needs a model:, weights: of it to start from, and train: for here")
        )
    if teacher is not None and teacher.table is not None:
        if teacher.model or teacher.weights or teacher.train or teacher.untrained or teacher.members > 1:
            problems.append(
                Problem(("teacher",), "a teacher with a table: has no network: leave out all but table: and values:")
            )
        if recipe.cache.use is True:
            problems.append(
                Problem(
                    ("cache",),
                    "the table: is what is kept of this teacher: there is nothing to build; leave out cache:",
                )
            )
    if teacher is not None and teacher.values is not None and teacher.table is None:
        problems.append(Problem(("teacher", "values"), "says what is in a table:, which is missing"))
    reserved = sorted({"student", "teacher", "batch"} & set(recipe.networks))
    if reserved:
        problems.append(Problem(("networks", reserved[0]), f"the name {reserved[0]!r} is taken: choose another"))
    for path, block in ((("student",), recipe.student), *((("networks", n), o) for n, o in recipe.networks.items())):
        if block.init != "as_is" and block.weights is None:
            problems.append(Problem((*path, "init"), f"got {block.init!r} without weights: to start from"))
        if block.noise and block.init != "net2net":
            problems.append(Problem((*path, "noise"), f"got {block.noise} without init: net2net, which alone uses it"))
    if recipe.share_first_stage and len(recipe.seeds) < 2:
        problems.append(Problem(("share_first_stage",), "a first stage is shared by several seeds: name two or more"))
    if not recipe.seeds:
        problems.append(Problem(("seeds",), "got []: at least one is needed"))
    if len(set(recipe.seeds)) < len(recipe.seeds):
        problems.append(Problem(("seeds",), f"got {list(recipe.seeds)}: each seed once"))
    return problems


def _located(problem: Problem, raw: Any, name: str, given: Mapping[tuple[str, ...], str]) -> str:
    dotted = ".".join(map(str, problem.path))
    for path, label in given.items():
        unknown = problem.message.startswith("unknown key") and path[: len(problem.path)] == problem.path
        if problem.path[: len(path)] == path or unknown:
            return f"{label}: {dotted}: {problem.message}"
    line = 1
    node: Any = raw  # of ruamel's types, which know their lines
    for part in problem.path:
        try:
            place = node.lc
            line = (place.key(part) if isinstance(node, dict) else place.item(part))[0] + 1
            node = node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return f"{name}:{line}: {dotted}: {problem.message}" if dotted else f"{name}:{line}: {problem.message}"
