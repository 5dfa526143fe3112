"""A picture of what networks return: the points of faces, or the classes of the pixels of scenes."""

from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from benchmarks.tasks.drawn import CLASSES, COLOURS
from limbeck.data import Data
from limbeck.experiment.measuring import outputs_of
from limbeck.train.engine import make_engine

DRAWN = ("landmarks", "segmentation")
"""The tasks that have a picture."""

LEFT = 56  # pixels for the names of the rows


def picture(data: Data, networks: Mapping[str, nn.Module], *, columns: int = 8, zoom: int = 96) -> Image.Image:
    """Return a row for the truth and one for each network, with the first test images.

    The points of landmarks are on the images. For segmentation, the images are in a row above the masks; pixels that do
    not count are white in the true masks.

    Args:
        data: of a task in `DRAWN`.
        networks: the networks by the names of their rows.
        columns: the number of images.
        zoom: the side of an image in the picture, in pixels.
    """
    first = torch.arange(columns)
    few, engine = data.test.select(first), make_engine(device="cpu", precision="32")
    outputs = {name: outputs_of(network, few, data, engine) for name, network in networks.items()}
    pixels = few.inputs[first].expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    points: dict[str, Tensor] = {}
    if data.task == "landmarks":
        points = {"true": few.targets} | {name: found.view_as(few.targets) for name, found in outputs.items()}
        rows = dict.fromkeys(points, pixels)
    else:
        classes = {"true": few.targets.long()} | {name: found.argmax(dim=1) for name, found in outputs.items()}
        colours = torch.full((256, 3), 255, dtype=torch.uint8)
        colours[: len(CLASSES)] = torch.from_numpy(COLOURS)
        rows = {"image": pixels} | {name: colours[found] for name, found in classes.items()}
    page = Image.new("RGB", (LEFT + columns * zoom, len(rows) * zoom), "white")
    draw, side = ImageDraw.Draw(page), zoom - 2
    for row, (name, images) in enumerate(rows.items()):
        draw.text((4, row * zoom + zoom // 2), name, fill="black")
        for column, image in enumerate(images):
            corner = LEFT + column * zoom, row * zoom
            page.paste(Image.fromarray(image.numpy()).resize((side, side), Image.Resampling.NEAREST), corner)
            if points:
                _mark(draw, torch.tensor(corner) + side * points[name][column])
    return page


def _mark(draw: ImageDraw.ImageDraw, places: Tensor) -> None:
    for x, y in places.tolist():
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(255, 40, 40))
