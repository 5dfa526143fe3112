"""Several seeds' figures to means and deviations."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, sample standard deviation (None for one value) and n."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "n": len(values)}


def summarise(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy and errors on the test split by arm, and what the method gained over the student alone.

    Args:
        results: one mapping a trained network, with ``arm``, ``seed`` and ``test``. An ensemble's members are left
            out: the ensemble is the teacher.

    Returns:
        For each arm ``accuracy`` and ``errors`` as `spread` gives them. For each arm that shares at least one seed
        with ``alone``, also ``fewer_errors_than_alone``: the spread of the differences, paired by seed, and their
        ``standard_error`` (None for one pair).
    """
    arms: dict[str, dict[int, Mapping[str, Any]]] = {}
    for result in results:
        if result["arm"] == "member":
            continue
        arms.setdefault(result["arm"], {})[result["seed"]] = result["test"]
    summary: dict[str, Any] = {}
    for arm, tests in arms.items():
        summary[arm] = {key: spread([test[key] for test in tests.values()]) for key in ("accuracy", "errors")}
        pairs = [
            arms["alone"][seed]["errors"] - test["errors"]
            for seed, test in tests.items()
            if seed in arms.get("alone", {})
        ]
        if arm not in ("alone", "teacher") and pairs:
            gained = spread(pairs)
            error = None if gained["deviation"] is None else gained["deviation"] / len(pairs) ** 0.5
            summary[arm]["fewer_errors_than_alone"] = gained | {"standard_error": error}
    return summary
