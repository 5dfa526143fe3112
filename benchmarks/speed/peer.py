"""torchdistill (Matsubara 2021, arXiv 2011.12913) as its examples run it, where it is installed and has the method.

The configurations are those of its ``configs/sample``, with our networks and data. The loop is ``train_one_epoch`` of
its ``examples/torchvision/image_classification.py``, which the package does not contain, without the meter of images
per second. The teacher is put in eval mode, which the examples leave to the caller.
"""

import itertools
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn
from torch.utils.data import RandomSampler

from benchmarks.speed.plain import PilImages
from benchmarks.speed.workloads import MOMENTUM, RATE, WEIGHT_DECAY, Case, Workload, upto

Config = dict[str, Any]


class Unavailable(Exception):
    """A variant cannot be measured here; the message says why."""


def torchdistill(case: Case, student: nn.Module, teacher: nn.Module) -> Iterator[float]:
    """A loop that trains without end, yielding each step's loss.

    Raises:
        Unavailable: torchdistill is not installed, or does not have the method.
    """
    try:
        distillation, log = import_module("torchdistill.core.distillation"), import_module("torchdistill.misc.log")
    except ModuleNotFoundError as error:
        raise Unavailable(f"torchdistill cannot be imported: {error}") from error
    loader = {"batch_size": case.workload.batch_size, "num_workers": 0, "drop_last": True}
    sgd = {"lr": RATE, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}
    config = {
        "num_epochs": 1,
        "train_data_loader": {"dataset_id": "train", "sampler": {"class_or_func": RandomSampler}, "kwargs": loader},
        "optimizer": {"key": "SGD", "kwargs": sgd},
        **_method(case.workload, student, teacher),
    }
    box = distillation.get_distillation_box(
        teacher.eval(), student, {"train": PilImages(case)}, config, torch.device("cpu"), None, False, 1
    )
    return _train(box, log)


def installed() -> str | None:
    """The installed version of torchdistill; None where it is not installed."""
    try:
        return version("torchdistill")
    except PackageNotFoundError:
        return None


def _train(box: Any, log: Any) -> Iterator[float]:
    for epoch in itertools.count():
        box.pre_epoch_process(epoch=epoch)
        meters = log.MetricLogger(delimiter="  ")
        meters.add_meter("lr", log.SmoothedValue(window_size=1, fmt="{value}"))
        for inputs, targets, extra in meters.log_every(box.train_data_loader, 1000, f"Epoch: [{epoch}]"):
            loss = box.forward_process(inputs, targets, extra)
            box.post_forward_process(loss=loss)
            meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            if torch.isnan(loss) or torch.isinf(loss):
                raise ValueError(f"The training loop was broken due to loss = {loss}")
            yield loss.item()
        box.post_epoch_process()


def _method(workload: Workload, student: nn.Module, teacher: nn.Module) -> Config:
    """The configuration of the teacher, the student and the criterion."""
    method, layers = workload.method, list(workload.layers)
    match method["name"]:
        case "kd":
            options = {"temperature": method["temperature"], "alpha": method["hard"], "beta": method["soft"]}
            for side in ("student", "teacher"):
                options |= {f"{side}_module_path": ".", f"{side}_module_io": "output"}
            terms: Config = {"kd": {"criterion": {"key": "KDLoss", "kwargs": options}, "weight": 1.0}}
        case "at":
            ends = {layer: {"io": "output", "path": layer} for layer in layers}
            pairs = {layer: {"teacher": end, "student": end} for layer, end in ends.items()}
            attention = {"key": "ATLoss", "kwargs": {"at_pairs": pairs, "mode": "code"}}
            terms = {
                "ce": _term("CrossEntropyLoss", ".", {"uses_label": True}),
                "at": {"criterion": attention, "weight": method["attention"]},
            }
        case "fitnets":
            return _hint(workload, student, teacher)
        case name:
            raise Unavailable(f"torchdistill has no {name}")
    return {"teacher": _network(layers, False), "student": _network(layers, True), "criterion": _sum(terms)}


def _hint(workload: Workload, student: nn.Module, teacher: nn.Module) -> Config:
    """The hint stage: both networks end at the hinted layer, and a regressor follows the student's."""
    hint, guided = upto(teacher, workload.ends), upto(student, workload.ends)
    example = torch.zeros(1, *workload.shape)
    with torch.no_grad():
        width, hint_width = (part.eval()(example).shape[1] for part in (guided, hint))
    kernel = {"kernel_size": 1, "stride": 1, "padding": 0, "uses_relu": True}
    regressor = {"key": "ConvReg", "kwargs": {"num_input_channels": width, "num_output_channels": hint_width, **kernel}}
    target = {"is_from_teacher": True, "module_path": workload.ends, "io": "output"}
    return {
        "teacher": _network(list(workload.layers), False) | {"sequential": [name for name, _ in hint.named_children()]},
        "student": _network(["+convreg"], True)
        | {
            "sequential": [*(name for name, _ in guided.named_children()), "+convreg"],
            "adaptations": {"convreg": regressor},
        },
        "criterion": _sum({"hint": _term("MSELoss", "+convreg", target)}),
    }


def _network(layers: list[str], learns: bool) -> Config:
    """A network of which these layers' outputs are read."""
    hooks = {"input": [], "output": layers}
    return {"forward_proc": "forward_batch_only", "requires_grad": learns, "forward_hook": hooks}


def _sum(terms: Config) -> Config:
    return {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}}


def _term(loss: str, path: str, target: Config) -> Config:
    """One of torch's losses, of the student's output at a path and a target."""
    wrapped = {"input": {"is_from_teacher": False, "module_path": path, "io": "output"}, "target": target}
    return {
        "criterion": {"key": loss, "kwargs": {}},
        "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": wrapped},
        "weight": 1.0,
    }
