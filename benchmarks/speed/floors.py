"""The floor of a step: the networks' own work in its fastest eager form, without data, loss and optimizer."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.speed.workloads import Case, upto
from limbeck.data import normalise
from limbeck.train.fuse import fold


def floor(case: Case, student: nn.Module, teacher: nn.Module | None, *, bf16: bool) -> Iterator[float]:
    """Run the student forward and backward without end, yielding the scalar that the backward starts from.

    Args:
        case: the inputs, and the layer at which the forward ends.
        student: in training mode; its weights stay as they are.
        teacher: run forward in each step, with BatchNorm folded into the convolutions; None leaves it out.
        bf16: the student's forward under autocast, the teacher's weights and inputs in bfloat16.

    Raises:
        RuntimeError: see `fastest`.
    """
    workload = case.workload
    inputs = normalise(case.images[: workload.batch_size], case.data.mean, case.data.std)
    inputs = inputs.to(memory_format=torch.channels_last)
    part = upto(student, workload.ends).to(memory_format=torch.channels_last).train()
    teacher_inputs = inputs.bfloat16() if bf16 else inputs
    fused = None if teacher is None else fastest(upto(teacher, workload.ends), inputs[:2], teacher_inputs.dtype)
    while True:
        if fused is not None:
            with torch.no_grad():
                fused(teacher_inputs)
        part.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = part(inputs).sum()
        value.backward()
        yield value.item()


def fastest(network: nn.Module, example: Tensor, dtype: torch.dtype) -> nn.Module:
    """A copy of a frozen network in its fastest eager form: BatchNorm folded, channels_last, weights of this dtype.

    Raises:
        RuntimeError: a BatchNorm could not be folded, so that the copy is not the fastest form.
    """
    folded, _ = fold(network.eval(), example, ())
    left = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if left:
        raise RuntimeError(f"the teacher of the floor keeps BatchNorms that should be folded: {', '.join(left)}")
    return folded.to(dtype).to(memory_format=torch.channels_last)
