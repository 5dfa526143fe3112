"""The networks of a run, and the events that `Experiment.run` yields."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from limbeck.data.targets import TaskName
from limbeck.experiment.results import NetworkResult
from limbeck.train.loop import BatchSource, Epoch

TEACHER_SEEDS = 1000
"""Added to a teacher's seed, once for each member of an ensemble, so that it does not start like a student."""


class Job(NamedTuple):
    """One network to train, or to take from a file."""

    arm: str  # "teacher", "member" (of an ensemble teacher), "alone", or the method's name
    seed: int
    member: int | None = None

    def __str__(self) -> str:
        return f"{self.arm}/seed{self.seed}" + ("" if self.member is None else f"-{self.member}")

    @property
    def teaches(self) -> bool:
        """Whether the network is a teacher or a member of one."""
        return self.arm in ("teacher", "member")

    @property
    def generator_seed(self) -> int:
        """The seed of the network's weights, its data's order, augmentation and dropout."""
        return self.seed + TEACHER_SEEDS * (1 + (self.member or 0)) if self.teaches else self.seed

    @property
    def file(self) -> str:
        """The name of the weights' file in the job's folder."""
        return "teacher.safetensors" if self.teaches else "student.safetensors"


@dataclass(frozen=True)
class Started:
    """A network's training begins, or resumes from its checkpoint."""

    job: Job
    done: int  # epochs that the checkpoint holds, of all stages
    epochs: int  # of all stages


@dataclass(frozen=True)
class Found:
    """Another run folder beside this one holds the same trained network, which is reused."""

    job: Job
    folder: Path


@dataclass(frozen=True)
class Trained:
    """An epoch has ended."""

    job: Job
    epoch: Epoch
    validation: float | None  # the task's headline; None without a validation split
    task: TaskName = "classification"


@dataclass(frozen=True)
class Finished:
    """A network is measured; ``reused`` if it comes from a file or from the run that is resumed."""

    job: Job
    result: NetworkResult
    reused: bool
    task: TaskName = "classification"


@dataclass(frozen=True)
class StoreEstimate:
    """What a store that does not exist yet will take, or the part of it that is built."""

    job: Job  # the teacher's
    folder: Path
    bytes: int  # of the part
    whole: int  # of all parts
    seconds: float  # to build the part
    free: int  # bytes on the disk


@dataclass(frozen=True)
class StoreProgress:
    """Part of a teacher's outputs is in its store."""

    job: Job  # the teacher's
    folder: Path
    done: int  # rows
    total: int
    bytes: int


@dataclass(frozen=True)
class StoreVerified:
    """A store was compared with its teacher."""

    job: Job  # the teacher's
    folder: Path
    rows: int
    deviation: float  # the largest
    allowed: float


@dataclass(frozen=True)
class Elsewhere:
    """Another process works on a part of a comparison or tuning."""

    part: str  # such as "seed 3"
    waits: bool  # whether this process waits for it


Event = Started | Found | Trained | Finished | StoreEstimate | StoreProgress | StoreVerified | Elsewhere

Track = Callable[[Job, int, BatchSource], BatchSource]
"""``(job, epochs, batches) -> batches``: lets a caller watch the progress within an epoch."""


def unwatched(job: Job, epochs: int, batches: BatchSource) -> BatchSource:
    """A `Track` that watches nothing."""
    return batches
