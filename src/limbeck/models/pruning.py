"""Remove channels of a trained network until it costs a given share, with the package torch-pruning.

DepGraph: Fang, Ma, Song, Mi, Wang, "DepGraph: Towards Any Structural Pruning" (CVPR 2023), arXiv:2301.12900. Channels
that depend on each other, such as those that a residual block adds, form a group and are removed together.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError
from limbeck.files.pickled import first_line

LEAST = 10
"""Of each group, one in LEAST channels is kept (at least one), so that no layer disappears."""


def pruned(
    network: nn.Module, inputs: Tensor, classifier: str, cost: Callable[[nn.Module], float], share: float
) -> nn.Module:
    """Return the largest pruned copy of a network that costs at most a share of the network.

    The importance of a channel is the group L2 magnitude of the paper: the mean, over the layers of its group, of the
    squared norms of its weights, divided by the mean over the group. The least important channels of all groups
    together are removed; their number is found by bisection. The same weights give the same copy.

    Args:
        network: on the CPU, not changed.
        inputs: (N, ...) a few samples.
        classifier: the layer whose outputs are kept.
        cost: of a network, such as its number of parameters.
        share: in (0, 1).

    Raises:
        LimbeckError: torch-pruning is not installed, or does not support the network; no channel can be removed; or
            the share is too small.
    """
    whole = cost(network)
    with _explained():
        total = _pruner(copy.deepcopy(network), inputs, classifier, 0).initial_total_channels
    if not total:
        raise LimbeckError("it has no channels that can be removed")
    best, cheapest, low, high = None, 1.0, 0, total
    while high - low > 1:
        middle = (low + high) // 2
        smaller = _without(network, inputs, classifier, middle / total)
        reached = 0 if smaller is None else cost(smaller) / whole
        if reached <= share:
            high, best = middle, best if smaller is None else smaller
        else:
            low, cheapest = middle, reached
    if best is None:
        raise LimbeckError(f"got the share {share:g}, the smallest possible is {cheapest:.3f}")
    return best


def _without(network: nn.Module, inputs: Tensor, classifier: str, ratio: float) -> nn.Module | None:
    """Return a copy without a share of its channels; None if so many cannot be removed."""
    made = copy.deepcopy(network)
    with _explained():
        groups = 0
        for group in _pruner(made, inputs, classifier, ratio).step(interactive=True):
            group.prune()
            groups += 1
        with torch.no_grad():
            made(inputs)
    return made if groups else None


def _pruner(network: nn.Module, inputs: Tensor, classifier: str, ratio: float) -> Any:
    """Return torch-pruning's pruner of a network."""
    try:
        import torch_pruning
    except ImportError as error:
        raise LimbeckError("torch-pruning is not installed: install it with pip install 'limbeck[prune]'") from error
    magnitude = torch_pruning.importance.GroupMagnitudeImportance(p=2)

    def importance(group: Any) -> Tensor | None:
        scores: Tensor | None = magnitude(group)
        if scores is None:
            return None
        return scores.index_fill(0, scores.topk(math.ceil(len(scores) / LEAST)).indices, math.inf)

    return torch_pruning.BasePruner(
        network.requires_grad_(True),
        [inputs],
        importance,
        global_pruning=True,
        pruning_ratio=ratio,
        ignored_layers=[network.get_submodule(classifier)],
        in_channel_groups={},  # torch-pruning would share its default dicts between networks
        out_channel_groups={},
        num_heads={},
    )


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the errors of torch-pruning, and of a network that it has broken, into one message."""
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            yield
        except LimbeckError:
            raise
        except Exception as error:  # torch-pruning has no errors of its own
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise LimbeckError(f"torch-pruning does not support it ({reason})") from error
