"""The table of all networks: quality, difference to a student alone, and cost."""

from limbeck.comparison.results import ArmResult, Versus
from limbeck.experiment.results import NetworkResult
from limbeck.report.found import Found
from limbeck.report.numbers import axis_of, counted, decimal, interval, over_seeds, signed
from limbeck.report.parts import Section, Table
from limbeck.tasks import TASKS, Shown

VERSUS = ("compared with", "difference", "95 % interval", "p adjusted", "verdict")
COSTS = ("network", "parameters", "multiply-accumulates", "file, bytes", "latency, ms", "95th percentile, ms")


def arms(found: Found) -> Section:
    """One table of quality over the seeds, and one of the costs of the first seed. Students alone are first."""
    result = found.result
    figure = TASKS[result.task].headline
    rows, costs = [], []
    if result.teacher is not None and result.teachers is not None:
        rows.append(["teacher", "", over_seeds(result.teachers, figure), *[""] * 5])
        costs.append(_cost("teacher", result.teacher, result.teacher))
    for arm in sorted(result.arms, key=lambda arm: arm.alone is not None):
        length = arm.epochs or next((len(seed.stages) for seed in found.epochs[arm.arm]), "")
        rows.append([arm.arm, str(length), over_seeds(arm.headline, figure), *_versus(arm.alone, figure)])
        costs.append(_cost(arm.arm, result.of(arm.arm)[0], arm))
    head = ["network", "epochs", axis_of(figure), *VERSUS]
    seeds = counted(len(result.seeds), "seed")
    text = [
        f"Test split, {seeds}, mean ± standard deviation. A method is compared with the student alone of as many "
        "epochs. Costs are those of the first seed."
    ]
    return Section("arms", "All networks", text, tables=[Table(head, rows), Table(COSTS, costs)])


def _versus(versus: Versus | None, figure: Shown) -> list[str]:
    if versus is None:
        return [""] * 5
    found = versus.judged
    p = "< 0.001" if found.p_adjusted < 0.001 else f"{found.p_adjusted:.3f}"
    return [versus.arm, signed(found.paired.mean, figure), interval(versus, figure), p, found.verdict]


def _cost(name: str, one: NetworkResult, timed: NetworkResult | ArmResult) -> list[str]:
    times = (None, None) if timed.latency is None else (timed.latency.median_ms, timed.latency.p95_ms)
    macs = "" if one.macs is None else f"{one.macs:,}"
    return [name, f"{one.parameters:,}", macs, f"{one.file_bytes:,}", *(decimal(time, 3) for time in times)]
