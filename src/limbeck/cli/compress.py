"""`limbeck compress`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from limbeck.cli.recipe_options import DataRoot, TrustCode
from limbeck.cli.reporting import reporting

if TYPE_CHECKING:
    from rich.table import Table

    from limbeck.exports.compress import Compressed

Value = TypeVar("Value", int, float)

Keep = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=SHARE", help="Keep this share of the weights of conv, linear or a layer instead."),
]
Bits = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=BITS", help="Bits of a shared weight of conv (default: 8), linear (5) or a layer."),
]


def compress(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run or comparison.")],
    network: Annotated[
        str | None, typer.Option(help="The student, such as kd/seed0; default: that of a run's first seed.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file; default: compressed.safetensors in the folder.")] = None,
    quality: Annotated[
        float, typer.Option(help="Prune weights up to this number times the standard deviation of their layer.")
    ] = 1.0,
    keep: Keep = None,
    bits: Bits = None,
    epochs: Annotated[int, typer.Option(help="Epochs of the training after pruning.")] = 10,
    centroid_epochs: Annotated[int, typer.Option(help="Epochs of the training of the shared weights.")] = 5,
    lr: Annotated[float | None, typer.Option(help="Learning rate of both; default: that of the recipe.")] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Train without the teacher.")] = False,
    data_root: DataRoot = None,
    trust_code: TrustCode = False,
) -> None:
    """Compress a student into a small file: pruned, with shared weights, and entropy-coded.

    The student is retrained by the last stage of its method, with the recipe's optimizer, batch size and augmentation.
    The file is decoded and compared with the student.
    """
    with reporting():
        from limbeck.cli.terminal import console, loading

        kept = _pairs("--keep", keep or (), float, "NAME=SHARE, such as head=0.3")
        shared = _pairs("--bits", bits or (), int, "NAME=BITS, such as head=5")
        with loading():
            from limbeck.cli.progress import reading
            from limbeck.exports.compress import Options, of_run

        screen, options = console(soft_wrap=True), Options(quality, kept, shared, epochs, centroid_epochs)
        with reading(screen) as progress:
            work = of_run(
                folder, network, data_root=data_root, trust_code=trust_code, alone=alone, lr=lr, progress=progress
            )
        with screen.status("compressing", spinner="line") as status:
            done = work.run(out or folder / "compressed.safetensors", options, say=status.update)
        screen.print(_table(work.source.name, done))
        shares = ", ".join(f"{name} {share:.1%}" for name, share in done.kept.items())
        screen.print(f"weights that are not 0: {shares}")
        screen.print(f"written: {done.file}; its decoded weights are those of the last row, bit for bit")


def _pairs(option: str, texts: Sequence[str], kind: Callable[[str], Value], form: str) -> dict[str, Value]:
    from limbeck.errors import LimbeckError

    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = kind(value)
        except ValueError as error:
            raise LimbeckError(f"{option} is {text!r}: write {form}") from error
    return found


def _table(name: str, done: "Compressed") -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=f"{name}: test split", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in ("", "bytes", "ratio", done.figure.label):
        table.add_column(heading, justify="right" if heading else "left")
    for step in done.steps:
        table.add_row(
            step.name, f"{step.bytes:,}", f"{done.steps[0].bytes / step.bytes:.1f}", done.figure.text(step.score)
        )
    return table
