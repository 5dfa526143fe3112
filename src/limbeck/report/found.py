"""Read the folder of a comparison or of a run. Whatever is missing or damaged is left out, with the reason."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from limbeck.comparison import results as comparisons
from limbeck.comparison.learned import NetworkLearned
from limbeck.comparison.results import COMPARISON, ArmResult, ComparisonResult, compared, headline_of, scores_of
from limbeck.errors import LimbeckError
from limbeck.experiment import results as runs
from limbeck.experiment.epochlog import EpochLog
from limbeck.experiment.results import RESULT, NetworkResult, RunResult
from limbeck.experiment.runfiles import ENVIRONMENT, LOG, RECIPE, Network, read_network
from limbeck.exports.card import CARD, EXPORTS, Card, read_card
from limbeck.files.atomic import read as read_bytes
from limbeck.files.atomic import read_sealed
from limbeck.models import GIVEN
from limbeck.recipe.blocks import Recipe
from limbeck.recipe.read import reread
from limbeck.recipe.text import WHOLE_BYTES
from limbeck.report.checks import LARGEST, check, check_card
from limbeck.report.verdict import best_arm
from limbeck.tasks import TASKS

MOST_EXPORTS = 20
"""The most exports that are shown."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Epochs:
    """The epochs of one network, in order."""

    stages: tuple[str, ...]  # the stage of each epoch
    scores: tuple[float | None, ...]  # the headline on the validation split; None if the student did not learn


@dataclass(frozen=True)
class Exported:
    """A file for a device that was exported from a network of the folder."""

    name: str  # of its folder; below export/ if an arm has this name
    arm: str  # of the network
    card: Card
    comparable: bool  # whether its latencies were measured on the processor of the networks


@dataclass
class Found:
    """What a folder says.

    Attributes:
        result: of a run, as the comparison of its method with the student alone.
        is_run: whether it is a run.
        epochs: by arm, those of each seed.
        environments: in which the networks were trained; equal ones once.
        recipe: the recipe that gives the same result again; None if it is missing, or of a call from Python.
        command: the command that uses it.
        test_digest: of the test split, as `limbeck.data.Split.digest`.
        exports: in the folder.
        missing: by part of the page, why it is not shown.
    """

    folder: Path
    result: ComparisonResult
    is_run: bool
    epochs: dict[str, tuple[Epochs, ...]] = field(default_factory=dict)
    environments: list[dict[str, Any]] = field(default_factory=list)
    recipe: Recipe | None = None
    command: str = ""
    test_digest: str | None = None
    exports: list[Exported] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    _networks: dict[str, Network] = field(default_factory=dict)
    _logs: dict[Path, EpochLog] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """The method of which single networks are shown."""
        return best_arm(self.result)

    @property
    def shown(self) -> list[NetworkLearned]:
        """What the teacher, the student alone and the best method learned; empty if it is not known."""
        networks = self.result.learned.networks if self.result.learned is not None else ()
        return [one for one in networks if one.arm in ("teacher", "alone", self.best)]

    def place(self, name: str) -> Path:
        """The run folder of a network."""
        return self.folder if self.is_run else self.folder / name.replace("/", "-")

    def network(self, name: str) -> Network:
        """What is in a network's folder.

        Raises:
            LimbeckError: it is missing or damaged, or does not agree with the result.
        """
        if name in self._networks:
            return self._networks[name]
        known = next((one for one in (*self.result.runs, self.result.teacher) if one and one.name == name), None)
        found = read_network(self.place(name) / name, name)
        if known is None or found is None:
            raise LimbeckError(f"there is no finished network in {self.place(name) / name}")
        if known.weights_sha256 != found.result.weights_sha256 or known.test != found.result.test:
            raise LimbeckError(f"{self.place(name) / name} has another network than the result: it was trained again")
        self._networks[name] = found
        return found

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The epochs of a network, as they were when it was finished.

        Raises:
            LimbeckError: as for `network`, and if the log is missing or damaged.
        """
        path = self.place(name) / LOG
        if path not in self._logs:
            self._logs[path] = EpochLog(path, kept=True)
        if not self._logs[path].check(name, self.network(name).log):
            raise LimbeckError(f"{path} has no epochs of {name}")
        return self._logs[path].of(name)

    def recipe_text(self) -> str:
        """The recipe of the first network, with the digests of the data below it.

        Raises:
            LimbeckError: it is missing or was changed, or the network is not intact.
        """
        name = self.result.runs[0].name
        path = self.place(name) / RECIPE
        data = read_bytes(path, WHOLE_BYTES)
        if data is None:
            raise LimbeckError(f"there is no {path}")
        if sha256(data).hexdigest() != self.network(name).recipe:
            raise LimbeckError(f"{path} was changed after {name} was trained")
        return data.decode()

    def attempt(self, part: str, get: Callable[[], Value]) -> Value | None:
        """What ``get`` returns, or None if it raises a LimbeckError, whose message is kept as the reason."""
        try:
            return get()
        except LimbeckError as error:
            self.missing.setdefault(part, []).append(str(error))
            return None


def read(folder: Path) -> Found:
    """Read a folder.

    Raises:
        LimbeckError: it has no finished comparison or run, or the file with the result is damaged.
    """
    if not folder.is_dir():
        raise LimbeckError(f"there is no folder {folder}")
    is_run = not (folder / COMPARISON).exists()
    if is_run and not (folder / RESULT).exists():
        raise LimbeckError(f"{folder} has neither {COMPARISON} nor {RESULT}: it has no finished comparison or run")
    run = runs.read(folder) if is_run else None
    found = Found(folder, _as_comparison(run) if run else comparisons.read(folder), is_run)
    check(found.result, folder)
    for arm in found.result.arms:
        epochs = [found.attempt("curves", partial(_epochs, found, one)) for one in found.result.of(arm.arm)]
        found.epochs[arm.arm] = tuple(one for one in epochs if one is not None and one.stages)
    for place in dict.fromkeys(found.place(one.name) for one in found.result.runs):
        environment = found.attempt("environment", partial(_environment, place))
        if environment is not None and environment not in found.environments:
            found.environments.append(environment)
    cards = sorted(folder.glob(f"{EXPORTS}/*/{CARD}"))
    if left_out := len(cards[MOST_EXPORTS:]):
        found.missing["exports"] = [f"{left_out} of {len(cards)} exports, because at most {MOST_EXPORTS} are shown"]
    for path in cards[:MOST_EXPORTS]:
        exported = found.attempt("exports", partial(_exported, found, path.parent))
        found.exports += [] if exported is None else [exported]
    found.recipe = found.attempt("recipe", lambda: _recipe(found))
    if found.recipe is not None:
        verb, file = ("run", str(folder / RECIPE)) if is_run else ("compare", RECIPE)
        found.command = shlex.join(["limbeck", verb, file, "--out", f"{folder}-again"])
    return found


def _as_comparison(run: RunResult) -> ComparisonResult:
    """A run as the comparison of its method with the student alone."""
    networks = [one for one in run.runs if one.member is None and one.arm != "teacher"]
    arms: dict[str, list[NetworkResult]] = {}
    for one in sorted(networks, key=lambda one: (one.arm != "alone", one.seed)):
        arms.setdefault(one.arm, []).append(one)
    scores = {arm: scores_of(of_arm, run.task) for arm, of_arm in arms.items()}
    methods = [arm for arm in arms if arm != "alone" and scores[arm].keys() & scores.get("alone", {}).keys()]
    versus = compared(scores, dict.fromkeys(methods, "alone"), {}, "holm")
    first = {one.arm: one for one in (run.alone, run.student) if one is not None}
    return ComparisonResult(
        schema=comparisons.SCHEMA,
        name=run.name,
        task=run.task,
        seeds=run.seeds,
        adjusted="holm",
        teacher=run.teacher,
        teachers=run.summary["teacher"].headline if run.teacher is not None else None,
        arms=tuple(
            ArmResult(
                arm=arm,
                options={},
                epochs=0,
                headline=headline_of(of_arm, run.task),
                latency=first[arm].latency if arm in first else None,
                alone=versus.get(arm),
                kd=None,
            )
            for arm, of_arm in arms.items()
        ),
        splits=run.splits,
        notes=run.notes,
        decided=run.decided,
        learned=None,
        runs=tuple(one for of_arm in arms.values() for one in of_arm),
    )


def _epochs(found: Found, one: NetworkResult) -> Epochs:
    key, lines = f"validation_{TASKS[found.result.task].headline.key}", found.lines(one.name)
    if not all(isinstance(line.get("stage"), str) and _is_number(line.get(key, 0)) for line in lines):
        raise LimbeckError(f"{found.place(one.name) / LOG} has a line that does not describe an epoch of {one.name}")
    return Epochs(tuple(line["stage"] for line in lines), tuple(line.get(key) for line in lines))


def _exported(found: Found, folder: Path) -> Exported:
    card = read_card(folder)
    check_card(card, folder)
    arms = {one.weights_sha256: one.arm for one in found.result.runs if one.weights_sha256 is not None}
    if card.task != found.result.task or card.weights_sha256 not in arms:
        raise LimbeckError(f"{folder} was not exported from a network of this folder, or the network was trained again")
    processors = {environment.get("cpu") for environment in found.environments}
    taken = folder.name in ("teacher", *(arm.arm for arm in found.result.arms))
    name = f"{EXPORTS}/{folder.name}" if taken else folder.name
    return Exported(name, arms[card.weights_sha256], card, processors == {card.results.processor})


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) < LARGEST)


def _environment(place: Path) -> dict[str, Any]:
    path = place / ENVIRONMENT
    found = read_sealed(path)
    if found is None:
        raise LimbeckError(f"there is no {path}")
    return {key: value for key, value in found.items() if key != "earlier"}


def _recipe(found: Found) -> Recipe | None:
    result, text = found.result, found.recipe_text()
    recipe = reread(found.place(result.runs[0].name) / RECIPE)
    if recipe.data.source.startswith(GIVEN):
        return None
    found.test_digest = next((line[8:] for line in text.splitlines() if line.startswith("# test: ")), None)
    if found.is_run:
        return recipe
    methods = tuple(arm.options for arm in result.arms if arm.alone or arm.options != {"name": "alone"})
    update = {"methods": methods, "seeds": result.seeds, "baseline": bool(result.of("alone"))}
    return recipe.model_copy(update=update)
