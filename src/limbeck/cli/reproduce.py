"""`limbeck reproduce`."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from rich import box
from rich.table import Table

from limbeck.cli.recipe_options import DataRoot
from limbeck.cli.reporting import reporting

if TYPE_CHECKING:
    from limbeck.claims.claim import Results, Scale, Study
    from limbeck.comparison.sweep import Sweep
    from limbeck.data import Data
    from limbeck.recipe.blocks import Recipe

Claims = Annotated[list[str] | None, typer.Argument(help="Such as E1; all claims of a paper, such as hinton; or all.")]
_SCALES = "smoke, the default; cpu, about an hour for a claim on two cores (estimated); or paper, for a GPU."
ScaleName = Annotated[str | None, typer.Option("--scale", help=_SCALES, show_default=False)]
FirstSeed = Annotated[int, typer.Option(min=0, max=2**31, help="Of the students; other seeds need another --out.")]
Out = Annotated[Path, typer.Option(help="The folder of the networks and results.")]
Page = Annotated[Path | None, typer.Option(help="Train nothing, and write the page on the results in --out.")]


def reproduce(
    claims: Claims = None,
    scale: ScaleName = None,
    out: Out = Path("runs/claims"),
    write: Page = None,
    data_root: DataRoot = None,
    first_seed: FirstSeed = 0,
) -> None:
    """Measure the claims of published papers again; without a claim, list them with the results in --out.

    Networks that claims share are trained once. A second start trains only what is missing.
    """
    given, scale = scale, scale or "smoke"
    again = ["limbeck", "reproduce", *(claims or ()), "--scale", scale, "--out", str(out)]
    again += ["--data-root", str(data_root)] if data_root else []
    again += ["--first-seed", str(first_seed)] if first_seed else []
    with reporting(shlex.join(again)):
        from limbeck.cli.terminal import console, loading

        with loading():
            from limbeck.claims.claim import Scale
            from limbeck.claims.page import write_page
            from limbeck.errors import LimbeckError, nearest

        scales = get_args(Scale)
        if scale not in scales:
            raise LimbeckError(f"--scale is {scale!r}: {nearest(scale, scales)}")
        if write is not None:
            if claims or given:
                raise LimbeckError("--write takes no claims and no --scale: it writes the page on all results in --out")
            for path in write_page(out, write):
                console().print(f"written: {path}", soft_wrap=True)
        elif claims:
            _measure(claims, cast("Scale", scale), out, {"data_root": data_root, "first_seed": first_seed})
        elif given:
            raise LimbeckError("--scale needs claims, such as limbeck reproduce E1 --scale cpu, or all")
        else:
            console().print(_listed(out))


def _measure(names: list[str], scale: "Scale", out: Path, options: Mapping[str, Any]) -> None:
    """Measure claims; ``options`` are those of `Study.at`."""
    from limbeck.claims import chosen
    from limbeck.claims.claim import Results
    from limbeck.claims.ledger import add, row_of, rows
    from limbeck.claims.page import part_text
    from limbeck.cli.terminal import console
    from limbeck.train.allocator import keep_memory
    from limbeck.train.engine import pick_device

    keep_memory()
    if scale == "paper" and pick_device("auto").type == "cpu":
        console().print("--scale paper is for a GPU: without one, most claims take weeks", style="yellow")
    selected = chosen(names)
    studies = dict.fromkeys(study for _, claim in selected for one in claim.studies for study in one.needed())
    for study in studies:  # a wrong path is told before anything is trained
        study.at(scale, **options)
    for system in dict.fromkeys(system for system, _ in selected):  # and so is a damaged file
        rows(out, system)
    results = Results()
    loaded: dict[str, Data] = {}
    for system, claim in selected:
        for study in claim.studies:
            _train(study, scale, out, options, results, loaded)
        row = row_of(claim, scale, results, options["first_seed"])
        add(out, system, row)
        console().print(f"{claim.name}: {row.verdict}", style="bold", soft_wrap=True)
        for part in row.parts:
            console().print(f"  {part_text(part)}", soft_wrap=True)


def _train(
    study: "Study",
    scale: "Scale",
    out: Path,
    options: Mapping[str, Any],
    results: "Results",
    loaded: dict[str, "Data"],
) -> None:
    """Add the result of a study to ``results``, and those of the studies that it needs."""
    from limbeck.claims.ensembles import ensembles
    from limbeck.cli.progress import show_sweep
    from limbeck.cli.terminal import console
    from limbeck.train.threads import threads_for

    for one in study.needed():
        if one.name in results.comparisons or one.name in results.ensembles:
            continue
        folder = (out / scale).absolute()  # recipes contain paths in it
        teacher = None if one.teacher is None else folder / one.teacher.name / TEACHER
        recipe = one.at(scale, teacher=teacher, **options)
        for path, part in one.divided(recipe, folder).items():
            sweep = _sweep(part, path, loaded)
            with threads_for(sweep.experiment.macs):
                show_sweep(sweep, console())
                found = sweep.conclude()
            if one.ensemble > 1:
                results.ensembles.setdefault(one.name, []).extend(ensembles(sweep, one.ensemble))
            else:
                results.comparisons[one.name] = found


def _sweep(recipe: "Recipe", folder: Path, loaded: dict[str, "Data"]) -> "Sweep":
    """The sweep of a recipe; ``loaded`` keeps the data of the last one for the next one, which often has the same."""
    from limbeck.cli.progress import reading
    from limbeck.cli.terminal import console
    from limbeck.comparison.sweep import Sweep

    same = f"{recipe.data!r} {recipe.task!r}"
    data = loaded.get(same)
    loaded.clear()  # before other data is read
    with reading(console()) as progress:
        sweep = Sweep(recipe, folder, progress=progress, data=data)
    loaded[same] = sweep.experiment.data
    return sweep


TEACHER = Path("teacher-seed0/teacher/seed0/teacher.safetensors")
"""The weights in the folder of a study whose teacher, that of seed 0, other studies have too."""


def _listed(out: Path) -> Table:
    from limbeck.claims import SYSTEMS
    from limbeck.claims.ledger import rows

    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in ("", "claim", "published", "measured"):
        table.add_column(heading, overflow="fold")
    for system in SYSTEMS.values():
        measured = rows(out, system)
        for claim in system.claims:
            said = "\n".join(f"{row.scale}: {row.verdict}" for row in measured if row.claim == claim.name)
            table.add_row(claim.name, claim.says, claim.published, said)
    return table
