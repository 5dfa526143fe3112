"""Write a student for a device, and prove that the file answers as the student does."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from limbeck.core import LimbeckError
from limbeck.data import Data
from limbeck.errors import nearest
from limbeck.evaluate.calibration import fit_temperature
from limbeck.evaluate.cost import file_bytes, times
from limbeck.experiment.workspace import example_batch
from limbeck.exports import EXPORTERS
from limbeck.exports.base import Exporter
from limbeck.exports.card import CARD, SCHEMA, Card, Reads, Results
from limbeck.exports.differing import first_differing
from limbeck.exports.graph import LAYOUTS, PRECISIONS, Deployed, Graph, Layout, Precision
from limbeck.exports.parity import BATCHES, LIMITS, SAMPLES, compare
from limbeck.exports.samples import RawSamples
from limbeck.files.atomic import explained, write_sealed
from limbeck.models.inputs import AS_THE_DATA, Bridge, Input
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
    student_input: Input | None = None,
    student_output: str | None = None,
    runtime: Path | None = None,
    name: str = "student",
    weights_sha256: str | None = None,
    say: Say = lambda _: None,
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
        student_input: what the student reads, as for `limbeck.distill`.
        student_output: as for `limbeck.distill`.
        runtime: for ``web``, the folder of the unpacked npm package onnxruntime-web; by default npm fetches it.
        name: of the network, for the card.
        weights_sha256: of its weights, for the card.
        say: is called with a phrase before each step.

    Raises:
        LimbeckError: an argument is wrong; a package is missing; the backend cannot take the network; or the file does
            not agree with the student, see `limbeck.exports.parity.LIMITS`.
    """
    folder, raw = Path(folder), RawSamples(data, layout)
    check_options(folder, to=to, precision=precision, batch=batch, layout=layout)
    backend = EXPORTERS[to]
    if probabilities and (data.task != "classification" or not len(data.validation)):
        raise LimbeckError(
            "probabilities need a classification task and a validation split, on which their temperature is fitted"
        )
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad():
        deployed = partial(_deployed, _with_logits(student, data, student_output), student_input, raw)
        reference = deployed()
        _check_outputs(reference, raw)
        temperature = _temperature(reference, raw) if probabilities else None
        any_batch, outputs = backend.any_batch and batch is None, ["logits", *["probabilities"] * probabilities]
        card = Card(
            schema=SCHEMA,
            backend=to,
            precision=precision,
            network=name,
            weights_sha256=weights_sha256,
            task=data.task,
            reads=_reads(raw, any_batch=any_batch),
            outputs=tuple(outputs),
            classes=data.outputs,
            temperature=temperature,
            versions={one: version(one) for one in ("limbeck", "torch", *backend.modules)},
        )
        module = deployed(half=precision == "fp16", temperature=temperature)
        graph = Graph(
            module=module,
            example=raw.some(data.train, 1).repeat(2, *[1] * len(data.shape)),
            outputs=tuple(outputs),
            any_batch=any_batch,
            precision=precision,
            calibration=raw.some(data.train, CALIBRATION if precision == "int8" else 0),
            card=json.dumps(card.values()),
            runtime=runtime,
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=folder.parent) as temporary, explained(folder):
            file = Path(temporary) / "export" / f"student{backend.suffix}"
            file.parent.mkdir()
            say(f"writing {precision} for {to}")
            _write(backend, to, graph, file)
            results = _results(backend, graph, reference, module, raw, file, say)
            write_sealed(file.parent / CARD, card.with_results(results).values())
            shutil.rmtree(folder, ignore_errors=True)
            file.parent.rename(folder)
    return Exported(folder, folder / file.name, card.with_results(results))


def _results(
    backend: Exporter, graph: Graph, reference: Deployed, module: Deployed, raw: RawSamples, file: Path, say: Say
) -> Results:
    """Compare the file with the student, and measure both."""
    data = raw.data
    size, task = sum(one.stat().st_size for one in file.parent.rglob("*") if one.is_file()), task_of(data)
    if backend.load is None:
        return Results(size, file_bytes(module.network), None, task.headline.label, None, None)
    runner = backend.load(file)
    split, which = (data.validation, "validation") if len(data.validation) else (data.train, "train")
    samples = raw.some(split, SAMPLES)
    sizes = [one for one in BATCHES if one <= len(samples)] if graph.any_batch else [1]
    say(f"comparing the file with the student on {len(samples)} samples of the {which} split")
    parity = compare(runner, reference, samples, sizes, task=data.task, split=which)
    problem = parity.problem(LIMITS[graph.precision])
    if problem:
        layer = first_differing(backend, graph, reference, module, samples[:8], LIMITS[graph.precision])
        where = "" if layer is None else f"; the first layer that differs is {layer}"
        raise LimbeckError(f"the exported file does not answer as the student does: {problem}{where}")
    say(f"measuring both on the {len(data.test):,} samples of the test split")
    of_student = raw.outputs(reference, data.test, TEST_BATCH)
    of_file = raw.outputs(runner, data.test, TEST_BATCH if graph.any_batch else 1)
    student, exported = (task.score(outputs, data.test.targets) for outputs in (of_student, of_file))
    say("measuring the latencies")
    latency = times({"student": partial(reference, samples[:1]), "file": partial(runner, samples[:1])})
    return Results(size, file_bytes(reference.network), parity, task.headline.label, student, exported, latency)


def _write(backend: Exporter, to: str, graph: Graph, file: Path) -> None:
    try:
        backend.export(graph, file)
    except (OSError, LimbeckError):
        raise
    except Exception as error:  # a backend may raise anything
        raise LimbeckError(f"the student cannot be exported to {to}: {_line(error)}") from error


def check_options(folder: Path, *, to: str, precision: str, batch: int | None, layout: str, **_: object) -> None:
    """Refuse what `export` would refuse, before the data is read; see there."""
    if to not in EXPORTERS:
        raise LimbeckError(f"there is no export to {to!r}: {nearest(to, EXPORTERS)}")
    backend = EXPORTERS[to]
    if precision not in PRECISIONS:
        raise LimbeckError(f"precision is {precision!r}: {nearest(precision, PRECISIONS)}")
    if precision not in backend.precisions:
        raise LimbeckError(f"{to} has no {precision}: allowed are {', '.join(backend.precisions)}")
    if batch not in (None, 1):
        raise LimbeckError(f"batch is {batch}: allowed are 1, and None for any number of samples")
    if layout not in LAYOUTS:
        raise LimbeckError(f"layout is {layout!r}: {nearest(layout, LAYOUTS)}")
    if folder.exists() and not (folder / CARD).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise LimbeckError(f"{folder} exists and holds no export: choose another folder")
    backend.check(to)


def _check_outputs(reference: Deployed, raw: RawSamples) -> None:
    try:
        outputs = reference(raw.some(raw.data.test, 2))
    except Exception as error:  # a user's network may raise anything
        raise LimbeckError(f"the student fails on a batch of the data: {_line(error)}") from error
    if not torch.isfinite(outputs).all():
        raise LimbeckError("the student's outputs are not finite, so a file cannot be compared with them")


def _line(error: Exception) -> str:
    """The first line of a message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _with_logits(student: nn.Module, data: Data, output: str | None) -> nn.Module:
    """A copy of the student in eval mode that returns a tensor of logits."""
    copy = deepcopy(student).cpu().eval()
    install("student", copy, example_batch(data), len(data.outputs), output=output, task=data.task)
    return copy


def _deployed(
    student: nn.Module,
    reads: Input | None,
    raw: RawSamples,
    *,
    half: bool = False,
    temperature: float | None = None,
) -> Deployed:
    data, reads = raw.data, reads or AS_THE_DATA
    own = Bridge(reads, data.shape, data.mean, data.std)
    size = own.own[1:] if raw.are_images else None
    expected = Input(mean=own.mean, std=own.std, size=size, channels=reads.channels)
    return Deployed(
        student, expected, data.shape, pixels=raw.are_pixels, layout=raw.layout, half=half, temperature=temperature
    )


def _temperature(reference: Deployed, raw: RawSamples) -> float:
    """The temperature with the lowest cross-entropy on validation; 1 if all predictions are correct."""
    split = raw.data.validation
    return fit_temperature(raw.outputs(reference, split, TEST_BATCH), split.targets) or 1.0


def _reads(raw: RawSamples, *, any_batch: bool) -> Reads:
    shape = raw.some(raw.data.train, 1).shape[1:]
    return Reads(
        name="images" if raw.are_images else "inputs",
        shape=(None if any_batch else 1, *shape),
        type="uint8" if raw.are_pixels else "float32",
        layout=raw.layout if raw.are_images else None,
        channels={1: "gray", 3: "rgb"}.get(raw.data.shape[0]) if raw.are_images else None,
    )


