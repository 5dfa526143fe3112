r"""How a tap's tensor is stored and read back.

A tensor is rounded to the format's dtype. Of logits :math:`v` of C classes, ``top_k`` keeps only the :math:`k` largest,
their classes S, and one more number,

.. math:: r = \log \frac{1}{C - k} \sum_{j \notin S} e^{v_j},

which is the logit of every other class when the row is read back. The sum over all :math:`e^{v_j}` stays the same, so
the softmax of the row keeps the probabilities of S and spreads the rest evenly over the other classes. This holds at
temperature 1. At any temperature the k logits are the teacher's, and all others are :math:`r`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.cache.fingerprint import Format
from limbeck.core import LimbeckError, Tap

# How far two forwards of one network may differ, as a share of the largest number of a row: kernels sum in another
# order, for example for another batch size. Measured with six engines, forwards of ResNet32x4 differ by 7e-7 (12 units
# of rounding) in 32 bits, and by 4e-3 (one unit) in bfloat16. About ten times as much is allowed, for other networks.
# The outputs of another teacher, view or sample differ by about as much as the numbers themselves.
_FORWARDS = {"32": 256 * 2.0**-24, "tf32": 8 * 2.0**-11, "bf16": 8 * 2.0**-8}

# By how much rounding to a dtype may change a number: a share of the number, and half the step at 0.
_ROUNDING = {"float32": (2.0**-24, 2.0**-150), "float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}


@dataclass(frozen=True)
class Part:
    """One tensor that is stored for a tap."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]  # of one sample

    @property
    def row_bytes(self) -> int:
        """Bytes a sample."""
        return self.dtype.itemsize * math.prod(self.shape)


def parts_of(form: Format, shape: tuple[int, ...]) -> tuple[Part, ...]:
    """The tensors that are stored for a tap whose samples have this shape.

    Raises:
        LimbeckError: the format has a top_k, and the shape is not (classes,) with more classes than top_k.
    """
    dtype: torch.dtype = getattr(torch, form.dtype)
    if form.top_k is None:
        return (Part("values", dtype, shape),)
    if len(shape) != 1 or shape[0] <= form.top_k:
        raise LimbeckError(
            f"top_k is {form.top_k} for a tensor of {shape} a sample: allowed is 1 to classes - 1, "
            "and only for logits (classes,); leave out top_k to keep all logits"
        )
    return Part("values", dtype, (form.top_k + 1,)), Part("classes", _index_dtype(shape[0]), (form.top_k,))


def encode(tap: Tap, tensor: Tensor, form: Format, index: Tensor) -> dict[str, Tensor]:
    """The tensors that are stored for a floating tensor (N, ...), by the names of `parts_of`, on the CPU.

    Args:
        tap: for error messages.
        tensor: the rows of the tap.
        form: how they are stored.
        index: (N,) the samples of the rows, for error messages.

    Raises:
        LimbeckError: the tensor is not floating, or holds a NaN, an infinite number or one that the dtype cannot hold.
    """
    if not tensor.is_floating_point():
        raise LimbeckError(f"{tap} gives {tensor.dtype}: a store holds floating numbers")
    values = tensor.detach().to("cpu", torch.float32)
    dtype: torch.dtype = getattr(torch, form.dtype)
    rounded = values.to(dtype)
    if not rounded.isfinite().all():
        raise LimbeckError(_loss(tap, values, rounded, index))
    if form.top_k is None:
        return {"values": rounded}
    classes = _largest(values, form.top_k)
    kept = torch.cat([values.gather(1, classes), _even_rest(values, classes)], 1)
    return {"values": kept.to(dtype), "classes": classes.to(_index_dtype(values.shape[1]))}


def decode(stored: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The tensor (N, *shape), float32, that `encode` was called on, but for rounding and top_k."""
    values = stored["values"].float()
    if "classes" not in stored:
        return values
    even = values[:, -1:].expand(-1, *shape).clone()
    return even.scatter_(1, class_indices(stored["classes"]), values[:, :-1])


def deviation(stored: Mapping[str, Tensor], fresh: Tensor, form: Format, precision: str) -> tuple[Tensor, Tensor]:
    """How far stored rows are from the teacher's fresh rows (N, ...), and how far they may be; both (N,) float64.

    A stored number may differ from the fresh number y by rounding, u |y| + s with the dtype's unit u and half its step
    s at 0, and by c max |y| over the row, by which two forwards of one network in the same precision may differ. With
    top_k, y are the fresh logits of the stored classes and the even logit of all others, and no other class may exceed
    the least stored one by more than 2 c max |y|. Each row is represented by its worst number.

    Args:
        stored: what `encode` returned.
        fresh: what the teacher gives now.
        form: how the rows were stored.
        precision: in which the teacher computes: "32", "tf32" or "bf16".
    """
    now = fresh.detach().to("cpu", torch.float32).double()
    share, step = _ROUNDING[form.dtype]
    between = _FORWARDS[precision] * now.flatten(1).abs().amax(1, keepdim=True)
    surplus = now.new_zeros(len(now), 1)
    if form.top_k is not None:
        classes = class_indices(stored["classes"])
        inside = now.gather(1, classes)
        surplus = now.scatter(1, classes, -torch.inf).amax(1, keepdim=True) - inside.amin(1, keepdim=True)
        now = torch.cat([inside, _even_rest(now, classes)], 1)
    now = now.flatten(1)
    away = (stored["values"].double().flatten(1) - now).abs()
    allowed = now.abs() * share + step + between
    away, allowed = torch.cat([away, surplus], 1), torch.cat([allowed, 2 * between + step], 1)
    worst = (away / allowed).argmax(1, keepdim=True)
    return away.gather(1, worst)[:, 0], allowed.gather(1, worst)[:, 0]


def _index_dtype(classes: int) -> torch.dtype:
    """int16, whose bits are those of an unsigned number, as far as it goes."""
    return torch.int16 if classes <= 2**16 else torch.int32


def class_indices(stored: Tensor) -> Tensor:
    """The classes (N, top_k), int64, of the stored ones."""
    return stored.long() & 0xFFFF if stored.dtype == torch.int16 else stored.long()


def _largest(values: Tensor, count: int) -> Tensor:
    """The classes (N, count) of the largest logits of each row, in descending order; of equal logits the first.

    This is what a stable sort of (N, classes) gives, which takes longer.
    """
    largest, classes = values.topk(count + 1, dim=1)
    classes = classes[:, :count].contiguous()
    tied = (largest[:, 1:] == largest[:, :-1]).any(1)  # then the order of topk is arbitrary
    if tied.any():
        bits = (values[tied] + 0.0).view(torch.int32)  # 0.0 makes -0.0 and 0.0 equal
        ordered = (bits ^ (bits >> 31 & 0x7FFFFFFF)).long()  # ordered as the floating numbers are
        last = values.shape[1] - 1
        distinct = (ordered << 32) + torch.arange(last, -1, -1)  # of equal logits, the first class is the largest
        classes[tied] = last - (distinct.topk(count, dim=1).values & 0xFFFFFFFF)
    return classes


def _even_rest(values: Tensor, classes: Tensor) -> Tensor:
    """The logit (N, 1), float64, whose exponential is the mean of those of all other classes."""
    rest = values.double().scatter(1, classes, -torch.inf)
    most = rest.amax(1, keepdim=True)  # subtracted, so that nothing overflows and equal logits stay exact
    return most + ((rest - most).exp().sum(1, keepdim=True) / (values.shape[1] - classes.shape[1])).log()


def _loss(tap: Tap, values: Tensor, rounded: Tensor, index: Tensor) -> str:
    """The message for the first row that is not finite, or that the dtype cannot hold."""
    first = int((~rounded.flatten(1).isfinite().all(1)).nonzero()[0])
    sample, row = int(index[first]), values[first]
    if not row.isfinite().all():
        return f"{tap} of sample {sample} holds a NaN or an infinite number: nothing can be learned from it"
    return (
        f"{tap} of sample {sample} reaches {row.abs().max():.6g}, and {str(rounded.dtype).removeprefix('torch.')} ends "
        f"at {torch.finfo(rounded.dtype).max:.6g}: store it as bfloat16 or float32"
    )
