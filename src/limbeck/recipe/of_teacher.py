"""Networks of a recipe that start from the teacher, ``of: teacher``."""

from collections.abc import Mapping
from typing import Any

from limbeck.wording import Problem

KEYS = ("model", "input", "output")
"""Those that such a network has from the teacher's block."""


def with_teacher(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe in which networks with ``of: teacher`` have the model of the teacher."""
    teacher, others = raw.get("teacher"), raw.get("networks")
    kept = {key: teacher[key] for key in KEYS if key in teacher} if isinstance(teacher, Mapping) else {}

    def whole(block: Any) -> Any:
        return {**kept, **block} if _starts_from_teacher(block) else block

    networks = {name: whole(one) for name, one in others.items()} if isinstance(others, Mapping) else others
    filled = {"student": whole(raw.get("student")), "networks": networks}
    return {**raw, **{key: value for key, value in filled.items() if key in raw}}


def explained(problem: Problem, raw: Mapping[str, Any]) -> Problem:
    """What is missing if such a network has no model; other problems stay."""
    block: Any = raw
    for part in problem.path:
        block = block.get(part) if isinstance(block, Mapping) else None
    if not _starts_from_teacher(block) or "model" in block or "'model'" not in problem.message:
        return problem
    return Problem(problem.path, "of: teacher needs the network of the teacher: write model: in the teacher block")


def _starts_from_teacher(block: Any) -> bool:
    return isinstance(block, Mapping) and block.get("of") == "teacher"
