"""The teachers of FitNets (Romero et al. 2015, arXiv 1412.6550): the networks of Goodfellow et al. (2013).

Source of the sizes: lisa-lab/pylearn2, scripts/papers/maxout, cifar10.yaml at 402e19f, svhn.yaml at 16db3ac and
mnist.yaml at b94519e. Biases are shared over positions (in mnist.yaml they are not).

The columns give the parameters in the paper; as FitNets counts them, with 2 pieces and without biases (the biases of
``maxout_mnist`` are counted); and with biases and the pieces of the authors' files, ``fc_pieces: 5`` or
``last_pieces: 4``:

============ ========= ================ ==================
network      the paper 2 pieces         the files' pieces
============ ========= ================ ==================
maxout_cifar       ~9M        9,044,360         16,247,830
maxout_svhn      ~4.9M        4,928,800         10,461,050
maxout_mnist     ~361K          361,066            418,714
============ ========= ================ ==================

Multiplications of ``maxout_cifar``: 725.1M (the paper ~725M).
"""

from collections.abc import Callable, Sequence

from torch import nn

from limbeck.models.maxout import FIRST_NORM, HEAD_NORM, Convolution, Init, maxout_network
from limbeck.models.parts import check_count


def _teacher(convolutions: Sequence[Convolution], units: int, doc: str) -> Callable[..., nn.Module]:
    def factory(
        *,
        classes: int,
        shape: tuple[int, ...],
        fc_pieces: int = 2,
        dropout: float = 0.5,
        input_dropout: float = 0.2,
        init: Init = "paper",
        max_norm: bool = True,
    ) -> nn.Module:
        check_count("fc_pieces", fc_pieces)
        return maxout_network(
            convolutions,
            (units, fc_pieces),
            classes=classes,
            shape=shape,
            init=init,
            max_norm=max_norm,
            dropout=dropout,
            input_dropout=input_dropout,
        )

    factory.__doc__ = f"""{doc}

    Args:
        fc_pieces: maxout pieces of the fully connected layer. FitNets counts parameters with 2; the file has 5.
        dropout: dropout probability after each layer.
        input_dropout: dropout probability of the inputs. The other inputs are scaled up; in the file they are not.
        init: ``paper`` is U(-0.005, 0.005) with biases of zero, ``modern`` is He et al.'s, see `maxout_network`.
        max_norm: whether the norms of kernels are bounded: 0.9, 1.9365, 1.9365, 1.9 (``fc``) and 1.9365 (``head``).
    """
    return factory


maxout_cifar = _teacher(
    (
        Convolution(96, 8, 4, FIRST_NORM, pool=(4, 2)),
        Convolution(192, 8, 3, HEAD_NORM, pool=(4, 2)),
        Convolution(192, 5, 3, HEAD_NORM, pool=(2, 2)),
    ),
    500,
    """The teacher of FitNet 1 to 4 on CIFAR-10 and CIFAR-100, for at least 8x8 pixels; (N, C, H, W) to (N, classes).

    The hint is ``layer2``, (192, 7, 7) for 32x32 images. The sides of the feature maps before and after each pooling
    are 33 and 16, 15 and 7, 9 and 5.""",
)

maxout_svhn = _teacher(
    (
        Convolution(64, 5, 4, FIRST_NORM, pool=(3, 2)),
        Convolution(128, 5, 3, HEAD_NORM, pool=(3, 2)),
        Convolution(128, 5, 3, HEAD_NORM, pool=(3, 2)),
    ),
    400,
    """The teacher of FitNet 3 and 4 on SVHN; (N, C, H, W) to logits (N, classes).

    The hint is ``layer2``, (128, 10, 10) for 32x32 images. The sides of the feature maps before and after each pooling
    are 36 and 18, 20 and 10, 12 and 6.""",
)


def maxout_mnist(
    *,
    classes: int,
    shape: tuple[int, ...],
    last_pieces: int = 2,
    dropout: float = 0.5,
    input_dropout: float = 0.2,
    init: Init = "paper",
    max_norm: bool = True,
) -> nn.Module:
    """The teacher of the MNIST FitNet; (N, C, H, W) to logits (N, classes).

    The hint is ``layer2``, (48, 4, 4) for 28x28 images. The sides of the feature maps before and after each pooling
    are 21 and 10, 9 and 4, 6 and 3. There is no fully connected layer before the head.

    Args:
        classes: the number of logits.
        shape: (C, H, W).
        last_pieces: maxout pieces of the last convolution; 2 in the text of FitNets, 4 in the file.
        dropout: dropout probability after each layer.
        input_dropout: dropout probability of the inputs. The other inputs are scaled up; in the file they are not.
        init: ``paper`` is U(-0.005, 0.005) with biases of zero, ``modern`` is He et al.'s, see `maxout_network`.
        max_norm: whether the norms of kernels are bounded: 0.9, 1.9365, 1.9365 and 1.9365 (``head``).
    """
    check_count("last_pieces", last_pieces)
    convolutions = (
        Convolution(48, 8, 0, FIRST_NORM, pool=(4, 2)),
        Convolution(48, 8, 3, HEAD_NORM, pool=(4, 2)),
        Convolution(24, 5, 3, HEAD_NORM, pool=(2, 2), pieces=last_pieces),
    )
    return maxout_network(
        convolutions,
        None,
        classes=classes,
        shape=shape,
        init=init,
        max_norm=max_norm,
        dropout=dropout,
        input_dropout=input_dropout,
    )
