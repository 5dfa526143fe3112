"""A recipe as a run: teachers, students alone and distilled students over seeds, in a folder that a crash leaves whole.

`Experiment` is the one orchestrator: `limbeck run` and `limbeck.distill` both prepare one, and run it.
"""

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError, Outputs, Stage
from limbeck.data import Data, Progress, load
from limbeck.evaluate import Latency, latency
from limbeck.experiment.arms import (
    arms_of,
    label_indices,
    longer,
    members_of,
    method_of,
    needed,
    teacher_of,
    training_of,
)
from limbeck.experiment.caching import cached, outputs
from limbeck.experiment.checks import check_trained
from limbeck.experiment.concluding import run_result
from limbeck.experiment.environment import environment
from limbeck.experiment.events import Event, Finished, Job, Track, unwatched
from limbeck.experiment.fit import Fit, Shared, fit
from limbeck.experiment.folder import check_folder
from limbeck.experiment.given import Given
from limbeck.experiment.in_memory import Folder, Keep, folder_of
from limbeck.experiment.kept_outputs import MOST_OUTPUTS
from limbeck.experiment.measuring import measure, outputs_of
from limbeck.experiment.networks import NetworkFactory, ensemble, file_digests
from limbeck.experiment.of_first import of_first
from limbeck.experiment.plan import plan
from limbeck.experiment.preflight import Built, Preflight, built, preflight, resolved
from limbeck.experiment.prepared import Prepared
from limbeck.experiment.results import NetworkResult, RunResult
from limbeck.experiment.runfiles import clear
from limbeck.experiment.several import divided, kept_sizes, of_all, trainings
from limbeck.experiment.task_options import with_options
from limbeck.experiment.workspace import Workspace, example_batch
from limbeck.methods import METHODS
from limbeck.models import GIVEN, load_network, load_weights
from limbeck.models.inputs import as_deployed, bridge_of
from limbeck.recipe.blocks import Recipe, TeacherBlock
from limbeck.recipe.read import with_absolute_paths
from limbeck.train.copies import copy_of
from limbeck.train.engine import pick_device
from limbeck.train.loop import Pause
from limbeck.train.processes import ONE, Processes
from limbeck.user_code import code_digests


class Experiment:
    """One recipe with its data and run folder. Building it finds what is wrong, before any training.

    Args:
        recipe: what to run.
        folder: the run folder.
        resume: resume the run that the folder holds; otherwise it must not hold one.
        overwrite: a run that the folder holds is deleted when this one begins.
        trust_code: let a file of weights name the Python file that builds its network.
        given: what stands for the recipe's data, networks and method, where they are the caller's own.
        keep: what the folder holds: a ``run``; the ``trials`` of a comparison; or, for ``memory``, only the teacher's
            outputs, if they are stored.
        progress: is called while the data is read, see `limbeck.data.load`.
        processes: that train the networks together.
        data: of the recipe, from another `Experiment` with the same data and task, which is then not read again.

    Attributes:
        recipe: with all that `auto` stands for decided. data: its splits. engine: where it runs. macs: of one sample
            through teacher and student. factory: what gives its networks. arms: the student's. longer: those of them
            that are `longer`. epochs: by arm, those in which its student learns. memory: by arm, bytes between its
            steps. results: of the networks so far. networks: by arm, the trained networks of the first seed. found:
            what the checks found.

    Raises:
        LimbeckError: the folder holds another run, or is that of the data; the data, a file, a network, a layer or an
            option is wrong.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        resume: bool = False,
        overwrite: bool = False,
        trust_code: bool = False,
        given: Given | None = None,
        keep: Keep = "run",
        progress: Progress | None = None,
        processes: Processes = ONE,
        data: Data | None = None,
    ) -> None:
        self.recipe = with_absolute_paths(recipe) if given is None else recipe
        if keep != "memory":  # before the data is read
            place = self.recipe.data.model_dump().get("path")
            old = resume or overwrite
            check_folder(folder, resume=old, data=Path(place) if place else None, compares=keep == "trials")
        with processes.one_by_one():  # the first one downloads
            self.data = data or (_loaded(recipe, progress) if given is None else given.data)
        source = given.networks if given else NetworkFactory(self.recipe, self.data, trust_code=trust_code)
        self.factory = Prepared(source, self.recipe, self.data)
        self._given, self._keep, self._processes = given, keep, processes
        self._own = given.methods if given else {}
        self.results: dict[Job, NetworkResult] = {}
        self.networks: dict[str, nn.Module] = {}
        self._test_outputs: dict[Job, Tensor] = {}  # of teachers
        self._notes: dict[Job, list[str]] = {}  # on the teachers that the run has trained
        self._result: RunResult | None = None
        with ExitStack() as refused:
            refused.push(self.factory)
            self._look(recipe, folder, resume=resume, overwrite=overwrite)
            refused.pop_all()

    def _look(self, recipe: Recipe, path: Path, *, resume: bool, overwrite: bool) -> None:
        """Find what is wrong, and open the run folder."""
        if recipe.methods and self._keep == "run":
            raise LimbeckError("the recipe lists methods to compare: use limbeck compare, or remove methods:")
        self._shift = label_indices(recipe.evaluate.shift_bias, self.data.classes)
        for name, split in (("validation", self.data.validation), ("test", self.data.test)):
            if self._shift and not torch.isin(split.targets, torch.tensor(self._shift)).any():
                raise LimbeckError(
                    f"the {name} split has no samples of the classes in shift_bias: {list(recipe.evaluate.shift_bias)}"
                )
        found = self._processes.first(lambda: self._preflight(path, resume=resume))
        self.recipe, self.macs = found.recipe, found.macs
        self.engine = replace(found.engine, device=pick_device(self.recipe.device), processes=self._processes)
        self._trains_teacher, self._work, self.found = found.teaching, found.work, found.notes
        self.longer = longer(self.recipe, found.epochs)
        self.epochs = {**found.epochs, **self.longer}
        self.memory = {**found.memory, **dict.fromkeys(self.longer, found.memory.get("alone", 0))}
        self.arms = (*arms_of(self.recipe), *self.longer)
        training = cached(training_of(self.recipe.train, self.data), self.recipe.cache)
        self.workspace = Workspace(self.data, training, self.engine)
        for block in trainings(self.recipe):  # what has no batches is refused now, not after the teacher's training
            replace(self.workspace, training=training_of(block, self.data)).batches(seed=0)
        if self._given is not None and (len(self.recipe.seeds) > 1 or len(self.arms) > 1):
            self._given.networks.keep()

        def opened() -> Folder:
            if overwrite:
                clear(path)
            return folder_of(self._keep, path, self.recipe, longer=self.longer, digests=self._digests, resume=resume)

        self.folder = of_first(self._processes, path, opened)

    def _preflight(self, path: Path, *, resume: bool) -> Preflight:
        begun = resolved(self.recipe, path, sizes=self._keep == "run") if resume else self.recipe
        asked, known = (of_all(one, self._processes.count) for one in (self.recipe, begun))
        found = preflight(known, self.data, self.factory, path, self._own)
        reason = found.engine.reason if known.precision == self.recipe.precision else "as decided when the run began"
        return replace(found, engine=replace(found.engine, reason=reason), notes=found.notes + kept_sizes(asked, known))

    def _digests(self) -> str:
        """What the recipe names and does not hold, as comments below it: a run of other data or files is another."""
        parts = {"train": self.data.train, "validation": self.data.validation, "test": self.data.test}
        lines = [f"# {name}: {part.digest()}" for name, part in parts.items()] if self._given is None else []
        return "".join(f"{line}\n" for line in [*lines, *file_digests(self.recipe)])

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the run, so far."""
        return (*self.lasting_notes, *self.folder.notes)

    @property
    def lasting_notes(self) -> tuple[str, ...]:
        """Those that a resumed run has too."""
        said = (note.said for note in self.found if not note.skipped)
        teachers = sorted(self._notes, key=lambda job: (job.seed, str(job)))  # not in the order of their trainings
        trained = (note for job in teachers for note in self._notes[job])
        return tuple(dict.fromkeys((*self.data.notes, *self.factory.notes, *said, *trained)))

    @property
    def work(self) -> Mapping[Job, float]:
        """All that is trained, in order, with about how many multiply-accumulates it takes."""
        jobs: list[Job] = []
        for seed in self.recipe.seeds:
            block = self.recipe.teacher
            if block is not None and block.train is not None:
                jobs += members_of(self.recipe, block, seed)
            jobs += [Job(arm, seed) for arm in self.arms]
        extra = {arm: self._work["alone"] * epochs / self.recipe.train.epochs for arm, epochs in self.longer.items()}
        return {job: {**self._work, **extra}[job.arm] for job in jobs}

    @property
    def result(self) -> RunResult:
        """What the run came to.

        Raises:
            LimbeckError: it is not over.
        """
        if self._result is None:
            raise LimbeckError("the run is not finished: iterate over `run` to the end")
        return self._result

    def run(self, track: Track = unwatched) -> Generator[Event, None, None]:
        """Train the networks that are not finished, and yield what happens; at the end there is a `result`."""
        self.folder.open(environment() | self.decided)
        for seed in self.recipe.seeds:
            teacher = None
            if self.recipe.teacher is not None:
                teacher = yield from self.teacher(self.recipe.teacher, seed, track)
            store = yield from self._outputs(seed, teacher)
            for arm in self.arms:
                yield from _events(self.student(Job(arm, seed), self.teacher_of(arm, teacher), store, track))
        student, runs = str(Job(self.recipe.method["name"], self.recipe.seeds[0])), tuple(self.results.values())
        self._result = self.folder.conclude(runs, student, lambda: self._concluded(runs))

    @property
    def decided(self) -> dict[str, object]:
        """What `auto` stands for in this run, by the key of the recipe."""
        return self.engine.decided | {"cache": self.recipe.cache.model_dump(mode="json")}

    def teacher(self, block: TeacherBlock, seed: int, track: Track = unwatched) -> Generator[Event, None, nn.Module]:
        """The teacher of a seed, trained or restored; it is measured before any student is trained."""
        members = self.factory.restored(block)
        reused, job = bool(members), teacher_of(self.recipe, seed)
        for one in () if members else members_of(self.recipe, block, seed):
            members.append((yield from self._member(block, one, track)))
        network = divided(ensemble(members, block, self.data.task), block, self.data, self.engine)
        if block.untrained or block.table:
            return network
        for number, member in enumerate(members if reused and len(members) > 1 else ()):
            yield from self._measured(Job("member", job.seed, number), member, reused=True)
        yield from self._measured(job, network, reused=reused)
        if not block.shard:  # it has no latency: only the first process measures
            self.networks.setdefault("teacher", network)
        return network

    def _measured(self, job: Job, network: nn.Module, *, reused: bool) -> Iterator[Event]:
        """Measure a restored teacher or an ensemble, unless it was measured for another seed."""
        if job not in self.results:
            self.results[job], self._test_outputs[job] = measure(job, network, self.workspace, name="teacher")
            yield Finished(job, self.results[job], reused=reused, task=self.data.task)

    def _member(self, block: TeacherBlock, job: Job, track: Track) -> Generator[Event, None, nn.Module]:
        """A teacher that is trained in this run, or one member of an ensemble."""
        self.engine.seed(job.generator_seed)
        network, spec = self.factory.teacher(block)
        if job in self.results:
            load_weights(network, self.folder.weights(str(job), job.file))
        elif block.train is not None:  # otherwise the method trains it
            workspace = replace(self.workspace, training=training_of(block.train, self.data))
            one = Fit(job, METHODS["alone"], {"student": network}, spec, workspace, keeps_outputs=self.keeps_outputs)
            yield from _events(self._fit(one, track))
            self._notes[job] = [f"{job}: {note}" for note in check_trained(network, self.data, self.engine)]
        return network

    def _outputs_of(self, seed: int, teacher: nn.Module) -> Tensor | None:
        """The outputs on the test split of the teacher of a seed; None if it is not trained, or is a table."""
        block, job = self.recipe.teacher, teacher_of(self.recipe, seed)
        if block is None or block.untrained or block.table:
            return None
        if job not in self._test_outputs:  # it was measured in the part of the run that is resumed
            self._test_outputs[job] = outputs_of(teacher, self.data.test, self.data, self.engine, name="teacher")
        self._test_outputs = {job: self._test_outputs[job]}  # only those of one teacher are kept in memory
        return self._test_outputs[job]

    def teacher_of(self, arm: str, teacher: nn.Module | None) -> nn.Module | None:
        """The teacher that an arm's student gets: a copy if the method trains it."""
        if teacher is None or not self._trains_teacher.get(arm, False):
            return teacher
        return copy_of(teacher, example_batch(self.data).inputs, name="teacher")

    def student(
        self,
        job: Job,
        teacher: nn.Module | None,
        store: Outputs | None,
        track: Track,
        *,
        shared: Shared | None = None,
    ) -> Generator[Event | Pause, None, nn.Module]:
        """Train and measure a student, or restore it, and return it. It pauses if it is trained with others.

        ``teacher`` is that of `teacher_of`.
        """
        self.engine.seed(job.seed)
        network, spec, others = self.factory.student(job.seed, job.arm)
        networks = {"student": network, **others} | ({} if teacher is None else {"teacher": teacher})
        self.factory.prune(networks)
        trains_teacher, teacher_outputs = self._trains_teacher.get(job.arm, False), None
        if teacher is not None and not trains_teacher and self.folder.result(str(job)) is None:
            teacher_outputs = self._outputs_of(job.seed, teacher)
        epochs = self.longer.get(job.arm, self.recipe.train.epochs)
        yield from self._fit(
            Fit(
                job,
                method_of(self.recipe, job.arm, self._own),
                needed(self.recipe, job.arm, networks),
                spec,
                replace(self.workspace, training=replace(self.workspace.training, epochs=epochs)),
                store=store,
                teacher_outputs=teacher_outputs,
                trains_teacher=trains_teacher,
                identity=self._identity() if job.arm == "alone" else None,
                first_stage_of=self._first_stage_of(job),
                shift=self._shift,
                shared=shared,
                keeps_outputs=self.keeps_outputs,
            ),
            track,
        )
        self.networks.setdefault(job.arm, network)
        return network

    @property
    def keeps_outputs(self) -> bool:
        """Whether the outputs of the networks on the validation and test split are kept: for a comparison."""
        count = (len(self.data.validation) + len(self.data.test)) * len(self.data.outputs)
        return self._keep == "trials" and self.data.task == "classification" and count <= MOST_OUTPUTS

    def _fit(self, one: Fit, track: Track) -> Iterator[Event | Pause]:
        self.results[one.job], outputs = yield from fit(one, self.folder, track)
        if one.job.arm == "teacher" and outputs is not None:
            self._test_outputs[one.job] = outputs

    def _identity(self) -> str | None:
        """What the recipe says of a student alone; None if no other run may use it."""
        eyes, loss = self.data.task_options.get("eyes"), self.recipe.task.hard_loss or ""
        if self._keep == "memory" or loss.startswith(GIVEN):  # what a function of the caller uses is not known
            return None
        parts = [self.recipe.student.model_dump(mode="json"), self.recipe.train.model_dump(mode="json")]
        if self.data.task != "classification" or loss:
            code = [loss.rpartition(":")[2], *code_digests({"hard_loss": loss})]
            parts.append({"task": self.data.task, "hard_loss": code, "eyes": eyes})
        return json.dumps(parts, sort_keys=True)

    def _first_stage_of(self, job: Job) -> Job | None:
        """The student of the first seed, where the recipe lets the others share its first stage."""
        first = Job(job.arm, self.recipe.seeds[0])
        shared = self.recipe.share_first_stage and job.arm == self.recipe.method["name"] and job != first
        return first if shared else None

    def built(self) -> Built:
        """The networks of the first seed, built anew, and every training that they take part in."""
        with torch.random.fork_rng(devices=[]):
            return built(self.recipe, self.data, self.factory, self._own)

    def reading(self, seed: int, teacher: nn.Module) -> tuple[Stage, ...]:
        """The method's stages for a seed, which say what is read of the teacher."""
        student, _, others = self.factory.student(seed, self.recipe.method["name"])
        networks = {"student": student, **others, "teacher": teacher}
        self.factory.prune(networks)
        method = method_of(self.recipe, self.recipe.method["name"], self._own)
        return plan(method, networks, self.data, self.workspace.training)

    def outputs(
        self, seed: int, teacher: nn.Module, part: tuple[int, int] | None = None
    ) -> Generator[Event, None, Outputs | None]:
        """What the method reads of a seed's teacher, where it is kept; builds the store, or a ``part`` (see `keep`)."""
        stages = self.reading(seed, teacher)
        path, training, engine = self.folder.path, self.workspace.training, replace(self.engine, processes=ONE)
        return (yield from outputs(self.recipe, path, seed, stages, teacher, self.data, training, engine, part))

    def _outputs(self, seed: int, teacher: nn.Module | None) -> Generator[Event, None, Outputs | None]:
        """The same, before any student is trained: what prevents it is told then."""
        job, block = Job(self.recipe.method["name"], seed), self.recipe.teacher
        if teacher is None or block is None or not (self.recipe.cache.use or block.table):
            return None
        if self.folder.result(str(job)) is not None:
            return None
        with self._processes.one_by_one():  # the first one builds the store, the others find it
            return (yield from self.outputs(seed, teacher))

    def latencies(self, networks: Mapping[str, nn.Module]) -> dict[str, Latency | None]:
        """The latencies of networks of the run, by name."""
        bridges = {name: bridge_of(network) for name, network in networks.items()}
        shapes = {name: bridge.own if bridge else self.data.shape for name, bridge in bridges.items()}
        with as_deployed(networks.values()):
            return latency(networks, shapes, runs=self.recipe.evaluate.latency_runs)

    def trained(self, job: Job) -> nn.Module:
        """The network of a finished student."""
        network = self.factory.student(job.seed, job.arm)[0]
        load_network(self.folder.weights(str(job), job.file), network=network)
        return self.engine.place(network)

    def _concluded(self, runs: tuple[NetworkResult, ...]) -> RunResult:
        times = {"teacher": None} | self.latencies(self.networks)
        first = {job.arm: found for job, found in reversed(list(self.results.items())) if job.arm in times}
        shown = {arm: replace(found, latency=times[arm]) for arm, found in first.items()}
        return run_result(self.recipe, self.data, shown, runs, self.lasting_notes, self.decided)


def _events(training: Iterator[Event | Pause]) -> Iterator[Event]:
    return (event for event in training if not isinstance(event, Pause))


def _loaded(recipe: Recipe, progress: Progress | None) -> Data:
    return with_options(load(**recipe.data.model_dump(), progress=progress), recipe.task)
