r"""Eight bits: rounded after training against trained to be rounded, over seeds.

    limbeck compare recipes/compare_cifar10.yaml
    python -m benchmarks.quantised cifar10 \
        --teacher runs/compare_cifar10-compared/teacher-seed0/teacher/seed0/teacher.safetensors

Each seed trains the student by `kd` three times: for the epochs in CASES and FURTHER epochs, for those in CASES, and
for these with the FURTHER epochs as the stage `quantise`, whose learning rate is a tenth. All are exported to ONNX. A
student that is finished is not trained again, one that was stopped is resumed.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Literal

from rich.console import Console
from scipy import stats  # type: ignore[import-untyped]

from limbeck.cli.progress import show
from limbeck.experiment.results import spread, spread_text
from limbeck.experiment.run import Experiment
from limbeck.exports.card import Results
from limbeck.exports.graph import Precision
from limbeck.exports.make import make
from limbeck.exports.options import Options
from limbeck.exports.source import Finished
from limbeck.recipe.read import read
from limbeck.tasks import TASKS

RECIPES = Path(__file__).parents[1] / "recipes"
CASES = {
    "mnist": ("compare_mnist.yaml", 20, ()),
    "cifar10": ("compare_cifar10.yaml", 8, ()),
    "mobilenet": ("compare_cifar10.yaml", 8, ("student.model=mobilenet_v2_half", "data.limit=4000")),
}
FURTHER = 4


def trained(case: str, arguments: argparse.Namespace, kind: Literal["trained", "shorter", "quantise"]) -> Path:
    """The folder of the finished students."""
    name, epochs, settings = CASES[case]
    folder: Path = arguments.out / f"{case}-{kind}"
    overrides = [
        *settings,
        "methods=[]",
        "method=kd" if case != "mnist" else "method={name: kd, temperature: 20, hard: 0.1, soft: 1.0}",
        f"teacher={{weights: {arguments.teacher}}}",
        f"seeds={list(range(arguments.seeds))}",
        "baseline=false",
        f"precision={32 if case == 'mnist' else 'auto'}",
        f"train.epochs={epochs + FURTHER if kind == 'trained' else epochs}",
        *[f"train.quantise={{epochs: {FURTHER}}}"] * (kind == "quantise"),
    ]
    show(Experiment(read(RECIPES / name, overrides=overrides), folder, resume=True), Console(), folder)
    return folder


def exported(folder: Path, seeds: int, precision: Precision) -> list[Results]:
    """What was measured on the file of each seed."""
    found = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as temporary:
            source = Finished(folder, f"kd/seed{seed}").source
            found.append(make(source, Path(temporary) / "export", Options(precision=precision)).card.results)
    return found


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--teacher", required=True, help="the file of the teacher's weights")
    parser.add_argument("--out", type=Path, default=Path("runs/quantised"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    case, (_, epochs, _) = arguments.case, CASES[arguments.case]
    longer, shorter = trained(case, arguments, "trained"), trained(case, arguments, "shorter")
    files: tuple[tuple[str, Path, Precision], ...] = (
        (f"fp32, {epochs + FURTHER} epochs", longer, "fp32"),
        ("int8 of it", longer, "int8"),
        (f"fp32, {epochs} epochs", shorter, "fp32"),
        ("int8 of it", shorter, "int8"),
        (f"int8, {epochs} epochs and {FURTHER} of `quantise`", trained(case, arguments, "quantise"), "int8"),
    )
    headline, whole = TASKS["classification"].headline, None
    print("| file | test accuracy % | points above the first [95 % interval] | bytes | latency ms, fp32 in PyTorch |")
    print("|---|---|---|---|---|")
    for name, folder, precision in files:
        results = exported(folder, arguments.seeds, precision)
        accuracy = [one.exported or 0.0 for one in results]
        whole = whole or accuracy
        gains = [100 * (new - old) for new, old in zip(accuracy, whole, strict=True)]
        mean, error = sum(gains) / len(gains), stats.sem(gains)
        low, high = stats.t.interval(0.95, len(gains) - 1, mean, error) if error > 0 else (mean, mean)
        of_file, of_student = (
            sum(one.latency[which].median_ms for one in results) / len(results) for which in ("file", "student")
        )
        print(
            f"| {name} | {spread_text(spread(accuracy), headline)} | {mean:+.2f} [{low:+.2f}, {high:+.2f}] | "
            f"{results[0].bytes:,} | {of_file:.3f}, {of_student:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
