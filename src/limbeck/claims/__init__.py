"""The claims of the papers, which `limbeck reproduce` measures again. A paper is one file and one line in `SYSTEMS`."""

from collections.abc import Mapping, Sequence

from limbeck.claims.claim import Claim, System
from limbeck.claims.class_distance import CLASS_DISTANCE_2017
from limbeck.claims.fitnets import FITNETS_2015
from limbeck.claims.fsp import FSP_2017
from limbeck.claims.hinton import HINTON_2015
from limbeck.claims.srrl import SRRL_2021
from limbeck.errors import LimbeckError, nearest

SYSTEMS: Mapping[str, System] = {
    system.name: system for system in (CLASS_DISTANCE_2017, FITNETS_2015, FSP_2017, SRRL_2021, HINTON_2015)
}


def chosen(names: Sequence[str]) -> list[tuple[System, Claim]]:
    """The claims that names select: those of a claim, of a system, or ``all``.

    Raises:
        LimbeckError: there is no such claim or system.
    """
    every = [(system, claim) for system in SYSTEMS.values() for claim in system.claims]
    known = {"all", *SYSTEMS, *(claim.name for _, claim in every)}
    for name in names:
        if name not in known:
            raise LimbeckError(f"there is no claim or system {name!r}: {nearest(name, sorted(known))}")
    return [(system, claim) for system, claim in every if {"all", system.name, claim.name} & set(names)]
