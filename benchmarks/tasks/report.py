"""The table of a demonstration: means over the seeds, and 95 % intervals."""

from collections.abc import Iterator, Sequence

from limbeck.data.targets import TaskName
from limbeck.experiment.results import Gain, NetworkResult, Spread, summarise
from limbeck.tasks import TASKS


def half_width(deviation: float, n: int) -> float:
    """Half the width of the 95 % interval of a mean of n values: t(0.975, n - 1) * deviation / sqrt(n).

    Args:
        deviation: the sample standard deviation.
        n: 2 or more.
    """
    from scipy.stats import t  # type: ignore[import-untyped]  # takes a second to import

    return float(t.ppf(0.975, n - 1) * deviation / n**0.5)


def table(results: Sequence[NetworkResult], task: TaskName) -> Iterator[str]:
    """The lines of a table in Markdown, with one row for each arm in the order of the results.

    A difference is paired by seed and positive if the method is better than the student alone.
    """
    figure = TASKS[task].headline

    def interval(values: Spread | Gain, sign: str) -> str:
        factor = 100 if figure.percent else 1
        digits = 2 if figure.percent else figure.digits
        mean = f"{factor * values.mean:{sign}.{digits}f}"
        if values.deviation is None:
            return mean
        return f"{mean} ± {factor * half_width(values.deviation, values.n):.{digits}f}"

    heading = f"{figure.label}{' %' * figure.percent}, {'lower' if figure.falls else 'higher'} is better"
    yield f"| | {heading} | better than alone by | n | parameters |"
    yield "|---|---|---|---|---|"
    parameters = {result.arm: result.parameters for result in results}
    for arm, row in summarise(results, task).items():
        gain = "" if row.better_than_alone is None else interval(row.better_than_alone, "+")
        yield f"| `{arm}` | {interval(row.headline, '')} | {gain} | {row.headline.n} | {parameters[arm]:,} |"
