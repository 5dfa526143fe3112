"""Compare a store with its teacher: whether the teacher still gives the rows that are stored."""

import math
import random
from dataclasses import dataclass, replace

import torch

from limbeck.cache.building import read_taps
from limbeck.cache.encoding import deviation
from limbeck.cache.reading import Store
from limbeck.core import LimbeckError, Reader, Tap
from limbeck.data import Batches

ROWS = 64
"""How many rows are compared; all, if there are fewer."""


@dataclass(frozen=True)
class Verification:
    """The row that deviates most from the teacher, as a share of what is allowed."""

    rows: int  # that were compared
    tap: Tap
    view: int
    row: int
    deviation: float  # of a stored number from the one that the teacher gives now
    allowed: float  # because of rounding; see `limbeck.cache.encoding.deviation`


def verify(store: Store, reader: Reader, source: Batches, *, seed: int = 0) -> Verification:
    """Run the teacher again on `ROWS` random rows of all views, and compare its outputs with the stored rows.

    Args:
        store: a finished store.
        reader: see `limbeck.cache.building.build`.
        source: see `limbeck.cache.building.build`.
        seed: chooses the rows.

    Raises:
        LimbeckError: a number deviates by more than rounding explains.
    """
    everything = store.rows * store.views
    chosen = sorted(random.Random(seed).sample(range(everything), min(ROWS, everything)))
    found = [one for place in chosen for one in _compare(store, reader, source, *divmod(place, store.rows))]
    # A NaN, which is neither less nor greater than another number, counts as the worst.
    worst = max(found, key=lambda one: (math.isnan(one.deviation), one.deviation / one.allowed))
    if not worst.deviation <= worst.allowed:
        raise LimbeckError(
            f"{worst.tap} of sample {worst.row} in view {worst.view} is {worst.deviation:.3g} away from what the "
            f"teacher gives now, and rounding explains {worst.allowed:.3g}: the store does not hold the outputs "
            "of this teacher on these views. Delete the folder, and build the store again"
        )
    return replace(worst, rows=len(chosen))


def _compare(store: Store, reader: Reader, source: Batches, view: int, row: int) -> list[Verification]:
    """Compare one row of every tap with what the teacher gives now."""
    batch = next(iter(source.view(view, start=row, stop=row + 1)))
    fingerprint = store.plan.fingerprint
    found = []
    for tap, tensor in read_taps(reader, batch, fingerprint).items():
        if tuple(tensor.shape[1:]) != store.plan.shapes[tap]:
            raise LimbeckError(
                f"{tap} of sample {row} in view {view} is {tuple(tensor.shape[1:])}, stored is {store.plan.shapes[tap]}"
            )
        stored = store.stored(tap, torch.tensor([row]), view)
        precision = computes_in(fingerprint.precision, tensor.device)
        away, allowed = deviation(stored, tensor, fingerprint.taps[tap], precision)
        found.append(Verification(1, tap, view, row, away.item(), allowed.item()))
    return found


def computes_in(precision: str, device: torch.device) -> str:
    """The precision of a forward: the fingerprint's, or "tf32" where a GPU rounds the factors of 32-bit products."""
    convolutions: str = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # not in torch's types
    allowed = (convolutions, torch.backends.cuda.matmul.fp32_precision)
    return "tf32" if precision == "32" and device.type == "cuda" and "tf32" in allowed else precision
