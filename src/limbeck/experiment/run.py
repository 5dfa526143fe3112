"""A recipe run: teachers, students alone and distilled students over seeds, in a folder that a crash leaves whole."""

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.cache import network_digest, tensors_digest
from limbeck.core import LimbeckError, Method, Outputs, Stage
from limbeck.data import load
from limbeck.evaluate import bias_study
from limbeck.experiment.arms import arms_of, method_of, needed, teacher_of, training_of
from limbeck.experiment.caching import cached, outputs
from limbeck.experiment.environment import environment
from limbeck.experiment.events import Event, Finished, Found, Job, Started, Track, Trained
from limbeck.experiment.folder import RunFolder, log_line
from limbeck.experiment.given import Given
from limbeck.experiment.networks import NetworkFactory, ensemble
from limbeck.experiment.plan import (
    Training,
    label_indices,
    logits_of,
    measure,
    plan,
    probe,
    time_together,
    training_batches,
)
from limbeck.experiment.preflight import preflight, resolved
from limbeck.experiment.prepared import Prepared
from limbeck.experiment.resuming import check_state
from limbeck.experiment.runfiles import clear
from limbeck.experiment.summary import summarise
from limbeck.methods import METHODS
from limbeck.models import NetworkSpec, load_weights, read_spec, restore_structure, save_network
from limbeck.recipe.blocks import Recipe, TeacherBlock
from limbeck.recipe.read import dump, with_absolute_paths
from limbeck.train.copies import copy_of
from limbeck.train.loop import run
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
        resumable: whether checkpoints are written.

    Attributes:
        recipe: with all that `auto` stands for decided. data: its splits. engine: where it runs. macs: of one sample
            through teacher and student. factory: what gives its networks.

    Raises:
        LimbeckError: the folder holds another run; the data, a file, a network, a layer or an option is wrong.
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
        resumable: bool = True,
    ) -> None:
        self.recipe = with_absolute_paths(recipe) if given is None else recipe
        self.data = load(**recipe.data.model_dump()) if given is None else given.data
        source = given.networks if given else NetworkFactory(self.recipe, self.data, trust_code=trust_code)
        self.factory = Prepared(source, self.recipe, self.data)
        self._given, self._method = given, None if given is None else given.method
        self._resumable = resumable
        self._results: dict[Job, dict[str, Any]] = {}
        self._networks: dict[str, nn.Module] = {}  # of the first seed, for the final figures
        self._figures: dict[str, dict[str, Any]] = {}
        self._result: dict[str, Any] = {}
        with ExitStack() as refused:
            refused.push(self.factory)
            self._look(recipe, folder, resume=resume, overwrite=overwrite)
            refused.pop_all()

    def _look(self, recipe: Recipe, folder: Path, *, resume: bool, overwrite: bool) -> None:
        """Find what is wrong, and open the run folder."""
        self._shift = label_indices(recipe.evaluate.shift_bias, self.data.classes)
        for name, split in (("validation", self.data.validation), ("test", self.data.test)):
            if self._shift and not torch.isin(split.targets, torch.tensor(self._shift)).any():
                raise LimbeckError(f"the {name} split has no sample of shift_bias: {list(recipe.evaluate.shift_bias)}")
        known = resolved(self.recipe, folder) if resume else self.recipe
        found = preflight(known, self.data, self.factory, folder, self._method)
        self.recipe, self.engine, self.macs = found.recipe, found.engine, found.macs
        self._teaching, self._work = found.teaching, found.work
        for block in (recipe.train, recipe.teacher.train if recipe.teacher else None):
            if block is not None:  # what cannot be put into batches is refused now, not after the teacher's training
                training_batches(self.data, training_of(block, self.data), seed=0, engine=self.engine)
        if self._given is not None and (len(self.recipe.seeds) > 1 or len(self.arms) > 1):
            self._given.networks.keep()
        if overwrite:
            clear(folder)
        self.folder = RunFolder(folder, dump(self.recipe) + self._digests(), resume=resume)
        self._found = found.notes

    @property
    def arms(self) -> tuple[str, ...]:
        """The student's arms: alone where the recipe has a baseline, then the method."""
        return arms_of(self.recipe)

    def _digests(self) -> str:
        """What the recipe names and does not hold, as comments below it: a run of other data or code is another run."""
        parts = {"train": self.data.train, "validation": self.data.validation, "test": self.data.test}
        lines = [f"# {name}: {part.digest()}" for name, part in parts.items()] if self._method is None else []
        return "".join(f"{line}\n" for line in [*lines, *code_digests(self.recipe.model_dump())])

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the run, so far."""
        return (*self._lasting, *self.folder.notes)

    @property
    def _lasting(self) -> tuple[str, ...]:
        """Those that a resumed run has too."""
        return tuple(dict.fromkeys((*self.data.notes, *self.factory.notes, *self._found)))

    @property
    def work(self) -> Mapping[Job, float]:
        """All that is trained, in order, with about how many multiply-accumulates it takes."""
        jobs: list[Job] = []
        for seed in self.recipe.seeds:
            teacher, block = teacher_of(self.recipe, seed), self.recipe.teacher
            if block is not None and block.train is not None:
                jobs += (
                    [teacher] if block.members == 1 else [Job("member", teacher.seed, n) for n in range(block.members)]
                )
            jobs += [Job(arm, seed) for arm in self.arms]
        return {job: self._work[job.arm] for job in jobs}

    @property
    def results(self) -> Mapping[Job, Mapping[str, Any]]:
        """The figures of the networks that are finished."""
        return self._results

    @property
    def figures(self) -> Mapping[str, Mapping[str, Any]]:
        """By arm, the first seed's figures with the latency: there when the run is over."""
        return self._figures

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """By arm, the trained networks of the first seed."""
        return self._networks

    @property
    def result(self) -> Mapping[str, Any]:
        """What result.json holds: there when the run is over."""
        return self._result

    def run(self, track: Track = lambda job, epochs, batches: batches) -> Generator[Event, None, None]:
        """Train what is not there yet, yielding as it goes; at the end the run's `result.json` is written."""
        self.folder.open(environment() | self.engine.decided | {"cache": self.recipe.cache.model_dump(mode="json")})
        for seed in self.recipe.seeds:
            teacher = guide = None
            if self.recipe.teacher is not None:
                teacher = yield from self.teacher(self.recipe.teacher, seed, track)
                if not (self.recipe.teacher.untrained or self.recipe.teacher.table):
                    guide = logits_of(teacher, self.data.test, self.data, self.engine, name="teacher")
            store = yield from self._outputs(seed, teacher)
            for arm in self.arms:
                yield from self._student(Job(arm, seed), teacher, store, guide, track)
        self._conclude()

    def teacher(self, block: TeacherBlock, seed: int, track: Track) -> Generator[Event, None, nn.Module]:
        """The teacher of a seed: trained, or restored; its figures are there before any student's training."""
        teacher = teacher_of(self.recipe, seed)
        shared = teacher.seed
        members = self.factory.restored(block)
        for number, member in enumerate(members if len(members) > 1 else ()):
            job = Job("member", shared, number)
            if job not in self._results:
                self._results[job] = _labelled(job, measure(member, self.data, self.engine, name="teacher"))
                yield Finished(job, self._results[job], reused=True)
        if not members:
            jobs = [teacher] if block.members == 1 else [Job("member", shared, n) for n in range(block.members)]
            for job in jobs:
                members.append((yield from self._member(block, job, track)))
        network = ensemble(members, block)
        if block.untrained or block.table:
            return network
        if teacher not in self._results:
            self._results[teacher] = _labelled(teacher, measure(network, self.data, self.engine, name="teacher"))
            yield Finished(teacher, self._results[teacher], reused=bool(block.weights) and block.init == "as_is")
        self._networks.setdefault("teacher", network)
        return network

    def reading(self, seed: int, teacher: nn.Module) -> tuple[tuple[Stage, ...], Training]:
        """The method's stages for a seed, which say what is read of the teacher, and the training they are for."""
        student, _, others = self.factory.student(seed, self.recipe.method["name"])
        training = cached(training_of(self.recipe.train, self.data), self.recipe.cache)
        networks = {"student": student, **others, "teacher": teacher}
        return plan(self._method_of(self.recipe.method["name"]), networks, self.data, training), training

    def outputs(self, seed: int, teacher: nn.Module) -> Generator[Event, None, Outputs | None]:
        """What the method reads of a seed's teacher, where it is kept: the store is built unless it is there."""
        stages, training = self.reading(seed, teacher)
        path = self.folder.path
        store = yield from outputs(self.recipe, path, seed, stages, teacher, self.data, training, self.engine)
        return store

    def _outputs(self, seed: int, teacher: nn.Module | None) -> Generator[Event, None, Outputs | None]:
        """The same, before any student is trained: what hinders it is told then."""
        job, block = Job(self.recipe.method["name"], seed), self.recipe.teacher
        if teacher is None or block is None or not (self.recipe.cache.use or block.table):
            return None
        if self.folder.result(str(job)) is not None:
            return None
        store = yield from self.outputs(seed, teacher)
        return store

    def _member(self, block: TeacherBlock, job: Job, track: Track) -> Generator[Event, None, nn.Module]:
        self.engine.seed(job.generator_seed)
        network, spec = self.factory.teacher(block)
        if block.train is None:  # left untrained, for the method
            return network
        if job in self._results:
            load_weights(network, self.folder.weights(str(job), job.file))
        else:
            training = training_of(block.train, self.data)
            yield from self._fit(job, METHODS["alone"], {"student": network}, training, spec, None, None, track)
        return network

    def _student(
        self, job: Job, teacher: nn.Module | None, store: Outputs | None, guide: Tensor | None, track: Track
    ) -> Iterator[Event]:
        self.engine.seed(job.seed)
        network, spec, others = self.factory.student(job.seed, job.arm)
        networks = {"student": network, **others} | ({} if teacher is None else {"teacher": teacher})
        if self._teaching[job.arm] and teacher is not None:
            networks["teacher"], guide = copy_of(teacher, probe(self.data).inputs, name="teacher"), None
        training = cached(training_of(self.recipe.train, self.data), self.recipe.cache)
        yield from self._fit(
            job, self._method_of(job.arm), needed(job.arm, networks), training, spec, store, guide, track
        )
        self._networks.setdefault(job.arm, network)

    def _fit(
        self,
        job: Job,
        method: Method,
        networks: dict[str, nn.Module],
        training: Training,
        spec: NetworkSpec,
        store: Outputs | None,
        guide: Tensor | None,
        track: Track,
    ) -> Iterator[Event]:
        """Train the student of these networks, or take it from the run that is resumed."""
        name, network = str(job), networks["student"]
        done = self.folder.result(name)
        if done is not None:
            file = self.folder.weights(name, job.file)
            restore_structure(network, read_spec(file))
            load_weights(network, file)
            self._results[job] = done
            yield Finished(job, done, reused=True)
            return
        known = self._known_as(job, network, training)
        other = None if known is None else self.folder.found(name, known)
        if other is not None:
            load_weights(network, other / name / job.file)
            self.folder.take_log(name, other)
            yield Found(job, other)
            yield from self._measured(job, networks, spec, guide, known)
            return
        stages = plan(method, networks, self.data, training)
        if self.recipe.share_first_stage and job.arm == self.recipe.method["name"] and job.seed != self.recipe.seeds[0]:
            first = str(Job(job.arm, self.recipe.seeds[0]))
            load_weights(network, self.folder.weights(first, f"after_{stages[0].name}.safetensors"))
            stages = stages[1:]
        state = self.folder.state(name, lambda state: check_state(state, stages, networks, self.engine))
        batches = training_batches(self.data, training, seed=job.generator_seed, engine=self.engine)
        lengths = [stage.epochs for stage in stages]
        watched = track(job, sum(lengths), batches)
        yield Started(job, sum(lengths[: state["stage"]]) + state["epoch"] if state else 0, sum(lengths))
        for epoch in run(stages, networks, watched, self.engine, store=store, state=state):
            learning = "student" in stages[epoch.position].networks
            validation = self._validation(network) if learning else None
            self.folder.log(log_line(name, epoch, validation))
            if learning and epoch.number == epoch.epochs and epoch.position + 1 < len(stages):
                after = f"after_{epoch.stage}.safetensors"
                save_network(network, self.folder.path / name / after, spec=spec)
                self.folder.keep(name, after)
            if self._resumable:
                self.folder.save(name, epoch.state)
            yield Trained(job, epoch, validation)
        yield from self._measured(job, networks, spec, guide, known)

    def _measured(
        self, job: Job, networks: dict[str, nn.Module], spec: NetworkSpec, guide: Tensor | None, known: str | None
    ) -> Iterator[Event]:
        """Measure a network whose training is over, and write it with its figures."""
        name, network = str(job), networks["student"]
        taught: dict[str, Any] = {} if known is None else {"trained_as": known}
        if guide is None and self._teaching.get(job.arm) and "teacher" in networks:
            taught["teacher_after"] = measure(networks["teacher"], self.data, self.engine, name="teacher")
            guide = logits_of(networks["teacher"], self.data.test, self.data, self.engine, name="teacher")
        figures = measure(network, self.data, self.engine, teacher=guide, name=str(job))
        save_network(network, self.folder.path / name / job.file, spec=spec)
        labelled = _labelled(job, figures | taught | self._shifted(job, network))
        self._results[job] = self.folder.finish(name, labelled, job.file)
        yield Finished(job, self._results[job], reused=False)

    def _known_as(self, job: Job, network: nn.Module, training: Training) -> str | None:
        """All that decides the bits of a student alone, by which another run finds it; None for other networks."""
        if job.arm != "alone" or not self._resumable:
            return None
        few = self.data.train.select(torch.arange(min(2, len(self.data.train))))
        # what it gives, because a digest does not see a forward's code
        given = tensors_digest({"logits": logits_of(network, few, self.data, self.engine, name="student")})
        parts = {
            "seed": job.seed,
            "student": [network_digest(network), given, self.recipe.student.model_dump(mode="json")],
            "train": [self.recipe.train.model_dump(mode="json"), training.views, training.view_seed],
            "data": [self.data.train.without(training.exclude).digest(), self.data.mean, self.data.std],
            "engine": [str(self.engine.device), self.engine.precision, self.engine.compile, torch.get_num_threads()],
            "versions": {name: version(name) for name in ("limbeck", "torch")},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _conclude(self) -> None:
        """The run's own result.json and student, of the first seed, and every seed's figures beside them."""
        method, seed = self.recipe.method["name"], self.recipe.seeds[0]
        student, runs = str(Job(method, seed)), list(self._results.values())
        result = self.folder.concluded(runs, student)
        if result is None:
            times = time_together(self._networks, self.data, self.recipe.evaluate.latency_runs)
            first = {job.arm: found for job, found in reversed(list(self._results.items())) if job.arm in times}
            shown = {arm: found | times[arm] for arm, found in first.items()}
            result = self.folder.conclude(
                {
                    "schema": 1,
                    "name": self.recipe.name,
                    "method": method,
                    "seed": seed,
                    "seeds": list(self.recipe.seeds),
                    "splits": dict(self.data.origins),
                    "teacher": shown.get("teacher"),
                    "student": shown[method],
                    "alone": shown.get("alone"),
                    "summary": summarise(self._results.values()),
                    "notes": list(self._lasting),
                    "runs": runs,
                },
                student,
            )
        arms = {"teacher": result["teacher"], "alone": result["alone"], method: result["student"]}
        self._figures = {arm: figures for arm, figures in arms.items() if figures is not None}
        self._result = result

    def _method_of(self, arm: str) -> Method:
        return method_of(self.recipe, arm, self._method)

    def _validation(self, network: nn.Module) -> float | None:
        split = self.data.validation
        if len(split) == 0:
            return None
        with self.engine.autocast():
            logits = logits_of(network, split, self.data, self.engine)
        return (logits.argmax(dim=1) == split.targets).double().mean().item()

    def _shifted(self, job: Job, network: nn.Module) -> dict[str, Any]:
        """The omitted-class study, for students, where the recipe asks for it."""
        if not self._shift or job.teaches:
            return {}
        pairs = [
            (logits_of(network, split, self.data, self.engine), split.targets)
            for split in (self.data.validation, self.data.test)
        ]
        return {"bias_shift": bias_study(pairs[0], pairs[1], self._shift)}


def _labelled(job: Job, figures: dict[str, Any]) -> dict[str, Any]:
    member = {} if job.member is None else {"member": job.member}
    return {"arm": job.arm, "seed": job.seed, **member, **figures}
