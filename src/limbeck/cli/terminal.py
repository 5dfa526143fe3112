"""Where the commands write: a stream that cannot carry a character gets plain ones in its place, never an error."""

import codecs
import sys
from io import TextIOWrapper
from typing import Any

from rich.console import Console

_PLAIN = {"±": "+-", "²": "^2", "³": "^3", "·": "*", "…": "...", "→": "->", "≤": "<=", "≥": ">="}


def plain_where_needed() -> None:
    """Let this process's two streams write plainly what they cannot encode: ``±`` as ``+-``, others as Python does."""
    codecs.register_error("limbeck.plain", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a notebook's or a test's may be no file
            stream.reconfigure(errors="limbeck.plain")


def console(*, stderr: bool = False, **options: Any) -> Console:
    """The console that a command writes to; brackets in what it writes are brackets.

    Args:
        stderr: the stream of errors and progress.
        options: rich's own, such as ``width``.
    """
    codecs.register_error("limbeck.plain", _replaced)
    made = Console(stderr=stderr, **{"markup": False, "highlight": False} | options)
    return made if made.encoding.startswith("utf") else _Plain(stderr=stderr, markup=False, highlight=False, **options)


class _Plain(Console):
    """Replaces the characters before a table's columns are measured; boxes and bars rich draws in ASCII by itself."""

    def render_str(self, text: str, *arguments: Any, **options: Any) -> Any:
        encoded = text.encode(self.encoding, errors="limbeck.plain")
        return super().render_str(encoded.decode(self.encoding), *arguments, **options)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return "".join(_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in found), error.end
