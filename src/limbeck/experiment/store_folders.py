"""Where the stores of a recipe's teachers are. Torch is not imported."""

from pathlib import Path

from limbeck.errors import LimbeckError
from limbeck.files.paths import expanded
from limbeck.recipe.blocks import Recipe

NOTHING = "the recipe has no teacher whose outputs can be stored"
"""The message where a command about the store is given another recipe."""


def teacher_seed(recipe: Recipe, seed: int) -> int:
    """The seed of the teacher of a student's seed: the same, or that of the teacher that all students share."""
    block = recipe.teacher
    if block is not None and block.seed is not None:
        return block.seed
    shared = block is not None and block.is_trained
    return recipe.seeds[0] if shared else seed


def store_folder(recipe: Recipe, run: Path, teacher_seed: int) -> Path:
    """Where a teacher's outputs are stored: in the recipe's ``cache.folder``, or in the run's folder."""
    parent = expanded(recipe.cache.folder) if recipe.cache.folder else run / "store"
    return parent / f"teacher-seed{teacher_seed}"


def store_folders(recipe: Recipe, run: Path) -> dict[int, Path]:
    """The folder of each teacher's store, by the teacher's seed.

    Raises:
        LimbeckError: the recipe has no teacher that is a network, or does not store its outputs.
    """
    if recipe.teacher is None or not recipe.cache.use:
        raise LimbeckError(NOTHING)
    teachers = [teacher_seed(recipe, seed) for seed in recipe.seeds]
    return {number: store_folder(recipe, run, number) for number in teachers}
