"""The page on the claims, and its figures, from what was measured."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from matplotlib.axes import Axes

from limbeck.claims import SYSTEMS
from limbeck.claims.checks import Verdict
from limbeck.claims.claim import Claim, Curve, Scale, Study, System
from limbeck.claims.ledger import PartRow, Row, rows
from limbeck.errors import LimbeckError
from limbeck.files.atomic import write
from limbeck.recipe.read import SMOKE
from limbeck.report.drawing import drawn, plain_ticks, series
from limbeck.report.standalone import standalone

ASSETS = "assets"

TITLE = "# The papers' claims, measured again\n"

HEAD = """\
`limbeck reproduce` trains what a claim is about and decides whether it holds. Without a claim it lists the claims;
`limbeck reproduce E4 --scale cpu` measures one. The same command resumes what was stopped. It writes its results to
`results/` in the folder of `--out`. Those that this page shows are in `results/` of the repository; this command writes
the page from them:

    limbeck reproduce --out . --write docs/claims.md

## Scales

- `--scale smoke` shows that everything runs: all claims take about four minutes on two cores. Its verdicts mean
  nothing.
- `--scale cpu` takes about an hour for a claim on two cores (estimated). Networks and data are smaller, or schedules
  shorter, than in the papers, so rankings can be compared, but not absolute figures. The claims on CIFAR-10 have 10,000
  training images at most; B1 to B4, B6 and B7 have 3,000 training and 3,000 test images of MNIST. In E5, 3 % are 1,800
  of the 60,000 training images of MNIST; all data are the 50,000 that are not held out. C1 to C7, E1 to E5, E7 and the
  claims of SRRL have the precision bf16, which is slower on CPUs without bfloat16 units. The schedules were fixed
  before the test figures of their studies were seen, and were not changed afterwards; other schedules that were tried
  are named with the claim.
- `--scale paper` is for a GPU ([how fast a one](paper-scale.md)). It has the data of the paper, with five exceptions:
  A3 has classes of CIFAR-10 only, B7 CIFAR-10 instead of faces, C7 classes of CIFAR-10 instead of ImageNet and
  CUB-200, D6 CIFAR-100 instead of ImageNet, and E5 MNIST instead of speech. B2 is measured on MNIST only and D5 on
  CIFAR-100 only, although the published figures of both include CIFAR-10. E2 and E3 hold out 10,000 training images to
  choose the bias. The teacher was trained on them, because other claims share it. Hinton et al. give no number of
  epochs; on MNIST it is 3,000 for the teacher and 1,000 for the students. No settings of Kim and Kim were found, so
  those of A1 to A5 are limbeck's. At this scale, the claims of SRRL have the schedule of the authors' later code,
  except D6, whose binary students have Adam.

## Verdicts

A claim consists of inequalities, whose direction the paper states, except the comparisons with `alone@1.5x` in B1 and
B3, which are limbeck's. Their thresholds, such as 90 % or a half, are limbeck's, too. B5 and E6 are facts instead,
which are computed without training; B2 and E7 also have facts. E7 is limbeck's own hypothesis on a public
demonstration, not a claim of a paper.

An inequality holds (does not hold) if the mean of its differences, paired by seed, is above (below) 0, and the t-test
and the exact sign-flip test, both one-sided, agree at 5 %. Otherwise it is inconclusive. With fewer than 5 seeds it
always is; with 5, all differences must have the same sign, because the p-value of the sign-flip test is then 1/32, and
2/32 if one of them could be turned round. The intervals in brackets are those of the t-distribution, two-sided at
95 %, so they can include 0 where a one-sided test at 5 % decides, and exclude it where the sign-flip test does not.
Where an inequality has a threshold, such as "less than 0.2 points below", the mean is the distance from the threshold:
+0.20 points is then no difference at all.

A claim holds if all its parts hold, and does not hold if any part does not. The latter is not adjusted for the number
of inequalities, so with several of them the probability of a wrong "does not hold" can exceed 5 %. The students of all
seeds have one teacher, so a verdict is about this teacher; in A1 to A5, a copy of it is trained further for each seed.
With `--first-seed 5` and another `--out`, the students have the seeds 5 to 9 and the same teacher, which tells how far
the figures depend on the seeds. C4 and C5 have 15 seeds, so theirs is `--first-seed 15`.

## Studies

A study trains the students of several methods and seeds from one recipe, once for all claims. Below the claims of each
paper are its studies: their figures, and what they change in a bundled recipe, as `--set` takes it. The whole recipe is
in `recipe.yaml` and `comparison.yaml` of the study's folder in `--out`. All figures are those of the test split: mean ±
sample standard deviation over the seeds.

`alone@2x` and the like are the student alone with as many epochs as all stages in which the student of a method learns.
C1 to C7 do not depend on them, because in the paper no student alone has the epochs of both stages. In B1, B3 and B7
the student with a hint has 1.5 times the epochs of the one without. In B1 and B3 the student alone is also trained for
as long, in B7 no other student is. In E7, `kd-with-dropout` has a teacher whose dropout stays active, as in the
demonstration; the claim does not depend on it.

In C4 and C5, n counts ensembles of three networks instead of seeds. An ensemble predicts the class with the largest
mean probability; its gain is its accuracy minus the mean accuracy of its networks. Weaker networks usually gain more,
so a gain is to be read with their mean. Their disagreement is the share of test images for which two of them predict
different classes, averaged over the pairs.
"""


def write_page(folder: Path, page: Path) -> list[Path]:
    """Write the page on the rows of a folder, and its figures beside it; return the paths.

    Raises:
        LimbeckError: the folder has no rows.
    """
    if not any(rows(folder, system) for system in SYSTEMS.values()):
        raise LimbeckError(f"{folder} has no results of limbeck reproduce: name their folder with --out")
    files = files_of(folder)
    for name, text in files.items():
        write(page.parent / ASSETS / name if name else page, text)
    return [page.parent / ASSETS / name if name else page for name in files]


def files_of(folder: Path) -> dict[str, str]:
    """The content of the page (its name is empty) and of its figures by name."""
    found = {system: rows(folder, system) for system in SYSTEMS.values()}
    lines = [TITLE, *_counted(found), HEAD, *(line for system in found for line in _section(system, found[system]))]
    files = {"": "\n".join(lines)}
    for system, measured in found.items():
        for claim, row in ((claim, row) for claim in system.claims for row in measured if row.claim == claim.name):
            if claim.curve is not None:
                files[_figure(row)] = curve_svg(claim.curve, row)
    return files


def _counted(found: Mapping[System, Sequence[Row]]) -> Iterator[str]:
    """How many claims were decided at each scale, and how."""
    total = sum(len(system.claims) for system in found)
    for scale in get_args(Scale):
        verdicts = Counter(row.verdict for measured in found.values() for row in measured if row.scale == scale)
        if verdicts:
            told = ", ".join(f"{one}: {verdicts[one]}" for one in get_args(Verdict))
            yield f"Of {total} claims, {verdicts.total()} were decided at the scale `{scale}`. {told.capitalize()}.\n"


def _figure(row: Row) -> str:
    return f"claim-{row.claim}-{row.scale}.svg"


def _section(system: System, measured: Sequence[Row]) -> Iterator[str]:
    """A table of all claims of a paper, what was measured, and the networks that it was measured on."""
    yield f"## {system.paper}\n"
    yield "| | claim | published | limbeck |\n|---|---|---|---|"
    by_claim = {claim: [row for row in measured if row.claim == claim.name] for claim in system.claims}
    for claim, own in by_claim.items():
        said = ", ".join(f"{row.verdict} ({row.scale})" for row in own)
        yield f"| {claim.name} | {claim.says} | {claim.published} | {said or 'not measured'} |"
    yield ""
    for claim, own in by_claim.items():
        for row in own:
            yield from _measured(claim, row)
    decided = ((row.scale, one) for claim, own in by_claim.items() for row in own for one in claim.studies)
    for scale, study in dict.fromkeys((scale, needed) for scale, one in decided for needed in one.needed()):
        yield from _networks(study, scale, [row for row in measured if row.scale == scale])


def _measured(claim: Claim, row: Row) -> Iterator[str]:
    yield f"### {claim.name}, {row.scale}: {row.verdict}\n"
    yield from (f"- {part_text(part)}" for part in row.parts)
    if claim.studies:
        yield f"\nMeasured in {', '.join(_link(study, row.scale) for study in claim.studies)}."
    if claim.curve is not None:
        yield f"\n![{_alt(claim.curve, row)}]({ASSETS}/{_figure(row)})"
    if row.tried:
        yield f"\n{row.tried}"
    yield f"\n    {row.command}\n"


def _link(study: Study, scale: Scale) -> str:
    return f"[{study.name}](#{study.name}-{scale})"


def _networks(study: Study, scale: Scale, measured: Sequence[Row]) -> Iterator[str]:
    """The figures of a study and its settings, from all rows of a scale; if rows differ, all their values."""
    prefix = study.name + (SMOKE if scale == "smoke" else "") + ", "
    figures: dict[str, dict[str, None]] = {}
    for name, value in (figure for row in measured for figure in row.figures.items()):
        if name.startswith(prefix):
            figures.setdefault(name.removeprefix(prefix), {})[value] = None
    yield f"### {study.name}, {scale}\n"
    if figures:
        yield "| network | test split |\n|---|---|"
    yield from (f"| {name} | {'; '.join(values)} |" for name, values in figures.items())
    shortened = ", shortened as `--smoke` does" if scale == "smoke" else ""
    yield f"\nThe recipe `{study.recipe}`{_from_others(study)} with these settings{shortened}:\n"
    settings = (*study.settings, *(study.paper if scale == "paper" else ()))
    if study.teacher is not None:  # it replaces the recipe's
        settings = (*(one for one in settings if not one.startswith("teacher.")), *study.changes)
    yield from (f"    {one}" for one in {one.partition("=")[0]: one for one in settings}.values())  # the last counts
    yield ""


def _from_others(study: Study) -> str:
    """The studies from which a study takes its teacher or the weights of its students, in words."""
    if study.starts is not None:
        return f", from the students of `{study.starts[0].name}`,"
    if study.teacher is None:
        return ""
    return f", {'from' if study.fine_tunes else 'with'} the teacher of `{study.teacher.name}`,"


def part_text(part: PartRow) -> str:
    """An inequality with its verdict and the mean of its differences."""
    if part.mean is None:
        return f"{part.says}: {part.verdict}"
    between = "" if part.interval is None else f" [{part.interval.low:+.2f}, {part.interval.high:+.2f}]"
    return f"{part.says}: {part.verdict} ({part.mean:+.2f} {part.unit}{between}, n = {part.n})"


def _alt(curve: Curve, row: Row) -> str:
    return f"{curve.y} against {curve.x} for {', '.join(row.lines)}"


def curve_svg(curve: Curve, row: Row) -> str:
    """The figure of a claim."""

    def draw(axes: Axes) -> None:
        _draw(axes, curve, row.lines)

    return standalone(drawn(row.claim, _alt(curve, row), (400, 260), draw, margins=(66, 12, 12, 40)))


def _draw(axes: Axes, curve: Curve, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    for place, (name, points) in enumerate(lines.items()):
        look = series(place)
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=look.colour, marker=look.marker, linestyle=look.dash, label=name)
    axes.set(xlabel=curve.x, ylabel=curve.y)
    axes.legend(frameon=False)
    plain_ticks(axes.xaxis)
    axes.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
    plain_ticks(axes.yaxis)
