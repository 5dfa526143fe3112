"""The divergence of softened distributions, accurate also where they are nearly equal, as at a high temperature.

There the divergence is a small difference of large numbers: at T = 100 it can be negative in 32 bits. Tensors of the
size of the logits are therefore computed in 64 bits; larger ones, such as maps, are not.
"""

import math
from collections.abc import Sequence
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
        compute = in_32_bits if student.device.type == "mps" else in_64_bits
        values, difference = compute(student, teachers, temperature)
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


def in_64_bits(student: Tensor, teachers: Sequence[Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    """Values (N, K) whose sum over K is the divergence, and q - p (N, K)."""
    log_q, *members = [torch.log_softmax(wide(logits) / temperature, dim=1) for logits in (student, *teachers)]
    log_p = members[0] if len(members) == 1 else torch.stack(members).logsumexp(dim=0) - math.log(len(members))
    p = log_p.exp()
    return p * (log_p - log_q), log_q.exp() - p


def in_32_bits(student: Tensor, teachers: Sequence[Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    """The same in 32 bits, as the sum over the classes of p (e^r - 1 - r) with r = log q - log p."""
    student, members = student.float(), [logits.float() for logits in teachers]
    ratios = torch.stack([_log_ratio(student, logits, temperature) for logits in members])
    inverse = torch.expm1(-ratios.clamp(-1, 1)).mean(dim=0).log1p()  # log p - log q of the mean p
    far = torch.logsumexp(-ratios, dim=0) - math.log(len(members))
    ratio = -torch.where(ratios.abs().amax(dim=0) < 1, inverse, far)
    weights = torch.stack([torch.softmax(logits / temperature, dim=1) for logits in members]).mean(dim=0)
    series = ratio.square() * (1 / 2 + ratio * (1 / 6 + ratio * (1 / 24 + ratio / 120)))
    near = weights * torch.where(ratio.abs() < 0.1, series, torch.expm1(ratio.clamp_max(1)) - ratio)
    difference = torch.where(
        ratio.abs() < 1,
        weights * torch.expm1(ratio.clamp_max(1)),
        torch.softmax(student / temperature, dim=1) - weights,
    )
    values = torch.where(ratio.abs() < 1, near, difference - weights * ratio)
    return values, difference


def _log_ratio(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Log q - log p (N, K), with an error that is small relative to the difference itself."""
    logs = torch.log_softmax(teacher / temperature, dim=1)
    apart = (student - teacher) / temperature
    apart = apart - (logs.exp() * apart).sum(dim=1, keepdim=True)
    near = (logs.exp() * torch.expm1(apart.clamp_max(1))).sum(dim=1, keepdim=True).log1p()
    far = torch.logsumexp(logs + apart, dim=1, keepdim=True)
    return apart - torch.where(apart.amax(dim=1, keepdim=True) < 1, near, far)
