"""The divergence of softened distributions, accurate also where they are nearly equal, as at a high temperature.

There the divergence is a small difference of large numbers: at T = 100 it can be negative in 32 bits. Tensors of the
size of the logits are therefore computed in 64 bits; larger ones, such as maps, are not. On mps, which has no 64 bits,
the relative error of the gradient at T = 100 is about 3e-5 where the logits differ by 1.
"""

import math
from typing import Any

import torch
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """The tensor in 64 bits, or in 32 bits on a device without 64-bit floats (mps)."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """The value in the tensor's dtype, or in 32 bits if that is narrower."""
    return value.to(torch.promote_types(tensor.dtype, torch.float32))


def divergence(student: Tensor, *teachers: Tensor, temperature: float = 1.0, factor: float | None = None) -> Tensor:
    """KL(p || q) of each sample, (N,), or the factor times their sum. Never below 0. No gradient flows to the teachers.

    q is the softmax of the student's logits divided by T, and p the teacher's, or the arithmetic mean over several
    teachers. The value has at least 32 bits.

    Args:
        student: logits (N, K).
        teachers: logits (N, K), one tensor for each teacher.
        temperature: T > 0.
        factor: multiplies the sum over the samples, at least 0; None returns the values of the samples.
    """
    value: Tensor = _Divergence.apply(student, temperature, factor, *teachers)
    return value


class _Divergence(torch.autograd.Function):
    """`divergence` with its gradient (q - p) / T as one graph node, because every node adds time to a small step."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, temperature: float, factor: float | None, *teachers: Tensor) -> Tensor:
        log_q, *members = [torch.log_softmax(wide(logits) / temperature, dim=1) for logits in (student, *teachers)]
        log_p = members[0] if len(members) == 1 else torch.stack(members).logsumexp(dim=0) - math.log(len(members))
        p = log_p.exp()
        difference, values = log_q.exp() - p, p * (log_p - log_q)
        ctx.save_for_backward((difference * ((1.0 if factor is None else factor) / temperature)).to(student.dtype))
        value = values.sum(dim=1) if factor is None else values.sum() * factor
        return like(value.clamp_min(0), student)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # as under create_graph
            raise RuntimeError("the divergence of softened distributions is not differentiable twice")
        (slope,) = ctx.saved_tensors
        student = slope * gradient if gradient.dim() == 0 else slope * gradient.unsqueeze(1).to(slope.dtype)
        return (student, *(None for _ in ctx.needs_input_grad[1:]))
