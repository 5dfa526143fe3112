"""Several networks as one teacher (Hinton, Vinyals & Dean, arXiv 1503.02531, section 1)."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from limbeck.core import LimbeckError
from limbeck.data.targets import NUMBERS, TaskName

Mean = Literal["arithmetic", "geometric"]


class Ensemble(nn.Module):
    r"""The mean prediction of several networks with the same classes.

    With v_m the logits of M members, each (N, classes), the output is

    * arithmetic: :math:`\log \frac1M \sum_m \mathrm{softmax}(v_m)`, whose softmax is the mean of the probabilities;
    * geometric: :math:`\frac1M \sum_m v_m`, whose softmax is the normalised geometric mean of the probabilities.

    At a temperature T, softmax(output / T) of the geometric mean is the geometric mean of softmax(v_m / T). For the
    arithmetic mean, it is not the mean of softmax(v_m / T): read the members' logits for that.

    Of ``segmentation``, this holds for each place, with logits (N, classes, H, W); of ``multi_label``, for each label
    with the sigmoid instead of the softmax. Of ``regression`` and ``landmarks``, the output is the mean of the members'
    outputs, and a geometric mean does not exist.

    Args:
        members: one or more networks. They become the layers ``members.0`` and so on.
        mean: ``arithmetic`` or ``geometric``.
        task: what the members predict.

    Raises:
        LimbeckError: ``members`` is empty, ``mean`` is unknown, or the task has no such mean. In the forward: the
            members differ in their classes.
    """

    def __init__(self, members: Sequence[nn.Module], mean: Mean, task: TaskName = "classification") -> None:
        super().__init__()
        if not members:
            raise LimbeckError("got no members: an ensemble needs at least one")
        if mean not in get_args(Mean):
            raise LimbeckError(f"got mean {mean!r}, allowed are {' and '.join(get_args(Mean))}")
        if mean == "geometric" and task in NUMBERS:
            raise LimbeckError(f"mean: geometric is of probabilities, and the task is {task}; allowed is arithmetic")
        self.members = nn.ModuleList(members)
        self.mean: Mean = mean
        self._task = task

    @property
    def of_distributions(self) -> bool:
        """Whether the mean is of the members' distributions and so depends on the temperature."""
        return self.mean == "arithmetic" and self._task not in NUMBERS

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, ...) to the outputs of the task, such as logits (N, classes)."""
        logits = [member(inputs) for member in self.members]
        shapes = [tuple(values.shape) for values in logits]
        if len(set(shapes)) > 1:
            listed = ", ".join(f"member {number} {shape}" for number, shape in enumerate(shapes))
            raise LimbeckError(f"the members' logits differ in shape: {listed}")
        stacked = torch.stack(logits)
        if not self.of_distributions:
            return stacked.mean(0)
        if self._task == "multi_label":
            return logsigmoid(stacked).logsumexp(0) - logsigmoid(-stacked).logsumexp(0)
        return stacked.log_softmax(2).logsumexp(0) - math.log(len(logits))
