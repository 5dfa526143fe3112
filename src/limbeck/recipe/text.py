"""The text of a recipe to plain values that know their lines, in bounded time and memory.

A recipe needs little of YAML: blocks, lists, text, numbers, true, false and null; anchors, aliases and merge keys spare
a repetition. Tags are refused, so a recipe makes no other object. Values are put together from the parser's events, so
that every bound is checked before anything is built, and an alias is a copy whose size is known.
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

BYTES = 65_536
"""Of a recipe's file: 30 times limbeck's longest; what is within is read in about a second."""

DEPTH = 20
"""Blocks and lists inside each other; the deepest key of a recipe lies 6 deep, the rest is for options of models."""

NODES = 10_000
"""Keys and values, where an alias counts as all that it stands for: bounds time, and what aliases unfold to."""

LETTERS = 4_096
"""Of one text: the longest path that Linux takes."""

DIGITS = 30
"""Of a whole number: all that any key takes are below 2**32; more need not be read to be refused."""

_NULL = ("", "~", "null", "Null", "NULL")
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+][0-9]+)?)")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = (".nan", ".NaN", ".NAN")
_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
"""Control characters but tab and line feed, halves of characters: none belongs into a path or a name."""


class RecipeError(LimbeckError):
    """All that is wrong with a recipe."""


class Block(dict[str, Any]):
    """A block's keys, and the line of each."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}


class Items(list[Any]):
    """A list's values, and the line of each."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[int] = []


def read_text(path: Path) -> str:
    """The text of a recipe's file.

    Raises:
        RecipeError: it is no file such as an editor writes, is too large, or is not text in UTF-8.
    """
    if not path.is_file():
        raise RecipeError(f"{path} is no recipe: it is not a regular file")
    with path.open("rb") as file:
        content = file.read(BYTES + 1)
    if len(content) > BYTES:
        raise RecipeError(f"{path} is no recipe: it is longer than {BYTES:,} bytes, which is the most that is read")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is no recipe: it is not text in UTF-8 (byte {error.start})") from error


def plain(text: str, name: str) -> Any:
    """The one value that a text holds: blocks (`Block`), lists (`Items`), text, numbers, true, false or None.

    Args:
        text: YAML 1.2.
        name: of where it is from, for messages.

    Raises:
        RecipeError: it is not YAML, or more of YAML than a recipe may use; the message names the line.
    """
    return _Reader(text, name).value()


def line_of(value: Any, path: tuple[str | int, ...]) -> int:
    """The line of what lies at a path in a value of `plain`: of the innermost part that is there."""
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
    """Puts the values together from the events."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._events = self._parsed(text)
        self._anchors: dict[str, tuple[Any, int] | None] = {}  # a value and its nodes; None while it is not whole
        self._nodes = 0

    def value(self) -> Any:
        value = None
        event = next(self._events)
        if not isinstance(event, DocumentStartEvent):
            return value  # an empty text
        value = self._value(next(self._events), 0)
        next(self._events)  # the document's end
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                self._refuse(event, "a second document begins here: a recipe is one")
        return value

    def _parsed(self, text: str) -> Iterator[Any]:
        """The events, each counted."""
        try:
            for event in YAML(typ="safe", pure=True).parse(text):
                if isinstance(event, StreamStartEvent):
                    continue
                self._nodes += isinstance(event, AliasEvent | ScalarEvent | MappingStartEvent | SequenceStartEvent)
                if self._nodes > NODES:
                    self._refuse(event, f"more than {NODES:,} keys and values: a recipe has some dozens")
                yield event
        except MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            problem = (error.problem or "this is not YAML").splitlines()[0]
            raise RecipeError(f"{self._name}{line}: {_whole(problem)}") from error
        except YAMLError as error:
            raise RecipeError(f"{self._name}: this is not YAML: {_whole(str(error).splitlines()[0])}") from error
        except (ValueError, IndexError, KeyError, AttributeError, TypeError, NotImplementedError) as error:
            raise RecipeError(f"{self._name}: this is not YAML") from error  # the parser stumbles over some texts

    def _value(self, event: Any, depth: int) -> Any:
        if depth > DEPTH:
            self._refuse(event, f"more than {DEPTH} blocks or lists inside each other")
        if isinstance(event, AliasEvent):
            return self._alias(event, depth)
        if event.tag is not None:
            tag = _whole(event.tag.replace("tag:yaml.org,2002:", "!!"))
            self._refuse(event, f"the tag {tag}: a recipe has no tags; quote what is text")
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
                self._refuse(
                    event, f"the key {_whole(key)!r} is here a second time, line {block.lines[key]} has it too"
                )
            block[key], block.lines[key] = value, _line(event)
        for other in merged:
            for key in other:
                if key not in block:
                    block[key], block.lines[key] = other[key], other.lines[key]
        return block

    def _key(self, event: Any) -> str:
        if not isinstance(event, ScalarEvent) or event.tag is not None:
            self._refuse(event, "a key is a word: it cannot be a list, a block, an alias or have a tag")
        return self._checked(event)

    def _merged(self, event: Event, value: Any) -> list[Block]:
        blocks = value if isinstance(value, Items) else [value]
        if not all(isinstance(block, Block) for block in blocks):
            self._refuse(event, "<<: takes over the keys of a block, or of a list of blocks")
        return list(blocks)

    def _alias(self, event: AliasEvent, depth: int) -> Any:
        name = _whole(event.anchor)
        if event.anchor not in self._anchors:
            self._refuse(event, f"the alias *{name} stands for nothing: no &{name} is above")
        known = self._anchors[event.anchor]
        if known is None:
            self._refuse(event, f"the alias *{name} stands for what it lies in")
        value, nodes = known
        self._nodes += nodes - 1
        if self._nodes > NODES:
            self._refuse(event, f"with all that its aliases stand for, more than {NODES:,} keys and values")
        if depth + _height(value) > DEPTH:
            self._refuse(event, f"with what *{name} stands for, more than {DEPTH} blocks or lists inside each other")
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
                self._refuse(event, f"a number of {len(text):,} digits: no key takes one above 2**32")
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
            self._refuse(
                event, f"the character U+{ord(odd[0]):04X} is in {_whole(ascii(text))}: it is not allowed in text"
            )
        return text

    def _refuse(self, event: Event, message: str) -> NoReturn:
        raise RecipeError(f"{self._name}:{_line(event)}: {message}")


def _height(value: Any) -> int:
    """How many blocks or lists lie inside each other."""
    inner = value.values() if isinstance(value, Block) else value if isinstance(value, Items) else None
    return 0 if inner is None else 1 + max(map(_height, inner), default=0)


def _line(event: Event) -> int:
    line: int = event.start_mark.line
    return line + 1


def _whole(text: str, length: int = 60) -> str:
    """A text that is shortened to fit into a message."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
