"""A run before it is one: everything built once, every layer read once, and what is left to `auto` decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from limbeck.cache import free_bytes
from limbeck.core import Batch, LimbeckError, Method, Stage, Tap
from limbeck.data import Data, normalise
from limbeck.evaluate import macs
from limbeck.experiment.arms import arms_of, method_of, needed, training_of
from limbeck.experiment.caching import cached, decide, soft_label_table, teacher_taps
from limbeck.experiment.checks import check_run, check_teacher, refuse_shared
from limbeck.experiment.networks import check_use, ensemble, teaches
from limbeck.experiment.plan import Training, plan, probe, training_batches
from limbeck.experiment.prepared import Prepared
from limbeck.experiment.terms import SAMPLES, meaningless
from limbeck.methods import METHODS
from limbeck.recipe.blocks import CacheBlock, Recipe
from limbeck.recipe.read import reread
from limbeck.taps import shapes
from limbeck.train.engine import Engine, Precision, make_engine
from limbeck.train.freeze import frozen_parts
from limbeck.train.readers import unfused
from limbeck.train.timing import resolve_precision


@dataclass(frozen=True)
class Preflight:
    """What `preflight` finds."""

    recipe: Recipe  # with all that `auto` stands for decided
    engine: Engine
    macs: int  # multiply-accumulates of one sample through all networks
    teaching: Mapping[str, bool]  # by arm: whether the method changes its teacher
    work: Mapping[str, float]  # by arm, a teacher's too: about how many multiply-accumulates its training takes
    notes: tuple[str, ...]  # what a user should know before anything is trained


def preflight(recipe: Recipe, data: Data, factory: Prepared, folder: Path, own: Method | None) -> Preflight:
    """Build every network, plan every arm, read every tap.

    Args:
        recipe: checked.
        data: its data.
        factory: what gives its networks.
        folder: the run's.
        own: the method, where the recipe's name stands for a function of the caller's.

    Raises:
        LimbeckError: a file, a network, a layer or an option is wrong.
    """
    method = recipe.method["name"]
    with torch.random.fork_rng(devices=[]):
        student, _, others = factory.student(recipe.seeds[0], method)
        networks, members = {"student": student, **others}, list[nn.Module]()
        block = recipe.teacher
        if block is not None:
            members = factory.restored(block) or [factory.teacher(block)[0] for _ in range(block.members)]
            networks["teacher"] = ensemble(members, block)
        notes = list(refuse_shared(networks, allow=recipe.allow).notes)
        trainings = _trainings(recipe, data, networks, members, own)
        stages, training = trainings[method][0], trainings[method][2]
        table = soft_label_table(block, data, training) if block is not None else None
        check_use(recipe, stages, others)
        cache, engine = resolve_auto(
            stages,
            networks,
            data,
            training,
            seed=recipe.seeds[0],
            cache=recipe.cache if table is None else CacheBlock(use=False),
            device=recipe.device,
            precision=recipe.precision,
            compile=recipe.compile,
            folder=folder,
        )
        stored = teacher_taps(stages) if cache.use or table else frozenset[Tap]()
        for arm, planned in trainings.items():
            own_arm = arm == method
            notes += _looked_at(
                planned, data, engine, stored if own_arm else frozenset(), runs=table is None or not own_arm
            )
        inputs = probe(data).inputs.to(engine.device)
        notes += unfused(stages, networks, inputs, engine, table=stored if table else frozenset())
        if block is not None and block.weights and block.init == "as_is":
            learns = teaches(stages)
            notes += check_teacher(networks["teacher"], data, engine, allow=recipe.allow, learns=learns).notes
        rest = [f"student.{part}" if part else "student" for part in frozen_parts(student)]
        if rest:
            notes.append(f"frozen, and left as they are: {', '.join(rest)}")
        costs = {name: macs(network, data.shape) or 0 for name, network in networks.items()}
    picked = {"device": engine.device.type, "precision": engine.precision, "compile": engine.compile, "cache": cache}
    return Preflight(
        recipe=recipe.model_copy(update=picked),
        engine=engine,
        macs=sum(costs.values()),
        teaching={arm: teaches(planned) for arm, (planned, _, _) in trainings.items()},
        work={arm: _work(arm, method, trainings[arm][0], trainings[arm][2], data, costs) for arm in trainings},
        notes=tuple(dict.fromkeys(notes)),
    )


Planned = tuple[tuple[Stage, ...], Mapping[str, nn.Module], Training]
"""An arm's stages, the networks that take part, and how they are trained."""


def _trainings(
    recipe: Recipe, data: Data, networks: Mapping[str, nn.Module], members: Sequence[nn.Module], own: Method | None
) -> dict[str, Planned]:
    """All that is trained, by arm: the teacher, or one of the members of an ensemble; the student's, the method's last.

    Raises:
        LimbeckError: a network, a layer or an option is wrong.
    """
    found: dict[str, Planned] = {}
    block = recipe.teacher
    if block is not None and block.train is not None:
        training, taking_part = training_of(block.train, data), {"student": members[0]}
        stages = plan(METHODS["alone"], taking_part, data, training)
        found["teacher" if block.members == 1 else "member"] = (stages, taking_part, training)
    training = training_of(recipe.train, data)
    for arm in arms_of(recipe):
        taking_part = needed(arm, networks)
        found[arm] = (plan(method_of(recipe, arm, own), taking_part, data, training), taking_part, training)
    return found


def _looked_at(planned: Planned, data: Data, engine: Engine, stored: frozenset[Tap], *, runs: bool) -> list[str]:
    """What there is to say of an arm after one real step of each of its stages; ``runs``: its teacher is a network."""
    stages, networks, training = planned
    notes = [note for stage in stages for note in stage.notes]
    notes += check_run(stages, networks, data, training, engine, stored=stored).notes
    return [*notes, *(_terms(stages, networks, data, training, engine) if runs else ())]


def _terms(
    stages: Sequence[Stage], networks: Mapping[str, nn.Module], data: Data, training: Training, engine: Engine
) -> tuple[str, ...]:
    """What there is to say of the stages' terms, on a few samples of all classes."""
    losses = [term.loss for stage in stages for term in stage.terms.values() if isinstance(term.loss, nn.Module)]
    for module in (*networks.values(), *losses):
        engine.place(module)
    split = data.train.without(training.exclude)
    count = min(SAMPLES, training.batch_size, len(split))
    index = torch.arange(count) * len(split) // count
    inputs = normalise(split.inputs[index], data.mean, data.std).to(engine.device)
    return meaningless(
        stages, networks, Batch(inputs, split.targets[index].to(engine.device), index.to(engine.device), 0)
    )


def _work(
    arm: str, method: str, stages: Sequence[Stage], training: Training, data: Data, costs: Mapping[str, int]
) -> float:
    """About how many multiply-accumulates an arm takes, where a backward counts as two forwards."""
    learns = costs["teacher"] if arm in ("teacher", "member") else costs["student"]
    read = sum(costs.values()) - learns if arm == method else 0
    return float(sum(stage.epochs for stage in stages) * len(data.train) * (3 * learns + read))


def resolved(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with what it leaves to ``auto`` as the run that a folder holds decided it.

    Raises:
        RecipeError: the folder's recipe is damaged.
    """
    file = folder / "recipe.yaml"
    if not file.is_file():
        return recipe
    known = reread(file)
    update = {key: getattr(known, key) for key in ("device", "precision") if getattr(recipe, key) == "auto"}
    if recipe.cache.use in ("auto", known.cache.use):
        said = recipe.cache.model_dump(exclude_none=True, exclude={"use"})
        update["cache"] = known.cache.model_copy(update=said)
    return recipe.model_copy(update=update)


def resolve_auto(
    stages: Sequence[Stage],
    networks: Mapping[str, nn.Module],
    data: Data,
    training: Training,
    *,
    seed: int,
    cache: CacheBlock,
    device: str,
    precision: Precision,
    compile: bool,  # noqa: A002 (what torch calls it)
    folder: Path,
) -> tuple[CacheBlock, Engine]:
    """The cache and the engine with all that `auto` stands for decided for these stages; ``folder`` is the run's.

    Raises:
        LimbeckError: what is asked for cannot be had; see `decide` and `resolve_precision`.
    """
    if compile not in (True, False):
        raise LimbeckError(f"compile is {compile!r}: allowed are True and False")
    sizes = shapes(networks, teacher_taps(stages), probe(data))
    cache = decide(
        cache,
        stages,
        training,
        len(data.train),
        sizes.__getitem__,
        free=free_bytes(Path(cache.folder or folder)),
        transformed=data.train.transform is not None,
    )
    plain = make_engine(device=device, precision="32")
    batches = training_batches(data, cached(training, cache), seed=seed, engine=plain)
    stored = teacher_taps(stages) if cache.use else frozenset()
    return cache, resolve_precision(
        stages, networks, batches, device=device, precision=precision, compile=compile, stored=stored
    )
