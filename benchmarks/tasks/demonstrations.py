"""What each demonstration trains: the data, the networks, the methods and their hyper-parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

import limbeck
from benchmarks.tasks.drawn import CLASSES, EYES, POINTS, SHAPES, faces, scenes, shapes
from benchmarks.tasks.networks import Segmenter, labels, points
from limbeck.data import Data
from limbeck.data.targets import TaskName
from limbeck.recipe.blocks import Refusal

SIZE = 32
"""The sides of an image in pixels."""


@dataclass(frozen=True)
class Demonstration:
    """One task on drawn data. The methods have their default options apart from those that are here."""

    task: TaskName
    draw: Callable[..., tuple[Tensor, Tensor]]
    classes: tuple[str, ...]
    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    methods: Mapping[str, Mapping[str, Any]]  # besides alone
    teacher_epochs: int
    epochs: int  # of a student, over all stages of its method
    optimizer: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)  # of the task, as `limbeck.distill` takes them
    images: int = 5000  # seven tenths of them for training, one tenth for validation, two tenths for the test
    teacher_images: int = 20_000  # other images, on which the teacher is trained
    allow: tuple[Refusal, ...] = ()  # as `limbeck.distill` takes it

    @property
    def arms(self) -> tuple[str, ...]:
        """The student alone, and the methods."""
        return ("alone", *self.methods)

    def data(self) -> Data:
        """The images of seed 0."""
        return _drawn(self.task, self.draw, self.classes, self.images)

    def teacher_data(self) -> Data:
        """The same, but the training images are those of seed 1."""
        inputs, targets = self.draw(self.teacher_images, size=SIZE, seed=1)
        few = (inputs[:1], targets[:1])
        more = limbeck.arrays(
            inputs, targets, test_set=few, validation=0, classes=self.classes, task=self.task, normalise=False
        )
        return replace(self.data(), train=more.train)


@cache
def _drawn(task: TaskName, draw: Callable[..., tuple[Tensor, Tensor]], classes: tuple[str, ...], images: int) -> Data:
    inputs, targets = draw(images, size=SIZE, seed=0)
    test, validation = images // 5, images // 10
    held_out = inputs[-test:], targets[-test:]
    return limbeck.arrays(
        inputs[:-test], targets[:-test], test_set=held_out, validation=validation, classes=classes, task=task
    )


DEMONSTRATIONS: Mapping[str, Demonstration] = {
    "landmarks": Demonstration(
        "landmarks",
        faces,
        POINTS,
        teacher=partial(points, 2 * len(POINTS), width=16, deep=True, feature=128),
        student=partial(points, 2 * len(POINTS), width=8, deep=False, feature=64),
        methods={
            "mimic": {"adapter": "linear"},
            "fitnets": {"hint_epochs": 10},
            "srrl": {"alpha": 0.01},
        },
        teacher_epochs=10,
        epochs=30,
        optimizer={"name": "adam", "lr": 2e-3},
        options={"eyes": EYES},
    ),
    "multi_label": Demonstration(
        "multi_label",
        shapes,
        SHAPES,
        teacher=partial(labels, len(SHAPES), width=16, deep=True),
        student=partial(labels, len(SHAPES), width=8, deep=False),
        methods={"kd": {}, "srrl": {}, "rkd": {}},
        teacher_epochs=10,
        epochs=40,
        optimizer={"name": "adam", "lr": 3e-3},
    ),
    "segmentation": Demonstration(
        "segmentation",
        scenes,
        CLASSES,
        teacher=partial(Segmenter, len(CLASSES), width=12, deep=True),
        student=partial(Segmenter, len(CLASSES), width=4, deep=False),
        methods={
            "kd": {"temperature": 1.0, "hard": 1.0, "soft": 1.0},
            "fitnets": {"guided_layer": "coarse", "hint_layer": "coarse", "hint_epochs": 4},
            "at": {"student_layers": ("coarse", "joined", "last"), "teacher_layers": ("coarse", "joined", "last")},
        },
        teacher_epochs=8,
        epochs=12,
        optimizer={"name": "adam", "lr": 3e-3},
        teacher_images=5_000,
    ),
}
"""By task."""
