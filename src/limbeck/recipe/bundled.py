"""The recipes that are bundled with limbeck."""

from pathlib import Path

from limbeck.errors import LimbeckError, nearest

_FOLDERS = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[3] / "recipes")


def bundled(name: str, asked: Path | None = None) -> Path:
    """Return the path of a bundled recipe from its file name, with or without the ending.

    Raises:
        LimbeckError: there is no recipe of this name; the message shows ``asked``, the path that the user passed.
    """
    folder = next(folder for folder in _FOLDERS if folder.is_dir())
    recipes = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    stem = name.removesuffix(".yaml")
    if stem not in recipes:
        beside = [path.name for path in asked.parent.glob("*.y*ml")] if asked else []
        raise LimbeckError(f"there is no recipe {asked or name}: {nearest(name, [*recipes, *beside])}")
    return recipes[stem]
