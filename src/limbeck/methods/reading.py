"""What methods read where no layer is named: features, maps and logits, student and teacher in pairs."""

from collections.abc import Sequence
from typing import Literal

from limbeck.core import LimbeckError, NoClassifier, Outline, Section, Setup, Tap, tap

Pair = tuple[Tap, Tap]
"""A student's tap and a teacher's."""


def logits(setup: Setup, student_layer: str = "", teacher_layer: str = "") -> Pair:
    """The logits of both.

    Raises:
        LimbeckError: the teacher is an ensemble whose members are averaged as distributions.
    """
    teacher = (tap("teacher", teacher_layer),) if teacher_layer else setup.teacher_logits
    if len(teacher) > 1:
        raise LimbeckError(
            f"this method reads one teacher, this one is an ensemble of {len(teacher)}: "
            "give it mean: geometric, or name a member as teacher_layer: members.0"
        )
    return tap("student", student_layer), teacher[0]


def with_classifier(setup: Setup, network: str, *, method: str) -> Outline:
    """The outline of a network without whose linear classifier the method cannot do.

    Raises:
        LimbeckError: it has none.
    """
    try:
        return setup.outline(network)
    except NoClassifier as error:
        raise LimbeckError(
            f"{method} needs the linear classifier of the {network}, and there is none (an ensemble has none, nor has "
            "a head of another kind): take a single network, or a method of outputs alone, such as kd"
        ) from error


def features(setup: Setup, student_layer: str = "", teacher_layer: str = "") -> Pair:
    """The vectors that enter the classifiers, (N, D), where no layer is named."""
    student = tap("student", student_layer) if student_layer else setup.outline("student").feature
    return student, tap("teacher", teacher_layer) if teacher_layer else setup.outline("teacher").feature


def maps(
    setup: Setup,
    student_layers: tuple[str, ...] = (),
    teacher_layers: tuple[str, ...] = (),
    *,
    method: str,
    activated: bool = True,
) -> list[Pair]:
    """Pairs of maps (N, C, H, W), shallow to deep: by default what the sections give, the deepest with the deepest.

    Without ``activated`` the sections' maps are read before their last activation.

    Raises:
        LimbeckError: one side names more layers than the other; a network has no maps, a layer gives none.
    """

    def taps(network: str, layers: tuple[str, ...]) -> list[Tap]:
        if layers:
            return [tap(network, layer) for layer in layers]
        found = sections(setup, network, method=method)
        return [section.last if activated else section.pre_activation for section in found]

    pairs = _paired(taps("student", student_layers), taps("teacher", teacher_layers), student_layers, teacher_layers)
    for one in (one for pair in pairs for one in pair):
        if len(setup.shape(one)) != 3:
            raise LimbeckError(f"{method} reads maps (C, H, W), but {one} gives {setup.shape(one)}")
    return pairs


def sections(setup: Setup, network: str, *, method: str) -> tuple[Section, ...]:
    """The sections of a network.

    Raises:
        LimbeckError: it has none, because it has no maps.
    """
    found = setup.outline(network).sections
    if not found:
        raise LimbeckError(
            f"{method} compares maps (C, H, W), and the {network} has none: it gives vectors or tokens only; take a "
            "method that needs none, such as kd, sp, rkd or srrl"
        )
    return found


def last_map(setup: Setup, network: str, layer: str = "") -> Tap:
    """The map whose mean over its places enters the classifier, where the network is built so; else the feature.

    Raises:
        LimbeckError: the layer named gives neither a map nor a vector.
    """
    if layer:
        named = tap(network, layer)
        if len(setup.shape(named)) not in (1, 3):
            raise LimbeckError(
                f"{named} gives {setup.shape(named)}: this method reads a map (C, H, W) or a vector (D,)"
            )
        return named
    outline = setup.outline(network)
    return outline.sections[-1].last if outline.sections and outline.pools else outline.feature


def in_order(pairs: Sequence[Pair]) -> tuple[Tap, ...]:
    """The taps of `shared.over_layers`: the student's, then the teacher's."""
    return tuple(pair[side] for side in (0, 1) for pair in pairs)


def feature_pairs(
    setup: Setup,
    student_layers: tuple[str, ...],
    teacher_layers: tuple[str, ...],
    sections: Literal["last", "all"],
) -> list[Pair]:
    """Pairs of features of any shape, shallow to deep: those named, or by default the deepest with the deepest.

    Raises:
        LimbeckError: one side names more layers than the other.
    """
    deepest = -1 if sections == "last" else 0
    student = [tap("student", name) for name in student_layers] or _depths(setup, "student")[deepest:]
    teacher = [tap("teacher", name) for name in teacher_layers] or _depths(setup, "teacher")[deepest:]
    return _paired(student, teacher, student_layers, teacher_layers)


def _depths(setup: Setup, network: str) -> list[Tap]:
    outline = setup.outline(network)
    return [section.last for section in outline.sections] or list(outline.hidden) or [outline.feature]


def _paired(student: list[Tap], teacher: list[Tap], student_named: object, teacher_named: object) -> list[Pair]:
    """The deepest with the deepest; where layers are named, as many of one side as of the other."""
    if (student_named or teacher_named) and len(student) != len(teacher):
        raise LimbeckError(
            f"student_layers has {len(student)} layers and teacher_layers {len(teacher)}: name them in pairs"
        )
    count = min(len(student), len(teacher))
    return list(zip(student[-count:], teacher[-count:], strict=True))
