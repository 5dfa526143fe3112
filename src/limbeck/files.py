"""The recipes that come with limbeck, and the paths that a recipe names."""

import difflib
from itertools import islice
from pathlib import Path

from limbeck.errors import LimbeckError, nearest

_FOLDERS = (Path(__file__).parent / "recipes", Path(__file__).parents[2] / "recipes")


def bundled(name: str, asked: Path | None = None) -> Path:
    """A recipe of limbeck's own, by its file name with or without the ending.

    Raises:
        LimbeckError: there is none; the message names ``asked``, the path the user gave.
    """
    folder = next(folder for folder in _FOLDERS if folder.is_dir())
    recipes = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    stem = name.removesuffix(".yaml")
    if stem not in recipes:
        beside = [path.name for path in asked.parent.glob("*.y*ml")] if asked else []
        raise LimbeckError(f"there is no recipe {asked or name}: {nearest(name, [*recipes, *beside])}")
    return recipes[stem]


def expanded(text: str) -> Path:
    """A path with the home folder that ``~`` or ``~user`` stands for written out.

    Raises:
        ValueError: there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"got {text!r}: there is no user {text.partition('/')[0].removeprefix('~')!r}") from error


def near(path: Path) -> str:
    """What was probably meant by a path that does not exist, of what lies beside it; empty where nothing is near."""
    try:
        names = [entry.name for entry in islice(path.parent.iterdir(), 10_000)]
    except OSError:
        return ""
    found = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}?" if found else ""
