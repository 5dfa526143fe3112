"""The paper of a method and other facts about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from limbeck.core import Method
from limbeck.data.targets import TaskName

EVERY_TASK: tuple[TaskName, ...] = get_args(TaskName)

OF_OUTPUTS = tuple(name for name in EVERY_TASK if name != "segmentation")  # those with one vector for each sample


@dataclass(frozen=True)
class Paper:
    """The publication that a method comes from."""

    authors: str
    title: str
    year: int
    arxiv: str = ""  # the identifier, such as 1503.02531; "" if the paper is not on arXiv
    venue: str = ""  # where it was published, for a paper that is not on arXiv

    def __str__(self) -> str:
        where = f"arXiv:{self.arxiv}" if self.arxiv else self.venue
        return f'{self.authors}, "{self.title}" ({self.year}), {where}'


@dataclass(frozen=True, eq=False)
class About:
    """A method and the facts about it, as the constant ``ABOUT`` at the end of its file."""

    function: Method
    paper: Paper | None  # None for an unpublished method
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # published settings by name
    # Networks of the zoo by role, as the documentation shows them and the conformance suite trains them. A role besides
    # student and teacher is a network that the recipe names under `networks:`.
    networks: Mapping[str, str] = field(default_factory=lambda: {"student": "resnet8", "teacher": "resnet14"})
    tasks: tuple[TaskName, ...] = ("classification",)  # the kinds of task that the method makes sense for
    is_system: bool = False  # a complete training procedure, which the documentation lists first

    @property
    def needs_teacher(self) -> bool:
        """Whether the method cannot run without a teacher."""
        return "teacher" in self.networks
