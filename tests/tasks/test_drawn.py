import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from benchmarks.tasks import drawn
from benchmarks.tasks.drawn import CLASSES, EYES, POINTS, SHAPES, faces, scenes, shapes, sheet

DRAWN = {faces: ((1, 64, 64), (13, 2)), shapes: ((3, 48, 48), (8,)), scenes: ((3, 48, 48), (48, 48))}


def clean(monkeypatch, background):
    """Draw without noise, on a plain background."""
    monkeypatch.setattr(drawn, "_noisy", lambda image, rng: np.atleast_3d(np.asarray(image)).transpose(2, 0, 1))
    monkeypatch.setattr(drawn, "_textured", lambda rng, size, channels: np.full((size, size, channels), background))


@pytest.mark.parametrize("draw", DRAWN)
def test_samples_depend_only_on_the_seed_and_their_number(draw):
    images, truth = draw(5, seed=3)
    image, target = DRAWN[draw]
    assert (images.shape, images.dtype, truth.shape) == ((5, *image), torch.uint8, (5, *target))
    assert all(torch.equal(one, more[:5]) for one, more in zip((images, truth), draw(7, seed=3), strict=True))
    assert not torch.equal(draw(5, seed=4)[0], images)
    assert len({one.numpy().tobytes() for one in images}) == 5


@pytest.mark.parametrize("draw", DRAWN)
def test_images_may_have_another_size(draw):
    assert draw(2, size=32)[0].shape[2:] == (32, 32)


def test_points_are_inside_and_heads_turn_by_up_to_25_degrees():
    points = faces(200)[1]
    assert (points.dtype, len(POINTS)) == (torch.float32, 13)
    assert points.min() > 0.04
    assert points.max() < 0.96
    across = points[:, EYES[1]] - points[:, EYES[0]]
    angles = torch.rad2deg(torch.atan2(across[:, 1], across[:, 0]))
    assert 22 < angles.abs().max() < 25.01
    chin = points[:, POINTS.index("lower lip")] - points[:, list(EYES)].mean(dim=1)
    assert (chin[:, 1] > 0).all()


def test_what_is_drawn_is_where_the_points_are(monkeypatch):
    clean(monkeypatch, 128.0)
    images, points = faces(60, size=128)

    def tone(places):
        x, y = (places * 128).long().clamp(0, 127).unbind(dim=1)
        return images[torch.arange(60), 0, y, x].double()

    above = points[:, 5] - points[:, 1]  # from the eye to the brow
    for outer, inner in ((0, 1), (3, 2), (4, 5), (7, 6)):  # eyes and brows are dark, unless a bar hides them
        middle = (points[:, outer] + points[:, inner]) / 2
        assert (tone(middle) < tone(middle + 0.5 * above)).double().mean() > 0.7
        assert (tone(middle) < tone(middle - 0.5 * above)).double().mean() > 0.7
    mouth = points[:, 9:13].mean(dim=1)
    below = points[:, 12] + 0.5 * (points[:, 12] - points[:, 11])
    assert (tone(mouth) < tone(below)).double().mean() > 0.7


def test_labels_are_balanced_and_no_image_has_more_than_4():
    targets = shapes(300)[1]
    assert set(targets.flatten().tolist()) == {0.0, 1.0}
    assert set(targets.sum(dim=1).tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert ((targets.mean(dim=0) > 0.12) & (targets.mean(dim=0) < 0.35)).all()


def test_the_shapes_are_apart_and_there_is_none_without_a_label(monkeypatch):
    clean(monkeypatch, 128.0)
    monkeypatch.setattr(drawn, "SCALE", 1)  # each shape has one colour
    for image, target in zip(*shapes(60, size=128), strict=True):
        colours = len(image.flatten(1).unique(dim=1).T) - 1
        pieces = ndimage.label((image.numpy() != 128).any(axis=0), np.ones((3, 3)))[1]
        assert pieces == colours
        assert target.sum() <= colours <= 4
        assert bool(colours) == bool(target.any())


@pytest.mark.parametrize("kind", SHAPES)
def test_a_shape_has_its_area_and_its_label(kind, monkeypatch):
    areas = {"disc": 3.1, "ring": 2.2, "square": 2.0, "triangle": 1.3, "plus": 1.92, "star": 1.23, "half disc": 1.57}
    monkeypatch.setattr(drawn, "SHAPES", (kind,))
    clean(monkeypatch, 128.0)
    target = shapes(20)[1]
    assert target.any(dim=1).double().mean() > 0.5
    picture = Image.new("L", (400, 400))
    drawn._polygon(drawn.ImageDraw.Draw(picture), 100 * drawn._outline(kind) + 200, 1)
    assert np.asarray(picture).sum() / 1e4 == pytest.approx(areas.get(kind, 1.2), rel=0.05)


def test_no_two_classes_touch_and_every_class_occurs():
    masks = scenes(60)[1]
    assert masks.dtype == torch.int64
    assert set(masks.unique().tolist()) == {*range(len(CLASSES)), 255}
    shares = [(masks == index).double().mean() for index in (*range(len(CLASSES)), 255)]
    assert min(shares) > 0.02
    assert shares[-1] < 0.2
    for first, second in ((masks[:, 1:], masks[:, :-1]), (masks[:, :, 1:], masks[:, :, :-1])):
        assert ((first == second) | (first == 255) | (second == 255)).all()


def test_the_border_is_one_pixel_wide():
    classes = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 2]])
    assert drawn._with_border(classes).tolist() == [[0, 255, 1, 1], [255, 255, 255, 255], [2, 2, 2, 2]]


def test_the_image_changes_where_the_mask_does(monkeypatch):
    clean(monkeypatch, 128.0)
    monkeypatch.setattr(drawn, "_textures", lambda rng, size: np.zeros((len(CLASSES), size, size, 1)))
    images, masks = scenes(20)
    steps = (images[:, :, :, 1:].double() - images[:, :, :, :-1].double()).abs().sum(dim=1)
    border = masks[:, :, :-1] == 255
    assert steps[border].mean() > 2 * steps[~border].mean()


def test_the_sheet_has_four_rows():
    assert sheet(columns=2, zoom=64).size == (128, 256)
