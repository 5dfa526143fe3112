"""Whether a teacher was trained on inputs of another form than the data is given in."""

from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor, nn

from limbeck.data import Data
from limbeck.experiment.measuring import outputs_of
from limbeck.experiment.significance import UNSURE, at_least
from limbeck.models.inputs import AS_THE_DATA, Bridge, Input, bridge_of
from limbeck.taps import scripted
from limbeck.train.engine import Engine

TRIED = 128
"""The validation samples on which a teacher is tried with other forms of inputs."""

COMMON: Mapping[int, tuple[Input, ...]] = {
    3: (
        *(Input(name, name) for name in ("imagenet", "inception", "clip", "none")),
        Input("none", "none", range=255.0),
        Input((103.939, 116.779, 123.68), 1.0, channels="bgr", range=255.0),
    ),
    1: (Input(0.5, 0.5), Input("none", "none"), Input("none", "none", range=255.0), Input(0.1307, 0.3081)),
}
"""Forms of inputs that training codes use, by the number of channels: the last are Caffe's and MNIST's."""


def better_input(network: nn.Module, data: Data, engine: Engine) -> tuple[Input, float, float, int] | None:
    """A common form of inputs on which a teacher is far more accurate than on the data's, and both accuracies.

    It is judged on a few validation samples, by those that only one of the two gets right.
    """
    split = data.validation
    if (
        split.inputs.dtype != torch.uint8
        or len(data.mean) not in COMMON
        or bridge_of(network) is not None
        or scripted(network)
    ):
        return None
    few = split.select(torch.arange(min(TRIED, len(split))) * len(split) // min(TRIED, len(split)))

    def right() -> Tensor:
        return outputs_of(network, few, data, engine).argmax(dim=1) == few.targets

    def right_with(expected: Input) -> Tensor:
        handle = Bridge(expected, data.shape, data.mean, data.std).install(network)
        try:
            return right()
        finally:
            handle.remove()

    before = right()
    found = {expected: right_with(expected) for expected in COMMON[len(data.mean)]}
    best = max(found, key=lambda expected: int(found[expected].sum()))
    more, less = int((found[best] & ~before).sum()), int((before & ~found[best]).sum())
    if (more - less) / len(few) < 0.1 or at_least(more, more + less, 0.5) > UNSURE / 10:
        return None
    return best, float(before.double().mean()), float(found[best].double().mean()), len(few)


def described(expected: Input, before: float, after: float, count: int) -> tuple[str, str]:
    """What `better_input` found, and how to describe it."""
    given = {key: value for key, value in asdict(expected).items() if value != getattr(AS_THE_DATA, key)}
    block = ", ".join(f"{key}: {list(value) if isinstance(value, tuple) else value}" for key, value in given.items())
    call = ", ".join(f"{key}={value!r}" for key, value in given.items())
    return (
        f"the accuracy of the teacher on {count} validation samples is {before:.1%} with the normalisation of the "
        f"data, and {after:.1%} with inputs of another form",
        f"Describe the form: in a recipe teacher: {{input: {{{block}}}}}, in Python "
        f"teacher_input=limbeck.Input({call})",
    )
