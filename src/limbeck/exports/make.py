"""Write a student for a device, and prove that the file answers as the student does."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from limbeck.core import LimbeckError
from limbeck.data import Data
from limbeck.evaluate.calibration import fit_temperature
from limbeck.evaluate.cost import file_bytes, times
from limbeck.experiment.checks import unwrapped
from limbeck.experiment.environment import processor
from limbeck.experiment.workspace import example_batch
from limbeck.exports.base import Load, Runner, version_of
from limbeck.exports.card import CARD, SCHEMA, About, Card, Reads, Results
from limbeck.exports.deferring import Deferral
from limbeck.exports.deployed import Deployed
from limbeck.exports.differing import first_differing
from limbeck.exports.errors import in_one_line
from limbeck.exports.graph import Graph, Layout, Precision
from limbeck.exports.memory import STUDENT, is_told, peak_memory
from limbeck.exports.options import Options, check_folder
from limbeck.exports.parity import BATCHES, LIMITS, SAMPLES, Parity, compare, limit_of, run
from limbeck.exports.samples import RawSamples
from limbeck.exports.source import Source
from limbeck.files.atomic import unwritten, write_sealed
from limbeck.models.inputs import AS_THE_DATA, Input
from limbeck.models.outputs import install
from limbeck.tasks import task_of
from limbeck.train.copies import deep_copy

CALIBRATION = 512
"""The most training samples with which the ranges of int8 activations are found."""

TEST_BATCH = 64

Say = Callable[[str], object]


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    folder: Path
    file: Path
    card: Card


def export(
    student: nn.Module,
    data: Data,
    folder: Path | str,
    *,
    to: str = "onnx",
    precision: Precision = "fp32",
    batch: int | None = None,
    layout: Layout = "nhwc",
    probabilities: bool = False,
    deferral: Deferral | None = None,
    student_input: Input | None = None,
    student_output: str | None = None,
    runtime: Path | None = None,
    size: tuple[int, int] | None = None,
) -> Exported:
    """Export a student, run the file, and compare it with the student on up to 256 validation samples.

    The file reads raw samples, images as bytes, and does the preprocessing itself. If it does not agree with the
    student, it is deleted.

    Args:
        student: the trained network; it is not changed.
        data: as the student was trained on.
        folder: for the file and ``card.json``. An earlier export in it is replaced.
        to: a name in `limbeck.exports.EXPORTERS`.
        precision: ``fp32``, ``fp16`` or ``int8``. int8 is calibrated on samples of the training split.
        batch: 1, or None for any number of samples if the backend can.
        layout: of images, ``nhwc`` or ``nchw``.
        probabilities: the file also returns probabilities, with a temperature that is fitted on the validation split.
        deferral: the teacher behind the file, and what both must reach together.
        student_input: what the student reads, as for `limbeck.distill`.
        student_output: as for `limbeck.distill`.
        runtime: for ``web``, the folder of the unpacked npm package onnxruntime-web; by default npm fetches it.
        size: height and width of the images that the file reads, such as those of a camera; by default those of the
            data. The file resizes their middle to what the student reads. All figures are then those of the data in
            images of this size, see `limbeck.exports.samples.framed`.

    Raises:
        LimbeckError: an argument is wrong; a package is missing; the backend cannot take the network; or the file does
            not agree with the student, see `limbeck.exports.parity.LIMITS`.
    """
    options = Options(to, precision, batch, layout, probabilities, runtime, size)
    options.check(Path(folder))
    return make(Source(student, data, student_input or AS_THE_DATA, student_output), Path(folder), options, deferral)


def make(
    source: Source, folder: Path, options: Options, deferral: Deferral | None = None, say: Say = lambda _: None
) -> Exported:
    """As `export`; ``say`` is called with a phrase before each step."""
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad():
        one = _Export(source, options, deferral, say)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".export-", dir=folder.parent) as temporary:
                file = Path(temporary) / "export" / f"student{options.backend.suffix}"
                file.parent.mkdir()
                card = one.measured(file, one.write(file))
                write_sealed(file.parent / CARD, asdict(card))
                _replace(folder, file.parent, Path(temporary) / "earlier")
        except OSError as error:
            raise unwritten(folder, error) from error
    return Exported(folder, folder / file.name, card)


def _replace(folder: Path, new: Path, earlier: Path) -> None:
    """Move a new export to its folder, and what is there to ``earlier``; or leave the folder as it was."""
    check_folder(folder)  # again, because it may have changed during the export
    if folder.exists():
        folder.rename(earlier)
    try:
        new.rename(folder)
    except BaseException:
        if earlier.exists():
            earlier.rename(folder)
        raise


class _Export:
    """One file, from the student to the results."""

    def __init__(self, source: Source, options: Options, deferral: Deferral | None, say: Say) -> None:
        data, raw = source.data, RawSamples(source.data, options.layout, options.size)
        self._data, self._raw, self._backend, self._say, self._deferral = data, raw, options.backend, say, deferral
        self._task = task_of(data)
        self._task.check_data(data)
        deployed = partial(
            Deployed,
            _with_logits(source),
            source.expected,
            raw.shape,
            pixels=raw.are_pixels,
            layout=options.layout,
            part=raw.part,
        )
        self._student = deployed()
        self._check_outputs()
        temperature = _temperature(self._student, raw) if options.probabilities else None
        outputs = ("logits", *["probabilities"] * options.probabilities)
        chosen, packages = None, options.backend.packages(options.precision)
        if deferral is not None:
            chosen = deferral.chosen(raw.outputs(self._student, data.validation, TEST_BATCH), raw)
        self._about = About(
            schema=SCHEMA,
            backend=options.to,
            precision=options.precision,
            network=source.name,
            weights_sha256=source.weights_sha256,
            task=data.task,
            reads=_reads(raw, any_batch=options.any_batch),
            outputs=outputs,
            classes=data.outputs,
            temperature=temperature,
            deferring=chosen,
            versions={name: version_of(name) for name in ("limbeck", "torch", *packages)} | options.backend.elsewhere(),
        )
        calibrated = options.precision == "int8" and options.backend.calibrates
        self._graph = Graph(
            module=deployed(half=options.precision == "fp16", temperature=temperature),
            example=raw.some(data.train, 1).repeat(2, *[1] * len(data.shape)),
            outputs=outputs,
            any_batch=options.any_batch,
            precision=options.precision,
            calibration=raw.some(data.train, CALIBRATION if calibrated else 0),
            card=json.dumps(asdict(self._about)),
            runtime=options.runtime,
        )

    def write(self, file: Path) -> dict[str, int] | None:
        """Write the file, and return its fallbacks.

        Raises:
            LimbeckError: the backend cannot take the student.
        """
        self._say(f"writing {self._about.precision} for {self._about.backend}")
        if self._backend.add is not None:
            self._backend.add(self._graph, file.parent)
        with in_one_line(f"the student cannot be exported to {self._about.backend}", file):
            return self._backend.export(self._graph, file)

    def measured(self, file: Path, fallbacks: dict[str, int] | None) -> Card:
        """Compare the file with the student, and measure both.

        Raises:
            LimbeckError: they do not agree.
        """
        sizes = (
            sum(one.stat().st_size for one in file.parent.rglob("*") if one.is_file()),
            file_bytes(self._student.network),
        )
        results = partial(Results, *sizes, fallbacks=fallbacks, calibration=len(self._graph.calibration))
        task, test = self._task, self._data.test
        label = task.headline.label
        if self._backend.load is None:
            return Card(**vars(self._about), results=results(None, label, None, None))
        load, example = self._backend.load, self._graph.example[:1]
        with in_one_line("the exported file does not run"):
            runner = load(file)
            parity = self._parity(runner, load)
            if self._about.temperature is not None:
                self._check_probabilities(runner, load(file, 1), self._about.temperature)
            self._say(f"measuring both on the {len(test):,} samples of the test split")
            of_file = self._raw.outputs(runner, test, TEST_BATCH if self._graph.any_batch else 1)
        of_student = self._raw.outputs(self._student, test, TEST_BATCH)
        student, exported = (task.score(outputs, test.targets) for outputs in (of_student, of_file))
        deferring = self._about.deferring
        if self._deferral is not None and deferring is not None:
            deferring = self._deferral.on_test(deferring, of_file, self._raw)
        self._say("measuring latency and memory")
        latency = times({"student": partial(self._student, example), "file": partial(runner, example)})
        memory, problem = self._memory(file)
        measured = results(parity, label, student, exported, latency, memory, processor(), memory_problem=problem)
        return Card(**vars(self._about) | {"deferring": deferring}, results=measured)

    @property
    def _compared(self) -> tuple[str, Tensor]:
        """The name of a split, and the samples of it on which the file is compared with the student."""
        which = "validation" if len(self._data.validation) else "train"
        return which, self._raw.some(getattr(self._data, which), SAMPLES)

    def _check_outputs(self) -> None:
        with in_one_line("the student fails on a batch of the data"):
            outputs = run(self._student, self._compared[1], TEST_BATCH)
        self._task.check_output("student", tuple(outputs.shape[1:]), self._data)
        if not torch.isfinite(outputs).all():
            raise LimbeckError("the student's outputs are not finite, so a file cannot be compared with them")

    def _memory(self, file: Path) -> tuple[dict[str, int | None], str]:
        """The peak memory of the student in PyTorch and of the file, and why one is missing.

        What fails here does not end a good export.
        """
        if not is_told(self._backend):
            return {}, ""
        memory: dict[str, int | None] = {"student": None, "file": None}
        try:
            with in_one_line("it cannot be measured"), TemporaryDirectory() as folder:
                memory["file"] = peak_memory(self._about.backend, file, self._about.reads)
                saved = Path(folder) / "student.pt2"
                torch.export.save(replace(self._graph, module=self._student, outputs=("logits",)).program(), saved)
                memory["student"] = peak_memory(STUDENT, saved, self._about.reads)
        except (LimbeckError, OSError) as error:
            return memory, str(error)
        return memory, ""

    def _parity(self, runner: Runner, load: Load) -> Parity:
        which, samples = self._compared
        limit = limit_of(self._student, self._graph.precision)
        batches = [one for one in BATCHES if one <= len(samples)] if self._graph.any_batch else [1]
        self._say(f"comparing the file with the student on {len(samples)} samples of the {which} split")
        parity = compare(runner, self._student, samples, batches, task=self._data.task, split=which)
        problem = parity.problem(limit)
        if problem:
            layer = first_differing(self._backend, load, self._graph, self._student, samples[:8], limit)
            where = "" if layer is None else f"; the first layer that differs is {layer}"
            raise LimbeckError(f"the exported file does not answer as the student does: {problem}{where}")
        return parity

    def _check_probabilities(self, runner: Runner, second: Runner, temperature: float) -> None:
        """Compare the second output of the file with the softmax of the first."""
        samples, size = self._compared[1], max(BATCHES) if self._graph.any_batch else 1
        expected = (run(runner, samples, size) / temperature).softmax(dim=1)
        apart = (run(second, samples, size) - expected).abs().max().item()
        allowed = LIMITS[self._graph.precision].probabilities
        if not apart <= allowed:
            raise LimbeckError(
                f"the probabilities of the file differ by {apart:.2g} from the softmax of its logits, allowed is "
                f"{allowed:g}"
            )


def _with_logits(source: Source) -> nn.Module:
    """A copy of the student in eval mode that returns a tensor of logits."""
    network, data = unwrapped("student", source.student)[0], source.data
    copy = deep_copy(network, {"student": network}).cpu().eval()
    install("student", copy, example_batch(data), len(data.outputs), output=source.output, task=data.task)
    return copy


def _temperature(student: Deployed, raw: RawSamples) -> float:
    """The temperature with the lowest cross-entropy on validation; 1 if all predictions are correct."""
    split = raw.data.validation
    if raw.data.task != "classification" or not len(split):
        raise LimbeckError(
            "probabilities need a classification task and a validation split, on which their temperature is fitted"
        )
    return fit_temperature(raw.outputs(student, split, TEST_BATCH), split.targets) or 1.0


def _reads(raw: RawSamples, *, any_batch: bool) -> Reads:
    shape = raw.some(raw.data.train, 1).shape[1:]
    return Reads(
        name="images" if raw.are_images else "inputs",
        shape=(None if any_batch else 1, *shape),
        type="uint8" if raw.are_pixels else "float32",
        layout=raw.layout if raw.are_images else None,
        channels={1: "gray", 3: "rgb"}.get(raw.data.shape[0]) if raw.are_images else None,
    )
