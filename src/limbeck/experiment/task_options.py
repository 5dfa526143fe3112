"""The options of a task: the loss of the targets, the points that give the size of a face, and a metric of the user."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from limbeck.core import LimbeckError
from limbeck.data import Data
from limbeck.evaluate.landmarks import face_size
from limbeck.evaluate.own_metric import OwnMetric
from limbeck.experiment.arms import label_indices
from limbeck.recipe.blocks import TaskBlock
from limbeck.tasks import HARD_LOSSES, TASKS
from limbeck.user_code import contents, function, named

_TRIED = 64  # samples on which the metric is tried


def with_options(data: Data, block: TaskBlock, own: Mapping[str, Callable[..., Any]] = MappingProxyType({})) -> Data:
    """Return the data with the options of a block; ``own`` holds those that are functions of the caller.

    `limbeck.experiment.arms.check_task` refuses those that are not for the task of the data.

    Raises:
        LimbeckError: there is no such point; a Python file or a function in it does not exist; a face has size 0; the
            loss has parameters; the metric fails on random outputs for a few training samples.
    """
    options: dict[str, Any] = {}
    if data.task == "landmarks":
        if block.eyes is not None:
            options["eyes"] = label_indices(block.eyes, data.classes, what="task.eyes: there is no point")
        _check_faces(data, options.get("eyes") or data.task_options.get("eyes"))
    if block.hard_loss is not None:
        options["hard_loss"] = loss = (
            own.get("hard_loss") or HARD_LOSSES.get(block.hard_loss) or _of_file(block.hard_loss)
        )
        if isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
            raise LimbeckError(
                "task.hard_loss has parameters, which every training would change: write a method for it"
            )
    if block.metric is not None:
        options["metric"] = metric = OwnMetric(own.get("metric") or _of_file(block.metric))
        _try_metric(metric, data)
    return replace(data, task_options={**data.task_options, **options}) if options else data


def _of_file(text: str) -> Callable[..., Any]:
    code = named(text)
    if code is None:
        raise LimbeckError(f"{text!r} is not path/to/file.py:function")
    return function(*code, contents(code[0]))


def _check_faces(data: Data, eyes: tuple[int, int] | None) -> None:
    for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        wrong = torch.nonzero(face_size(split.targets, eyes) == 0).flatten().tolist()
        if wrong:
            sample = f"{wrong[0]} ({split.names[wrong[0]]})" if split.names else str(wrong[0])
            what = "all points are the same" if eyes is None else f"points {eyes[0]} and {eyes[1]} are the same"
            raise LimbeckError(f"{name}: the face of sample {sample} has size 0, because {what}")


def _try_metric(metric: OwnMetric, data: Data) -> None:
    labelled = torch.nonzero(data.train.labels >= 0).flatten()
    split = data.train.select(labelled[:_TRIED])
    places = data.shape[1:] if TASKS[data.task].places else ()
    generator = torch.Generator().manual_seed(0)
    metric.check(torch.randn(len(split), len(data.outputs), *places, generator=generator), split.targets)
