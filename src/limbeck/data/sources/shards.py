"""Images in tar files, as the package webdataset writes them, for data that no memory and few file systems hold."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path

import torch

from limbeck.core import LimbeckError
from limbeck.data.ahead import THREADS, in_threads
from limbeck.data.decoding import SUFFIXES
from limbeck.data.remote import Server, check
from limbeck.data.sources.base import Parts, Progress, located
from limbeck.data.sources.reading import Reading
from limbeck.data.split import Split
from limbeck.data.tars import Folder, Sample, Shards, Tars, samples
from limbeck.files.paths import is_url, near

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST = 100_000  # tar files
_CLASSES = 1_000_000  # whose names are not given


def webdataset(
    *,
    path: str,
    test_path: str | None = None,
    validation_path: str | None = None,
    label: str = "cls",
    classes: tuple[str, ...] = (),
    together: int = 0,
    root: Path | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
    exif_orientation: bool = True,
    workers: int | None = None,
    transform: str | None = None,
) -> Parts:
    """Images of uncompressed tar files, (N, C, H, W), which stay there and are decoded when they are needed.

    A sample is one or more files with the same key, the name up to its first dot: an image, and a file with the number
    of its class. Samples without that file have no label. Files whose names begin with a dot are left out. When the
    data is loaded, the headers of all tar files and the beginning of each image are read once.

    Args:
        path: the tar files of the training split in a folder, such as ``shards/train-{0000..1023}.tar``; absolute, or
            relative to the working folder or to the data root, or a URL that fsspec reads, such as
            ``s3://bucket/train-{0000..1023}.tar``.
        test_path: those of the test split, in any folder or on the same server. None: a part of the training split.
        validation_path: those of the validation split. None: a part of the training split.
        label: the extension of the files with the number of the class, from 0.
        classes: the names of the classes. By default "0", "1", ... up to the largest label of the training split.
        together: the number of tar files, chosen at random in each epoch, whose samples are shuffled with each other
            before the next ones are read; 0: the samples of all files are shuffled. Disks and servers that are slow at
            jumping read few files at a time faster.
        root: see `data_root`.
        size: height and width of the images, as for `limbeck.data.sources.folders.folder`.
        progress: is called for each tar file.
        exif_orientation: turn and mirror images as their EXIF data says.
        workers: the number of processes that decode images; 0: only this one; None: one a processor, at most 4.
        transform: what makes a training view of an image, as for `limbeck.data.sources.folders.folder`.

    Raises:
        LimbeckError: there is no such file; a URL is not allowed, see `limbeck.data.remote.check`; a file is damaged,
            compressed, cut short or without an image, see `limbeck.data.tars`; a server cannot be read; a label is no
            number of a class; the training split has no label, and ``classes`` are not given; ``together`` is negative.
    """
    if together < 0:
        raise LimbeckError(f"together is {together}: allowed are 0 and more tar files")
    how = Reading(size, exif_orientation, True, workers, transform, progress, together)
    given = {"train": path, "validation": validation_path, "test": test_path}
    files = {part: _files(text, root) for part, text in given.items() if text is not None}
    top = _common({folder for folder, _ in files.values()})
    place: Shards = Server(top) if is_url(top) else Folder(Path(top))
    look = partial(_samples, place, label=label, most=len(classes) or _CLASSES)
    listed = {part: [_below(top, folder, name) for name in names] for part, (folder, names) in files.items()}
    total, done, found = sum(map(len, listed.values())), 0, {}
    for part, shards in listed.items():
        names, labels = list[str](), list[int]()
        for some in in_threads(look, shards, THREADS) if is_url(top) else map(look, shards):
            names += some[0]
            labels += some[1]
            done += 1
            if progress is not None:
                progress(done, total)
        found[part] = tuple(names), torch.tensor(labels)
        if part != "train" and -1 in labels:
            without = Tars(place).label(names[labels.index(-1)])
            raise LimbeckError(f"{without} has no label, a file that ends in .{label}: {part} needs one for each image")
    if not classes and not (found["train"][1] >= 0).any():
        unlabelled = f"no sample of {path} has a label, a file that ends in .{label}"
        raise LimbeckError(f"{unlabelled}: set label to the ending of these files, or list classes if there are none")
    inputs, notes = how.inputs(Tars(place), [names for names, _ in found.values()])
    splits = {
        part: Split(images, targets, names)
        for (part, (names, targets)), images in zip(found.items(), inputs, strict=True)
    }
    count = len(classes) or int(found["train"][1].max()) + 1
    return Parts(
        splits["train"],
        classes=classes or tuple(map(str, range(count))),
        validation=splits.get("validation"),
        test=splits.get("test"),
        origins={
            part: shards[0] if len(shards) == 1 else f"{len(shards):,} tar files, {shards[0]} ..."
            for part, shards in listed.items()
        },
        notes=tuple(notes),
    )


def _samples(place: Shards, shard: str, *, label: str, most: int) -> tuple[list[str], list[int]]:
    """The names and labels of the images of a tar file."""
    found = list(samples(place, shard, label))
    if not found:
        raise LimbeckError(f"{place.place}/{shard} holds no image: the names of images end in {', '.join(SUFFIXES)}")
    return [one.name for one in found], [_number(one, Tars(place), most) for one in found]


def _number(sample: Sample, reader: Tars, most: int) -> int:
    if sample.label is None:
        return -1
    try:
        number = int(sample.label)
    except ValueError:
        number = -1
    if not 0 <= number < most:
        got = f"the label of {reader.label(sample.name)} is {sample.label[:20]!r}"
        raise LimbeckError(f"{got}: allowed are numbers from 0 to {most - 1:,}")
    return number


def _files(pattern: str, root: Path | None) -> tuple[str, Sequence[str]]:
    """The folder of the tar files that a pattern stands for, a path or URL, and their names in order."""
    if "*" in pattern.rpartition("/")[2]:
        raise LimbeckError(f"got {pattern!r}: write the numbers of the files, such as train-{{0000..1023}}.tar, not *")
    if is_url(pattern) or ("::" in pattern and not Path(pattern).parent.is_dir()):
        check(pattern)
        top, _, last = pattern.rpartition("/")
        return top, list(_expanded(last))
    folder, names = located(Path(pattern).parent, root), list(_expanded(Path(pattern).name))
    for path in (folder / name for name in names):
        if path.is_dir():
            raise LimbeckError(f"{path} is a folder: give its tar files, such as {path.name}/train-{{0000..1023}}.tar")
        if not path.is_file():
            raise LimbeckError(f"there is no file {path}{near(path)}")
    return os.path.realpath(folder), names


def _common(folders: Collection[str]) -> str:
    """The folder or the URL that is above all of these, or the only one."""
    urls = [folder.split("/") for folder in folders if is_url(folder)]
    if not urls:
        return os.path.commonpath(folders)
    same = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*urls, strict=False))]
    if len(urls) < len(folders) or len(same) < 3:  # "s3:", "", "bucket"
        raise LimbeckError(
            f"the tar files are in {' and '.join(sorted(folders))}: allowed is one server, or this machine"
        )
    return "/".join(same)


def _below(top: str, folder: str, name: str) -> str:
    """The name of a file of the folder, as seen from the one above, with slashes."""
    found = f"{folder[len(top) :]}/{name}".replace(os.sep, "/").lstrip("/")
    if re.search(r"[:\\]", found):
        raise LimbeckError(f"{found} in {top}: allowed are names without : and \\")
    return found


def _expanded(name: str) -> Iterator[str]:
    found = _RANGE.search(name)
    if found is None:
        yield name
        return
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + _MOST:
        raise LimbeckError(f"{found[0]} in {name} is no range of at most {_MOST:,} numbers")
    for number in range(first, last + 1):
        digits = f"{number:0{len(found[1])}d}"
        yield from _expanded(name[: found.start()] + digits + name[found.end() :])
