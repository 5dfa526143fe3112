"""`limbeck export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from limbeck.cli.recipe_options import DataRoot, TrustCode
from limbeck.cli.reporting import reporting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from limbeck.exports.card import Card
    from limbeck.exports.graph import Precision
    from limbeck.exports.options import Options

Layout = Literal["nhwc", "nchw"]
Folder = Annotated[Path, typer.Argument(help="The folder of a finished run or comparison.")]
To = Annotated[str, typer.Option("--to", help="onnx, executorch, openvino, coreml, litert or web.")]
Network = Annotated[str | None, typer.Option(help="Such as kd/seed0; default: the student of a run's first seed.")]
Batch = Annotated[str, typer.Option(help="1, or dynamic for any number of samples, if the backend can.")]


def export(
    folder: Folder,
    to: To = "onnx",
    fp16: Annotated[bool, typer.Option("--fp16", help="The network computes in 16 bits.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise weights and activations (coreml: weights).")] = False,
    batch: Batch = "dynamic",
    layout: Annotated[Layout, typer.Option(help="The axes of images.")] = "nhwc",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also return calibrated probabilities.")
    ] = False,
    network: Network = None,
    out: Annotated[Path | None, typer.Option(help="The folder; default: in export/, named by the options.")] = None,
    defer_accuracy: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Ask the teacher just often enough to reach this accuracy on validation."),
    ] = None,
    defer_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Or: the least share of the inputs that the student answers."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Height and width of a camera's images, such as 480x640.")] = None,
    runtime: Annotated[Path | None, typer.Option(help="For web: the unpacked npm package onnxruntime-web.")] = None,
    data_root: DataRoot = None,
    trust_code: TrustCode = False,
) -> None:
    """Write a student as a file for a device, and compare the file with the student.

    The file reads raw samples, such as images of bytes, and does the preprocessing itself.
    """
    with reporting():
        from limbeck.errors import LimbeckError, nearest

        if fp16 and int8:
            raise LimbeckError("a file has --fp16 or --int8, not both")
        if defer_accuracy is not None and defer_share is not None:
            raise LimbeckError("an export has --defer-accuracy or --defer-share, not both")
        if batch not in ("1", "dynamic"):
            raise LimbeckError(f"--batch is {batch!r}: {nearest(batch, ('1', 'dynamic'))}")
        from limbeck.cli.terminal import loading

        with loading():
            from limbeck.exports.card import EXPORTS
            from limbeck.exports.options import Options
        precision: Precision = "fp16" if fp16 else "int8" if int8 else "fp32"
        options = Options(to, precision, 1 if batch == "1" else None, layout, probabilities, runtime, _sides(size))
        nchw, single = "nchw" if layout == "nchw" else "", "batch1" if batch == "1" else ""
        name = "-".join(part for part in ((network or "").replace("/", "-"), to, precision, size, nchw, single) if part)
        place = out or folder / EXPORTS / name
        if out is None and place.parent.is_symlink():
            raise LimbeckError(f"{place.parent} is a link, which limbeck does not write to")
        options.check(place)
        goal = None if (defer_accuracy, defer_share) == (None, None) else (defer_accuracy, defer_share)
        _export(folder, place, options, network, data_root, goal, trust_code=trust_code)


def _sides(size: str | None) -> tuple[int, int] | None:
    """Height and width of a text such as 480x640."""
    from limbeck.errors import LimbeckError

    if size is None:
        return None
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise LimbeckError(f"--size is {size!r}: write HEIGHTxWIDTH in pixels, such as 480x640")
    return int(height), int(width)


def _export(
    folder: Path,
    place: Path,
    options: "Options",
    network: str | None,
    data_root: Path | None,
    goal: tuple[float | None, float | None] | None,
    *,
    trust_code: bool,
) -> None:
    from limbeck.cli.progress import reading
    from limbeck.cli.terminal import console
    from limbeck.exports.deferring import Deferral
    from limbeck.exports.make import make
    from limbeck.exports.source import Finished

    screen = console(soft_wrap=True)
    with reading(screen) as progress:
        found = Finished(folder, network, data_root=data_root, trust_code=trust_code, progress=progress)
    deferral = None if goal is None else Deferral(found.teacher(), *goal)
    with screen.status("") as status:
        done = make(found.source, place, options, deferral, status.update)
    screen.print(_table(done.card))
    for line in _evidence(done.card):
        screen.print(line)
    if options.size is not None:
        screen.print(f"all figures are those of the data in images of {options.size[0]} x {options.size[1]} pixels")
    screen.print(f"written: {done.file}")


def _table(card: "Card") -> "Table":
    from rich import box
    from rich.table import Table

    results = card.results
    table = Table(title=f"{card.network}: test split", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in ("", results.figure, "latency ms", "p95 ms", "memory MB", "bytes"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = (("student", results.student, results.student_bytes), ("file", results.exported, results.bytes))
    for name, figure, size in rows:
        latency = results.latency.get(name)
        times = ("", "") if latency is None else (f"{latency.median_ms:.3f}", f"{latency.p95_ms:.3f}")
        peak = results.memory.get(name)
        memory = "" if peak is None else f"{peak / 1e6:.1f}"
        table.add_row(name, "" if figure is None else f"{figure:.4f}", *times, memory, f"{size:,}")
    return table


def _evidence(card: "Card") -> "Iterator[str]":
    fallbacks = ", ".join(f"{number} {name}" for name, number in sorted((card.results.fallbacks or {}).items()))
    if fallbacks:
        left = "are not run by XNNPACK" if card.backend == "executorch" else "stay in 32 bits"
        yield f"operators that {left}: {fallbacks}"
    if card.results.calibration:
        yield f"the ranges of int8 are those of {card.results.calibration} samples of the training split"
    if card.results.memory_problem:
        yield f"a peak memory is not known: {card.results.memory_problem}"
    parity = card.results.parity
    if parity is None:
        yield "the file was not compared with the student: it does not run on this system"
    else:
        sizes = f"batch size{'s' * (len(parity.batches) > 1)} {', '.join(map(str, parity.batches))}"
        same = "" if parity.agreement is None else f", {parity.agreement:.2%} of the decisions agree"
        yield (
            f"on {parity.samples} samples of the {parity.split} split, {sizes}: greatest difference of an "
            f"output {parity.difference:.2g} ({parity.relative:.2g} of the greatest {parity.whole}){same}"
        )
    chosen = card.deferring
    if chosen is not None:
        asked = f"ask the teacher if the confidence is at most {chosen.threshold:.4f} (chosen on the validation split)"
        if chosen.test is not None:
            asked += (
                f": the file then answers {chosen.test.share:.1%} of the test samples, and both have "
                f"{chosen.test.accuracy:.2%} right"
            )
        yield asked
