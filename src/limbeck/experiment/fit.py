"""One network of a run: trained, or taken from a run that has it already; measured, and written with its figures."""

import hashlib
import json
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version

import torch
from torch import Tensor

from limbeck.cache.fingerprint import structure_digest, weights_digest
from limbeck.core import Method, Networks, Outputs, Stage
from limbeck.evaluate import bias_study
from limbeck.experiment.events import Event, Finished, Found, Job, Started, Track, Trained
from limbeck.experiment.feature_reader import scatter_of
from limbeck.experiment.folder import log_line
from limbeck.experiment.in_memory import Folder
from limbeck.experiment.measuring import measure, outputs_of, score
from limbeck.experiment.plan import plan
from limbeck.experiment.results import NetworkResult
from limbeck.experiment.resuming import check_state
from limbeck.experiment.workspace import Workspace
from limbeck.models import NetworkSpec, load_network, load_weights
from limbeck.tasks import TASKS
from limbeck.train.best import Best
from limbeck.train.loop import Pause, run, turns
from limbeck.train.quantise import without_rounding
from limbeck.train.together import SharedBatches, SharedReaders


@dataclass(frozen=True)
class Shared:
    """What the students of one seed share that are trained together."""

    batches: SharedBatches
    readers: SharedReaders


@dataclass(frozen=True)
class Fit:
    """All that the training of one network needs."""

    job: Job
    method: Method
    networks: Networks  # those that take part; "student" is the one that is trained
    spec: NetworkSpec  # what builds the student again
    workspace: Workspace
    store: Outputs | None = None  # the teacher's outputs, where they are kept
    teacher_outputs: Tensor | None = None  # on the test split; None without a teacher, or where the method trains it
    trains_teacher: bool = False
    identity: str | None = None  # of a student alone: the recipe's part of what decides its weights
    first_stage_of: Job | None = None  # the student whose first stage this one shares
    shift: tuple[int, ...] = ()  # the classes of the omitted-class study
    shared: Shared | None = None  # None: it is trained by itself, without pauses
    keeps_outputs: bool = False  # on the validation and test split, as a file


def fit(one: Fit, folder: Folder, track: Track) -> Generator[Event | Pause, None, tuple[NetworkResult, Tensor | None]]:
    """Train the network, or take it from the folder or from another run beside it; the last event is `Finished`.

    Yield pauses if the training is ``shared``. Return its result, and its outputs on the test split: None if its
    figures were there already.
    """
    name, network = str(one.job), one.networks["student"]
    done = folder.result(name)
    if done is not None:
        load_network(folder.weights(name, one.job.file), network=network)
        yield Finished(one.job, done, reused=True, task=one.workspace.data.task)
        return done, None
    known = None if one.identity is None else _trained_as(one, one.identity)
    other = None if known is None else folder.take(name, known)
    if other is not None:
        place, epoch = other[0], other[1].best_epoch
        load_weights(network, place / name / one.job.file)
        yield Found(one.job, place)
    else:
        epoch = yield from _train(one, folder, track)
    result, outputs = _measured(one, folder, known, epoch)
    yield Finished(one.job, result, reused=False, task=one.workspace.data.task)
    return result, outputs


def _train(one: Fit, folder: Folder, track: Track) -> Generator[Event | Pause, None, int | None]:
    """Train the network. Return the number of the best epoch if its weights are kept, else None."""
    name, network, workspace = str(one.job), one.networks["student"], one.workspace
    stages = plan(one.method, one.networks, workspace.data, workspace.training)
    if one.first_stage_of is not None:
        load_weights(network, folder.weights(str(one.first_stage_of), _after(stages[0])))
        stages = stages[1:]
    regime, task = workspace.training.regime, workspace.data.task
    best = Best(keep=regime.keep == "best", stop_after=regime.stop_after) if regime.selects else None
    state = folder.state(name, lambda state: check_state(state, stages, one.networks, workspace.engine, regime))
    lengths = [stage.epochs for stage in stages]
    shared = one.shared
    batches = workspace.batches(one.job.generator_seed) if shared is None else shared.batches
    watched = track(one.job, sum(lengths), batches)
    train = run if shared is None else partial(turns, reader=shared.readers)
    yield Started(one.job, sum(lengths[: state["stage"]]) + state["epoch"] if state else 0, sum(lengths))
    try:
        for epoch in train(
            stages, one.networks, watched, workspace.engine, store=one.store, state=state, regime=regime, best=best
        ):
            if isinstance(epoch, Pause):
                yield epoch
                continue
            stage = stages[epoch.position]
            validation = score(network, workspace) if "student" in stage.networks else None
            if best is not None and validation is not None and epoch.position + 1 == len(stages):
                best.add(epoch.number, TASKS[task].headline.score(validation), epoch.learned)
            folder.log(log_line(name, epoch, validation, TASKS[task].headline.key))
            if "student" in stage.networks and epoch.number == epoch.epochs and epoch.position + 1 < len(stages):
                folder.write(name, _after(stage), network, one.spec)
            folder.save(name, epoch.state)
            yield Trained(one.job, epoch, validation, task)
    finally:
        if regime.quantise is not None:  # of a training that was interrupted
            without_rounding(network)
    return best.epoch if best is not None and regime.keep == "best" else None


def _after(stage: Stage) -> str:
    """The file of the student after a stage."""
    return f"after_{stage.name}.safetensors"


def _measured(one: Fit, folder: Folder, known: str | None, best_epoch: int | None) -> tuple[NetworkResult, Tensor]:
    """Measure a network whose training is over, and write it with its figures."""
    network, data = one.networks["student"], one.workspace.data
    guide, taught, study = one.teacher_outputs, None, None
    if one.trains_teacher:
        teacher = Job("teacher", one.job.seed)
        taught, guide = measure(teacher, one.networks["teacher"], one.workspace, name="teacher")
        if data.task == "classification":
            scatter = scatter_of("teacher", one.networks["teacher"], data, one.workspace.engine)
            taught = replace(taught, class_scatter=scatter)
    result, outputs = measure(one.job, network, one.workspace, teacher=guide)
    if one.shift:
        validation = outputs_of(network, data.validation, data, one.workspace.engine)
        study = bias_study((validation, data.validation.targets), (outputs, data.test.targets), one.shift)
    result = replace(result, best_epoch=best_epoch, trained_as=known, teacher_after=taught, bias_shift=study)
    if one.keeps_outputs:
        kept = {"test": outputs}
        if len(data.validation):
            kept["validation"] = outputs_of(network, data.validation, data, one.workspace.engine)
        folder.write_outputs(str(one.job), kept)
    folder.write(str(one.job), one.job.file, network, one.spec)
    return folder.finish(str(one.job), result, one.job.file), outputs


def _trained_as(one: Fit, identity: str) -> str:
    """SHA-256 of all that decides the bits of a student alone, by which another run finds it."""
    data, training, engine = one.workspace.data, one.workspace.training, one.workspace.engine
    student = one.networks["student"]
    few = data.train.select(torch.arange(min(2, len(data.train))))
    # what it gives, because a digest does not see a forward's code
    given = outputs_of(student, few, data, engine, name="student").tolist()
    parts = {
        "seed": one.job.seed,
        "recipe": identity,
        "student": [weights_digest(student), structure_digest(student), given],
        "views": [training.views, training.view_seed],
        "data": [one.workspace.samples.digest(), data.mean, data.std],
        "validation": data.validation.digest() if training.regime.selects else None,
        "engine": [str(engine.device), engine.precision, engine.compile, torch.get_num_threads()],
        **({"processes": engine.processes.count} if engine.processes.count > 1 else {}),
        "versions": {name: version(name) for name in ("limbeck", "torch")},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
