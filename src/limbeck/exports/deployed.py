"""What is exported: a student with its preprocessing, from raw samples to logits."""

from copy import deepcopy

from torch import Tensor, nn

from limbeck.exports.graph import Layout
from limbeck.models.inputs import Bridge, Input


class Deployed(nn.Module):
    """A network that reads raw samples: it cuts images and resizes them, scales and normalises.

    Args:
        network: is copied.
        expected: what the network reads.
        shape: of one raw sample, (C, H, W) or (D,).
        pixels: whether the raw values are bytes of pixels, uint8; otherwise they are float32.
        layout: of images, the order of the axes.
        half: whether the network computes in 16 bits. The preprocessing and the output have 32 bits.
        part: of the images, which is read as the data was: see `limbeck.exports.resizing.middle`; None: the whole.
        temperature: the network also returns probabilities, the softmax of ``logits / temperature``; None: it does not.

    Shape:
        (N, H, W, C) or (N, C, H, W) for images, (N, D) otherwise, to logits (N, ...), and probabilities (N, K).
    """

    def __init__(
        self,
        network: nn.Module,
        expected: Input,
        shape: tuple[int, ...],
        *,
        pixels: bool,
        layout: Layout,
        half: bool = False,
        part: tuple[slice, slice] | None = None,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.network = deepcopy(network).cpu().eval().requires_grad_(False)
        if half:
            self.network.half()
        self._pixels, self._last, self._half = pixels, layout == "nhwc" and len(shape) == 3, half
        self._temperature, self._part = temperature, part
        if part is not None:
            shape = (shape[0], *(one.stop - one.start for one in part))
        channels = shape[0] if len(shape) > 1 else 1
        self._bridge = Bridge(expected, shape, (0.0,) * channels, (1.0,) * channels)
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """See the class."""
        values = inputs.permute(0, 3, 1, 2) if self._last else inputs
        values = values if self._part is None else values[:, :, *self._part]
        values = values.float() / 255 if self._pixels else values
        values = self._bridge.convert(values)
        logits = self.network(values.half() if self._half else values).float()
        return logits if self._temperature is None else (logits, (logits / self._temperature).softmax(dim=1))
