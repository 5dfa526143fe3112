"""The multi-layer perceptrons of Hinton, Vinyals & Dean's MNIST experiments (arXiv 1503.02531, section 3)."""

import math

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError
from limbeck.models.parts import check_share, named


class MaxNormLinear(nn.Linear):
    """A linear layer with a bound on the L2 norm of each unit's incoming weights, a row of the (units, D) weight.

    The weights are projected in place at the start of each forward in training mode, like ``max_norm`` of
    nn.Embedding, so the layer works with any optimizer. After the last optimizer step, a norm may exceed the bound by
    the length of that step. Autograd raises an error for two forwards before one backward. The bias is not bounded.

    Hinton et al. 2012 (arXiv 1207.0580, appendix A.1) bound the *squared* norm by 15, which is a norm of 3.873.
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
        """Return the sizes and the bound."""
        return f"{super().extra_repr()}, max_norm={self.max_norm}"


def linear(inside: int, outside: int, max_norm: float | None) -> nn.Linear:
    """Return a linear layer, with a bound on the norms of its weights unless it is None."""
    return nn.Linear(inside, outside) if max_norm is None else MaxNormLinear(inside, outside, max_norm=max_norm)


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
    its student, 1,276,810; (300, 300) 328,810; (30, 30) 24,790. The initial weights are PyTorch's default; Hinton et
    al. 2012 draw them from N(0, 0.01).

    Args:
        classes: the number of logits.
        shape: the shape of one sample, with any number of dimensions. Samples are flattened.
        hidden: the width of each hidden layer, ``stage1``, ``stage2`` and so on.
        dropout: dropout probability after each hidden layer; 0.5 for the paper's teacher.
        input_dropout: dropout probability of the inputs, in [0, 1); 0.2 for the paper's teacher.
        max_norm: bound on the L2 norm of each hidden unit's incoming weights, above 0, see `MaxNormLinear`.
    """
    if any(width < 1 for width in hidden):
        raise LimbeckError(f"got hidden {tuple(hidden)}, allowed are widths of 1 and more")
    if max_norm is not None and not max_norm > 0:
        raise LimbeckError(f"got max_norm {max_norm}, allowed are numbers above 0 and None")
    check_share("dropout", dropout)
    check_share("input_dropout", input_dropout)
    children: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    if input_dropout:
        children["input_dropout"] = nn.Dropout(input_dropout)
    width = math.prod(shape)
    for number, units in enumerate(hidden, start=1):
        layer = linear(width, units, max_norm)
        children[f"stage{number}"] = named(linear=layer, relu=nn.ReLU(), dropout=nn.Dropout(dropout))
        width = units
    return named(**children, head=nn.Linear(width, classes))
