"""What the students of the first seed learned besides the labels, as figures."""

from dataclasses import dataclass

from limbeck.evaluate.calibration import Calibration
from limbeck.evaluate.deferral import Deferral


@dataclass(frozen=True)
class NetworkLearned:
    """The figures of one network. Those without a note are of the test split."""

    arm: str  # "teacher", or that of a student
    agreement: float | None  # fraction of samples with the teacher's prediction; None as in its `NetworkResult`
    kl_to_teacher: float | None  # in nats; likewise
    class_accuracy: tuple[float | None, ...]  # (C,); None for a class without test samples
    class_change: tuple[float | None, ...] | None  # (C,) minus those of alone; None for alone, or without it
    calibration: Calibration
    nmi: float | None  # of k-means clusters of the features with the classes; None without a feature
    cka: float | None  # linear CKA of the features with the teacher's; None for the teacher, or without both features
    clean_accuracy: float | None  # of the samples that are corrupted, without corruption
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
