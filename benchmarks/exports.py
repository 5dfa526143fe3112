"""Every export of several networks: how far the file is from the network, its size and its latency.

    python -m benchmarks.exports [--to onnx,executorch] [--networks resnet8x4,vit]

Each network is trained for 15 epochs on scikit-learn's digits, enlarged to 32 x 32 and with three channels. The
columns: greatest difference of an output, as a share of the greatest output, and equal decisions, both on the samples
of the check; test accuracy of the file; its size; and the latency of one sample as a share of that of the network in
PyTorch, measured in turns.
"""

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor, nn

import limbeck
from limbeck.data import Data
from limbeck.exports import EXPORTERS
from limbeck.exports.graph import Precision
from limbeck.exports.make import export
from limbeck.models import build

SHAPE = (3, 32, 32)


class Own(nn.Module):
    """A module as a user writes one: two branches, an attention over channels, and logits in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 5, padding=2)
        self.norm = nn.BatchNorm2d(32)
        self.weigh, self.head = nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to features (N, 32) and logits (N, 10)."""
        maps = self.norm(torch.cat([self.one(images).relu(), F.gelu(self.two(images))], dim=1)).relu()
        pooled = maps.mean(dim=(2, 3))
        return {"features": pooled, "logits": self.head(pooled * self.weigh(pooled).sigmoid())}


def _zoo(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: build(name, classes=10, shape=SHAPE, **options)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "mlp": _zoo("mlp", hidden=(200, 200)),
    "resnet8x4": _zoo("resnet8x4"),
    "timm mobilenetv3_small_050": _zoo("timm:mobilenetv3_small_050"),
    "torchvision shufflenet_v2_x0_5": _zoo("torchvision:shufflenet_v2_x0_5"),
    "timm vit_tiny": _zoo("timm:vit_tiny_patch16_224", img_size=32, patch_size=8, depth=4),
    "fitnet (maxout)": _zoo("fitnet1", init="modern"),
    "own module": Own,
}


def enlarged_digits() -> Data:
    """The digits as bytes (N, 3, 32, 32)."""
    bunch = load_digits()
    images = torch.tensor(bunch.images)[:, None] * 15.9
    large = F.interpolate(images, scale_factor=4, mode="nearest").expand(-1, 3, -1, -1)
    return limbeck.arrays(large.round().to(torch.uint8), bunch.target)


def main() -> None:
    """Print a table in Markdown with a row for each network and backend, and the reasons of empty cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", default=",".join(name for name in EXPORTERS if name != "web"))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    data = enlarged_digits()
    print("| network | export | difference | decisions % | accuracy % | kB | latency |\n|---|---|---|---|---|---|---|")
    reasons: dict[str, list[str]] = {}
    for name in asked.networks.split(","):
        torch.manual_seed(0)
        trained, _ = limbeck.distill(
            None, NETWORKS[name](), data, method="alone", epochs=15, baseline=False, precision="32", progress=False
        )
        for to in asked.to.split(","):
            cells = []
            for precision in EXPORTERS[to].precisions:
                try:
                    cells.append(_cells(trained, data, to, precision))
                except limbeck.LimbeckError as error:
                    cells.append(("-",) * 5)
                    reasons.setdefault(str(error), []).append(f"{name}, {to} {precision}")
            told = " | ".join(", ".join(column) for column in zip(*cells, strict=True))
            print(f"| {name} | {to} {', '.join(EXPORTERS[to].precisions)} | {told} |", flush=True)
    for reason, where in reasons.items():
        print(f"\n{'; '.join(where)}: {reason}")


def _cells(network: nn.Module, data: Data, to: str, precision: Precision) -> tuple[str, ...]:
    """What the columns after the second one say of a file."""
    with tempfile.TemporaryDirectory() as folder:
        results = export(network, data, Path(folder) / "export", to=to, precision=precision).card.results
    size = f"{results.bytes / 1000:.0f}"
    if results.parity is None or results.exported is None:
        return "not run", "not run", "not run", size, "not run"
    agreement = results.parity.agreement
    decisions = "-" if agreement is None else f"{100 * agreement:.1f}"
    ratio = results.latency["file"].median_ms / results.latency["student"].median_ms
    return f"{results.parity.relative:.0e}", decisions, f"{100 * results.exported:.1f}", size, f"{ratio:.2f}"


if __name__ == "__main__":
    main()
