"""Deep compression (Han, Mao, Dally 2016, arXiv 1510.00149): prune, share weights, code; retrain with the teacher."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from limbeck.core import LimbeckError, Method, Stage
from limbeck.data import Augment, Data, Progress
from limbeck.errors import nearest
from limbeck.evaluate import macs
from limbeck.experiment.arms import block_of, method_of, training_of
from limbeck.experiment.measuring import outputs_of
from limbeck.experiment.networks import spec_of
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import NO_AUGMENTATION, Training, example_batch, training_batches
from limbeck.exports.sharing import Layer, bake, kind_of, layers_of, prune, share, shared_of, shorten, sparse_bytes
from limbeck.exports.source import Finished, Source
from limbeck.files.atomic import replacing
from limbeck.methods import METHODS, PRESETS, TEACHERLESS
from limbeck.models import GIVEN, NetworkSpec
from limbeck.models.compressed import MOST_BITS, check_installed, shortest
from limbeck.models.files import read_state, save_network
from limbeck.models.inputs import AS_THE_DATA, Bridge, Input
from limbeck.models.outputs import install
from limbeck.optimizers import OPTIMIZERS
from limbeck.options import Block, call, fill
from limbeck.schedules import SCHEDULES
from limbeck.tasks import Shown, task_of
from limbeck.train.copies import deep_copy
from limbeck.train.engine import make_engine
from limbeck.train.loop import run
from limbeck.train.threads import SMALL, threads_for

BITS: Mapping[str, int] = {"conv": 8, "linear": 5}
"""The bits of the paper."""

Say = Callable[[str], object]


@dataclass(frozen=True)
class Options:
    """How much is kept. A key is ``conv``, ``linear`` or the name of a layer, which comes first."""

    quality: float = 1.0  #: as for `limbeck.exports.sharing.prune`
    keep: Mapping[str, float] = field(default_factory=dict)  #: the share of the weights instead, in (0, 1]
    bits: Mapping[str, int] = field(default_factory=dict)  #: 1 to 8; the default is `BITS`
    epochs: int = 10  #: of the retraining after pruning
    centroid_epochs: int = 5  #: of the fine-tuning of the centroids

    def check(self, layers: Mapping[str, Layer]) -> None:
        """Raise LimbeckError for a value that is not allowed, or a layer that does not exist."""
        if not 0 <= self.quality < float("inf"):
            raise LimbeckError(f"quality is {self.quality}: allowed are numbers from 0")
        for name, epochs in (("epochs", self.epochs), ("centroid_epochs", self.centroid_epochs)):
            if not isinstance(epochs, int) or epochs < 0:
                raise LimbeckError(f"{name} is {epochs!r}: allowed are whole numbers from 0")
        for name in (*self.keep, *self.bits):
            if name not in (*BITS, *layers):
                raise LimbeckError(f"there is no layer {name!r}: {nearest(name, (*BITS, *layers))}")
        for name, kept in self.keep.items():
            if not 0 < kept <= 1:
                raise LimbeckError(f"keep of {name} is {kept}: allowed are shares above 0, at most 1")
        for name, bits in self.bits.items():
            if not isinstance(bits, int) or not 1 <= bits <= MOST_BITS:
                raise LimbeckError(f"bits of {name} is {bits!r}: allowed are 1 to {MOST_BITS}")

    def kept(self, name: str, layer: Layer) -> float | None:
        """The share of the weights of a layer to keep; None: those above the threshold."""
        return self.keep.get(name, self.keep.get(kind_of(layer)))

    def bits_of(self, name: str, layer: Layer) -> int:
        """The bits of a layer."""
        bits = {**BITS, **self.bits}
        return bits.get(name, bits[kind_of(layer)])


@dataclass(frozen=True)
class Step:
    """The network after a step."""

    name: str
    bytes: int  #: of its parameters and buffers as this step could store them; of the last step, of the file
    score: float  #: on the test split, see `Compressed.figure`


@dataclass(frozen=True)
class Compressed:
    """A finished compression."""

    file: Path  #: the weights, which `limbeck.load_network` reads
    figure: Shown  #: what the scores are, such as the accuracy
    steps: tuple[Step, ...]  #: the original, pruned, quantised and coded network
    kept: Mapping[str, float]  #: by layer, the share of the weights that are not 0


def compress(
    student: nn.Module,
    data: Data,
    file: Path | str,
    *,
    teacher: nn.Module | None = None,
    method: str | Block = "kd",
    quality: float = 1.0,
    keep: Mapping[str, float] | None = None,
    bits: Mapping[str, int] | None = None,
    epochs: int = 10,
    centroid_epochs: int = 5,
    batch_size: int = 128,
    optimizer: str | Block = "adam",
    schedule: str | Block = "cosine",
    augment: Augment | None = None,
    seed: int = 0,
    device: str = "auto",
    student_input: Input | None = None,
    student_output: str | None = None,
) -> Compressed:
    """Compress the weights of a student into a small file, and check that the file gives the same weights.

    Small weights are pruned, and the others are retrained. The weights of each layer are then shared: k-means gives
    2**bits centroids, which are fine-tuned. Centroids, and biases up to 1, are rounded to float16; tiny and very large
    centroids are not. A range coder writes the file. ``limbeck.load_network(file, network=network)`` loads it.

    Args:
        student: the trained network; it is not changed.
        data: as the student was trained on.
        file: of safetensors.
        teacher: teaches the student in both trainings; it reads what the data gives. None: the labels only.
        method: of both trainings with a teacher; if it has several stages, the last one is used.
        quality: weights up to this number times the standard deviation of their layer are pruned.
        keep: the shares of the largest weights to keep instead, such as ``{"conv": 0.5, "head": 0.3}``. A key is
            ``conv``, ``linear`` or the name of a layer, which comes first.
        bits: of the number of a centroid, with such keys; by default 8 for convolutions and 5 for linear layers.
        epochs: of the training after pruning.
        centroid_epochs: of the training of the centroids.
        batch_size: samples per step.
        optimizer: as for `limbeck.distill`.
        schedule: as for `limbeck.distill`.
        augment: as for `limbeck.distill`.
        seed: of the data's order, the augmentation and dropout.
        device: as for `limbeck.distill`.
        student_input: as for `limbeck.distill`.
        student_output: as for `limbeck.distill`.

    Raises:
        LimbeckError: an argument is wrong; a package is missing; the student has no layers to compress; the method
            changes more than the student; or the file cannot be written.
    """
    block = "alone" if teacher is None else method
    named = fill(METHODS, block, kind="method", presets=PRESETS)
    training = Training(
        epochs=max(epochs, 1),
        batch_size=batch_size,
        optimizer=call(OPTIMIZERS, fill(OPTIMIZERS, optimizer, kind="optimizer")),
        schedule=call(SCHEDULES, fill(SCHEDULES, schedule, kind="schedule")),
        augment=augment or NO_AUGMENTATION,
    )
    reads = student_input or AS_THE_DATA
    spec = spec_of({"name": GIVEN}, data, Bridge(reads, data.shape, data.mean, data.std), data.outputs)
    work = Work(Source(student, data, reads, student_output), spec, training, partial(call, METHODS, named), teacher)
    options = Options(quality, keep or {}, bits or {}, epochs, centroid_epochs)
    return work.run(Path(file), options, seed=seed, device=device)


@dataclass(frozen=True)
class Work:
    """What is compressed, and how it is retrained."""

    source: Source
    spec: NetworkSpec
    training: Training
    method: Method
    teacher: nn.Module | None

    def run(
        self, file: Path, options: Options, *, seed: int = 0, device: str = "auto", say: Say = lambda _: None
    ) -> Compressed:
        """As `compress`; ``say`` is called with a phrase before each step and after each epoch."""
        check_installed("limbeck compress")
        if file.is_dir():
            raise LimbeckError(f"{file} is a folder: name a file, such as {file / 'compressed.safetensors'}")
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            one = _Compression(self, options, seed, device, say)
            with threads_for(macs(one.student, one.data.shape) or SMALL):
                return one.run(file)


def of_run(
    folder: Path,
    network: str | None,
    *,
    data_root: Path | None,
    trust_code: bool,
    alone: bool,
    lr: float | None = None,
    progress: Progress | None = None,
) -> Work:
    """The student of a run folder, its training and, unless ``alone``, its method and teacher.

    ``lr`` takes the place of the recipe's learning rate.

    Raises:
        LimbeckError: as for `limbeck.exports.source.Finished`; or the learning rate is not above 0.
    """
    finished = Finished(folder, network, data_root=data_root, trust_code=trust_code, progress=progress)
    recipe, source = finished.recipe, finished.source
    arm = "alone" if alone else source.name.partition("/")[0]
    teacher = None if block_of(recipe, arm)["name"] in TEACHERLESS else finished.teacher()
    rate = {} if lr is None else {"lr": lr}
    optimizer = fill(OPTIMIZERS, {**recipe.train.optimizer, **rate}, kind="optimizer")
    training = training_of(recipe.train.model_copy(update={"optimizer": optimizer}), source.data)
    return Work(source, finished.spec, training, method_of(recipe, arm, {}), teacher)


class _Compression:
    """One student, from its weights to the file."""

    def __init__(self, work: Work, options: Options, seed: int, device: str, say: Say) -> None:
        source, data = work.source, work.source.data
        self._work, self._options, self._seed, self._say, self.data = work, options, seed, say, data
        regime = replace(
            work.training.regime, keep="last", stop_after=None, warmup=0, freeze=(), freeze_epochs=0, quantise=None
        )
        self._training = replace(work.training, regime=regime)
        self._engine = make_engine(device=device, precision="32")
        self.student = deep_copy(source.student, {"student": source.student}).eval()
        self._layers = layers_of(self.student)
        options.check(self._layers)
        self._bits = [options.bits_of(name, layer) for name, layer in self._layers.items()]
        bridge = Bridge(source.reads, data.shape, data.mean, data.std)
        if bridge.changes:
            bridge.install(self.student)
        install("student", self.student, example_batch(data), len(data.outputs), output=source.output, task=data.task)
        self._size = sum(tensor.nbytes for tensor in self.student.state_dict().values())
        self._size_of_others = self._size - sum(4 * layer.weight.numel() for layer in self._layers.values())
        self._stage(1)  # finds what is wrong before the training

    def run(self, file: Path) -> Compressed:
        """All steps."""
        with replacing(file) as temporary:
            steps, kept = self._written(temporary)
        return Compressed(file, task_of(self.data).headline, steps, kept)

    def _written(self, file: Path) -> tuple[tuple[Step, ...], Mapping[str, float]]:
        """The steps, and the shares of the weights that are kept."""
        options, layers = self._options, self._layers
        steps = [self._step("original", self._size)]
        for name, layer in layers.items():
            prune(layer, quality=options.quality, keep=options.kept(name, layer))
        self._train("pruned", options.epochs)
        kept = {name: float((layer.weight != 0).double().mean()) for name, layer in layers.items()}
        steps.append(self._step("pruned", self._size_of_others + sparse_bytes(layers.values(), [32] * len(layers))))
        for layer, bits in zip(layers.values(), self._bits, strict=True):
            share(layer, bits)
        self._train("quantised", options.centroid_epochs)
        shared = {}
        for name, layer in layers.items():
            shorten(layer)
            shared[f"{name}.weight"] = shared_of(layer)
            bake(layer)
        others = [shortest(tensor) for name, tensor in self.student.state_dict().items() if name not in shared]
        others += [shortest(weight.centroids) for weight in shared.values()]
        size = sum(tensor.nbytes for tensor in others)
        steps.append(self._step("quantised", size + sparse_bytes(layers.values(), self._bits)))
        save_network(self.student, file, spec=self._work.spec, compressed=shared)
        self._prove(file)
        return (*steps, self._step("coded", file.stat().st_size)), kept

    def _step(self, name: str, size: int) -> Step:
        test = self.data.test
        outputs = outputs_of(self.student, test, self.data, self._engine, name="student")
        return Step(name, size, task_of(self.data).score(outputs, test.targets))

    def _stage(self, epochs: int) -> tuple[Stage, dict[str, nn.Module]]:
        networks = {"student": self.student}
        if self._work.teacher is not None:
            networks["teacher"] = self._work.teacher
        stage = plan(self._work.method, networks, self.data, self._training)[-1]
        if stage.networks != ("student",) or stage.finish is not None:
            raise LimbeckError(
                f"the last stage of the method, {stage.name}, does more than to train the student: choose a method "
                "such as kd, or compress without the teacher (--alone)"
            )
        return replace(stage, epochs=epochs), networks

    def _train(self, name: str, epochs: int) -> None:
        if not epochs:
            return
        training, engine = self._training, self._engine
        engine.seed(self._seed)
        stage, networks = self._stage(epochs)
        batches = training_batches(self.data, training, seed=self._seed, engine=engine)
        for epoch in run((stage,), networks, batches, engine, regime=training.regime):
            self._say(f"{name}: epoch {epoch.number} of {epoch.epochs}, loss {epoch.loss:.4f}")
        self.student.eval()

    def _prove(self, file: Path) -> None:
        """Raise LimbeckError if the file gives other numbers than the student has."""
        expected = self.student.state_dict()
        loaded = read_state(file, expected).state
        wrong = [name for name, tensor in expected.items() if not torch.equal(loaded[name].to(tensor), tensor)]
        if wrong:
            raise LimbeckError(f"the file gives other values of {', '.join(wrong)} than the student has")
