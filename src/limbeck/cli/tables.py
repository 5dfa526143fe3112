"""The tables of results, and what the results come to in sentences."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from limbeck.comparison.results import ComparisonResult, Versus, difference_text
from limbeck.evaluate import ClassFigures, SegmentationFigures
from limbeck.evaluate.cost import QUIET
from limbeck.experiment.results import Gain, NetworkResult, RunResult, spread, spread_text
from limbeck.recipe.blocks import Recipe
from limbeck.tasks import TASKS, Shown

WITH_AGREEMENT = (ClassFigures, SegmentationFigures)
"""The figures that say how often a network predicts what its teacher predicts."""


def result_table(result: RunResult) -> Table:
    """One row a network: quality over the seeds, and cost."""
    seeds = len(result.seeds)
    table = Table(
        title=f"{result.name}: test split, {seeds} seed{'s, mean ± deviation' if seeds > 1 else ''}",
        box=box.SIMPLE_HEAD,
        padding=0,  # it fits in 80 columns, the width where the output is no terminal
        show_edge=False,
    )
    table.add_column("", overflow="fold")
    task = TASKS[result.task]
    for figure in (task.headline, *task.others):
        count = f"\n{result.student.test.samples:,}" if figure.key == "errors" else ""
        table.add_column(f"{figure.label}{' %' * figure.percent}{count}", justify="right", no_wrap=True)
    own = (result.metric,) if result.metric is not None else ()
    for name in own:
        table.add_column(name, justify="right", overflow="fold")
    agreeing = isinstance(result.student.test, WITH_AGREEMENT)
    for heading in ("agrees with\nteacher %",) * agreeing + ("parameters", "MACs", "latency\nms", "p95\nms"):
        table.add_column(heading, justify="right", overflow="fold")
    first = {one.arm: one for one in (result.teacher, result.alone, result.student) if one is not None}
    for arm, row in result.summary.items():
        tests = [one.test for one in result.of(arm)]
        agreements = [test.agreement for test in tests if isinstance(test, WITH_AGREEMENT)]
        table.add_row(
            arm,
            spread_text(row.headline, task.headline),
            *(_several([getattr(test, figure.key) for test in tests], figure) for figure in task.others),
            *(_several([one.own_metric for one in result.of(arm)], Shown("own_metric", name)) for name in own),
            *(_mean_percent(agreements),) * agreeing,
            *_costs(first.get(arm)),
        )
    return table


def _mean_percent(shares: Sequence[float | None]) -> str:
    known = [share for share in shares if share is not None]
    return f"{100 * sum(known) / len(known):.2f}" if known else ""


def _several(values: Sequence[float | None], figure: Shown) -> str:
    known = [value for value in values if value is not None]
    return spread_text(spread(known), figure) if known else ""


def _costs(result: NetworkResult | None) -> tuple[str, ...]:
    if result is None:
        return ("",) * 4
    macs = "" if result.macs is None else f"{result.macs:,}"
    times = ("", "") if result.latency is None else (f"{result.latency.median_ms:.3f}", f"{result.latency.p95_ms:.3f}")
    return (f"{result.parameters:,}", macs, *times)


def verdicts(result: RunResult, recipe: Recipe) -> Iterator[str]:
    """What the method gained over the student alone, and the omitted-class study where there is one."""
    for arm, row in result.summary.items():
        if row.fewer_errors_than_alone is not None:
            yield _gain(arm, row.fewer_errors_than_alone, TASKS[result.task].others[0], "fewer", "more", "errors")
        elif row.better_than_alone is not None:
            figure = TASKS[result.task].headline
            better, worse = (f"{'points ' * figure.percent}{word}" for word in ("better", "worse"))
            yield _gain(arm, row.better_than_alone, figure, better, worse, figure.label)
    yield from _worse_teacher(result, recipe)
    timed = [one.latency for one in (result.teacher, result.alone, result.student) if one and one.latency]
    busy = max((latency.others_cores or 0.0 for latency in timed), default=0.0)
    if busy > QUIET:
        yield f"the latencies are unreliable: other processes used {busy:.1f} cores meanwhile"
    for one in result.runs:
        if one.teacher_after is not None:
            figure = TASKS[result.task].headline
            value = figure.text(getattr(one.teacher_after.test, figure.key))
            yield f"{one.arm} seed {one.seed}: its trained teacher has a test {figure.label} of {value}"
        study = one.bias_shift
        if study is not None:
            before, after, oracle = study["before"], study["validation_tuned"], study["test_tuned"]
            yield (
                f"{one.arm} seed {one.seed}, classes {study['classes']}: {before['errors']} errors, "
                f"{100 * before['share_right']:.1f} % of them correct; "
                f"bias {after['delta']:+.1f} (chosen on validation): "
                f"{after['errors']} errors, {100 * after['share_right']:.1f} % right; "
                f"bias {oracle['delta']:+.1f} (tuned on test, as the paper did): "
                f"{oracle['errors']} errors, {100 * oracle['share_right']:.1f} % right"
            )


def _gain(arm: str, gain: Gain, figure: Shown, better: str, worse: str, what: str) -> str:
    doubt = "one pair, so no standard error"
    if gain.standard_error is not None:
        doubt = f"standard error {figure.number(gain.standard_error)}, {gain.n} pairs"
    size = figure.number(abs(gain.mean))
    if float(size) == 0:
        return f"{arm}: no difference from alone in {what} ({doubt})"
    return f"{arm}: {size} {better if gain.mean > 0 else worse} {what} than alone ({doubt})"


def _worse_teacher(result: RunResult, recipe: Recipe) -> Iterator[str]:
    """A trained teacher that is less often right than the student alone most likely got inputs of another kind."""
    block = recipe.teacher
    loaded = block is not None and (block.weights or block.is_trained)
    if not loaded or recipe.allow or not {"teacher", "alone"} <= result.summary.keys():
        return
    figure = TASKS[result.task].headline
    teacher, alone = (result.summary[arm].headline.mean for arm in ("teacher", "alone"))
    if figure.score(teacher) < figure.score(alone):
        yield (
            f"the test {figure.label} of the teacher, {figure.text(teacher)}, is "
            f"{'above' if figure.falls else 'below'} that of the student alone, {figure.text(alone)}: check that the "
            "teacher was trained with this normalisation (data.normalise), value range and size"
        )


def comparison_table(result: ComparisonResult) -> Table:
    """One row for each arm: the headline, and the difference to the student alone of as many epochs."""
    figure = TASKS[result.task].headline
    seeds = len(result.seeds)
    table = Table(
        title=f"{result.name}: test split, {seeds} seed{'s, mean ± deviation' if seeds > 1 else ''}",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("", overflow="fold")
    unit = " %" * figure.percent
    for heading in ("epochs", f"{figure.label}{unit}", "better than alone\n[95 % interval]", "p adjusted", "verdict"):
        table.add_column(heading, justify="right", overflow="fold")
    if result.teachers is not None:
        table.add_row("teacher", "", spread_text(result.teachers, figure), "", "", "")
    for arm in result.arms:
        table.add_row(arm.arm, str(arm.epochs), spread_text(arm.headline, figure), *_versus(arm.alone, figure))
    return table


def _versus(versus: Versus | None, figure: Shown) -> tuple[str, str, str]:
    if versus is None:
        return "", "", ""
    return difference_text(versus, figure), f"{versus.judged.p_adjusted:.3f}", versus.judged.verdict
