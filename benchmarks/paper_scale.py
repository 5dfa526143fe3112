"""The table of docs/paper-scale.md: what `limbeck reproduce CLAIM --scale paper` trains, and how fast a GPU must be.

    python -m benchmarks.paper_scale            # prints the table
    python -m benchmarks.paper_scale --write    # writes it into docs/paper-scale.md

Nothing is trained, and no data is read: the networks of each study are built, and its stages planned, on random images.
"""

import argparse
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.scale import written
from limbeck import arrays
from limbeck.claims import SYSTEMS
from limbeck.claims.claim import Claim, Study
from limbeck.experiment.arms import longer
from limbeck.experiment.networks import NetworkFactory
from limbeck.experiment.preflight import built
from limbeck.experiment.prepared import Prepared

PAGE = Path(__file__).parents[1] / "docs" / "paper-scale.md"

HOURS = 24


class Images(NamedTuple):
    """A set of training images."""

    number: int
    shape: tuple[int, int, int]
    classes: int


DATA = {
    "mnist": Images(60_000, (1, 28, 28), 10),
    "cifar10": Images(50_000, (3, 32, 32), 10),
    "cifar100": Images(50_000, (3, 32, 32), 100),
}


class Cost(NamedTuple):
    """What a study trains."""

    data: str
    networks: int
    images: float  # that networks learn from, in all epochs of all trainings


@cache
def cost(study: Study) -> Cost:
    """What a study trains; its teacher only if it is not that of another study."""
    recipe = study.at("paper")
    if study.teacher is not None and not study.fine_tunes:
        recipe = recipe.model_copy(update={"teacher": study.teacher.at("paper").teacher})
    images = DATA[recipe.data.source]
    labels = torch.arange(4 * images.classes) % images.classes
    data = arrays(torch.rand(len(labels), *images.shape), labels, validation=0.5)
    held = recipe.data.validation
    count = images.number - (held if held >= 1 else held * images.number)
    planned = built(recipe, data, Prepared(NetworkFactory(recipe, data), recipe, data), {}).trainings
    epochs = {arm: sum(stage.epochs for stage in stages) for arm, (stages, _, _) in planned.items()}
    of_student = {
        arm: sum(stage.epochs for stage in stages if "student" in stage.networks)
        for arm, (stages, _, _) in planned.items()
    }
    epochs |= longer(recipe, of_student)
    shares = {arm: 1 - len(training.exclude) / images.classes for arm, (_, _, training) in planned.items()}
    networks, passes = 0, 0.0
    for arm, each in epochs.items():
        if arm == "teacher" and study.teacher is not None:
            continue
        times = 1 if arm == "teacher" else len(recipe.seeds)
        networks += times
        passes += times * each * count * shares.get(arm, shares.get("alone", 1))
    return Cost(recipe.data.source, networks, passes)


def studies(claim: Claim) -> list[Study]:
    """The studies of a claim, and those that they need."""
    return list(dict.fromkeys(one for study in claim.studies for one in study.needed()))


def row(name: str, needed: Iterable[Study]) -> tuple[str, ...]:
    """The row of a claim with these studies."""
    costs = [cost(study) for study in needed]
    images = sum(one.images for one in costs)
    data = ", ".join(dict.fromkeys(one.data for one in costs))
    return name, data, f"{sum(one.networks for one in costs)}", f"{images / 1e6:,.0f}", f"{images / HOURS / 3600:,.0f}"


def _rows() -> Iterator[tuple[str, ...]]:
    claims = {claim.name: studies(claim) for system in SYSTEMS.values() for claim in system.claims if claim.studies}
    yield from (row(name, needed) for name, needed in claims.items())
    yield row("all", dict.fromkeys(study for needed in claims.values() for study in needed))


def tables() -> dict[str, str]:
    """The table by its name."""
    heading = ("claim", "data", "networks", "million images", f"images/s for {HOURS} hours")
    lines = [heading, tuple("---" for _ in heading), *_rows()]
    return {"paper": "".join(f"| {' | '.join(cells)} |\n" for cells in lines)}


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    found = tables()
    if write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(found["paper"])


if __name__ == "__main__":
    main()
