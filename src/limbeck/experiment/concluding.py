"""The result of a run whose networks are finished."""

from dataclasses import replace
from typing import TYPE_CHECKING

from limbeck.experiment.results import SCHEMA, NetworkResult, RunResult, summarise
from limbeck.tasks import task_of

if TYPE_CHECKING:
    from limbeck.experiment.run import Experiment


def run_result(experiment: "Experiment", runs: tuple[NetworkResult, ...]) -> RunResult:
    """The networks of the first seed with their latencies, and every seed's figures beside them."""
    method = experiment.recipe.method["name"]
    times = experiment.latencies(experiment.networks)
    first = {job.arm: found for job, found in reversed(list(experiment.results.items())) if job.arm in times}
    own = task_of(experiment.data).own_metric
    shown = {arm: replace(found, latency=times[arm]) for arm, found in first.items()}
    return RunResult(
        schema=SCHEMA,
        name=experiment.recipe.name,
        task=experiment.data.task,
        method=method,
        seeds=tuple(experiment.recipe.seeds),
        teacher=shown.get("teacher"),
        student=shown[method],
        alone=shown.get("alone"),
        summary=summarise(runs, experiment.data.task),
        splits=dict(experiment.data.origins),
        notes=experiment.lasting_notes,
        decided=experiment.decided,
        runs=runs,
        metric=None if own is None else own.name,
    )
