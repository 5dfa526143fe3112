"""The tables of results, and what the results come to in sentences."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table

from limbeck.bench import report
from limbeck.experiment.run import Experiment
from limbeck.experiment.summary import summarise


def result_table(experiment: Experiment) -> Table:
    """One row a network: quality over the seeds, and cost."""
    results, figures = list(experiment.results.values()), experiment.figures
    summary = summarise(results)
    seeds = max(row["accuracy"]["n"] for row in summary.values())
    table = Table(
        title=f"{experiment.recipe.name}: test split, {seeds} seed{'s' if seeds > 1 else ''}, mean ± deviation",
        box=box.SIMPLE_HEAD,
        padding=0,  # its numbers are whole in 80 columns, the width where the output is no terminal
        show_edge=False,
    )
    for heading in (
        "",
        "accuracy %",
        f"errors of {results[0]['test']['samples']:,}",
        "agrees with teacher %",
        "parameters",
        "MACs",
        "latency ms",
        "p95 ms",
    ):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=not heading, overflow="fold")
    for arm, row in summary.items():
        agreement = [
            100 * result["test"]["agreement"]
            for result in results
            if result["arm"] == arm and "agreement" in result["test"]
        ]
        cost = figures.get(arm, {})
        table.add_row(
            arm,
            spread_text(row["accuracy"], 100, 2),
            spread_text(row["errors"], 1, 1),
            f"{sum(agreement) / len(agreement):.2f}" if agreement else "",
            _figure(cost.get("parameters"), ","),
            _figure(cost.get("macs"), ","),
            _figure(cost.get("latency_ms"), ".3f"),
            _figure(cost.get("latency_p95_ms"), ".3f"),
        )
    return table


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def verdicts(experiment: Experiment) -> Iterator[str]:
    """What the method gained over the student alone, and the omitted-class study where there is one."""
    for arm, row in summarise(experiment.results.values()).items():
        gain = row.get("fewer_errors_than_alone")
        if gain is not None:
            error = gain["standard_error"]
            doubt = "one pair, so no deviation" if error is None else f"standard error {error:.1f}, {gain['n']} pairs"
            more = "fewer" if gain["mean"] >= 0 else "more"
            yield f"{arm}: {abs(gain['mean']):.1f} {more} errors than alone ({doubt})"
    yield from _worse_teacher(experiment)
    for result in experiment.results.values():
        taught = result.get("teacher_after")
        if taught is not None:
            of, right = f"{result['arm']} seed {result['seed']}", taught["test"]["accuracy"]
            yield f"{of}: the teacher that it trained gets {100 * right:.2f} % of the test split right"
        study = result.get("bias_shift")
        if study is not None:
            before, after, oracle = study["before"], study["validation_tuned"], study["test_tuned"]
            yield (
                f"{result['arm']} seed {result['seed']}, classes {study['classes']}: {before['errors']} errors, "
                f"{100 * before['share_right']:.1f} % of them right; "
                f"bias {after['delta']:+.1f} (chosen on validation): "
                f"{after['errors']} errors, {100 * after['share_right']:.1f} % right; "
                f"bias {oracle['delta']:+.1f} (tuned on test, as the paper did): "
                f"{oracle['errors']} errors, {100 * oracle['share_right']:.1f} % right"
            )


def _worse_teacher(experiment: Experiment) -> Iterator[str]:
    """A teacher that came trained and is less often right than the student alone was most likely fed other inputs."""
    summary, block = summarise(experiment.results.values()), experiment.recipe.teacher
    if block is None or block.weights is None or experiment.recipe.allow or not {"teacher", "alone"} <= summary.keys():
        return
    teacher, alone = (summary[arm]["accuracy"]["mean"] for arm in ("teacher", "alone"))
    if teacher < alone:
        yield (
            f"the teacher gets {100 * teacher:.2f} % of the test split right, the student alone {100 * alone:.2f} %: "
            "was the teacher trained on inputs of another normalisation (data.normalise), value range or size?"
        )


def spread_text(spread: Mapping[str, Any], factor: float, digits: int) -> str:
    """``mean ± deviation``; the mean alone where there is one value."""
    mean = f"{factor * spread['mean']:.{digits}f}"
    return mean if spread["deviation"] is None else f"{mean} ± {factor * spread['deviation']:.{digits}f}"


def bench_tables(result: Mapping[str, Any]) -> Iterator[Table | str]:
    """The figures of a benchmark: a table a workload, and sentences on the rest."""
    for part in report.rows(result):
        headings, *lines = part.lines
        table = Table(*headings, title=part.title, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
        for line in lines:
            table.add_row(*line)
        yield table
    yield from report.sentences(result)
