"""Drawn data whose truth is known: faces with landmarks, shapes with several labels, scenes with a class per pixel.

Sample n is a pure function of (seed, n), whatever the number of samples. The command writes a sheet of samples with
their truth: python -m benchmarks.tasks.drawn sheet.png
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

POINTS = (
    "left outer eye",
    "left inner eye",
    "right inner eye",
    "right outer eye",
    "left outer brow",
    "left inner brow",
    "right inner brow",
    "right outer brow",
    "nose tip",
    "left mouth corner",
    "right mouth corner",
    "upper lip",
    "lower lip",
)
"""The landmarks of a face, in their order. Left and right are those of the image."""

EYES = (0, 3)
"""The outer corners of the eyes, whose distance is the size of a face."""

SHAPES = ("disc", "ring", "square", "triangle", "plus", "star", "half disc", "arrow")
CLASSES = ("sky", "ground", "water", "road", "building", "tree")
IGNORED = 255
SCALE = 2  # faces and shapes are drawn larger by this factor and reduced, which makes edges smooth

Array = NDArray[np.float64]
Generator = np.random.Generator
Place = Callable[[Array, float], Array]
"""From points (M, 2) of a face at one depth to their places in the image, in pixels."""


def faces(samples: int = 5000, size: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw faces that vary in shape, expression, pose and light, some partly hidden by bars.

    The head is near the middle, as after a face detector. It turns by up to 25 degrees in the image, 25 to the sides
    and 12 up or down. Points under a bar keep their truth.

    Returns:
        uint8 images (N, 1, size, size), and float32 points (N, 13, 2) as x, y in [0, 1], where 0 and 1 are the edges of
        the image. All points are inside.
    """
    return _stacked(_face(rng, size) for rng in _generators(samples, seed))


def shapes(samples: int = 5000, size: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw 0 to 4 shapes of 8 kinds in random colours, sizes and directions over a textured background.

    Shapes do not touch. A kind may occur several times.

    Returns:
        uint8 images (N, 3, size, size), and float32 targets (N, 8): 1 for the kinds of `SHAPES` that occur, else 0.
    """
    return _stacked(_shapes(rng, size) for rng in _generators(samples, seed))


def scenes(samples: int = 5000, size: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw landscapes of 6 classes. The colours of classes overlap, so textures and places are needed as well.

    Returns:
        uint8 images (N, 3, size, size), and int64 masks (N, size, size) of indices of `CLASSES`. A pixel whose right or
        lower neighbour has another class is 255, so that a border of one pixel is ignored.
    """
    return _stacked(_scene(rng, size) for rng in _generators(samples, seed))


def _generators(samples: int, seed: int) -> Iterator[Generator]:
    return (np.random.default_rng((seed, sample)) for sample in range(samples))


def _stacked(pairs: Iterator[tuple[NDArray[Any], NDArray[Any]]]) -> tuple[Tensor, Tensor]:
    images, targets = zip(*pairs, strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(targets))


def _noisy(image: Image.Image, rng: Generator) -> NDArray[np.uint8]:
    """The image with its brightness graded over the picture and with noise, (C, H, W)."""
    pixels = np.atleast_3d(np.asarray(image, dtype=np.float64))
    across = np.linspace(-0.5, 0.5, len(pixels))
    slope = rng.uniform(-0.6, 0.6, 2)
    light = rng.uniform(0.75, 1.1) * (1 + slope[0] * across[:, None, None] + slope[1] * across[None, :, None])
    noise = rng.normal(0, rng.uniform(3, 14), pixels.shape)
    lit: NDArray[np.uint8] = np.clip(light * pixels + noise, 0, 255).astype(np.uint8)
    return lit.transpose(2, 0, 1)


def _textured(rng: Generator, size: int, channels: int) -> Array:
    """A random background (size, size, channels): a colour, coarse blotches, and stripes."""
    blotches = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize((size, size), 2)
    y, x = np.mgrid[:size, :size] / size
    frequency, phase = rng.uniform(-20, 20, 2), rng.uniform(0, 6.3)
    stripes = np.sin(frequency[0] * x + frequency[1] * y + phase)
    pattern = rng.uniform(0, 0.4) * (np.asarray(blotches, dtype=np.float64) - 128) + rng.uniform(0, 25) * stripes
    tint = rng.uniform(0.5, 1, channels)
    background: Array = np.clip(rng.uniform(40, 215, channels) + pattern[:, :, None] * tint, 0, 255)
    return background


def _polygon(draw: ImageDraw.ImageDraw, points: Array, fill: Any) -> None:
    # PIL has whole numbers at the centres of pixels.
    draw.polygon([(x - 0.5, y - 0.5) for x, y in points.tolist()], fill=fill)


def _line(draw: ImageDraw.ImageDraw, points: Array, fill: int, width: int) -> None:
    draw.line([(x - 0.5, y - 0.5) for x, y in points.tolist()], fill=fill, width=width)


def _arc(start: float = 0.0, end: float = 360.0, radius: float = 1.0, steps: int = 24) -> Array:
    """Points (steps, 2) on a circle around 0, from start to end in degrees."""
    angle = np.radians(np.linspace(start, end, steps))
    return radius * np.stack((np.cos(angle), np.sin(angle)), axis=1)


def _turn(degrees: float) -> Array:
    angle = np.radians(degrees)
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _landmarks(rng: Generator) -> Array:
    """The points (13, 3) of a face that looks ahead; the outer corners of the eyes are about 2 apart, y is down."""
    u = rng.uniform
    outer, inner, slant = u(0.85, 1.1), u(0.28, 0.42), u(-0.1, 0.1)
    eyes = [(-outer, slant, -0.1), (-inner, 0, 0), (inner, 0, 0), (outer, slant, -0.1)]
    height, arch, frown = u(0.3, 0.6), u(-0.1, 0.1), u(-0.15, 0.15)
    far, near = (outer + 0.1, -height + arch, -0.1), (inner - 0.05, -height + frown, 0.1)
    brows = [(-far[0], *far[1:]), (-near[0], *near[1:]), near, far]
    mouth, width, smile, opened, lip = u(1.45, 1.75), u(0.4, 0.72), u(-0.15, 0.2), max(0, u(-0.2, 0.45)), u(0.08, 0.15)
    lips: list[tuple[float, float, float]] = [(-width, mouth - smile, 0), (width, mouth - smile, 0)]
    lips += [(0, mouth - lip, 0.2), (0, mouth + lip + opened, 0.2)]
    return np.array([*eyes, *brows, (0, u(0.75, 1.05), 0.55), *lips])


def _face(rng: Generator, size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    u, side = rng.uniform, SCALE * size
    yaw, pitch = np.radians(u(-25, 25)), np.radians(u(-12, 12))
    unit, turn = u(0.14, 0.2), _turn(u(-25, 25))

    def seen(points: Array) -> Array:
        """Points (M, 3) of the head in the image, relative to the place between the eyes."""
        x, y, z = points.T
        flat = np.stack((x * np.cos(yaw) + z * np.sin(yaw), y * np.cos(pitch) + z * np.sin(pitch)), axis=1)
        turned: Array = unit * flat @ turn
        return turned

    landmarks = _landmarks(rng)
    points = seen(landmarks)
    centre = 0.5 - (points.min(axis=0) + points.max(axis=0)) / 2 + u(-0.13, 0.13, 2)
    points += centre

    def placed(flat: Array, depth: float) -> Array:
        pixels: Array = side * (seen(np.column_stack((flat, np.full(len(flat), depth)))) + centre)
        return pixels

    image = Image.fromarray(_textured(rng, side, 1)[:, :, 0].astype(np.uint8))
    draw = ImageDraw.Draw(image)
    skin, hair = u(90, 230), u(10, 200)
    oval = _arc() * (u(1.4, 1.65), u(1.7, 1.95)) + (0, 0.65)
    _polygon(draw, placed(_arc() * (u(1.6, 1.9), u(1.6, 2.2)) + (0, 0.2), -0.6), int(hair))
    _polygon(draw, placed(oval, -0.3), int(skin))
    _features(draw, rng, landmarks, side * points, placed, skin, hair)
    for _ in range(rng.choice(3, p=(0.5, 0.35, 0.15))):
        bar = np.array([(-2, -1), (2, -1), (2, 1), (-2, 1)]) * (1, u(0.02, 0.08)) @ _turn(u(0, 180))
        _polygon(draw, side * (bar + u(0.1, 0.9, 2)), int(u(0, 255)))
    return _noisy(image.resize((size, size), Image.Resampling.BOX), rng), points.astype(np.float32)


def _features(
    draw: ImageDraw.ImageDraw, rng: Generator, landmarks: Array, points: Array, placed: Place, skin: float, hair: float
) -> None:
    """Draw eyes, brows, nose and mouth through the landmarks (13, 3), whose places in the image are points (13, 2)."""
    u = rng.uniform
    unit = float(np.linalg.norm(points[EYES[0]] - points[EYES[1]])) / 2
    dark, ink, shade = int(skin * u(0.3, 0.6)), int(min(hair, skin * 0.7)), int(skin * u(0.6, 0.85))
    opening, gaze, wing, thick = u(0.03, 0.22), u(-0.15, 0.15), u(0.15, 0.3), max(2, int(unit * u(0.1, 0.3)))
    for outer, inner in ((0, 1), (3, 2)):
        corners, lid = landmarks[[outer, inner], :2], np.array((0.0, opening))
        middle = corners.mean(axis=0)
        lids = placed(np.stack((corners[0], middle - lid, corners[1], middle + lid)), 0)
        _polygon(draw, lids, int(min(255, skin + u(20, 60))))
        _polygon(draw, placed(_arc() * (0.16, min(0.16, opening)) + middle + (gaze, 0), 0), dark // 2)
        _line(draw, lids[:3], dark, 2)
    for brow in ([4, 5], [6, 7]):
        _line(draw, points[brow], ink, thick)
    tip = landmarks[8, :2]
    _line(draw, np.stack((placed(tip[None] * (0, 0.1), 0.2)[0], points[8])), shade, 2)
    left, right = placed(tip + np.array([(-wing, 0.05), (wing, 0.05)]), 0.35)
    _line(draw, np.stack((left, points[8], right)), dark, 3)
    mouth = points[[9, 11, 10, 12]]
    _polygon(draw, mouth, int(skin * u(0.4, 0.8)))
    if landmarks[12, 1] - landmarks[11, 1] > 0.4:  # open: the dark part is between the lips
        middle = mouth.mean(axis=0)
        _polygon(draw, middle + (mouth - middle) * (0.8, 0.55), dark // 3)


def _outline(kind: str) -> Array:
    """The corners of a shape in a circle of radius 1 around 0."""
    if kind in ("triangle", "square"):
        corners = 3 if kind == "triangle" else 4
        return _arc(0, 360 - 360 / corners, steps=corners)
    if kind == "disc":
        return _arc()
    if kind == "half disc":
        return _arc(0, 180) - (0, 0.4)
    if kind == "ring":
        return np.concatenate((_arc(), _arc(360, 0, 0.55)))
    if kind == "star":
        return _arc(0, 324, steps=10) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
    if kind == "plus":
        a, b = 0.3, 0.95
        quarter = np.array([(b, -a), (b, a), (a, a)])
        return np.concatenate([quarter @ _turn(90 * step) for step in range(4)])
    return np.array([(1, 0), (0.1, 0.75), (0.1, 0.25), (-0.95, 0.25), (-0.95, -0.25), (0.1, -0.25), (0.1, -0.75)])


def _shapes(rng: Generator, size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    side = SCALE * size
    background = _textured(rng, side, 3)
    image = Image.fromarray(background.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    target = np.zeros(len(SHAPES), dtype=np.float32)
    placed: list[tuple[Array, float]] = []
    count = rng.integers(5)
    while len(placed) < count:
        radius = rng.uniform(0.09, 0.2)
        centre = rng.uniform(radius, 1 - radius, 2)
        if any(np.linalg.norm(centre - other) < radius + far + 0.02 for other, far in placed):
            continue
        placed.append((centre, radius))
        colour = rng.uniform(0, 255, 3)
        while np.linalg.norm(colour - background.mean(axis=(0, 1))) < 90:
            colour = rng.uniform(0, 255, 3)
        kind = int(rng.integers(len(SHAPES)))
        target[kind] = 1
        corners = _outline(SHAPES[kind]) @ _turn(rng.uniform(0, 360))
        _polygon(draw, side * (radius * corners + centre), tuple(colour.astype(int).tolist()))
    return _noisy(image.resize((size, size), Image.Resampling.BOX), rng), target


def _scene(rng: Generator, size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    u = rng.uniform
    bases = ((150, 180, 220), (115, 135, 80), (100, 140, 180), (120, 115, 110), (140, 115, 100), (70, 110, 60))
    mask, image = Image.new("L", (size, size)), Image.new("RGB", (size, size))
    drawn = ImageDraw.Draw(mask), ImageDraw.Draw(image)

    def paint(name: str, outline: Array | list[tuple[float, float]]) -> None:
        index = CLASSES.index(name)
        spread = 60 if name == "building" else 40
        colour = tuple(np.clip(bases[index] + u(-spread, spread, 3), 0, 255).astype(int).tolist())
        for draw, fill in zip(drawn, (index, colour), strict=True):
            _polygon(draw, size * np.asarray(outline), fill)

    horizon, wave = u(0.3, 0.6), u(0, 0.08)
    paint("sky", [(-1, -1), (2, -1), (2, 2), (-1, 2)])
    x = np.linspace(0, 1, 20)
    hills = horizon + wave * np.sin(u(3, 12) * x + u(0, 6))
    paint("ground", [(-0.1, 2), *zip(x.tolist(), hills.tolist(), strict=True), (1.1, 2)])
    if u() < 0.6:
        paint("water", _arc() * u((0.2, 0.08), (0.6, 0.2)) + u((0, horizon + 0.2), (1, 1)))
    if u() < 0.6:
        end, foot, width = u(0.1, 0.9), u(-0.2, 1.2), u(0.08, 0.3)
        top = horizon + wave
        paint("road", [(end - 0.02, top), (end + 0.02, top), (foot + width, 1.1), (foot - width, 1.1)])
    for _ in range(rng.integers(4)):
        left, base, width, height = u(-0.1, 0.9), horizon + u(0.08, 0.25), u(0.12, 0.3), u(0.15, 0.5)
        right, roof = left + width, [(left + width / 2, base - height - 0.12)] if u() < 0.5 else []
        paint("building", [(left, base), (left, base - height), *roof, (right, base - height), (right, base)])
    for _ in range(rng.integers(4)):
        root, width, height = u((0, horizon + 0.1), (1, horizon + 0.4)), u(0.06, 0.14), u(0.1, 0.2)
        paint("tree", np.array([(-0.02, 0), (0.02, 0), (0.02, -height), (-0.02, -height)]) + root)
        crown = _arc() if u() < 0.5 else np.array([(-1, 1), (1, 1), (0, -1.2)])
        paint("tree", crown * (width, height * 0.7) + root - (0, height * 1.4))
    truth = np.asarray(mask, dtype=np.int64)
    texture = np.take_along_axis(_textures(rng, size), truth[None, :, :, None], axis=0)[0]
    pixels = np.clip(np.asarray(image) + texture, 0, 255)
    blurred = Image.fromarray(pixels.astype(np.uint8)).filter(ImageFilter.GaussianBlur(u(0.3, 0.7)))
    return _noisy(blurred, rng), _with_border(truth)


def _textures(rng: Generator, size: int) -> Array:
    """What each class adds to its colour, (6, size, size, 1)."""
    u = rng.uniform
    y, x = np.mgrid[:size, :size] / size
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).resize((size, size), 2)
    blotches = (np.asarray(coarse, dtype=np.float64) - 128) / 4
    windows = -45.0 * ((np.sin(u(40, 60) * x + u(0, 6)) > 0.3) & (np.sin(u(40, 60) * y + u(0, 6)) > 0.3))
    waves = 14 * np.sin(u(50, 80) * y + 2 * np.sin(u(5, 15) * x))
    leaves = rng.normal(0, 28, (size, size))
    return np.stack((-50 * y, blotches, waves, rng.normal(0, 8, (size, size)), windows, leaves))[..., None]


def _with_border(classes: NDArray[np.int64]) -> NDArray[np.int64]:
    mask = classes.copy()
    mask[:, :-1][classes[:, :-1] != classes[:, 1:]] = IGNORED
    mask[:-1][classes[:-1] != classes[1:]] = IGNORED
    return mask


COLOURS = np.array([(150, 200, 255), (200, 190, 90), (40, 90, 220), (120, 120, 120), (220, 90, 60), (30, 130, 40)])
"""The colours of `CLASSES` in the sheet; ignored pixels are white."""


def sheet(columns: int = 8, zoom: int = 192, seed: int = 0) -> Image.Image:
    """Return a row each of faces with their points, shapes with their names, scenes, and the masks of these scenes."""
    page = Image.new("RGB", (columns * zoom, 4 * zoom))
    draw = ImageDraw.Draw(page)

    def place(row: int, column: int, pixels: NDArray[np.uint8]) -> None:
        picture = Image.fromarray(pixels).convert("RGB").resize((zoom - 2, zoom - 2), Image.Resampling.NEAREST)
        page.paste(picture, (column * zoom, row * zoom))

    for column, (image, points) in enumerate(zip(*faces(columns, seed=seed), strict=True)):
        place(0, column, image[0].numpy())
        for x, y in (zoom * points).tolist():
            draw.ellipse((column * zoom + x - 2, y - 2, column * zoom + x + 2, y + 2), fill=(255, 40, 40))
    for column, (image, target) in enumerate(zip(*shapes(columns, seed=seed), strict=True)):
        place(1, column, image.permute(1, 2, 0).numpy())
        names = [name for name, one in zip(SHAPES, target.tolist(), strict=True) if one]
        draw.text((column * zoom + 4, 2 * zoom - 16), ", ".join(names), fill="white", stroke_width=2, stroke_fill=0)
    colours = np.full((256, 3), 255, dtype=np.uint8)
    colours[: len(CLASSES)] = COLOURS
    for column, (image, mask) in enumerate(zip(*scenes(columns, seed=seed), strict=True)):
        place(2, column, image.permute(1, 2, 0).numpy())
        place(3, column, colours[mask.numpy()])
    return page


if __name__ == "__main__":
    sheet().save(Path(sys.argv[1]))
