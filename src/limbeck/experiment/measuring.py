"""A trained network's figures and cost."""

import torch
from torch import Tensor, nn

from limbeck.data import Batches, Data, Split
from limbeck.data.dividing import part_of
from limbeck.evaluate import Figures, file_bytes, macs, parameters, predict
from limbeck.experiment.events import Job
from limbeck.experiment.results import NetworkResult
from limbeck.experiment.workspace import Workspace
from limbeck.tasks import task_of
from limbeck.train.engine import Engine

EVALUATION_BATCH = 500


def outputs_of(network: nn.Module, split: Split, data: Data, engine: Engine, *, name: str = "network") -> Tensor:
    """The outputs (N, K) on a split of what errors call ``name``, in 32 bits, in eval mode, without augmentation."""
    ours, total = engine.processes, len(split)
    divided = 1 < ours.count <= total
    if divided:
        start, most = part_of(total, ours.rank, ours.count).start, -(-total // ours.count)
        split = split.select((start + torch.arange(most)).clamp(max=total - 1))  # all run as many batches
    batches = Batches(
        split, batch_size=EVALUATION_BATCH, seed=0, mean=data.mean, std=data.std, shuffle=False, device=engine.device
    )
    outputs = predict(engine.place(network), batches(0), name=name)
    return ours.gather(outputs, total) if divided else outputs


def measure(
    job: Job, network: nn.Module, workspace: Workspace, *, teacher: Tensor | None = None, name: str = ""
) -> tuple[NetworkResult, Tensor]:
    """A trained network's figures on the test split and on validation, its cost, and its outputs (N, K) on test.

    The test split is read to evaluate trained networks, never to train or to select. ``teacher`` is the teacher's
    outputs on it, for agreement and KL. Errors call the network ``name``, by default as the job.
    """
    data, engine, name = workspace.data, workspace.engine, name or str(job)

    def figures(which: str, split: Split, guide: Tensor | None) -> tuple[Figures, Tensor]:
        outputs = outputs_of(network, split, data, engine, name=name)
        known = {"teacher_logits": guide, "name": name, "split": which, "files": split.names}
        return task_of(data).figures(outputs, split.targets, **known), outputs

    own = task_of(data).own_metric
    test, outputs = figures("test", data.test, teacher)
    result = NetworkResult(
        arm=job.arm,
        seed=job.seed,
        member=job.member,
        test=test,
        validation=figures("validation", data.validation, None)[0] if len(data.validation) else None,
        parameters=parameters(network),
        macs=macs(network, data.shape),
        file_bytes=file_bytes(network),
        own_metric=None if own is None else own(outputs, data.test.targets),
    )
    return result, outputs


def score(network: nn.Module, workspace: Workspace) -> float | None:
    """A network's score on the validation split in the engine's precision; None where there is no such split."""
    split = workspace.data.validation
    if len(split) == 0:
        return None
    with workspace.engine.autocast():
        outputs = outputs_of(network, split, workspace.data, workspace.engine)
    return task_of(workspace.data).score(outputs, split.targets)
