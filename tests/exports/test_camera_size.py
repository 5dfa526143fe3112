"""`--size`: the file reads images of a camera's size."""

import os

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

import limbeck
from limbeck.cli import app
from limbeck.exports import EXPORTERS
from limbeck.exports.base import missing_of
from limbeck.exports.resizing import middle, resized_by_products
from limbeck.exports.samples import RawSamples, framed
from limbeck.models import build
from limbeck.models.inputs import Input, resized

ELSEWHERE = () if os.environ.get("LIMBECK_LITERT_PYTHON") else ("litert",)  # what cannot be written here
INSTALLED = [name for name, one in EXPORTERS.items() if name not in ("web", *ELSEWHERE) and not missing_of(one.modules)]


def data(shape=(3, 8, 8), count=60):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return limbeck.arrays(inputs, torch.arange(count) % 3)


def mlp(shape=(3, 8, 8)):
    torch.manual_seed(0)
    return build("mlp", classes=3, shape=shape, hidden=(9,)).eval()


@pytest.mark.parametrize("to", INSTALLED)
def test_a_file_that_resizes_answers_as_the_student_with_the_same_resizing(to, tmp_path):
    done = limbeck.export(mlp(), data(), tmp_path / "out", to=to, size=(24, 32))
    assert done.card.reads.shape[1:] == (24, 32, 3)
    if EXPORTERS[to].load is None:
        return
    runner = EXPORTERS[to].load(done.file)
    frames = framed(data().test.inputs[:1], (24, 32))
    small = resized(frames[..., 4:28].float() / 255, (8, 8))  # the middle, 24 x 24
    mean, std = (torch.tensor(one)[:, None, None] for one in (data().mean, data().std))
    with torch.no_grad():
        expected = mlp()((small - mean) / std)
    torch.testing.assert_close(runner(frames.permute(0, 2, 3, 1).contiguous()), expected, rtol=1e-4, atol=1e-4)
    assert done.card.results.parity.relative < 1e-4
    assert done.card.results.student == done.card.results.exported


@pytest.mark.skipif("onnx" not in INSTALLED, reason="needs limbeck[export]")
def test_a_student_with_a_size_of_its_own_reads_the_camera_directly(tmp_path):
    done = limbeck.export(mlp((3, 4, 4)), data(), tmp_path / "out", size=(6, 9), student_input=Input(size=4))
    assert done.card.reads.shape == (None, 6, 9, 3)
    assert done.card.results.parity.relative < 1e-4


@pytest.mark.skipif("coreml" not in INSTALLED, reason="needs limbeck[coreml]")
def test_core_ml_resizes_with_antialiasing(tmp_path):
    import coremltools

    done = limbeck.export(mlp(), data(), tmp_path / "out", to="coreml", size=(24, 32))
    program = coremltools.models.MLModel(str(done.file), skip_model_load=True).get_spec().mlProgram
    blocks = program.functions["main"].block_specializations.values()
    assert not [one.type for block in blocks for one in block.operations if "upsample" in one.type]


@pytest.mark.parametrize("shape", [(8, 8), (8, 12), (12, 8)])
@pytest.mark.parametrize("size", [(24, 32), (32, 24), (36, 36), (4, 9)])
def test_the_part_that_is_read_of_a_frame_is_the_whole_image(shape, size):
    images = torch.rand(1, 1, *shape)
    frame, (rows, columns) = framed(images, size), middle(size, shape)
    part = frame[:, :, rows, columns]
    assert frame.shape == (1, 1, *size)
    expected = F.interpolate(images, part.shape[2:], mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(part, expected)
    assert abs(part.shape[2] / part.shape[3] - shape[0] / shape[1]) <= 0.6 / min(part.shape[2:])
    assert torch.equal(frame[..., 0, 0], part[..., 0, 0])
    assert framed((255 * images).to(torch.uint8), size).dtype == torch.uint8


@pytest.mark.parametrize(
    ("before", "after"), [((8, 8), (8, 8)), ((24, 32), (8, 11)), ((5, 7), (8, 12)), ((33, 10), (7, 21))]
)
def test_two_products_resize_as_torch_does(before, after):
    images = torch.rand(2, 3, *before)
    expected = F.interpolate(images, after, mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(resized_by_products(images, after, False, None), expected)


def test_large_images_are_read_in_small_numbers(monkeypatch):
    monkeypatch.setattr("limbeck.exports.samples.MOST_VALUES", 5 * 3 * 24 * 32)
    raw, seen = RawSamples(data(), "nhwc", (24, 32)), []
    assert len(raw.some(raw.data.train, 30)) == 5
    raw.outputs(lambda part: seen.append(len(part)) or part, raw.data.test, 64)
    assert set(seen) == {5, len(raw.data.test) % 5} - {0}
    assert len(RawSamples(data(), "nhwc").some(raw.data.train, 30)) == 30


@pytest.mark.parametrize("size", [(0, 8), (8, 8193), (8.0, 8)])
def test_a_size_that_no_image_has_is_refused(size, tmp_path):
    with pytest.raises(limbeck.LimbeckError, match="allowed are a height and a width of 1 to 8192 pixels"):
        limbeck.export(mlp(), data(), tmp_path / "out", size=size)


def test_other_inputs_than_images_have_no_size(tmp_path):
    features = limbeck.arrays(torch.randn(60, 5), torch.arange(60) % 3)
    with pytest.raises(limbeck.LimbeckError, match=r"a size is that of images, but the samples have shape \(5,\)"):
        limbeck.export(mlp((5,)), features, tmp_path / "out", size=(8, 8))


@pytest.mark.parametrize("size", ["480", "480x", "480x640x3", "-1x5", "x"])
def test_a_size_is_a_height_and_a_width(size, tmp_path):
    shown = CliRunner().invoke(app, ["export", str(tmp_path), "--size", size])
    assert shown.exit_code == 2
    assert "write HEIGHTxWIDTH in pixels, such as 480x640" in " ".join(shown.output.split())
