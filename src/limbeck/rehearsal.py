"""A run before it is one: everything built once, every layer read once, and what is left to `auto` decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from limbeck.arms import arms_of, method_of, needed, training_of
from limbeck.blocks import CacheBlock, Recipe
from limbeck.caching import bought, cached, decide, wanted
from limbeck.core import LimbeckError, Stage
from limbeck.data import Data
from limbeck.engine import Engine, Precision
from limbeck.evaluate import macs
from limbeck.methods import METHODS
from limbeck.networks import Cast, check_use, joined, teaches
from limbeck.recipe import read
from limbeck.session import Training, plan, probe, training_batches
from limbeck.store import free_bytes
from limbeck.taps import shapes
from limbeck.trial import engine_for


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal finds."""

    recipe: Recipe  # with all that `auto` stands for decided
    engine: Engine
    macs: int  # multiply-accumulates of one sample through all networks
    teaching: Mapping[str, bool]  # by arm: whether the method changes its teacher


def rehearse(recipe: Recipe, data: Data, cast: Cast, folder: Path) -> Rehearsal:
    """Build every network, plan every arm, read every tap.

    Args:
        recipe: checked.
        data: its data.
        cast: what builds its networks.
        folder: the run's.

    Raises:
        LimbeckError: a file, a network, a layer or an option is wrong.
    """
    teaching = {}
    with torch.random.fork_rng(devices=[]):
        student, _, others = cast.student(recipe.seeds[0])
        networks = {"student": student, **others}
        block = recipe.teacher
        if block is not None:
            members = cast.restored(block) or [cast.teacher(block)[0] for _ in range(block.members)]
            networks["teacher"] = joined(members, block)
            if block.train is not None:
                plan(METHODS["alone"], {"student": members[0]}, data, training_of(block.train, data))
        for arm in arms_of(recipe):
            stages = plan(method_of(recipe, arm), needed(arm, networks), data, training_of(recipe.train, data))
            teaching[arm] = teaches(stages)
        training = training_of(recipe.train, data)
        table = bought(block, data, training) if block is not None else None
        check_use(recipe, stages)  # the method's own arm is the last
        work = sum(macs(network, data.shape) or 0 for network in networks.values())
        cache, engine = settle(
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
    picked = {"device": engine.device.type, "precision": engine.precision, "compile": engine.compile, "cache": cache}
    return Rehearsal(recipe.model_copy(update=picked), engine, work, teaching)


def as_decided(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with what it leaves to ``auto`` as the run that a folder holds decided it.

    Raises:
        RecipeError: the folder's recipe is damaged.
    """
    file = folder / "recipe.yaml"
    if not file.is_file():
        return recipe
    known = read(file)
    update = {key: getattr(known, key) for key in ("device", "precision", "compile") if getattr(recipe, key) == "auto"}
    if recipe.cache.use in ("auto", known.cache.use):
        said = recipe.cache.model_dump(exclude_none=True, exclude={"use"})
        update["cache"] = known.cache.model_copy(update=said)
    return recipe.model_copy(update=update)


def settle(
    stages: Sequence[Stage],
    networks: Mapping[str, nn.Module],
    data: Data,
    training: Training,
    *,
    seed: int,
    cache: CacheBlock,
    device: str,
    precision: Precision,
    compile: bool | Literal["auto"],  # noqa: A002 (what torch calls it)
    folder: Path,
) -> tuple[CacheBlock, Engine]:
    """The cache and the engine with all that `auto` stands for decided for these stages; ``folder`` is the run's.

    Raises:
        LimbeckError: what is asked for cannot be had; see `decide`, `engine_for` and the runtime's `library`.
    """
    if compile not in (True, False, "auto"):
        raise LimbeckError(f"compile is {compile!r}: allowed are True, False and 'auto'")
    sizes = shapes(networks, wanted(stages), probe(data))
    cache = decide(
        cache,
        stages,
        training,
        len(data.train),
        sizes.__getitem__,
        free=free_bytes(Path(cache.folder or folder)),
        transformed=data.train.transform is not None,
    )
    batches = training_batches(data, cached(training, cache), seed=seed, engine=Engine(device=device, precision="32"))
    stored = wanted(stages) if cache.use else frozenset()
    engine = engine_for(stages, networks, batches, device=device, precision=precision, compile=compile, stored=stored)
    if cache.use and cache.runtime == "openvino":
        from limbeck.openvino_reader import library  # the tracer takes a second to import

        library(engine.device)
    return cache, engine
