"""The table of a comparison."""

from rich import box
from rich.table import Table

from limbeck.comparison.results import ComparisonResult, Versus, difference_text
from limbeck.experiment.results import spread_text
from limbeck.tasks import TASKS, Shown


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
