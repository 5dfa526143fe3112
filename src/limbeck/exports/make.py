"""Write a student for a device, and prove that the file answers as the student does."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from limbeck.core import LimbeckError
from limbeck.data import Data
from limbeck.evaluate.calibration import fit_temperature
from limbeck.evaluate.cost import file_bytes, times
from limbeck.experiment.workspace import example_batch
from limbeck.exports.base import Load, Runner
from limbeck.exports.card import CARD, SCHEMA, About, Card, Reads, Results
from limbeck.exports.deferring import Deferral
from limbeck.exports.differing import first_differing
from limbeck.exports.graph import Deployed, Graph, Layout, Precision
from limbeck.exports.options import Options
from limbeck.exports.parity import BATCHES, LIMITS, SAMPLES, Parity, compare
from limbeck.exports.samples import RawSamples
from limbeck.exports.source import Source
from limbeck.files.atomic import FULL, explained, write_sealed
from limbeck.models.inputs import AS_THE_DATA, Input
from limbeck.models.outputs import install
from limbeck.tasks import task_of

CALIBRATION = 512
"""The training samples with which the ranges of int8 activations are found."""

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
        deferral: the teacher behind the file, and what both shall reach together.
        student_input: what the student reads, as for `limbeck.distill`.
        student_output: as for `limbeck.distill`.
        runtime: for ``web``, the folder of the unpacked npm package onnxruntime-web; by default npm fetches it.

    Raises:
        LimbeckError: an argument is wrong; a package is missing; the backend cannot take the network; or the file does
            not agree with the student, see `limbeck.exports.parity.LIMITS`.
    """
    options = Options(to, precision, batch, layout, probabilities, runtime)
    options.check(Path(folder))
    return make(Source(student, data, student_input or AS_THE_DATA, student_output), Path(folder), options, deferral)


def make(
    source: Source, folder: Path, options: Options, deferral: Deferral | None = None, say: Say = lambda _: None
) -> Exported:
    """As `export`; ``say`` is called with a phrase before each step."""
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad():
        one = _Export(source, options, deferral, say)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=folder.parent) as temporary, explained(folder):
            file = Path(temporary) / "export" / f"student{options.backend.suffix}"
            file.parent.mkdir()
            card = one.measured(file, one.write(file))
            write_sealed(file.parent / CARD, asdict(card))
            if folder.exists():  # an earlier export, which is deleted with the temporary folder
                folder.rename(Path(temporary) / "earlier")
            file.parent.rename(folder)
    return Exported(folder, folder / file.name, card)


class _Export:
    """One file, from the student to the results."""

    def __init__(self, source: Source, options: Options, deferral: Deferral | None, say: Say) -> None:
        data, raw = source.data, RawSamples(source.data, options.layout)
        self._data, self._raw, self._backend, self._say, self._deferral = data, raw, options.backend, say, deferral
        deployed = partial(
            Deployed,
            _with_logits(source),
            source.expected,
            data.shape,
            pixels=raw.are_pixels,
            layout=options.layout,
        )
        self._student = deployed()
        _check_outputs(self._student, raw)
        temperature = _temperature(self._student, raw) if options.probabilities else None
        outputs = ("logits", *["probabilities"] * options.probabilities)
        chosen = None
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
            versions={name: version(name) for name in ("limbeck", "torch", *options.backend.modules)}
            | options.backend.elsewhere(),
        )
        self._graph = Graph(
            module=deployed(half=options.precision == "fp16", temperature=temperature),
            example=raw.some(data.train, 1).repeat(2, *[1] * len(data.shape)),
            outputs=outputs,
            any_batch=options.any_batch,
            precision=options.precision,
            calibration=raw.some(data.train, CALIBRATION if options.precision == "int8" else 0),
            card=json.dumps(asdict(self._about)),
            runtime=options.runtime,
        )

    def write(self, file: Path) -> dict[str, int]:
        """Write the file, and return its fallbacks.

        Raises:
            LimbeckError: the backend cannot take the student.
        """
        self._say(f"writing {self._about.precision} for {self._about.backend}")
        try:
            return self._backend.export(self._graph, file)
        except LimbeckError:
            raise
        except Exception as error:  # a backend may raise anything
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            raise LimbeckError(f"the student cannot be exported to {self._about.backend}: {_line(error)}") from error

    def measured(self, file: Path, fallbacks: dict[str, int]) -> Card:
        """Compare the file with the student, and measure both.

        Raises:
            LimbeckError: they do not agree.
        """
        sizes = (
            sum(one.stat().st_size for one in file.parent.rglob("*") if one.is_file()),
            file_bytes(self._student.network),
        )
        task, test = task_of(self._data), self._data.test
        label = task.headline.label
        if self._backend.load is None:
            return Card(**vars(self._about), results=Results(*sizes, None, label, None, None, {}, fallbacks))
        load, example = self._backend.load, self._graph.example[:1]
        runner = load(file)
        parity = self._parity(runner, load)
        self._say(f"measuring both on the {len(test):,} samples of the test split")
        of_student = self._raw.outputs(self._student, test, TEST_BATCH)
        of_file = self._raw.outputs(runner, test, TEST_BATCH if self._graph.any_batch else 1)
        student, exported = (task.score(outputs, test.targets) for outputs in (of_student, of_file))
        deferring = self._about.deferring
        if self._deferral is not None and deferring is not None:
            deferring = self._deferral.on_test(deferring, of_file, self._raw)
        self._say("measuring the latencies")
        latency = times({"student": partial(self._student, example), "file": partial(runner, example)})
        results = Results(*sizes, parity, label, student, exported, latency, fallbacks)
        return Card(**vars(self._about) | {"deferring": deferring}, results=results)

    def _parity(self, runner: Runner, load: Load) -> Parity:
        split, which = self._data.validation, "validation"
        if not len(split):
            split, which = self._data.train, "train"
        samples, limit = self._raw.some(split, SAMPLES), LIMITS[self._graph.precision]
        batches = [one for one in BATCHES if one <= len(samples)] if self._graph.any_batch else [1]
        self._say(f"comparing the file with the student on {len(samples)} samples of the {which} split")
        parity = compare(runner, self._student, samples, batches, task=self._data.task, split=which)
        problem = parity.problem(limit)
        if problem:
            layer = first_differing(self._backend.export, load, self._graph, self._student, samples[:8], limit)
            where = "" if layer is None else f"; the first layer that differs is {layer}"
            raise LimbeckError(f"the exported file does not answer as the student does: {problem}{where}")
        return parity


def _with_logits(source: Source) -> nn.Module:
    """A copy of the student in eval mode that returns a tensor of logits."""
    copy, data = deepcopy(source.student).cpu().eval(), source.data
    install("student", copy, example_batch(data), len(data.outputs), output=source.output, task=data.task)
    return copy


def _check_outputs(student: Deployed, raw: RawSamples) -> None:
    try:
        outputs = student(raw.some(raw.data.train, 2))
    except Exception as error:  # a user's network may raise anything
        raise LimbeckError(f"the student fails on a batch of the data: {_line(error)}") from error
    if not torch.isfinite(outputs).all():
        raise LimbeckError("the student's outputs are not finite, so a file cannot be compared with them")


def _line(error: Exception) -> str:
    """The first line of a message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


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
