"""The tables of results, and what the results come to in sentences."""

from collections.abc import Iterator

from rich import box
from rich.table import Table

from limbeck.experiment.results import Gain, NetworkResult, RunResult, Spread
from limbeck.recipe.blocks import Recipe


def result_table(result: RunResult) -> Table:
    """One row a network: quality over the seeds, and cost."""
    seeds = len(result.seeds)
    table = Table(
        title=f"{result.name}: test split, {seeds} seed{'s' if seeds > 1 else ''}, mean ± deviation",
        box=box.SIMPLE_HEAD,
        padding=0,  # it fits in 80 columns, the width where the output is no terminal
        show_edge=False,
    )
    table.add_column("", overflow="fold")
    for heading in ("accuracy %", f"errors of\n{result.student.test.samples:,}"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("agrees with\nteacher %", "parameters", "MACs", "latency\nms", "p95\nms"):
        table.add_column(heading, justify="right", overflow="fold")
    first = {one.arm: one for one in (result.teacher, result.alone, result.student) if one is not None}
    for arm, row in result.summary.items():
        same = [one.test.agreement for one in result.of(arm) if one.test.agreement is not None]
        table.add_row(
            arm,
            spread_text(row.accuracy, 100, 2),
            spread_text(row.errors, 1, 1),
            f"{100 * sum(same) / len(same):.2f}" if same else "",
            *_costs(first.get(arm)),
        )
    return table


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
            yield _gain(arm, row.fewer_errors_than_alone)
    yield from _worse_teacher(result, recipe)
    for one in result.runs:
        if one.teacher_after is not None:
            accuracy = one.teacher_after.test.accuracy
            trained = f"its trained teacher has a test accuracy of {100 * accuracy:.2f} %"
            yield f"{one.arm} seed {one.seed}: {trained}"
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


def _gain(arm: str, gain: Gain) -> str:
    error = gain.standard_error
    doubt = "one pair, so no standard error" if error is None else f"standard error {error:.1f}, {gain.n} pairs"
    more = "fewer" if gain.mean >= 0 else "more"
    return f"{arm}: {abs(gain.mean):.1f} {more} errors than alone ({doubt})"


def _worse_teacher(result: RunResult, recipe: Recipe) -> Iterator[str]:
    """A trained teacher that is less often right than the student alone most likely got inputs of another kind."""
    block = recipe.teacher
    loaded = block is not None and (block.weights or block.is_trained)
    if not loaded or recipe.allow or not {"teacher", "alone"} <= result.summary.keys():
        return
    teacher, alone = (result.summary[arm].accuracy.mean for arm in ("teacher", "alone"))
    if teacher < alone:
        yield (
            f"the test accuracy of the teacher, {100 * teacher:.2f} %, is below that of the student alone, "
            f"{100 * alone:.2f} %: check that the teacher was trained with this normalisation "
            "(data.normalise), value range and size"
        )


def spread_text(spread: Spread, factor: float, digits: int) -> str:
    """``mean ± deviation``; the mean alone where there is one value."""
    mean = f"{factor * spread.mean:.{digits}f}"
    return mean if spread.deviation is None else f"{mean} ± {factor * spread.deviation:.{digits}f}"
