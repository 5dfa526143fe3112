"""Pruned and shared weights (Han, Mao, Dally 2016, arXiv 1510.00149), as parametrizations of unmodified layers."""

import math
import warnings
from collections.abc import Iterable

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from limbeck.core import LimbeckError
from limbeck.models.binary import BinaryConv2d
from limbeck.models.compressed import SharedWeight

Layer = nn.Linear | _ConvNd
"""A layer whose weight is compressed."""

INDEX_BITS = {"conv": 8, "linear": 5}
"""The bits of a relative index, as in the paper."""


class Masked(nn.Module):
    """A weight whose pruned connections are 0 and get no gradient."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, with zeros."""
        return weight * self.mask


class Shared(nn.Module):
    """A weight of zeros and centroids: the centroids (K,) learn, from the gradients summed by cluster."""

    symbols: Tensor

    def __init__(self, weight: SharedWeight) -> None:
        super().__init__()
        self._centroids = weight.centroids
        self.register_buffer("symbols", weight.symbols)

    def forward(self, centroids: Tensor) -> Tensor:
        """The weight."""
        return SharedWeight(self.symbols, centroids).dense()

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The centroids, which take the place of the weight as the parameter."""
        return self._centroids.to(weight)


def layers_of(network: nn.Module) -> dict[str, Layer]:
    """The convolutions and linear layers of a network by name: what is compressed.

    Raises:
        LimbeckError: there are none; a weight is binary, is not float32, is used by two layers, or is computed from
            others.
    """
    found = {name: one for name, one in network.named_modules() if isinstance(one, Layer)}
    if not found:
        raise LimbeckError("the student has no convolution and no linear layer, so there is nothing to compress")
    seen: dict[int, str] = {}
    for name, layer in found.items():
        if isinstance(layer, BinaryConv2d):
            raise LimbeckError(f"{name} is binary and cannot be compressed: it would read a pruned weight, 0, as +1")
        weight = layer._parameters.get("weight")
        if weight is None or weight.dtype != torch.float32:
            what = "computed from others" if weight is None else f"of {weight.dtype}"
            raise LimbeckError(f"the weight of {name} is {what}: allowed are parameters of torch.float32")
        if id(weight) in seen:
            raise LimbeckError(f"{seen[id(weight)]} and {name} have one weight: shared layers cannot be compressed")
        seen[id(weight)] = name
    return found


def kind_of(layer: Layer) -> str:
    """``conv`` or ``linear``."""
    return "linear" if isinstance(layer, nn.Linear) else "conv"


@torch.no_grad()
def prune(layer: Layer, *, quality: float, keep: float | None) -> None:
    """Prune a layer's weights of small magnitude, and hold them at 0.

    Args:
        layer: its weight gets the parametrization `Masked`.
        quality: weights up to this number times their standard deviation are pruned (Han et al. 2015, section 3.1).
        keep: the share of the largest weights to keep instead, in (0, 1].
    """
    weight = layer.weight
    size = weight.abs()
    if keep is None:
        mask = size > quality * weight.std(correction=0)
    else:
        mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        mask[size.flatten().topk(math.ceil(keep * weight.numel())).indices] = True
        mask = mask.view_as(weight)
    parametrize.register_parametrization(layer, "weight", Masked(mask))


def share(layer: Layer, bits: int) -> None:
    """Replace the weight of a pruned layer by centroids that learn; `Masked` is removed.

    The centroids are those of k-means, which starts from values at equal distances between the smallest and the
    largest weight (the paper's linear initialisation).

    Args:
        layer: with the parametrization `Masked`.
        bits: of the number of a centroid. Fewer distinct weights have fewer centroids.
    """
    bake(layer)
    weight = layer.weight
    parametrize.register_parametrization(layer, "weight", Shared(clustered(weight.detach().cpu(), bits)).to(weight))


def clustered(weight: Tensor, bits: int) -> SharedWeight:
    """The weights other than 0 in at most 2**bits clusters of k-means."""
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]

    symbols = torch.zeros(weight.shape, dtype=torch.int64)
    kept = weight[weight != 0]
    count = min(2**bits, len(torch.unique(kept)))
    if not count:
        return SharedWeight(symbols, torch.zeros(1))
    start = torch.linspace(float(kept.min()), float(kept.max()), count)
    means = KMeans(count, init=start[:, None].numpy(), n_init=1, algorithm="lloyd", random_state=0)
    with threadpool_limits(1), warnings.catch_warnings():  # several threads add in any order
        warnings.simplefilter("ignore")  # duplicate values
        labels = means.fit_predict(kept[:, None].numpy())
    symbols[weight != 0] = torch.from_numpy(labels).long() + 1
    return SharedWeight(symbols, torch.from_numpy(means.cluster_centers_).float().flatten())


@torch.no_grad()
def shorten(layer: Layer) -> None:
    """Round the centroids of a layer to float16, and its bias if no value is above 1.

    The error of a larger bias could matter, for example in a regression whose targets vary little around their mean.
    Centroids stay as they are if an error is above 2**-10 of the greatest: all are tiny, or one is above 65,504.
    """
    centroids = layer.get_parameter("parametrizations.weight.original")
    if (centroids.half() - centroids).abs().max() <= centroids.abs().max() / 2**10:
        centroids.copy_(centroids.half())
    if layer.bias is not None and layer.bias.abs().max() <= 1:
        layer.bias.copy_(layer.bias.half())


def bake(layer: Layer) -> None:
    """Replace the parametrization of a weight by the weight that it gives."""
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def shared_of(layer: Layer) -> SharedWeight:
    """The symbols and the centroids of a layer with the parametrization `Shared`."""
    held = layer.get_submodule("parametrizations.weight")
    return SharedWeight(held.get_buffer("0.symbols").cpu(), held.get_parameter("original").detach().cpu())


def entries(mask: Tensor, index_bits: int) -> int:
    """The stored numbers of a sparse weight with relative indices: a zero fills each gap that an index cannot span."""
    places = torch.nonzero(mask.flatten()).flatten()
    gaps = places.diff(prepend=places.new_full((1,), -1))
    return int(((gaps - 1) // 2**index_bits + 1).sum())


def sparse_bytes(layers: Iterable[Layer], value_bits: Iterable[int]) -> int:
    """The bytes of the layers' weights as values of so many bits with relative indices of `INDEX_BITS`."""
    bits = 0
    for layer, value in zip(layers, value_bits, strict=True):
        index = INDEX_BITS[kind_of(layer)]
        bits += entries(layer.weight != 0, index) * (value + index)
    return math.ceil(bits / 8)
