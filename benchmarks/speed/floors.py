"""The floor under a step: the networks' own work in its fastest eager form. No data, no loss, no optimizer."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.speed.workloads import Case, upto
from limbeck.data import normalise
from limbeck.train.fuse import fold


def floor(case: Case, student: nn.Module, teacher: nn.Module | None, *, bf16: bool) -> Iterator[float]:
    """Run the student forward and backward for ever, giving the scalar that the backward starts from.

    Args:
        case: the inputs, and how far the networks are needed.
        student: in training mode; its weights stay as they are.
        teacher: run forward in each step, its norms folded into its convolutions; None leaves it out.
        bf16: the student's forward by autocast, the teacher's weights and inputs in bfloat16.

    Raises:
        RuntimeError: see `fastest`.
    """
    workload = case.workload
    inputs = normalise(case.images[: workload.batch_size], case.data.mean, case.data.std)
    inputs = inputs.to(memory_format=torch.channels_last)
    part = upto(student, workload.ends).to(memory_format=torch.channels_last).train()
    taught = inputs.bfloat16() if bf16 else inputs
    quick = None if teacher is None else fastest(upto(teacher, workload.ends), inputs[:2], taught.dtype)
    while True:
        if quick is not None:
            with torch.no_grad():
                quick(taught)
        part.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = part(inputs).sum()
        value.backward()
        yield value.item()


def fastest(network: nn.Module, few: Tensor, dtype: torch.dtype) -> nn.Module:
    """A copy of a frozen network in its fastest eager form: folded, channels_last, its weights of this type.

    Raises:
        RuntimeError: a norm could not be folded; what is measured with it would be no floor.
    """
    folded, _ = fold(network.eval(), few, ())
    left = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if left:
        raise RuntimeError(f"the floor's teacher keeps norms that were to be folded: {', '.join(left)}")
    return folded.to(dtype).to(memory_format=torch.channels_last)
