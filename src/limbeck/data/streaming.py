"""Batches of images decoded ahead by worker processes."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from limbeck.core import LimbeckError
from limbeck.data.cut import cut
from limbeck.data.decoding import decode, quiet
from limbeck.data.images import Images, by_pixel, plain, with_channels
from limbeck.data.transforms import Transform, generators_kept, make_transform, seed_generators

_Found = TypeVar("_Found")

AHEAD = 2
"""Batches that each worker decodes in advance; no more are held at any time."""


class Wanted(NamedTuple):
    """One batch to decode. The names are sent to the workers, so that no worker needs a copy of all names."""

    names: Sequence[str]
    places: Sequence[int]  # the place of each sample in its split
    view: int | None  # None: without the transform


class Decoder(Dataset[tuple[Tensor, str]]):
    """Decodes batches to uint8 (N, C, H, W), in the process that it is in.

    Args:
        images: the images to decode.
        seed: of the transform.

    Raises:
        LimbeckError: the transform does not exist.
    """

    def __init__(self, images: Images, *, seed: int) -> None:
        self._reader, self._shape, self._size, self._seed = images.reader, images.shape[1:], images.size, seed
        self._text, self._code, self._exif_orientation = images.transform, images.code, images.exif_orientation
        self._build()

    def _build(self) -> None:
        self._transform = None if self._text is None else make_transform(self._text, self._size, self._code)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_transform": None}  # a user's function may not be picklable

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._build()

    def __getitem__(self, wanted: Wanted) -> tuple[Tensor, str]:
        """The images, or the message of an error: a worker passes on an exception with its whole traceback as text."""
        result = torch.empty(len(wanted.names), *self._shape, dtype=torch.uint8)
        grid = by_pixel(result)
        try:
            with generators_kept(), quiet():
                for place, (name, index) in enumerate(zip(wanted.names, wanted.places, strict=True)):
                    label, data = f"{name} in {self._reader.place}", self._reader(name)
                    if wanted.view is None or self._transform is None:
                        grid[place] = plain(
                            label, data, self._size, self._shape[0], exif_orientation=self._exif_orientation
                        )
                    else:
                        seed_generators(self._seed, wanted.view, index)
                        result[place] = self._transformed(self._transform, label, data)
        except LimbeckError as error:
            return result[:0], str(error)
        return result, ""

    def _transformed(self, transform: Transform, label: str, data: bytes) -> Tensor:
        image = with_channels(label, decode(label, data, exif_orientation=self._exif_orientation), self._shape[0])
        image = image.copy()  # of the plain Image type, which users' code expects
        try:
            made = transform(image)
        except Exception as error:  # the user's function may raise anything
            raise LimbeckError(f"{self._text} fails on {label}: {type(error).__name__}: {error}") from error
        got = f"{made.dtype} of shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        allowed = f"{torch.uint8} of shape {tuple(self._shape)}"
        if got != allowed:
            raise LimbeckError(f"{self._text} gave {got} for {label}; allowed is {allowed}")
        return made


@dataclass
class _Plan:
    """The batches of one pass, in the order in which the workers decode them."""

    names: Sequence[str]
    batch_size: int
    order: Tensor
    view: int | None = None

    def __iter__(self) -> Iterator[Wanted]:
        for index in cut(self.order, self.batch_size):
            places = index.tolist()
            yield Wanted([self.names[place] for place in places], places, self.view)


class Stream:
    """Batches of images, in any order, decoded in advance by worker processes; each works `AHEAD` batches ahead.

    Workers start with a pass and end with it, also if the caller leaves it early. With ``keep``, the workers of a pass
    that was completed wait for the next pass, until the stream is deleted; if one has died by then, new workers start.
    A pass of a single batch uses no workers.

    If a worker is killed, torch raises a RuntimeError ("DataLoader worker (pid 7) is killed by signal") in its handler
    of SIGCHLD, wherever the main thread is. While the main thread waits for a batch, this becomes a LimbeckError.
    Elsewhere, such as in a training step, it cannot be caught here and stays a RuntimeError.

    Args:
        images: the images to decode.
        batch_size: images a batch, see `limbeck.data.cut`.
        seed: of the transform.
        keep: whether there will be more passes.
        device: the device of the batches.

    Raises:
        LimbeckError: the transform does not exist; in a pass, an image cannot be read or a worker died.
    """

    def __init__(self, images: Images, *, batch_size: int, seed: int, keep: bool, device: torch.device) -> None:
        self._images, self._batch_size, self._device = images, batch_size, device
        self._keep = keep
        self._decoder = Decoder(images, seed=seed)
        self._waiting: list[tuple[_Plan, DataLoader[Any]]] = []

    def __call__(self, order: Tensor, view: int | None) -> Iterator[Tensor]:
        """The images at these places, (M,) int64, in batches, uint8 on the device; transformed if a view is given."""
        workers = self._images.workers if len(order) > self._batch_size else 0
        plan, loader, ahead = self._begin(workers, order, view)
        try:
            while (found := _unless_died(partial(next, ahead, None))) is not None:
                pixels, problem = found
                if problem:
                    raise LimbeckError(problem)
                yield pixels.to(self._device, non_blocking=True)
            if workers and self._keep:
                self._waiting.append((plan, loader))
        finally:
            del ahead, loader  # the workers end when the last reference is gone, which a traceback must not hold

    def _begin(
        self, workers: int, order: Tensor, view: int | None
    ) -> tuple[_Plan, DataLoader[Any], Iterator[tuple[Tensor, str]]]:
        kept = workers > 0 and len(self._waiting) > 0
        plan, loader = self._waiting.pop() if kept else self._start(workers)
        plan.order, plan.view = order, view
        try:
            return plan, loader, _unless_died(partial(iter, loader))
        except _DiedError:
            if not kept:
                raise
        finally:
            del loader
        return self._begin(workers, order, view)  # a waiting worker has died: the others end, and new ones start

    def _start(self, workers: int) -> tuple[_Plan, DataLoader[Any]]:
        plan = _Plan(self._images.names, self._batch_size, torch.arange(0))
        loader: DataLoader[Any] = DataLoader(
            self._decoder,
            batch_size=None,  # the plan gives whole batches
            sampler=plan,
            num_workers=workers,
            collate_fn=_as_it_is,
            prefetch_factor=AHEAD if workers else None,
            persistent_workers=workers > 0 and self._keep,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=_go_quietly,
            generator=torch.Generator(),  # by default it would use the global one
        )
        return plan, loader


def try_transform(images: Images) -> None:
    """Make view 0 of the first image twice.

    Raises:
        LimbeckError: the image cannot be read; the transform does not exist, fails, or gives two different views.
    """
    decoder, first = Decoder(images, seed=0), Wanted(images.names[:1], [0], 0)
    (one, problem), (other, _) = (decoder[first] for _ in range(2))
    if problem:
        raise LimbeckError(problem)
    if not torch.equal(one, other):
        raise LimbeckError(
            f"the transform {images.transform} gives two different views of {images.names[0]} for the same random "
            "numbers, so a run could not be resumed: draw them from random, numpy.random or torch, which are seeded"
        )


class _DiedError(LimbeckError):
    """A worker ended unexpectedly."""


def _unless_died(take: Callable[[], _Found]) -> _Found:
    """What the loader gives.

    An error that ends the pass is raised again as a new error, because the traceback of the first one holds the loader,
    and with it the workers.

    Raises:
        _DiedError: a worker died.
    """
    ended: BaseException
    try:
        return take()
    except KeyboardInterrupt:
        ended = KeyboardInterrupt()
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        ended = _DiedError(f"a process that decodes images failed: {error}; workers: 0 needs no other process")
    del take
    try:
        raise ended
    finally:
        del ended  # it would hold this frame, and with it itself and the stream


def _as_it_is(found: Any) -> Any:
    return found


def _go_quietly(_: int) -> None:
    """Make a worker ignore Ctrl-C, which reaches every process of the terminal: the main process ends the workers.

    If the main process was receiving a batch, the connection breaks; a thread of `multiprocessing` would print that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _but_broken_connections


def _but_broken_connections(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, where)
