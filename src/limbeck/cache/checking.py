"""What a store holds, and whether the teacher would still give the same."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from limbeck.cache.building import Views, read_taps
from limbeck.cache.encoding import deviation
from limbeck.cache.fingerprint import Fingerprint
from limbeck.cache.folder import MANIFEST, begun, has_size
from limbeck.cache.reading import Store
from limbeck.core import LimbeckError, Reader, Tap


@dataclass(frozen=True)
class Verification:
    """The worst of the rows that were made anew, as a share of what is allowed."""

    rows: int  # made anew
    tap: Tap
    view: int
    row: int
    deviation: float  # of a stored number from the teacher's of now
    allowed: float  # by rounding; see `limbeck.cache.encoding.deviation`


def verify(store: Store, reader: Reader, source: Views, *, rows: int = 64, seed: int = 0) -> Verification:
    """Run the teacher again on random rows of all views, one at a time, and compare with what is stored.

    Args:
        store: a finished store.
        reader: the teacher, as the store was built with.
        source: the data, as the store was built from.
        rows: how many, or all if there are fewer.
        seed: of the choice.

    Raises:
        LimbeckError: a number deviates by more than rounding explains; or no row is to be compared.
    """
    if rows < 1:
        raise LimbeckError(f"{rows} rows to compare: allowed are 1 and greater")
    everything = store.rows * store.views
    chosen = sorted(random.Random(seed).sample(range(everything), min(rows, everything)))
    found = [one for place in chosen for one in _compare(store, reader, source, *divmod(place, store.rows))]
    # a NaN, which is neither less nor greater than another number, is the worst
    worst = max(found, key=lambda one: (math.isnan(one.deviation), one.deviation / one.allowed))
    if not worst.deviation <= worst.allowed:
        raise LimbeckError(
            f"{worst.tap} of sample {worst.row} in view {worst.view} is {worst.deviation:.3g} away from what the "
            f"teacher gives now, and rounding explains {worst.allowed:.3g}: the store is not this teacher's on these "
            "views. Delete the folder and build again"
        )
    return replace(worst, rows=len(chosen))


def _compare(store: Store, reader: Reader, source: Views, view: int, row: int) -> list[Verification]:
    """One row of every tap, stored and made anew."""
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
    """How precisely a forward runs: as the fingerprint says, or "tf32" where a GPU shortens its 32-bit factors."""
    convolutions: str = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    allowed = (convolutions, torch.backends.cuda.matmul.fp32_precision)
    return "tf32" if precision == "32" and device.type == "cuda" and "tf32" in allowed else precision


@dataclass(frozen=True)
class Info:
    """What a folder holds, as it says itself: no teacher and no data are needed, and no bit is checked."""

    finished: bool
    fingerprint: Fingerprint
    rows: int  # samples in a view
    shapes: Mapping[Tap, tuple[int, ...]]  # of one sample
    bytes: int  # on disk now
    files: int  # shards that are there, of full size
    of: int  # shards of the finished store


def info(folder: Path) -> Info:
    """The plain facts of a store, finished or not.

    Raises:
        LimbeckError: there is none, or what describes it is damaged.
    """
    plan = begun(folder)
    if plan is None:
        raise LimbeckError(f"there is no store in {folder}: build it first")
    pieces = [piece for unit in plan.units for piece in plan.pieces(*unit)]
    there = [piece for piece in pieces if has_size(folder, plan, piece)]
    return Info(
        finished=(folder / MANIFEST).is_file() and len(there) == len(pieces),
        fingerprint=plan.fingerprint,
        rows=plan.rows,
        shapes=plan.shapes,
        bytes=sum(plan.size(piece) for piece in there),
        files=len(there),
        of=len(pieces),
    )
