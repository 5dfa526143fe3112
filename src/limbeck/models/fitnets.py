"""The students of FitNets (Romero et al. 2015, arXiv 1412.6550): thin and deep maxout networks.

Sources: tables 6 and 7 of the paper; adri-romsor/FitNets, yaml/cifar10_fitnet19_all.yaml and
yaml/MNIST_fitnet_valid.yaml at 568921e. All convolutions are 3x3 with two maxout pieces. 2x2 pooling follows each group
of layers, and global max pooling follows the last one; then 500 maxout units and the head. Biases are shared over
positions (in the MNIST file they are not).

The columns give the parameters for 3 channels and 10 classes in the paper; as the paper counts them, with 2 pieces and
without biases (``fitnet_mnist`` has 1 channel, and its biases are counted); and with biases and the pieces of the
authors' files, ``fc_pieces: 5`` or ``last_pieces: 4``. Multiplications are for 32x32 pixels and 2 pieces. The guided
layer of the student is paired with the teacher's ``layer2``, the hint:

============ ====== ========= ============ ========= ================= ================ ================
network      layers the paper 2 pieces     5 or 4    the paper, mults  multiplications  guided
============ ====== ========= ============ ========= ================= ================ ================
fitnet1          11     ~250K      249,576   348,694               30M            30.1M ``layer6``
fitnet2          11     ~862K      861,928 1,057,622              108M           107.8M ``layer6``
fitnet3          13     ~1.6M    1,503,304 1,699,638              392M           324.0M ``layer8``
fitnet4          19     ~2.5M    2,544,712 2,742,102              382M           381.8M ``layer11``
fitnet_mnist      7      ~30K       30,130    36,226                                    ``layer4``
============ ====== ========= ============ ========= ================= ================ ================

FitNet 3 does not match the parameters and multiplications in table 5 of the paper, but matches the 1.5M in table 3.
"""

from collections.abc import Callable
from typing import Literal

from torch import nn

from limbeck.models.maxout import FIRST_NORM, HEAD_NORM, INITIAL, Convolution, Init, maxout_network
from limbeck.models.parts import check_count

Groups = tuple[tuple[int, ...], ...]
Depth = Literal[5, 7, 9, 11]
Budget = Literal["30M", "107M"]

_FITNET1: Groups = ((16, 16, 16), (32, 32, 32), (48, 48, 64))
_FITNET2: Groups = ((16, 32, 32), (48, 64, 80), (96, 96, 128))
_FITNET3: Groups = ((32, 48, 64, 64), (80,) * 4, (128,) * 3)
_FITNET4: Groups = ((32, 32, 32, 48, 48), (80,) * 6, (128,) * 6)

_DEPTHS: dict[tuple[Budget, Depth], Groups] = {
    ("30M", 5): ((64,), (64,), (64,)),
    ("30M", 7): ((16, 32), (32, 64), (64,)),
    ("30M", 9): ((16, 32), (32, 32, 32), (48, 64)),
    ("30M", 11): _FITNET1,
    ("107M", 5): ((128,), (128,), (128,)),
    ("107M", 7): ((32, 64), (80, 80), (128,)),
    ("107M", 9): ((32, 32), (64, 80, 80), (96, 128)),
    ("107M", 11): _FITNET2,
}


def fitnet_depth(
    *,
    classes: int,
    shape: tuple[int, ...],
    layers: Depth,
    budget: Budget = "30M",
    fc_pieces: int = 2,
    init: Init = "paper",
    max_norm: bool = True,
) -> nn.Module:
    """A student of the paper's study of depth, table 6; (N, C, H, W) to logits (N, classes).

    The guided layers for 5, 7, 9 and 11 layers are ``layer2``, ``layer4``, ``layer5`` and ``layer7``; the hint is
    ``layer2`` of `maxout_cifar`. With 11 layers these are FitNet 1 and 2, for which table 7 uses ``layer6``. They have
    27.3M, 29.4M, 30.0M, 30.2M and 101.8M, 104.7M, 106.5M, 108.0M multiplications with ``fc_pieces: 5``.

    Args:
        classes: the number of logits.
        shape: (C, H, W); the last pooling is global, so H and W are free.
        layers: the number of layers: the convolutions, ``fc`` and ``head``.
        budget: the approximate number of multiplications.
        fc_pieces: maxout pieces of the fully connected layer.
        init: ``paper`` is U(-0.005, 0.005) for all parameters, ``modern`` is He et al.'s, see `maxout_network`.
        max_norm: whether the norms of kernels are bounded: 0.9, 1.9 (``fc``) and 1.9365 (``head``).
    """
    groups = _DEPTHS[budget, layers]
    return _thin(groups, classes=classes, shape=shape, fc_pieces=fc_pieces, init=init, max_norm=max_norm)


def fitnet_mnist(
    *,
    classes: int,
    shape: tuple[int, ...],
    last_pieces: int = 2,
    init: Init = "paper",
    max_norm: bool = True,
) -> nn.Module:
    """The student of `maxout_mnist`; (N, C, H, W) to logits (N, classes).

    The guided layer is ``layer4``, (16, 4, 4) for 28x28 images. There is no fully connected layer before the head.

    Args:
        classes: the number of logits.
        shape: (C, H, W).
        last_pieces: maxout pieces of the last two convolutions; 2 in the paper, 4 in the authors' file.
        init: ``paper`` is U(-0.005, 0.005) for all parameters, ``modern`` is He et al.'s, see `maxout_network`.
        max_norm: whether the norms of kernels are bounded: 0.9 in the first two layers, then 1.9365.
    """
    check_count("last_pieces", last_pieces)
    convolutions = (
        Convolution(16, 5, 0, FIRST_NORM),
        Convolution(16, 3, 0, FIRST_NORM, pool=(4, 2)),
        Convolution(16, 5, 3, HEAD_NORM),
        Convolution(16, 3, 0, HEAD_NORM, pool=(4, 2)),
        Convolution(12, 3, 3, HEAD_NORM, pieces=last_pieces),
        Convolution(12, 3, 0, HEAD_NORM, pool=(2, 2), pieces=last_pieces),
    )
    return maxout_network(
        convolutions, None, classes=classes, shape=shape, init=init, biases=INITIAL, max_norm=max_norm
    )


def _thin(
    groups: Groups, *, classes: int, shape: tuple[int, ...], fc_pieces: int, init: Init, max_norm: bool
) -> nn.Module:
    check_count("fc_pieces", fc_pieces)
    convolutions: list[Convolution] = []
    for group in groups:
        convolutions += [Convolution(channels, 3, 1, FIRST_NORM) for channels in group]
        convolutions[-1] = convolutions[-1]._replace(pool=(2, 2))
    convolutions[-1] = convolutions[-1]._replace(pool=None)  # global max pooling follows instead
    return maxout_network(
        convolutions,
        (500, fc_pieces),
        classes=classes,
        shape=shape,
        init=init,
        biases=INITIAL,
        max_norm=max_norm,
        pools_all=True,
    )


def _fitnet(number: int, groups: Groups, guided: int) -> Callable[..., nn.Module]:
    def factory(
        *, classes: int, shape: tuple[int, ...], fc_pieces: int = 2, init: Init = "paper", max_norm: bool = True
    ) -> nn.Module:
        return _thin(groups, classes=classes, shape=shape, fc_pieces=fc_pieces, init=init, max_norm=max_norm)

    factory.__doc__ = f"""FitNet {number} of the paper's table 7; (N, C, H, W) to logits (N, classes).

    The guided layer is ``layer{guided}``, the hint is ``layer2`` of `maxout_cifar` or `maxout_svhn`.

    Args:
        fc_pieces: maxout pieces of the fully connected layer. The paper counts parameters with 2; the file has 5.
        init: ``paper`` is U(-0.005, 0.005) for all parameters, ``modern`` is He et al.'s, see `maxout_network`.
        max_norm: whether the norms of kernels are bounded: 0.9, 1.9 (``fc``) and 1.9365 (``head``).
    """
    return factory


FITNETS: dict[str, Callable[..., nn.Module]] = {
    "fitnet1": _fitnet(1, _FITNET1, 6),
    "fitnet2": _fitnet(2, _FITNET2, 6),
    "fitnet3": _fitnet(3, _FITNET3, 8),
    "fitnet4": _fitnet(4, _FITNET4, 11),
    "fitnet_depth": fitnet_depth,
    "fitnet_mnist": fitnet_mnist,
}
