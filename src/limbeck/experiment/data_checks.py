"""Checks of the data before training: images in two splits, classes without samples, the range of the inputs."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from limbeck.core import Networks
from limbeck.data import Data, Split
from limbeck.data.building import empty_classes
from limbeck.data.overlap import COMPARED, Match, identical, similar
from limbeck.experiment.verdicts import Note, refuse_unless_allowed, skipped
from limbeck.models.fitting import listed
from limbeck.models.inputs import bridge_of

MOST_SHARED = 0.01
"""From this share of the test split, images that are also in another split are refused."""


DECODED = 64
"""Images on disk whose range is checked."""


def check_splits(data: Data, *, allow: Collection[str] = ()) -> list[Note]:
    """Compare the images of the splits, and look for classes without samples; see `limbeck.data.overlap`.

    Raises:
        LimbeckError: at least `MOST_SHARED` of the test split is identical, or nearly identical, to images of the
            training or validation split (``overlap``).
    """
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    before = {name: splits[name] for name in ("train", "validation")}
    same = identical(splits)
    places = {match.place for match in same["test"]}
    near = [match for match in similar(data.test, before) if match.place not in places]
    few = min(COMPARED, len(data.test))
    notes = skipped("the samples are not images", "overlap") if len(data.shape) != 3 else []
    for kind, matches, count in (("identical", same["test"], len(data.test)), ("nearly identical", near, few)):
        told = f"{_counted(matches, count, 'test')} {kind} to images of other splits: {_pairs(matches, 'test', splits)}"
        if matches and len(matches) >= MOST_SHARED * count:
            drawn = data.origins.get("test", "given")
            advice = f"Such images make the test results too good: remove one of each pair (the test split is {drawn})"
            notes.append(refuse_unless_allowed("overlap", told, advice, allow))
        elif matches:
            notes.append(Note(told, "overlap"))
    held = same["validation"]
    if held:
        told = _counted(held, len(data.validation), "validation")
        notes.append(Note(f"{told} identical to training images: {_pairs(held, 'validation', splits)}", "overlap"))
    if data.task != "classification":
        return [*notes, *_far_points(data, splits), *skipped("the task is not classification", "classes")]
    for name, split in (("training", data.train), ("validation", data.validation), ("test", data.test)):
        if name == "training" or len(split) >= len(data.classes):
            notes += [Note(told, "classes") for told in empty_classes(name, split, data.classes)]
        else:
            notes += skipped(f"the {name} split has fewer samples than classes", "classes")
    return notes


def check_range(networks: Networks, data: Data) -> list[Note]:
    """Return a note for each network that is described with a normalisation or a range if images are outside [0, 1].

    All training images in memory are checked, and the first `DECODED` of those on disk; uint8 images are in the range.
    The described mean and deviation are those of values from 0 to 1, see `limbeck.models.inputs.Input`.
    """
    bridges = ((name, bridge_of(module)) for name, network in networks.items() for module in network.modules())
    described = dict.fromkeys(  # also those whose members are described
        name
        for name, bridge in bridges
        if bridge is not None and (bridge.expected.statistics is not None or bridge.expected.range != 1)
    )
    if not described or len(data.shape) != 3:
        return skipped("no network is described with a normalisation or a range of images", "range")
    if data.train.inputs.dtype == torch.uint8:
        return []
    inputs, few = data.train.inputs, torch.arange(min(DECODED, len(data.train)))
    least, most = (inputs if isinstance(inputs, Tensor) else inputs[few]).aminmax()
    if least >= -1e-3 and most <= 1 + 1e-3:
        return []
    return [
        Note(
            f"the {name} is described with values from 0 to 1 before its normalisation, but the training images have "
            f"values from {least:.3g} to {most:.3g}: pass images in that range, or uint8 images",
            "range",
        )
        for name in described
    ]


def _far_points(data: Data, splits: Mapping[str, Split]) -> list[Note]:
    """A note for each split with landmarks that are far outside the image.

    These have a coordinate above 1.5 times the width or height, or below minus that. The coordinates are pixels, or
    shares of the image if the median of their absolute values is at most 1.
    """
    notes = []
    for name, split in splits.items() if data.task == "landmarks" and len(data.shape) == 3 else ():
        size = torch.tensor(data.shape[:0:-1])
        most = 1.5 * (torch.ones_like(size) if split.targets.abs().median() <= 1 else size)
        far = (split.targets.abs() > most).any(dim=2)
        if far.any():
            first = int(far.any(dim=1).nonzero()[0])
            sample = split.names[first] if split.names else f"sample {first}"
            notes.append(Note(f"{name}: {int(far.sum()):,} points are far outside the image, first in {sample}"))
    return notes


def _counted(matches: Sequence[Match], count: int, split: str) -> str:
    verb = "is" if len(matches) == 1 else "are"
    return f"{len(matches):,} of {count:,} {split} images ({len(matches) / max(1, count):.2%}) {verb}"


def _pairs(matches: Sequence[Match], split: str, splits: Mapping[str, Split]) -> str:
    def name(part: str, place: int) -> str:
        files = splits[part].names
        return f"{files[place]} ({part})" if files is not None else f"{part} sample {place}"

    return listed([f"{name(split, one.place)} and {name(one.split, one.other)}" for one in matches])
