"""Parse the YAML text of a recipe into plain values with line numbers, in bounded time and memory.

A recipe uses a subset of YAML: blocks, lists, text, numbers, true, false and null, with anchors, aliases and merge
keys. Tags are refused, so a recipe cannot create other objects. Values are built from the events of the parser, so
every limit is checked before an object is created. An alias is a copy of known size.
"""

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamStartEvent,
)

from limbeck.errors import LimbeckError
from limbeck.wording import shortened

BYTES = 65_536
"""The largest recipe file: 30 times the longest bundled recipe, and parsed in about a second."""

WHOLE_BYTES = 4 * 2**20
"""The largest recipe of a run folder, which has every default written out."""

DEPTH = 20
"""The deepest nesting of blocks and lists. The keys of a recipe need 6; options of models may need more."""

NODES = 10_000
"""The most keys and values. An alias counts as all nodes that it expands to. This bounds time and memory."""

LETTERS = 4_096
"""The most characters of one text: the longest path on Linux."""

DIGITS = 30
"""The most characters of an integer. All keys take integers below 2**32."""

_NULL = ("", "~", "null", "Null", "NULL")
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+][0-9]+)?)")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = (".nan", ".NaN", ".NAN")
_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
"""Control characters except tab and line feed, surrogates and byte order marks: none belongs in a path or a name."""


class RecipeError(LimbeckError):
    """A recipe is invalid; the message lists all problems."""


class Block(dict[str, Any]):
    """The keys of a block, and the line of each."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}


class Items(list[Any]):
    """The values of a list, and the line of each."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[int] = []


def read_text(path: Path) -> str:
    """Read the text of a recipe file.

    Raises:
        RecipeError: it is not a regular file, is too large, or is not UTF-8 text.
    """
    if not path.is_file():
        raise RecipeError(f"{path} is not a recipe: it is not a regular file")
    with path.open("rb") as file:
        content = file.read(BYTES + 1)
    if len(content) > BYTES:
        raise RecipeError(f"{path} is not a recipe: it has more than {BYTES:,} bytes, which is the limit")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not a recipe: it is not UTF-8 text (byte {error.start})") from error


def plain(text: str, name: str) -> Any:
    """Parse YAML 1.2 into one value: a block (`Block`), a list (`Items`), text, a number, true, false or None.

    Messages show ``name``, the origin of the text.

    Raises:
        RecipeError: the text is not YAML, or uses features that a recipe may not use; the message names the line.
    """
    return _Reader(text, name).value()


def line_of(value: Any, path: tuple[str | int, ...]) -> int:
    """Return the line of a path in a value of `plain`, or of the innermost part of the path that exists."""
    line = 1
    for part in path:
        if isinstance(value, Block) and part in value:
            line, value = value.lines.get(str(part), line), value[str(part)]
        elif isinstance(value, Items) and isinstance(part, int) and part < len(value.lines):
            line, value = value.lines[part], value[part]
        else:
            break
    return line


class _Reader:
    """Builds values from the events of the parser."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._events = self._parsed(text)
        self._anchors: dict[str, tuple[Any, int] | None] = {}  # a value and its node count; None while incomplete
        self._nodes = 0

    def value(self) -> Any:
        if not isinstance(next(self._events), DocumentStartEvent):
            return None  # an empty text
        value = self._value(next(self._events), 0)
        next(self._events)  # the end of the document
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                self._refuse(event, "a second document begins here: a recipe is one document")
        return value

    def _parsed(self, text: str) -> Iterator[Any]:
        """Yield the events and count the nodes."""
        try:
            for event in YAML(typ="safe", pure=True).parse(text):
                if isinstance(event, StreamStartEvent):
                    continue
                self._nodes += isinstance(event, AliasEvent | ScalarEvent | MappingStartEvent | SequenceStartEvent)
                if self._nodes > NODES:
                    self._refuse(event, f"more than {NODES:,} keys and values, which is the limit")
                yield event
        except MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            problem = (error.problem or "this is not YAML").splitlines()[0]
            raise RecipeError(f"{self._name}{line}: {shortened(problem)}") from error
        except YAMLError as error:
            raise RecipeError(f"{self._name}: this is not YAML: {shortened(str(error).splitlines()[0])}") from error
        except (ValueError, IndexError, KeyError, AttributeError, TypeError, NotImplementedError) as error:
            raise RecipeError(f"{self._name}: this is not YAML") from error  # the parser fails on some texts

    def _value(self, event: Any, depth: int) -> Any:
        if depth > DEPTH:
            self._refuse(event, f"more than {DEPTH} nested blocks or lists")
        if isinstance(event, AliasEvent):
            return self._alias(event, depth)
        if event.tag is not None:
            tag = shortened(event.tag.replace("tag:yaml.org,2002:", "!!"))
            self._refuse(event, f"the tag {tag} is not allowed in a recipe: quote it if it is text")
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        before = self._nodes - 1
        value: Any
        if isinstance(event, ScalarEvent):
            value = self._scalar(event)
        elif isinstance(event, SequenceStartEvent):
            value = self._list(depth)
        else:
            value = self._block(depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._nodes - before)
        return value

    def _list(self, depth: int) -> Items:
        items = Items()
        while not isinstance(event := next(self._events), SequenceEndEvent):
            items.append(self._value(event, depth + 1))
            items.lines.append(_line(event))
        return items

    def _block(self, depth: int) -> Block:
        block, merged = Block(), []
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._key(event)
            inner = next(self._events)
            value = self._value(inner, depth + 1)
            if key == "<<" and event.implicit[0]:
                merged += self._merged(inner, value)
                continue
            if key in block:
                self._refuse(event, f"duplicate key {shortened(key)!r}: it is also in line {block.lines[key]}")
            block[key], block.lines[key] = value, _line(event)
        for other in merged:
            for key in other:
                if key not in block:
                    block[key], block.lines[key] = other[key], other.lines[key]
        return block

    def _key(self, event: Any) -> str:
        if not isinstance(event, ScalarEvent) or event.tag is not None:
            self._refuse(event, "a key must be text: a list, a block, an alias or a tag is not allowed")
        return self._checked(event)

    def _merged(self, event: Event, value: Any) -> list[Block]:
        blocks = value if isinstance(value, Items) else [value]
        if not all(isinstance(block, Block) for block in blocks):
            self._refuse(event, "<<: must be followed by a block or a list of blocks")
        return list(blocks)

    def _alias(self, event: AliasEvent, depth: int) -> Any:
        name = shortened(event.anchor)
        if event.anchor not in self._anchors:
            self._refuse(event, f"undefined alias *{name}: there is no &{name} above")
        known = self._anchors[event.anchor]
        if known is None:
            self._refuse(event, f"the alias *{name} refers to a value that contains it")
        value, nodes = known
        self._nodes += nodes - 1
        if self._nodes > NODES:
            self._refuse(event, f"more than {NODES:,} keys and values after the aliases are expanded")
        if depth + _height(value) > DEPTH:
            self._refuse(event, f"more than {DEPTH} nested blocks or lists after *{name} is expanded")
        return copy.deepcopy(value)

    def _scalar(self, event: ScalarEvent) -> Any:
        text = self._checked(event)
        if not event.implicit[0]:  # quoted, or a block of text
            return text
        if text in _NULL:
            return None
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        if _INT.fullmatch(text):
            if len(text) > DIGITS:
                self._refuse(event, f"a number of {len(text):,} digits: all numbers must be below 2**32")
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _INFINITE.fullmatch(text):
            return -math.inf if text[0] == "-" else math.inf
        return math.nan if text in _NAN else text

    def _checked(self, event: ScalarEvent) -> str:
        text: str = event.value
        if len(text) > LETTERS:
            self._refuse(event, f"a text of {len(text):,} characters: at most {LETTERS:,} are allowed")
        odd = _ODD.search(text)
        if odd:
            self._refuse(event, f"the character U+{ord(odd[0]):04X} in {shortened(ascii(text))} is not allowed")
        return text

    def _refuse(self, event: Event, message: str) -> NoReturn:
        raise RecipeError(f"{self._name}:{_line(event)}: {message}")


def _height(value: Any) -> int:
    """Return the depth of nested blocks and lists."""
    inner = value.values() if isinstance(value, Block) else value if isinstance(value, Items) else None
    return 0 if inner is None else 1 + max(map(_height, inner), default=0)


def _line(event: Event) -> int:
    line: int = event.start_mark.line
    return line + 1
