"""Several networks as one teacher (Hinton, Vinyals & Dean, arXiv 1503.02531, section 1)."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError

Mean = Literal["arithmetic", "geometric"]


class Ensemble(nn.Module):
    r"""The mean prediction of several networks with the same classes.

    With v_m the logits of M members, each (N, classes), the output is

    * arithmetic: :math:`\log \frac1M \sum_m \mathrm{softmax}(v_m)`, whose softmax is the mean of the probabilities;
    * geometric: :math:`\frac1M \sum_m v_m`, whose softmax is the normalised geometric mean of the probabilities.

    At a temperature T, softmax(output / T) of the geometric mean is the geometric mean of softmax(v_m / T). For the
    arithmetic mean, it is not the mean of softmax(v_m / T): read the members' logits for that.

    Args:
        members: one or more networks. They become the layers ``members.0`` and so on.
        mean: ``arithmetic`` or ``geometric``.

    Raises:
        LimbeckError: ``members`` is empty or ``mean`` is unknown. In the forward: the members differ in their classes.
    """

    def __init__(self, members: Sequence[nn.Module], mean: Mean) -> None:
        super().__init__()
        if not members:
            raise LimbeckError("got no members: an ensemble needs at least one")
        if mean not in get_args(Mean):
            raise LimbeckError(f"got mean {mean!r}, allowed are {' and '.join(get_args(Mean))}")
        self.members = nn.ModuleList(members)
        self.mean: Mean = mean

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, ...) to logits (N, classes)."""
        logits = [member(inputs) for member in self.members]
        shapes = [tuple(values.shape) for values in logits]
        if len(set(shapes)) > 1:
            listed = ", ".join(f"member {number} {shape}" for number, shape in enumerate(shapes))
            raise LimbeckError(f"the members' logits differ in shape: {listed}")
        stacked = torch.stack(logits)
        if self.mean == "geometric":
            return stacked.mean(0)
        return stacked.log_softmax(-1).logsumexp(0) - math.log(len(logits))
