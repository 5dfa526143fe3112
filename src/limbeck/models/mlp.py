"""The multi-layer perceptrons of Hinton, Vinyals & Dean's MNIST experiments (arXiv 1503.02531, section 3)."""

import math

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError
from limbeck.models.parts import check_share, named


class MaxNormLinear(nn.Linear):
    """A linear layer whose units' incoming weight vectors are kept at or below a norm.

    The weights are projected in place at the start of each forward in training mode, as nn.Embedding's ``max_norm``
    does, so that any optimizer may take any step; after the last step a norm can be a step's length above the bound.
    Two forwards before one backward are therefore an error of autograd's.

    Args:
        in_features: D.
        out_features: the number of units.
        max_norm: the largest L2 norm of a row of the (units, D) weight. Hinton et al. 2012 (arXiv 1207.0580, appendix
            A.1) bound the *squared* norm by 15, which is a norm of 3.873. The bias is free.
    """

    def __init__(self, in_features: int, out_features: int, *, max_norm: float) -> None:
        super().__init__(in_features, out_features)
        self.max_norm = max_norm

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, D) to (N, units)."""
        if self.training:
            with torch.no_grad():
                self.weight.renorm_(2, 0, self.max_norm)
        return super().forward(inputs)

    def extra_repr(self) -> str:
        """The sizes and the bound."""
        return f"{super().extra_repr()}, max_norm={self.max_norm}"


def mlp(
    *,
    classes: int,
    shape: tuple[int, ...],
    hidden: tuple[int, ...],
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    max_norm: float | None = None,
) -> nn.Module:
    """Fully connected layers with ReLU; (N, *shape) to logits (N, classes).

    Parameters for shape (1, 28, 28) and 10 classes: hidden (1200, 1200), the paper's teacher, 2,395,210; (800, 800),
    its student, 1,276,810; (300, 300) 328,810; (30, 30) 24,790. Weights start as PyTorch's default; Hinton et al. 2012
    draw them from N(0, 0.01).

    Args:
        classes: the number of logits.
        shape: of one sample; any number of dimensions, flattened.
        hidden: the width of each hidden layer, ``stage1``, ``stage2`` and so on.
        dropout: share of each hidden layer's outputs that is dropped; the paper's teacher has 0.5.
        input_dropout: share of the inputs that is dropped; 0.2 with the paper's teacher.
        max_norm: bound on the L2 norm of each hidden unit's incoming weights, see `MaxNormLinear`.

    Raises:
        LimbeckError: a width or ``max_norm`` is not positive, or a dropout is not in [0, 1).
    """
    if any(width < 1 for width in hidden):
        raise LimbeckError(f"got hidden {tuple(hidden)}, allowed are widths of 1 and more")
    if max_norm is not None and not max_norm > 0:
        raise LimbeckError(f"got max_norm {max_norm}, allowed is more than 0, or none")
    check_share("dropout", dropout)
    check_share("input_dropout", input_dropout)
    children: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    if input_dropout:
        children["input_dropout"] = nn.Dropout(input_dropout)
    width = math.prod(shape)
    for number, units in enumerate(hidden, start=1):
        linear = nn.Linear(width, units) if max_norm is None else MaxNormLinear(width, units, max_norm=max_norm)
        children[f"stage{number}"] = named(linear=linear, relu=nn.ReLU(), dropout=nn.Dropout(dropout))
        width = units
    return named(**children, head=nn.Linear(width, classes))
