"""The table of all networks: quality, difference to the student alone, and cost."""

from limbeck.comparison.results import ArmResult, Versus
from limbeck.experiment.results import NetworkResult, Spread
from limbeck.report.found import Found
from limbeck.report.numbers import axis_of, counted, decimal, interval, signed
from limbeck.report.parts import Section, Table
from limbeck.tasks import TASKS, Shown

COSTS = ("network", "parameters", "multiply-accumulates", "file, bytes", "latency, ms", "95th percentile, ms")


def arms(found: Found) -> Section:
    """One table of quality over the seeds, and one of the costs of the first seed."""
    result = found.result
    figure = TASKS[result.task].headline
    rows, costs = [], []
    if result.teacher is not None and result.teachers is not None:
        rows.append(["teacher", "", _spread(result.teachers, figure), *[""] * 4])
        costs.append(_cost("teacher", result.teacher, result.teacher))
    for arm in result.arms:
        length = arm.epochs or next((len(seed.stages) for seed in found.epochs[arm.arm]), "")
        rows.append([arm.arm, str(length), _spread(arm.headline, figure), *_versus(arm.alone, figure)])
        costs.append(_cost(arm.arm, result.of(arm.arm)[0], arm))
    head = ["network", "epochs", axis_of(figure), "difference to alone", "95 % interval", "p adjusted", "verdict"]
    seeds = counted(len(result.seeds), "seed")
    text = [f"Test split, {seeds}, mean ± standard deviation. Costs are those of the first seed."]
    return Section("arms", "All networks", text, tables=[Table(head, rows), Table(COSTS, costs)])


def _spread(found: Spread, figure: Shown) -> str:
    mean = figure.number(found.mean)
    return mean if found.deviation is None else f"{mean} ± {figure.number(found.deviation)}"


def _versus(versus: Versus | None, figure: Shown) -> list[str]:
    if versus is None:
        return [""] * 4
    found = versus.judged
    against = "" if versus.arm == "alone" else f" (to {versus.arm})"
    p = "< 0.001" if found.p_adjusted < 0.001 else f"{found.p_adjusted:.3f}"
    return [f"{signed(found.paired.mean, figure)}{against}", interval(versus, figure), p, found.verdict]


def _cost(name: str, one: NetworkResult, timed: NetworkResult | ArmResult) -> list[str]:
    times = (None, None) if timed.latency is None else (timed.latency.median_ms, timed.latency.p95_ms)
    macs = "" if one.macs is None else f"{one.macs:,}"
    return [name, f"{one.parameters:,}", macs, f"{one.file_bytes:,}", *(decimal(time, 3) for time in times)]
