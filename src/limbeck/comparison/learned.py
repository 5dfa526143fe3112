"""What the networks of the first seed learned: figures besides the accuracy on the test split."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limbeck.comparison.maps import Maps
from limbeck.data import Data
from limbeck.evaluate import ClassFigures
from limbeck.evaluate.calibration import Calibration, calibration
from limbeck.evaluate.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from limbeck.evaluate.deferral import Answers, Deferral, deferral
from limbeck.evaluate.features import cluster_nmi, linear_cka, projection
from limbeck.experiment.feature_reader import SAMPLES, FeatureReader, spread_evenly
from limbeck.experiment.measuring import outputs_of
from limbeck.experiment.results import NetworkResult
from limbeck.train.engine import Engine

WORK = 12 * 10**10
"""The most multiply-accumulates of teacher and one student on corrupted samples: about 4 s of one core."""

LEAST = 100
"""The number of samples that are corrupted even if that takes more than `WORK`."""

MEMORY = 2**30
"""The most bytes of samples in 32 bits that are held."""


@dataclass(frozen=True)
class NetworkLearned:
    """The figures of one network on the test split. "The teacher" is that of the recipe, before a method trains it."""

    arm: str  # "teacher", or that of a student
    agreement: float | None  # as in its `NetworkResult`: of a method that trains its teacher, with that teacher
    kl_to_teacher: float | None  # in nats; likewise
    class_accuracy: tuple[float | None, ...]  # (C,); None for a class without test samples
    class_change: tuple[float | None, ...] | None  # (C,) minus those of alone; None for alone, or without it
    calibration: Calibration
    nmi: float | None  # of k-means clusters of the features with the classes; None without a feature
    cka: float | None  # linear CKA of the features with the teacher's; None for the teacher, or without both features
    clean_accuracy: float | None  # of the samples that are corrupted, without corruption; None if not images
    corrupted_accuracy: dict[str, tuple[float, ...]] | None  # by corruption, for strengths 1 to 5; None if not images
    deferral: Deferral | None  # None for the teacher, or without a teacher


@dataclass(frozen=True)
class Learned:
    """The networks of the first seed: the teacher, if there is one, then the students, alone first."""

    seed: int
    classes: tuple[str, ...]  # their names, in the order of the outputs
    feature_samples: int  # test samples, spread evenly, for NMI, CKA and the maps
    corruption_samples: int  # likewise for the corruptions; 0 if the inputs are no images
    networks: tuple[NetworkLearned, ...]
    maps_sha256: str  # of maps.safetensors
    teacher_outputs_sha256: str | None = None  # of outputs.safetensors; None if the teacher's own folder has them


def analyse(
    networks: Mapping[str, nn.Module],
    results: Mapping[str, NetworkResult],
    outputs: Mapping[str, Mapping[str, Tensor]],
    data: Data,
    engine: Engine,
    *,
    seed: int,
    macs: int,
) -> tuple[Learned, Maps]:
    """Compute the figures and the maps of the networks of one seed. The same networks give the same, to the bit.

    ``maps_sha256`` is empty until the maps are written.

    Args:
        networks: "teacher", if there is one, and the students by arm.
        results: of the students.
        outputs: by arm, those known on "validation" and "test", (N, K) in 32 bits; others are computed.
        data: of classification.
        engine: its device is used; networks run in 32 bits.
        seed: that of the networks.
        macs: multiply-accumulates of one sample through teacher and one student. The more they are, the fewer samples
            are corrupted, and `LEAST` if it is 0, which stands for unknown, as of a function that may be slow.
    """
    arms = sorted(networks, key=lambda arm: arm != "teacher")
    known = {arm: outputs.get(arm) or outputs_by_split(arm, networks[arm], data, engine) for arm in arms}
    classes = {arm: _class_accuracy(known[arm]["test"], data) for arm in arms}
    readings = {arm: FeatureReader(arm, networks[arm], data, engine) for arm in arms}
    index, corrupted = _places(data, macs)
    robust = _corrupted_accuracy(readings, data, corrupted) if len(corrupted) else {}
    inputs, labels = data.test.inputs[index], data.test.targets[index]
    found, points = list[NetworkLearned](), dict[str, NDArray[np.float32]]()
    target: Tensor | None = None  # the teacher's features
    for arm in arms:
        features, test = readings[arm](inputs)[1], known[arm]["test"]
        if features is not None:
            points[arm] = projection(features)
        figures = results[arm].test if arm in results else None
        found.append(
            NetworkLearned(
                arm=arm,
                agreement=figures.agreement if isinstance(figures, ClassFigures) else None,
                kl_to_teacher=figures.kl_to_teacher if isinstance(figures, ClassFigures) else None,
                class_accuracy=classes[arm],
                class_change=_change(arm, classes),
                calibration=_calibration(known[arm], data),
                nmi=None if features is None else cluster_nmi(features, labels, len(data.classes)),
                cka=None if features is None or target is None else linear_cka(features, target),
                clean_accuracy=_accuracy(test[corrupted], data.test.targets[corrupted]) if robust else None,
                corrupted_accuracy=robust.get(arm),
                deferral=_deferral(arm, known, data),
            )
        )
        target = features if arm == "teacher" else target
    learned = Learned(seed, tuple(data.classes), len(index), len(corrupted), tuple(found), "")
    return learned, Maps(index.numpy(), labels.numpy(), points)


def outputs_by_split(name: str, network: nn.Module, data: Data, engine: Engine) -> dict[str, Tensor]:
    """The outputs (N, K) of a network on "validation" and "test", in 32 bits."""
    splits = {"validation": data.validation, "test": data.test}
    return {which: outputs_of(network, split, data, engine, name=name) for which, split in splits.items() if len(split)}


def _places(data: Data, macs: int) -> tuple[Tensor, Tensor]:
    """The test samples whose features are read, and those that are corrupted; spread evenly."""
    most = min(len(data.test), SAMPLES, max(1, MEMORY // (4 * math.prod(data.shape))))
    conditions = len(CORRUPTIONS) * len(STRENGTHS)
    cheap = WORK // (conditions * macs) if macs else 0
    few = min(most, max(LEAST, cheap)) if len(data.shape) == 3 else 0
    return spread_evenly(len(data.test), most), spread_evenly(len(data.test), few)


def _accuracy(logits: Tensor, targets: Tensor) -> float:
    return (logits.argmax(dim=1) == targets).double().mean().item()


def _corrupted_accuracy(
    readings: Mapping[str, FeatureReader], data: Data, index: Tensor
) -> dict[str, dict[str, tuple[float, ...]]]:
    """By network and corruption, the accuracy for each strength on these test samples."""
    inputs, targets = data.test.inputs[index], data.test.targets[index]
    found: dict[str, dict[str, tuple[float, ...]]] = {name: {} for name in readings}
    for kind in CORRUPTIONS:
        for strength in STRENGTHS:
            corrupted = corrupt(inputs, kind, strength)
            for name, read in readings.items():
                found[name][kind] = (*found[name].get(kind, ()), _accuracy(read(corrupted)[0], targets))
    return found


def _class_accuracy(logits: Tensor, data: Data) -> tuple[float | None, ...]:
    targets = data.test.targets
    hits = targets[logits.argmax(dim=1) == targets]
    right, counts = (torch.bincount(labels, minlength=len(data.classes)).tolist() for labels in (hits, targets))
    return tuple(hit / count if count else None for hit, count in zip(right, counts, strict=True))


def _change(arm: str, classes: Mapping[str, Sequence[float | None]]) -> tuple[float | None, ...] | None:
    """The accuracy of each class minus that of alone."""
    if arm == "alone" or "alone" not in classes:
        return None
    pairs = zip(classes[arm], classes["alone"], strict=True)
    return tuple(None if own is None or other is None else own - other for own, other in pairs)


def _calibration(outputs: Mapping[str, Tensor], data: Data) -> Calibration:
    validation = (outputs["validation"], data.validation.targets) if len(data.validation) else None
    return calibration(outputs["test"], data.test.targets, validation)


def _deferral(arm: str, outputs: Mapping[str, Mapping[str, Tensor]], data: Data) -> Deferral | None:
    if arm == "teacher" or "teacher" not in outputs:
        return None
    splits = {"test": data.test, "validation": data.validation}
    answers = {
        name: Answers(outputs[arm][name], outputs["teacher"][name], split.targets)
        for name, split in splits.items()
        if len(split)
    }
    return deferral(answers["test"], answers.get("validation"))
