"""The result of a run whose networks are finished."""

from collections.abc import Mapping
from typing import Any

from limbeck.data import Data
from limbeck.experiment.results import SCHEMA, NetworkResult, RunResult, summarise
from limbeck.recipe.blocks import Recipe
from limbeck.tasks import task_of


def run_result(
    recipe: Recipe,
    data: Data,
    first: Mapping[str, NetworkResult],
    runs: tuple[NetworkResult, ...],
    notes: tuple[str, ...],
    decided: Mapping[str, Any],
) -> RunResult:
    """The networks of the ``first`` seed with their latencies, by arm, and every seed's figures beside them."""
    method = recipe.method["name"]
    own = task_of(data).own_metric
    return RunResult(
        schema=SCHEMA,
        name=recipe.name,
        task=data.task,
        method=method,
        seeds=tuple(recipe.seeds),
        teacher=first.get("teacher"),
        student=first[method],
        alone=first.get("alone"),
        summary=summarise(runs, data.task),
        splits=dict(data.origins),
        notes=notes,
        decided=dict(decided),
        runs=runs,
        metric=None if own is None else own.name,
    )
