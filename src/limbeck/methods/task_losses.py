"""The losses of tasks other than classification: several labels, numbers, points, and the class of every place.

A hard loss compares the student with the targets, a soft loss with the teachers. Soft losses on probabilities are
computed in 64 bits (see `distributions`) and are not differentiable twice. No gradient flows to the teachers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.data.targets import IGNORED
from limbeck.methods.distributions import divergence


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, summed over the labels and averaged over N, as is `binary_soft_loss`.

    Args:
        outputs: logits (N, K).
        targets: (N, K), the probability of each label: 1.0 or 0.0 for a label that the sample has or has not.
    """
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="sum") / len(outputs)


def l2(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error over all numbers.

    Args:
        outputs: (N, D).
        targets: (N, D), or points (N, D/2, 2) whose order in the outputs is x0, y0, x1, y1, ...
    """
    return F.mse_loss(outputs, targets.view_as(outputs))


def smooth_l1(outputs: Tensor, targets: Tensor, *, beta: float = 1.0) -> Tensor:
    """Mean over all numbers of e² / (2 beta) for errors e below beta in absolute value, and |e| - beta / 2 for others.

    Args:
        outputs: (N, D).
        targets: (N, D) or (N, D/2, 2), as in `l2`.
        beta: at least 0, in the units of the targets. At 1, coordinates in [0, 1] never reach the linear part.
    """
    return F.smooth_l1_loss(outputs, targets.view_as(outputs), beta=beta)


def wing(outputs: Tensor, targets: Tensor, *, w: float = 10.0, eps: float = 2.0) -> Tensor:
    """Wing loss, averaged over all numbers: w ln(1 + |e| / eps) for |e| < w, else |e| - C with C = w - w ln(1 + w/eps).

    Feng et al. 2018, "Wing Loss for Robust Facial Landmark Localisation with Convolutional Neural Networks",
    arXiv:1711.06753, Eq. 5, which is summed over the coordinates of a face. C makes the loss continuous. The gradient
    of an error of 0 is 0.

    Args:
        outputs: (N, D).
        targets: (N, D) or (N, D/2, 2), as in `l2`.
        w: end of the logarithmic part, above 0, in the units of the targets. The default is the paper's, for pixels;
            divide it by the size of the image for coordinates in [0, 1].
        eps: above 0, in the units of the targets as well: a smaller value gives small errors more weight.
    """
    error = (outputs - targets.view_as(outputs)).abs()
    c = w - w * math.log1p(w / eps)
    return torch.where(error < w, w * torch.log1p(error / eps), error - c).mean()


def places_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy at T = 1, averaged over the places of the batch that count; 0 if there is none.

    Args:
        outputs: logits (N, K, H, W).
        targets: class indices (N, H, W), integers; 255 does not count.
    """
    total = F.cross_entropy(outputs, targets.long(), ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp_min(1)


def binary_soft_loss(
    student: Tensor, *teachers: Tensor, temperature: float, temperature_squared: bool = True
) -> Tensor:
    """T² * KL(p || q) of each label, summed over the labels and averaged over N: soft targets for independent labels.

    q is the sigmoid of the student's logits divided by T, and p the teacher's, or the arithmetic mean over several
    teachers. Each label is a distribution over two classes. The value is never below 0.

    Args:
        student: logits (N, K).
        teachers: logits (N, K), one tensor for each teacher.
        temperature: T > 0.
        temperature_squared: multiply by T², which keeps the size of the gradient when T changes.
    """
    factor = (temperature**2 if temperature_squared else 1.0) / len(student)
    pairs = [torch.stack((logits, torch.zeros_like(logits)), dim=1) for logits in (student, *teachers)]
    return divergence(*pairs, temperature=temperature, factor=factor)


def output_distance(student: Tensor, *teachers: Tensor) -> Tensor:
    """Mean squared difference from the mean of the teachers' outputs, over all numbers.

    It is computed in the precision of the outputs, because it needs no more.

    Args:
        student: (N, ...).
        teachers: (N, ...), one tensor for each teacher.
    """
    return F.mse_loss(student, torch.stack(teachers).mean(dim=0).detach())


def places_soft_loss(
    student: Tensor, *teachers: Tensor, temperature: float, temperature_squared: bool = True
) -> Tensor:
    """T² * KL(p || q) of the classes of each place, averaged over all places of the batch: soft targets for an image.

    p and q are as in `kd.soft_loss`. The loss needs no labels: places whose label is ignored count as well, because
    the teacher also says something there. In 64 bits, it needs several times the memory of the logits.

    Args:
        student: logits (N, K, H, W).
        teachers: logits (N, K, H, W), one tensor for each teacher.
        temperature: T > 0.
        temperature_squared: as in `binary_soft_loss`.
    """
    places = student.numel() // student.shape[1]
    factor = (temperature**2 if temperature_squared else 1.0) / places
    return divergence(student, *teachers, temperature=temperature, factor=factor)
