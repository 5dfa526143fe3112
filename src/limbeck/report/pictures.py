"""The test images on which teacher and student disagree most, with the distributions of both."""

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import rel_entr, softmax  # type: ignore[import-untyped]

from limbeck.data import SOURCES, Data, Progress, load
from limbeck.errors import LimbeckError
from limbeck.experiment.kept_outputs import MOST_BYTES, OUTPUTS, read_outputs
from limbeck.experiment.runfiles import file_record
from limbeck.files.paths import file_size, is_url
from limbeck.report.found import Found
from limbeck.user_code import code_notices

MOST = 12
"""The most images."""

SIDE = 160
"""The longest side of an image in pixels; a longer one is made smaller."""

SHOWN = 2
"""The most probable classes of each network that are shown, beside the class of the image."""


@dataclass(frozen=True)
class Picture:
    """A test image with what two networks say."""

    source: str  # PNG as a data URI
    width: int
    height: int
    place: str  # its number in the test split, and its file
    label: str
    said: tuple[tuple[str, float, float], ...]  # classes with the teacher's and the student's probability


def data_of(found: Found, progress: Progress | None = None) -> Data:
    """Load the data of the recipe, without downloading it.

    Raises:
        LimbeckError: it cannot be read, is loaded by a Python file, or is at a URL.
    """
    if found.recipe is None:
        raise LimbeckError("the recipe is not known, so the data cannot be loaded")
    options = found.recipe.data.model_dump()
    if options["source"] not in SOURCES or code_notices(options):
        raise LimbeckError("a Python file loads the data, and a report runs no code")
    if any(is_url(str(value)) for value in options.values()):
        raise LimbeckError("the data is at a URL, and a report makes no request")
    if "download" in options:
        options["download"] = False
    return load(**options, progress=progress)


def pictures(found: Found, data: Data) -> list[Picture]:
    """The images, the greatest disagreement (Jensen-Shannon divergence) first.

    The student is that of the best method and the first seed.

    Args:
        found: the comparison.
        data: with the test split.

    Raises:
        LimbeckError: the outputs are missing or damaged, or the data is not that of the networks.
    """
    if found.test_digest is None:
        raise LimbeckError("the recipe is not known, so it cannot be checked that the data is the same")
    if data.test.digest() != found.test_digest:
        raise LimbeckError("the test split has changed since the networks were trained")
    if len(data.shape) != 3 or data.shape[0] not in (1, 3):
        raise LimbeckError(f"the inputs {tuple(data.shape)} are not grey or RGB images")
    shape = (len(data.test), len(data.classes))
    taught = softmax(_outputs(_of_teacher(found), shape), axis=1)
    learned = softmax(_outputs(_of_network(found, found.result.of(found.best)[0].name), shape), axis=1)
    middle = (taught + learned) / 2
    apart = (rel_entr(taught, middle) + rel_entr(learned, middle)).sum(axis=1)
    order = np.argsort(-apart, kind="stable")[:MOST]
    return [_picture(data, int(place), taught[place], learned[place]) for place in order if apart[place] > 0]


def _of_teacher(found: Found) -> Path:
    """The file with the outputs of the teacher of the first seed."""
    teacher, learned = found.result.teacher, found.result.learned
    if teacher is None:
        raise LimbeckError("there is no teacher")
    if learned is None or learned.teacher_outputs_sha256 is None:
        return _of_network(found, teacher.name)
    path = found.folder / OUTPUTS
    file_size(path, most=MOST_BYTES)
    if file_record(path)["sha256"] != learned.teacher_outputs_sha256:
        raise LimbeckError(f"{path} is damaged or of another comparison")
    return path


def _of_network(found: Found, name: str) -> Path:
    """The file with the outputs of a network that was trained in the comparison."""
    if OUTPUTS not in found.network(name).files:
        raise LimbeckError(f"the outputs of {name} are not in the folder")
    return found.place(name) / name / OUTPUTS


def _outputs(path: Path, shape: tuple[int, int]) -> NDArray[np.float64]:
    """The logits on the test split."""
    outputs = read_outputs(path, {"test": shape})["test"].double().numpy()
    if not np.isfinite(outputs).all():
        raise LimbeckError(f"{path} has outputs that are not finite")
    return outputs


def _picture(data: Data, place: int, taught: NDArray[np.float64], learned: NDArray[np.float64]) -> Picture:
    import torch

    pixels = data.test.inputs[torch.tensor([place])][0].permute(1, 2, 0).numpy()
    image = Image.fromarray(_bytes(pixels).squeeze(2) if pixels.shape[2] == 1 else _bytes(pixels))
    image.thumbnail((SIDE, SIDE))
    written = BytesIO()
    image.save(written, "PNG", optimize=True)
    label = int(data.test.targets[place])
    top = dict.fromkeys([label, *np.argsort(-taught)[:SHOWN].tolist(), *np.argsort(-learned)[:SHOWN].tolist()])
    name = "" if data.test.names is None else f", {data.test.names[place]}"
    return Picture(
        source=f"data:image/png;base64,{b64encode(written.getvalue()).decode()}",
        width=image.width,
        height=image.height,
        place=f"{place}{name}",
        label=data.classes[label],
        said=tuple((data.classes[at], float(taught[at]), float(learned[at])) for at in top),
    )


def _bytes(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Pixels in 8 bits: those of [0, 1] times 255, others from their lowest to their highest value."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    values = pixels.astype(np.float64)
    low, high = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else (values.min(), values.max())
    return ((values - low) / ((high - low) or 1.0) * 255).round().astype(np.uint8)
