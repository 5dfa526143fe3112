"""Networks and data of one's own, in the form in which a recipe's are run: what `limbeck.distill` hands on."""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from limbeck.core import LimbeckError, Method
from limbeck.data import Data
from limbeck.experiment.workspace import example_batch
from limbeck.models import GIVEN, NetworkSpec
from limbeck.recipe.blocks import TeacherBlock
from limbeck.train.copies import copy_of

MakeStudent = Callable[[], nn.Module]


@dataclass(frozen=True)
class Given:
    """What a recipe cannot say: the data, the networks, and a method that may be any function."""

    data: Data
    networks: "OwnNetworks"
    method: Method


class OwnNetworks:
    """The networks of one call of `distill`, for every arm and seed.

    Args:
        student: a module, or a function that builds one. A module is trained in place by ``first``; all others train a
            copy of it as it was given. A function is called anew for every arm and seed.
        teacher: trained; None for a method without one.
        others: further networks by name, in place for ``first``, else copies.
        first: the seed and the arm that train in place.
        data: what they are for.
    """

    def __init__(
        self,
        student: nn.Module | MakeStudent,
        teacher: nn.Module | None,
        others: Mapping[str, nn.Module],
        *,
        first: tuple[int, str],
        data: Data,
    ) -> None:
        self._make = None if isinstance(student, nn.Module) else student
        self._own = {"student": student, **others} if isinstance(student, nn.Module) else dict(others)
        self._teacher, self._first, self._data = teacher, first, data
        self._kept: dict[str, nn.Module] = {}
        self._built: list[weakref.ref[nn.Parameter]] = []

    notes: tuple[str, ...] = ()

    def keep(self) -> None:
        """Copy the networks as they are now, for the trainings that are not in place.

        Raises:
            LimbeckError: one cannot be copied.
        """
        self._kept = {name: self._copied(name, network) for name, network in self._own.items()}

    def student(self, seed: int, arm: str) -> tuple[nn.Module, NetworkSpec, dict[str, nn.Module]]:
        """The student of a seed and an arm, what its file says of it, and the other networks by name.

        Raises:
            LimbeckError: the student's function gives no module, or one whose parameters it gave before.
        """
        if (seed, arm) == self._first:
            networks = dict(self._own)
        else:
            networks = {name: self._copied(name, network) for name, network in self._kept.items()}
        student = self._make() if self._make else networks.pop("student")
        if not isinstance(student, nn.Module):
            raise LimbeckError(f"student gives a {type(student).__name__}: a function must build a torch.nn.Module")
        self._refuse_used(student)
        data = self._data
        spec = NetworkSpec(GIVEN, {}, len(data.classes), data.shape, data.classes, mean=data.mean, std=data.std)
        return student, spec, networks

    def _refuse_used(self, student: nn.Module) -> None:
        """Refuse what would begin where another training has ended."""
        if self._make is None:
            return
        learning = [parameter for parameter in student.parameters() if parameter.requires_grad]
        if {id(parameter) for one in self._built if (parameter := one()) is not None} & set(map(id, learning)):
            raise LimbeckError("student gives parameters that it gave before: a function must build a network anew")
        self._built = [weakref.ref(parameter) for parameter in learning]

    def teacher(self, block: TeacherBlock) -> tuple[nn.Module, NetworkSpec]:
        """Nothing: a teacher that is given is not trained."""
        raise LimbeckError("a teacher that is given as a module is not trained")

    def restored(self, block: TeacherBlock) -> list[nn.Module]:
        """The teacher."""
        return [] if self._teacher is None else [self._teacher]

    def _copied(self, name: str, network: nn.Module) -> nn.Module:
        way = "; give a function that builds it" if name == "student" else ""
        otherwise = f"{way}, or one seed and baseline=False, which need no copy"
        return copy_of(network, example_batch(self._data).inputs, name=name, otherwise=otherwise)
