"""VkD: an orthogonal projection of the student's feature matches the teacher's normalised feature."""

from torch import Tensor, nn
from torch.nn.functional import layer_norm, smooth_l1_loss
from torch.nn.utils.parametrizations import orthogonal

from limbeck.connectors import AsMap, Through, as_map, map_shape
from limbeck.core import LimbeckError, Schedule, Setup, Stage, Tap, Term, weighted
from limbeck.methods.about import OF_OUTPUTS, About, Paper
from limbeck.methods.kd import label_terms
from limbeck.methods.reading import features

PAPER = Paper(
    "Miles, Elezi, Deng", "VkD: Improving Knowledge Distillation using Orthogonal Projections", 2024, "2403.06213"
)


def projection(student: int, teacher: int) -> nn.Module:
    """A linear map without bias, (N, D) to (N, D'), whose matrix has orthonormal columns, or rows if D' is below D.

    So a map to a space that is not smaller keeps all distances. The matrix stays orthonormal in training, because
    PyTorch's ``orthogonal`` computes it from the trained parameter. Source: roymiles/VkD (train.py, 0c9cc5e).
    """
    return orthogonal(nn.Linear(student, teacher, bias=False))


def vkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The smooth L1 distance of the projected feature and the teacher's after a LayerNorm, averaged over N and D'.

    The distance of two numbers is d² / 2 if d is below 1, and d - 1/2 above. The LayerNorm has no parameters: it
    subtracts the mean over D' and divides by the deviation, sqrt(variance + 1e-5); a constant feature becomes 0.
    Source: roymiles/VkD (engine.py, 0c9cc5e). No gradient flows to the teacher.

    Args:
        student: the projected feature (N, D').
        teacher: (N, D'); a map (N, D', H, W) or tokens (N, L, D') are averaged over the positions.
    """
    target = as_map(teacher.detach()).mean(dim=(2, 3))
    return smooth_l1_loss(student, layer_norm(target, target.shape[1:]))


def vkd(
    setup: Setup,
    *,
    hard: float | Schedule = 1.0,
    feature: float | Schedule = 1.0,
    soft: float | Schedule = 1.0,
    temperature: float = 1.0,
    student_layer: str = "",
    teacher_layer: str = "",
) -> tuple[Stage, ...]:
    """VkD: an orthogonal projection of the student's feature matches the teacher's normalised feature.

    The projection cannot do the work of the student: it rotates the feature, and drops dimensions if the teacher's
    feature is shorter. The weights are the authors' for DeiT. As the feature of a transformer they take the mean over
    its patches; to do so, name its last block or norm as ``student_layer``. Their student has a second classifier for
    the teacher's logits; here its only one learns them.

    Args:
        setup: epochs, optimizer and schedule.
        hard: weight of the cross-entropy with the labels.
        feature: alpha, weight of the distance between the features; a number or a schedule.
        soft: weight of the soft targets, see `kd`.
        temperature: T of the soft targets.
        student_layer: the layer that gives the feature; the default is the input of the classifier. A map (C, H, W) is
            averaged over its positions, and tokens (L, D) over their patches.
        teacher_layer: the same for the teacher.

    Raises:
        LimbeckError: a layer gives neither a vector nor a map nor tokens; the temperature is not above 0, or all
            weights are 0.
    """
    student, teacher = features(setup, student_layer, teacher_layer)
    widths = [_width(setup, one) for one in (student, teacher)]
    project = nn.Sequential(AsMap(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), projection(*widths))
    terms = {
        **label_terms(setup, hard=hard, soft=soft, temperature=temperature),
        "feature": Term(Through(project, vkd_loss), (student, teacher), feature),
    }
    return (Stage("vkd", weighted(terms), setup.epochs, setup.optimizer, setup.schedule),)


def _width(setup: Setup, one: Tap) -> int:
    shape = map_shape(setup.shape(one))
    if shape is None:
        raise LimbeckError(
            f"vkd reads vectors (D,), maps (C, H, W) and tokens (L, D) of a square of patches, but {one} gives "
            f"{setup.shape(one)}: name another layer"
        )
    return shape[0]


ABOUT = About(vkd, PAPER, tasks=OF_OUTPUTS)
