"""The console of the commands.

Characters that a stream cannot encode are replaced by plain ones, without an error. Control characters, which may come
from a file of someone else, are shown as escapes, so that they do not reach the terminal.
"""

import codecs
import os
import re
import sys
from io import TextIOWrapper
from typing import Any

from rich.console import Console
from rich.status import Status

_PLAIN = {"±": "+-", "²": "^2", "³": "^3", "·": "*", "…": "...", "→": "->", "≤": "<=", "≥": ">="}

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All but the tab and the end of a line."""


def plain_where_needed() -> None:
    """Make stdout and stderr replace characters that they cannot encode: ``±`` by ``+-``, others by escapes."""
    codecs.register_error("limbeck.plain", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # notebooks and tests may replace the streams
            stream.reconfigure(errors="limbeck.plain")


def console(*, stderr: bool = False, **options: Any) -> Console:
    """Return the console that a command writes to. Brackets in the text are not markup.

    Args:
        stderr: write to stderr, the stream of errors and progress.
        options: options of rich's Console, such as ``width``.
    """
    codecs.register_error("limbeck.plain", _replaced)
    others = {"markup": False, "highlight": False, "emoji": False, "quiet": process_number() > 0}
    return _Console(stderr=stderr, **others | options)


def process_number() -> int:
    """The number of this process among those that torchrun has started. Only the first one, 0, prints."""
    return int(os.environ.get("RANK", "0")) if several_processes() else 0


def several_processes() -> bool:
    """Whether torchrun has started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def loading() -> Status:
    """Show on a terminal that PyTorch is being loaded, which takes seconds."""
    return console(stderr=True).status("loading PyTorch", spinner="line")  # of ASCII


class _Console(Console):
    """A console that replaces characters before rich measures the columns of a table. Rich draws boxes in ASCII."""

    def render_str(self, text: str, *arguments: Any, **options: Any) -> Any:
        shown = _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
        encoded = shown.encode(self.encoding, errors="limbeck.plain")
        return super().render_str(encoded.decode(self.encoding), *arguments, **options)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in text), error.end
