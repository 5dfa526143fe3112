"""The networks and data of a call of `limbeck.distill`, in the form in which those of a recipe are used."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from limbeck.core import LimbeckError, Method
from limbeck.data import Data
from limbeck.experiment.networks import Trained, expected_input, labels_of, spec_of
from limbeck.experiment.workspace import example_batch
from limbeck.models import GIVEN, NetworkSpec
from limbeck.models.inputs import Bridge
from limbeck.recipe.blocks import StudentBlock, TeacherBlock
from limbeck.train.copies import copy_of, deep_copy

MakeStudent = Callable[[], nn.Module]


@dataclass(frozen=True)
class Given:
    """What a recipe cannot hold: the data, the networks, and methods that may be any functions."""

    data: Data
    networks: "OwnNetworks"
    methods: Mapping[str, Method]  # by the names that the recipe has for them


class OwnNetworks:
    """The networks of one call of `distill`, for every arm and seed.

    Args:
        student: a module, or a function that builds one. ``first`` trains the module in place; every other arm and seed
            trains a copy of it as it was passed. A function is called once for every arm and seed.
        teachers: the trained teacher, or the members of an ensemble; empty for a method without a teacher.
        others: further networks by name, trained in place by ``first``, otherwise as copies.
        block: says what the student reads.
        first: the seed and the arm that train in place, if any.
        data: what they are trained on.
    """

    def __init__(
        self,
        student: nn.Module | MakeStudent,
        teachers: Sequence[nn.Module],
        others: Mapping[str, nn.Module],
        block: StudentBlock,
        *,
        first: tuple[int, str] | None,
        data: Data,
    ) -> None:
        self._make = None if isinstance(student, nn.Module) else student
        self._own = {"student": student, **others} if isinstance(student, nn.Module) else dict(others)
        self._teachers, self._block, self._first, self._data = teachers, block, first, data
        self._kept: dict[str, nn.Module] = {}
        self._built: list[weakref.ref[nn.Parameter]] = []

    notes: tuple[str, ...] = ()

    def keep(self) -> None:
        """Copy the networks as they are now, for the trainings that are not in place.

        Raises:
            LimbeckError: a network cannot be copied.
        """
        self._kept = {name: self._copied(name, network) for name, network in self._own.items()}

    def student(self, seed: int, arm: str) -> tuple[nn.Module, NetworkSpec, dict[str, nn.Module]]:
        """The student of a seed and an arm, what its file says of it, and the other networks by name.

        Raises:
            LimbeckError: the student's function returns no module, or parameters that it returned before.
        """
        if (seed, arm) == self._first:
            networks = dict(self._own)
        else:
            networks = {name: self._copied(name, network) for name, network in self._kept.items()}
        student = self._make() if self._make else networks.pop("student")
        if not isinstance(student, nn.Module):
            raise LimbeckError(f"student returns a {type(student).__name__}: the function must build a torch.nn.Module")
        self._refuse_used(student)
        data = self._data
        bridge = Bridge(expected_input(self._block), data.shape, data.mean, data.std)
        spec = spec_of({"name": GIVEN}, data, bridge, data.outputs)
        return student, spec, networks

    def _refuse_used(self, student: nn.Module) -> None:
        """Refuse a student that would start where another training ended."""
        if self._make is None:
            return
        learning = [parameter for parameter in student.parameters() if parameter.requires_grad]
        if {id(parameter) for one in self._built if (parameter := one()) is not None} & set(map(id, learning)):
            raise LimbeckError("student returns the same parameters again: the function must build a new network")
        self._built = [weakref.ref(parameter) for parameter in learning]

    def teacher(self, block: TeacherBlock) -> tuple[nn.Module, NetworkSpec]:
        """There is none: a teacher passed to `distill` is not trained."""
        raise LimbeckError("a teacher that is passed as a module is not trained")

    def restored(self, block: TeacherBlock) -> list[Trained]:
        """Each teacher, or a copy of it if its classes are in another order than those of the data."""
        found = list[Trained]()
        for teacher, one in zip(self._teachers, block.listed or (block,), strict=True):
            labels = labels_of(one, self._data) or self._data.outputs
            same = labels == self._data.outputs
            found.append((teacher if same else deep_copy(teacher, {"teacher": teacher}), labels, one))
        return found

    def _copied(self, name: str, network: nn.Module) -> nn.Module:
        way = "; pass a function that builds it" if name == "student" else ""
        otherwise = f"{way}, or use one seed and baseline=False, which need no copy"
        return copy_of(network, example_batch(self._data).inputs, name=name, otherwise=otherwise)
