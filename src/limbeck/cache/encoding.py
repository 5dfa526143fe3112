r"""A tap's tensor as it is stored, and back.

All of a tensor is stored as it is, rounded to the format's dtype. Of logits :math:`v` of C classes one can keep the
:math:`k` largest alone, with their classes S and one more number,

.. math:: r = \log \frac{1}{C - k} \sum_{j \notin S} e^{v_j},

the logit that every other class gets when it is read back. The sum over all :math:`e^{v_j}` is then what it was, so
that the softmax of what is read back keeps the probabilities of S, and spreads the rest evenly over the others. This
holds at temperature 1; at another one the k logits are still the teacher's own, and the tail is that even one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.cache.fingerprint import Format
from limbeck.core import LimbeckError, Tap

# How far two forwards of one network may differ, as a share of the largest number of a row: they sum in another order,
# in other kernels, as for another batch size. Six engines' forwards of ResNet32x4 were seen to differ by 7e-7 (12 units
# of rounding) in 32 bits, and by 4e-3 (one unit) in bfloat16; about ten times as much is left for other networks.
# Another teacher, view or sample differs by about as much as the numbers themselves.
_FORWARDS = {"32": 256 * 2.0**-24, "tf32": 8 * 2.0**-11, "bf16": 8 * 2.0**-8}

# How far rounding to a dtype may move a number: by a share of it, and by half the step at 0.
_ROUNDING = {"float32": (2.0**-24, 2.0**-150), "float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}


@dataclass(frozen=True)
class Part:
    """One array of a stored tap."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]  # of one sample

    @property
    def row_bytes(self) -> int:
        """Bytes a sample."""
        return self.dtype.itemsize * math.prod(self.shape)


def parts_of(form: Format, shape: tuple[int, ...]) -> tuple[Part, ...]:
    """The arrays that hold tensors of such a shape (one sample's), the widest numbers first.

    Raises:
        LimbeckError: top_k, but the shape is not (classes,), or there are not more classes than that.
    """
    dtype: torch.dtype = getattr(torch, form.dtype)
    if form.top_k is None:
        return (Part("values", dtype, shape),)
    if len(shape) != 1 or shape[0] <= form.top_k:
        raise LimbeckError(
            f"top_k is {form.top_k} for a tensor of {shape} a sample: allowed is 1 to classes - 1, "
            "and only for logits (classes,); leave top_k out to keep all"
        )
    parts = (Part("values", dtype, (form.top_k + 1,)), Part("classes", _index_dtype(shape[0]), (form.top_k,)))
    return tuple(sorted(parts, key=lambda part: -part.dtype.itemsize))  # so that each array is aligned


def encode(tap: Tap, tensor: Tensor, form: Format, index: Tensor) -> dict[str, Tensor]:
    """What is stored of a tensor (N, ...) of floats, by the names of `parts_of`, on the CPU.

    Args:
        tap: what it is of, to be named in an error.
        tensor: its rows.
        form: how they are stored.
        index: (N,) whose rows they are, to be named in an error.

    Raises:
        LimbeckError: it holds whole numbers, or a NaN, an infinite number or one that the dtype cannot hold.
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
    # stable, so that of equal logits the first class counts as the largest
    classes = values.sort(dim=1, descending=True, stable=True).indices[:, : form.top_k]
    kept = torch.cat([values.gather(1, classes), _even_rest(values, classes)], 1)
    return {"values": kept.to(dtype), "classes": classes.to(_index_dtype(values.shape[1]))}


def decode(stored: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The tensor (N, *shape), float32, that the arrays of `encode` stand for."""
    values = stored["values"].float()
    if "classes" not in stored:
        return values
    even = values[:, -1:].expand(-1, *shape).clone()
    return even.scatter_(1, stored["classes"].long(), values[:, :-1])


def deviation(stored: Mapping[str, Tensor], fresh: Tensor, form: Format, precision: str) -> tuple[Tensor, Tensor]:
    """How far stored rows are from the teacher's (N, ...) of now, and how far they may be; both (N,) float64.

    A stored number may differ from the fresh y by rounding, u |y| + s with the dtype's unit u and half its step s at 0,
    and by c max |y| over the row, by which two forwards of one network in the same precision may differ. Of the k
    largest logits, y are the fresh logits of the stored classes and the even logit of the others; and no other class
    may exceed the least of the stored ones by more than 2 c max |y|. Each row's worst number is told.

    Args:
        stored: as `encode` gave it.
        fresh: the tap's tensor.
        form: as it was stored.
        precision: in which the teacher computes: "32", "tf32" or "bf16".
    """
    now = fresh.detach().to("cpu", torch.float32).double()
    share, step = _ROUNDING[form.dtype]
    between = _FORWARDS[precision] * now.flatten(1).abs().amax(1, keepdim=True)
    surplus = now.new_zeros(len(now), 1)
    if form.top_k is not None:
        classes = stored["classes"].long()
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
    return torch.int16 if classes <= 2**15 else torch.int32


def _even_rest(values: Tensor, classes: Tensor) -> Tensor:
    """The logit (N, 1), float64, whose exponential is the mean of those of all other classes."""
    rest = values.double().scatter(1, classes, -torch.inf)
    most = rest.amax(1, keepdim=True)  # taken out, so that equal logits give themselves, and nothing overflows
    return most + ((rest - most).exp().sum(1, keepdim=True) / (values.shape[1] - classes.shape[1])).log()


def _loss(tap: Tap, values: Tensor, rounded: Tensor, index: Tensor) -> str:
    """What is wrong with the first row that holds no number, or would be stored as none."""
    first = int((~rounded.flatten(1).isfinite().all(1)).nonzero()[0])
    sample, row = int(index[first]), values[first]
    if not row.isfinite().all():
        return f"{tap} of sample {sample} holds a NaN or an infinite number: nothing can be learnt from it"
    return (
        f"{tap} of sample {sample} reaches {row.abs().max():.6g}, and {str(rounded.dtype).removeprefix('torch.')} ends "
        f"at {torch.finfo(rounded.dtype).max:.6g}: store it as bfloat16 or float32"
    )
