"""How much source a newcomer reads for each of seven jobs: python tests/reading.py

A list has the files that must be opened to do the job; each line says why. A file in which only one line of a dict is
added (METHODS, SOURCES, MODELS, COMMANDS) does not count. `test_reading.py` holds the lists to their limits. With
``--write`` the script updates the table in CONTRIBUTING.md.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "limbeck"
CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
HEAD = "| job | files | lines | at most |\n|---|---|---|---|\n"


@dataclass(frozen=True)
class Job:
    """The files below `SOURCE` by path, with the reason to read each, and the most lines that they may have in all."""

    limit: int
    files: dict[str, str]


JOBS = {
    "a method": Job(
        450,
        {
            "core.py": "Tap, Term, Stage and Setup, of which a method consists",
            "methods/about.py": "the facts that a method's file states",
            "methods/kd.py": "an example that reads logits",
            "methods/mimic.py": "an example that reads features through a connector",
        },
    ),
    "a data source": Job(
        300,
        {
            "data/sources/base.py": "what a source is given and what it returns",
            "data/sources/bundled.py": "an example",
            "data/split.py": "Split and Data, the types of what it returns",
        },
    ),
    "a model": Job(
        250,
        {
            "models/vgg.py": "an example",
            "models/parts.py": "checks, blocks and initialisation that the models share",
        },
    ),
    "a command": Job(
        400,
        {
            "cli/doctor.py": "an example without a recipe",
            "cli/run.py": "an example with a recipe",
            "cli/recipe_options.py": "the options that every command with a recipe has",
            "cli/reporting.py": "turns errors into messages and exit codes",
            "cli/terminal.py": "the console that a command prints to",
        },
    ),
    "an exporter": Job(
        300,
        {
            "exports/graph.py": "what is exported",
            "exports/base.py": "what a backend is",
            "exports/openvino.py": "an example",
            "errors.py": "the error for what a user can fix",
        },
    ),
    "a section of the report": Job(
        400,
        {
            "report/arms.py": "an example without figures",
            "report/calibration.py": "an example with figures",
            "report/parts.py": "what a section consists of",
            "report/drawing.py": "draws a panel",
        },
    ),
    "several processes": Job(
        1000,
        {
            "train/processes.py": "gathers what the losses read; BatchNorm of the whole batch",
            "train/loop.py": "the step in which gradients are averaged",
            "data/batches.py": "the order of samples, which is divided among processes",
            "experiment/of_first.py": "the run folder, which the first process reads and writes",
            "experiment/measuring.py": "the outputs that are gathered",
        },
    ),
}


def lines(path: str) -> int:
    """As ``wc -l`` counts.

    Raises:
        FileNotFoundError: a list names a file that does not exist.
    """
    return (SOURCE / path).read_bytes().count(b"\n")


def table() -> str:
    """The table of the jobs in CONTRIBUTING.md."""
    rows = (
        f"| {name} | {', '.join(f'`{path}`' for path in job.files)} | {sum(map(lines, job.files))} | {job.limit} |\n"
        for name, job in JOBS.items()
    )
    return HEAD + "".join(rows)


def write() -> None:
    """Replace the table in CONTRIBUTING.md."""
    text = CONTRIBUTING.read_text()
    CONTRIBUTING.write_text(re.sub(re.escape(HEAD) + r"(\|.*\n)*", lambda _: table(), text))


def main() -> None:
    """Print every job, its files with their lines, and the limit."""
    for name, job in JOBS.items():
        counts = {path: lines(path) for path in job.files}
        total = sum(counts.values())
        print(f"{name}: {total:,} lines of at most {job.limit:,}{'' if total <= job.limit else ' (TOO MANY)'}")
        for path, reason in job.files.items():
            print(f"  {counts[path]:4} {path}: {reason}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write()
    main()
