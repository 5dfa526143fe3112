"""Every method on every seed, in one folder that several processes may fill."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from torch import Tensor, nn

from limbeck.comparison.learned import Learned, analyse, outputs_by_split
from limbeck.comparison.locks import claim, count_held, is_held, lock
from limbeck.comparison.maps import write_maps
from limbeck.comparison.results import (
    COMPARED,
    COMPARISON,
    SCHEMA,
    Adjust,
    ArmResult,
    ComparisonResult,
    Correct,
    compared,
    headline_of,
    scores_of,
)
from limbeck.data import Data, Progress
from limbeck.errors import LimbeckError
from limbeck.evaluate import Latency
from limbeck.experiment.arms import block_of, members_of, teacher_of
from limbeck.experiment.environment import environment
from limbeck.experiment.events import Elsewhere, Event, Job, Track, unwatched
from limbeck.experiment.fit import Shared
from limbeck.experiment.given import Given
from limbeck.experiment.kept_outputs import OUTPUTS, read_outputs, write_outputs
from limbeck.experiment.results import NetworkResult, plain
from limbeck.experiment.run import Experiment
from limbeck.experiment.trials import Trials
from limbeck.files.alone import LOCK, is_locked
from limbeck.files.atomic import write, write_sealed
from limbeck.recipe.blocks import Recipe
from limbeck.recipe.read import dump
from limbeck.train.freeze import frozen
from limbeck.train.loop import Diverged, Pause
from limbeck.train.memory import free_memory
from limbeck.train.together import SharedBatches, SharedReaders, groups, together


class Sweep:
    """The students of all arms and seeds of a recipe with ``methods``.

    The arms of a seed are trained together: they read the same batches, and one run of the teacher for each batch. A
    process that trains a seed locks it. Finished networks are kept, so that the sweep can be stopped, and seeds and
    methods can be added later.

    Args:
        recipe: with ``methods``.
        folder: see `limbeck.experiment.trials`.
        trust_code: as for `Experiment`.
        given: as for `Experiment`.
        progress: as for `Experiment`.
        data: as for `Experiment`.

    Attributes:
        experiment: the networks and the data. diverged: the errors of the students that `run` could not train.

    Raises:
        LimbeckError: as for `Experiment`; the recipe has options that only a run has.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        trust_code: bool = False,
        given: Given | None = None,
        progress: Progress | None = None,
        data: Data | None = None,
    ) -> None:
        used = as_compared(recipe)
        if is_locked(folder / LOCK):
            raise LimbeckError(f"a run trains in {folder}: choose another folder for the comparison")
        self.experiment = Experiment(
            used, folder, resume=True, trust_code=trust_code, given=given, keep="trials", progress=progress, data=data
        )
        self._path = folder
        self.diverged: list[Diverged] = []

    @property
    def jobs(self) -> list[Job]:
        """The students, seed by seed."""
        return [Job(arm, seed) for seed in self.experiment.recipe.seeds for arm in self.experiment.arms]

    @property
    def missing(self) -> list[Job]:
        """The students that are not finished."""
        return [job for job in self.jobs if not self._trials.is_finished(str(job))]

    @property
    def work(self) -> dict[Job, float]:
        """The trainings that are not finished, with about how many multiply-accumulates each takes."""
        return {job: each for job, each in self.experiment.work.items() if not self._trials.is_finished(str(job))}

    @property
    def _trials(self) -> Trials:
        return cast("Trials", self.experiment.folder)

    def run(self, track: Track = unwatched, *, wait: bool = True) -> Generator[Event, None, None]:
        """Train the students that no process has trained or trains now. One that diverges does not stop the others.

        With ``wait``, then wait for the seeds that other processes train, and train what they leave.
        """
        experiment, elsewhere = self.experiment, list[int]()
        self._trials.refresh()
        with lock(self._path, "folder"):
            self._trials.open(environment() | experiment.decided)
            write(self._path / COMPARED, dump(experiment.recipe))
        for seed in experiment.recipe.seeds:
            claimed = claim(self._path, f"seed{seed}")
            if claimed is None:
                elsewhere.append(seed)
                yield Elsewhere(f"seed {seed}", waits=False)
                continue
            try:
                yield from self._seed(seed, track)
            finally:
                claimed.release()
        for seed in elsewhere if wait else ():
            if is_held(self._path, f"seed{seed}"):
                yield Elsewhere(f"seed {seed}", waits=True)
            with lock(self._path, f"seed{seed}"):
                yield from self._seed(seed, track)

    def conclude(self, adjust: Adjust = "holm") -> ComparisonResult:
        """Compare the arms, measure latencies, and write comparison.json.

        Raises:
            LimbeckError: not all students are finished.
        """
        missing = self.missing
        if missing and self.diverged:
            raise self.diverged[0]
        if missing:
            raise LimbeckError(f"{len(missing)} of {len(self.jobs)} students are not finished: {missing[0]} ...")
        self._trials.refresh()
        with lock(self._path, "folder"):
            found = self._compared(adjust)
            write_sealed(self._path / COMPARISON, plain(found))
        return found

    def _compared(self, adjust: Adjust) -> ComparisonResult:
        experiment, task = self.experiment, self.experiment.data.task
        seeds = experiment.recipe.seeds
        runs = {arm: [self._result(f"{arm}/seed{seed}") for seed in sorted(seeds)] for arm in experiment.arms}
        scores = {arm: scores_of(results, task) for arm, results in runs.items()}
        correct = {arm: self._correct(arm) for arm in experiment.arms} if experiment.keeps_outputs else {}
        methods = [arm for arm in experiment.arms if arm != "alone" and arm not in experiment.longer]
        same_epochs = {epochs: arm for arm, epochs in experiment.longer.items()}
        alone = {arm: same_epochs.get(experiment.epochs[arm], "alone") for arm in methods}
        versus_alone = compared(scores, alone, correct, adjust) if "alone" in runs else {}
        same = {arm for arm in methods if "kd" in methods and experiment.epochs[arm] == experiment.epochs["kd"]}
        others = {arm: "kd" for arm in methods if arm in same - {"kd"}}
        versus_kd = compared(scores, others, correct, adjust)
        teacher, latencies, learned = self._first()
        arms = [
            ArmResult(
                arm=arm,
                options=dict(block_of(experiment.recipe, arm)),
                epochs=experiment.epochs[arm],
                headline=headline_of(results, task),
                latency=latencies[arm],
                alone=versus_alone.get(arm),
                kd=versus_kd.get(arm),
            )
            for arm, results in runs.items()
        ]
        return ComparisonResult(
            schema=SCHEMA,
            name=experiment.recipe.name,
            task=task,
            seeds=tuple(sorted(seeds)),
            adjusted=adjust,
            teacher=teacher,
            teachers=None if teacher is None else headline_of(self._teachers(teacher), task),
            arms=tuple(arms),
            splits=dict(experiment.data.origins),
            notes=experiment.lasting_notes,  # with those on the teachers, which `_first` has restored
            decided={key: value for key, value in experiment.decided.items() if key != "why"},  # of another process
            runs=tuple(result for results in runs.values() for result in results),
            learned=learned,
        )

    def _result(self, name: str) -> NetworkResult:
        return cast("NetworkResult", self._trials.result(name))  # `conclude` has looked

    def _teachers(self, first: NetworkResult) -> list[NetworkResult]:
        """Those of all seeds if they were trained here, otherwise that of the first seed."""
        recipe = self.experiment.recipe
        names = dict.fromkeys(str(teacher_of(recipe, seed)) for seed in sorted(recipe.seeds))
        found = [one for name in names if (one := self._trials.result(name)) is not None]
        return found if len(found) == len(names) else [first]

    def _correct(self, arm: str) -> Correct:
        """Which test samples the students of an arm classify correctly (seeds, samples)."""
        labels = self.experiment.data.test.targets
        return np.stack([(one.argmax(1) == labels).numpy() for one in self.test_outputs(arm)])

    def test_outputs(self, arm: str) -> list[Tensor]:
        """The outputs (N, K) of the finished students of an arm on the test split, in ascending order of the seeds.

        Only of classification.
        """
        return [self._outputs(f"{arm}/seed{seed}")["test"] for seed in sorted(self.experiment.recipe.seeds)]

    def _outputs(self, name: str) -> dict[str, Tensor]:
        """The outputs of a network that was trained here."""
        data = self.experiment.data
        splits = {"validation": len(data.validation), "test": len(data.test)}
        shapes = {split: (count, len(data.outputs)) for split, count in splits.items() if count}
        return read_outputs(self._trials.weights(name, OUTPUTS), shapes)

    def _first(self) -> tuple[NetworkResult | None, dict[str, Latency | None], Learned | None]:
        """The teacher of the first seed, the latencies of the students of that seed by arm, and what they learned.

        The teachers of the other seeds are restored, too: the notes of a resumed comparison are those of the first one.
        """
        experiment, recipe, seed = self.experiment, self.experiment.recipe, self.experiment.recipe.seeds[0]
        networks = {arm: experiment.trained(Job(arm, seed)) for arm in experiment.arms}
        block, first = recipe.teacher, teacher_of(recipe, seed)
        if block is None:
            return None, experiment.latencies(networks), self._learned(networks)
        for job in dict.fromkeys(teacher_of(recipe, one) for one in recipe.seeds):
            names = map(str, members_of(recipe, block, job.seed))
            if job != first and None in map(self._trials.result, names):  # its folder was deleted
                continue
            yet_to_run = experiment.teacher(block, job.seed)
            try:
                while True:
                    next(yet_to_run)
            except StopIteration as ended:
                networks.setdefault("teacher", ended.value)
        latencies = experiment.latencies(networks)
        teacher = replace(experiment.results[first], latency=latencies["teacher"])
        return teacher, latencies, self._learned(networks)

    def _learned(self, networks: Mapping[str, nn.Module]) -> Learned | None:
        """What the networks of the first seed learned; their maps are written."""
        experiment, seed = self.experiment, self.experiment.recipe.seeds[0]
        if not experiment.keeps_outputs:
            return None
        names = {arm: f"{arm}/seed{seed}" for arm in experiment.arms}
        names["teacher"] = str(teacher_of(experiment.recipe, seed))  # has outputs if it was trained here
        results = {arm: one for arm, name in names.items() if (one := self._trials.result(name)) is not None}
        outputs, sha256 = {arm: self._outputs(names[arm]) for arm in results}, None
        if "teacher" in networks.keys() - outputs.keys():  # it was given, or is an ensemble
            outputs["teacher"] = outputs_by_split("teacher", networks["teacher"], experiment.data, experiment.engine)
            sha256 = write_outputs(self._path / OUTPUTS, outputs["teacher"])["sha256"]
        counted = None not in [one.macs for one in (*results.values(), *experiment.results.values())]
        macs = experiment.macs if counted else 0
        found, maps = analyse(networks, results, outputs, experiment.data, experiment.engine, seed=seed, macs=macs)
        return replace(found, maps_sha256=write_maps(self._path, maps), teacher_outputs_sha256=sha256)

    def _seed(self, seed: int, track: Track) -> Generator[Event, None, None]:
        experiment, trials = self.experiment, self._trials
        jobs = [job for job in (Job(arm, seed) for arm in experiment.arms) if not trials.is_finished(str(job))]
        if not jobs:
            return
        teacher: nn.Module | None = None
        if experiment.recipe.teacher is not None:
            job = teacher_of(experiment.recipe, seed)
            name = f"teacher-seed{job.seed}"
            if is_held(self._path, name):
                yield Elsewhere(str(job), waits=True)
            with lock(self._path, name):
                teacher = yield from experiment.teacher(experiment.recipe.teacher, seed, track)
        sizes = [experiment.memory[job.arm] for job in jobs]
        share = free_memory(experiment.engine.device) // count_held(self._path, "seed")  # of each process
        for places in groups(sizes, share):
            yield from self._together([jobs[place] for place in places], teacher, track)

    def _together(self, jobs: list[Job], teacher: nn.Module | None, track: Track) -> Iterator[Event]:
        experiment = self.experiment
        teachers = {job: experiment.teacher_of(job.arm, teacher) for job in jobs}
        shared = Shared(SharedBatches(experiment.workspace.batches(jobs[0].seed)), SharedReaders())
        students = [
            self._named(job, experiment.student(job, teachers[job], None, track, shared=shared)) for job in jobs
        ]
        # for as long as one student reads the teacher: a stage would leave it as it was before
        with frozen(teacher.modules() if teacher is not None else ()):
            events: Iterator[Event] = together(students, experiment.engine)
            yield from events

    def _named(self, job: Job, training: Iterator[Event | Pause]) -> Generator[Event | Pause, None, None]:
        """The training of a student; if it diverges, it ends, and the error names the student."""
        try:
            yield from training
        except Diverged as error:
            self.diverged.append(Diverged(f"{job}: {error}"))


def as_compared(recipe: Recipe) -> Recipe:
    """The recipe without a store.

    Raises:
        LimbeckError: it lists no methods, or has what several students of one teacher cannot have.
    """
    if not recipe.methods:
        raise LimbeckError(
            "the recipe lists no methods to compare: write methods: [kd, srrl], or use --methods kd,srrl"
        )
    wrong = {
        "cache: true": recipe.cache.use is True,
        "share_first_stage": recipe.share_first_stage,
        "teacher.table": recipe.teacher is not None and recipe.teacher.table is not None,
        "teacher.untrained": recipe.teacher is not None and recipe.teacher.untrained,
    }
    for key, given in wrong.items():
        if given:
            raise LimbeckError(f"a comparison does not have {key}: its students share one run of the teacher a batch")
    return recipe.model_copy(update={"cache": recipe.cache.model_copy(update={"use": False})})
