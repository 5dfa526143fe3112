"""The tensors that methods read by default: logits, features and maps of student and teacher, in pairs."""

from collections.abc import Sequence
from typing import Literal

from limbeck.core import LimbeckError, NoClassifier, Outline, Section, Setup, Tap, tap

Pair = tuple[Tap, Tap]
"""A tap of the student and one of the teacher."""


def outputs(setup: Setup, student_layer: str = "", teacher_layer: str = "") -> tuple[Tap, ...]:
    """The student's logits, then the teacher's: one tap for each member of an ensemble averaged as distributions."""
    teachers = (tap("teacher", teacher_layer),) if teacher_layer else setup.teacher_logits
    return (tap("student", student_layer), *teachers)


def logits(setup: Setup, student_layer: str = "", teacher_layer: str = "") -> Pair:
    """The logits of the student and of one teacher.

    Raises:
        LimbeckError: the teacher is an ensemble whose members are averaged as distributions.
    """
    student, *teachers = outputs(setup, student_layer, teacher_layer)
    if len(teachers) > 1:
        raise LimbeckError(
            f"this method reads the logits of one teacher, and the teacher is an ensemble of {len(teachers)}: "
            "set mean: geometric for the ensemble, or name a member as teacher_layer: members.0"
        )
    return student, teachers[0]


def with_classifier(setup: Setup, network: str, *, method: str) -> Outline:
    """The outline of a network, for a method that needs its linear classifier.

    Raises:
        LimbeckError: the network has no linear classifier.
    """
    try:
        return setup.outline(network)
    except NoClassifier as error:
        raise LimbeckError(
            f"{method} needs the linear classifier of the {network}, which has none (an ensemble and a network "
            "with another kind of head have none): use a single network, or a method that reads only outputs, such as "
            "kd"
        ) from error


def features(setup: Setup, student_layer: str = "", teacher_layer: str = "") -> Pair:
    """The features to compare: by default the vectors (N, D) that enter the classifiers."""
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
    """Pairs of maps (N, C, H, W), shallow to deep: by default those of the sections, paired from the deepest.

    With ``activated=False`` the sections' maps are read before their last activation.

    Raises:
        LimbeckError: the sides name different numbers of layers; a network has no maps, or a layer's output is not one.
    """
    student = network_maps(setup, "student", student_layers, method=method, activated=activated)
    teacher = network_maps(setup, "teacher", teacher_layers, method=method, activated=activated)
    return paired(student, teacher, student_layers, teacher_layers)


def network_maps(
    setup: Setup, network: str, layers: tuple[str, ...], *, method: str, activated: bool = True
) -> list[Tap]:
    """The maps (N, C, H, W) of one network, shallow to deep: those of the layers, or by default of the sections.

    Raises:
        LimbeckError: the network has no maps, or a layer's output is not one.
    """
    if not layers:
        found = sections(setup, network, method=method)
        return [section.last if activated else section.pre_activation for section in found]
    named = [tap(network, layer) for layer in layers]
    for one in named:
        if len(setup.shape(one)) != 3:
            raise LimbeckError(f"{method} reads maps (C, H, W), but {one} gives {setup.shape(one)}")
    return named


def sections(setup: Setup, network: str, *, method: str) -> tuple[Section, ...]:
    """The sections of a network.

    Raises:
        LimbeckError: the network has no maps.
    """
    found = setup.outline(network).sections
    if not found:
        raise LimbeckError(
            f"{method} compares maps (C, H, W), but the {network} returns only vectors or tokens; use a "
            "method that needs no maps, such as kd, sp, rkd or srrl"
        )
    return found


def check_map_or_vector(
    setup: Setup, one: Tap, *, method: str, options: str = "student_layers and teacher_layers"
) -> None:
    """Raise LimbeckError unless the tensor of a tap is a map (C, H, W) or a vector (D,)."""
    if len(setup.shape(one)) not in (1, 3):
        raise LimbeckError(
            f"{method} reads maps (C, H, W) and vectors (D,), but {one} gives {setup.shape(one)}: name other "
            f"layers as {options} (the input of a classifier is written as its name and :input)"
        )


def last_map(setup: Setup, network: str, layer: str = "", *, method: str) -> Tap:
    """The map that global average pooling turns into the feature, or the feature of a network without such a map.

    Raises:
        LimbeckError: the output of the named layer is neither a map nor a vector.
    """
    if layer:
        named = tap(network, layer)
        check_map_or_vector(setup, named, method=method, options=f"{network}_layer")
        return named
    outline = setup.outline(network)
    return outline.sections[-1].last if outline.sections and outline.pools else outline.feature


def in_order(pairs: Sequence[Pair]) -> tuple[Tap, ...]:
    """The student's taps, then the teacher's: the order of `shared.over_layers`."""
    return tuple(pair[side] for side in (0, 1) for pair in pairs)


def feature_pairs(
    setup: Setup,
    student_layers: tuple[str, ...],
    teacher_layers: tuple[str, ...],
    sections: Literal["last", "all"],
) -> list[Pair]:
    """Pairs of features of any shape, shallow to deep: by default those of the sections, paired from the deepest.

    Raises:
        LimbeckError: the sides name different numbers of layers.
    """
    deepest = -1 if sections == "last" else 0
    student = [tap("student", name) for name in student_layers] or _depths(setup, "student")[deepest:]
    teacher = [tap("teacher", name) for name in teacher_layers] or _depths(setup, "teacher")[deepest:]
    return paired(student, teacher, student_layers, teacher_layers)


def _depths(setup: Setup, network: str) -> list[Tap]:
    outline = setup.outline(network)
    return [section.last for section in outline.sections] or list(outline.hidden) or [outline.feature]


def paired(
    student: list[Tap], teacher: list[Tap], student_layers: tuple[str, ...], teacher_layers: tuple[str, ...]
) -> list[Pair]:
    """The taps in pairs from the deepest; shallow taps without a partner are left out.

    Raises:
        LimbeckError: layers are named and the sides differ in number.
    """
    if (student_layers or teacher_layers) and len(student) != len(teacher):
        raise LimbeckError(
            f"student_layers has {len(student)} layers and teacher_layers {len(teacher)}: name the same number of "
            "layers"
        )
    count = min(len(student), len(teacher))
    return list(zip(student[-count:], teacher[-count:], strict=True))
