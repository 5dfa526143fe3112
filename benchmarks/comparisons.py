"""The table of a comparison as Markdown, for docs/comparisons.md.

python -m benchmarks.comparisons runs/compare_mnist-compared
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from limbeck.comparison.results import ComparisonResult, difference_text, evidence, read
from limbeck.experiment.results import spread_text
from limbeck.tasks import TASKS


def table(result: ComparisonResult) -> Iterator[str]:
    """The lines: a row for each arm, and below it what the seeds can show."""
    figure = TASKS[result.task].headline
    unit = " %" * figure.percent
    yield f"| | epochs | {figure.label}{unit} | compared with | difference [95 % interval] | p adjusted | verdict |"
    yield "|---|---|---|---|---|---|---|"
    if result.teachers is not None:
        yield f"| teacher | | {spread_text(result.teachers, figure)} | | | | |"
    for arm in result.arms:
        versus, cells = arm.alone, [f"`{arm.arm}`", str(arm.epochs), spread_text(arm.headline, figure)]
        if versus is not None:
            cells += [f"`{versus.arm}`", difference_text(versus, figure)]
            cells += [f"{versus.judged.p_adjusted:.3f}", versus.judged.verdict]
        yield f"| {' | '.join([*cells, *[''] * (7 - len(cells))])} |"
    yield ""
    yield from (f"- {line}" for line in evidence(result))


def main() -> None:
    """Print the table of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print("\n".join(table(read(parser.parse_args().folder))))


if __name__ == "__main__":
    main()
