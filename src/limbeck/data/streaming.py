"""Batches of images decoded ahead by worker processes."""

import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from limbeck.core import LimbeckError
from limbeck.data.decoding import quiet
from limbeck.data.images import Images
from limbeck.data.transforms import Transform, generators_kept, make_transform, seed_generators

AHEAD = 2
"""Batches that each worker decodes in advance; no more are held at any time."""


class Wanted(NamedTuple):
    """One batch to decode. The names are sent to the workers, so that no worker needs a copy of all names."""

    names: Sequence[str]
    places: Sequence[int]  # the place of each sample in its split
    view: int | None  # None: without the transform


class Decoder(Dataset[tuple[Tensor, str]]):
    """Decodes batches to (N, C, H, W), in the process that it is in; the seed is of the transform.

    Raises:
        LimbeckError: the transform does not exist.
    """

    def __init__(self, images: Images, *, seed: int) -> None:
        self._images, self._seed = replace(images, names=()), seed
        name = images.transform
        self._transform = None if name is None else make_transform(name, images.size, images.code)

    def __reduce__(self) -> Any:
        return partial(Decoder, seed=self._seed), (self._images,)  # a user's function may not be picklable

    def __getitem__(self, wanted: Wanted) -> tuple[Tensor, str]:
        """The images, or the message of an error: a worker passes on an exception with its whole traceback as text."""
        result = torch.empty(len(wanted.names), *self._images.shape[1:], dtype=self._images.dtype)
        try:
            with generators_kept(), quiet():
                files = self._images.reader.several(wanted.names)
                for place, (file, index) in enumerate(zip(files, wanted.places, strict=True)):
                    if wanted.view is None or self._transform is None:
                        result[place] = self._images.plain(file)
                    else:
                        seed_generators(self._seed, wanted.view, index)
                        result[place] = self._transformed(self._transform, *file)
        except LimbeckError as error:
            return result[:0], str(error)
        return result, ""

    def _transformed(self, transform: Transform, name: str, data: bytes) -> Tensor:
        pixels = self._images.decoded(name, data)
        image = Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0])
        which, label = self._images.transform, self._images.reader.label(name)
        try:
            made = transform(image)
        except Exception as error:  # the user's function may raise anything
            raise LimbeckError(f"{which} fails on {label}: {type(error).__name__}: {error}") from error
        got = f"{made.dtype} of shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        allowed = f"{torch.uint8} of shape {tuple(self._images.shape[1:])}"
        if got != allowed:
            raise LimbeckError(f"{which} gave {got} for {label}; allowed is {allowed}")
        return made


class Stream:
    """Batches of images, in any order, decoded in advance by worker processes; each works `AHEAD` batches ahead.

    Workers start with a pass and end with it, also if the caller leaves it early. A pass of a single batch uses no
    workers.

    If a worker is killed, torch raises a RuntimeError ("DataLoader worker (pid 7) is killed by signal") in its handler
    of SIGCHLD, wherever the main thread is. While the main thread waits for a batch, this becomes a LimbeckError.
    Elsewhere, such as in a training step, it cannot be caught here and stays a RuntimeError.

    Raises:
        LimbeckError: the transform does not exist; in a pass, an image cannot be read or a worker died.
    """

    def __init__(self, images: Images, *, seed: int, device: torch.device) -> None:
        self._images, self._device = images, device
        self._decoder = Decoder(images, seed=seed)

    def __call__(self, order: Tensor, sizes: Sequence[int], view: int | None) -> Iterator[Tensor]:
        """The images at these places, (M,) int64, in batches of these sizes; transformed if a view is given."""
        workers = self._images.workers if len(sizes) > 1 else 0
        loader: DataLoader[Any] = DataLoader(
            self._decoder,
            batch_size=None,  # the sampler gives whole batches
            sampler=self._wanted(order, sizes, view),
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=_go_quietly,
            generator=torch.Generator(),  # by default it would use the global one
        )
        ahead: Any = None
        try:
            ahead = iter(loader)
            for pixels, problem in ahead:
                if problem:
                    raise LimbeckError(problem)
                yield pixels.to(self._device, non_blocking=True)
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            died = str(error)
        finally:
            if workers and ahead is not None:
                ahead._shutdown_workers()  # by default they end with the last reference, which a traceback may hold
        raise LimbeckError(f"a process that decodes images failed: {died}; workers: 0 decodes in the main process")

    def _wanted(self, order: Tensor, sizes: Sequence[int], view: int | None) -> Iterator[Wanted]:
        for index in torch.split(order, list(sizes)):
            places = index.tolist()
            yield Wanted([self._images.names[place] for place in places], places, view)


def _go_quietly(_: int) -> None:
    """Make a worker ignore Ctrl-C, which reaches every process of the terminal: the main process ends the workers.

    If the main process was receiving a batch, the connection breaks; a thread of `multiprocessing` would print that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _but_broken_connections


def _but_broken_connections(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, where)
