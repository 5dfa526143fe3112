"""Load files of `torch.save` without running or importing anything that they name.

`torch.load` with ``weights_only=True`` refuses files with anything but tensors and plain values, and training scripts
also save their arguments, metrics and callbacks. Here, an inert class (`StandIn`) replaces each class and function that
a file names. It accepts any arguments and does nothing.
"""

import pickletools
import warnings
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, NamedTuple
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import torch

from limbeck.errors import LimbeckError
from limbeck.files.paths import check_zip

PICKLE = 2**24
"""The largest pickle in bytes, without the data of the tensors: 16 MiB, enough for about 100,000 tensors."""

NESTED = 30_000
"""The most entries of a tuple, nested tuples included."""

HANDLED = 2**26
"""The most entries of all tuples together; nested tuples are counted each time."""

STEPS = 3_000_000
"""The most pickle opcodes, enough for about 90,000 tensors. Checking one takes about 2 microseconds."""

HASHED, LARGE = 50_000, 10_000
"""The most entries of tuples that are keys or list items, and the most integers from 2**61 on. As dictionary keys they
can be chosen to collide, and the time of a dictionary is quadratic in the number of collisions."""

ALONE = "save only the weights, with torch.save(network.state_dict(), path)"

_HARMFUL = frozenset(
    [
        *("os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "importlib", "runpy", "ctypes", "pty"),
        *("webbrowser", "pickle", "marshal"),
    ]
)
"""Modules that weights never need. A file that names one is refused; torch itself refuses the first ones."""

_HARMFUL_BUILTINS = frozenset(
    f"builtins.{name}"
    for name in ("eval", "exec", "compile", "open", "input", "breakpoint", "__import__", "bytearray", "delattr")
) | {"io.open", "_io.open"}

_FILLS: dict[str, type[Any]] = {
    "SETITEM": OrderedDict,
    "SETITEMS": OrderedDict,
    "APPEND": list,
    "APPENDS": list,
}
"""The types to which torch's unpickler applies these opcodes."""

_KEEPS = ("REDUCE", "NEWOBJ", "BUILD", *_FILLS)  # the result is the first operand, or an object that it makes

_ALIKE = 2**61 - 1  # integers with this difference have the same hash

_AS_TUPLES = ("torch.Size", "builtins.complex")  # hashed like a tuple of numbers

_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the first bytes of files of PyTorch before 1.6

Names = dict[str, type[Any]]
"""The names in a pickle and the kind of their replacement: `StandIn`, OrderedDict or list."""


class _Value(NamedTuple):
    entries: int
    name: str | None  # the class or function that made it


_PLAIN = _Value(1, None)


class StandIn:
    """The replacement of an object that a file names. It accepts any arguments and does nothing."""

    path = ""  # the name in the file

    def __new__(cls, *_: Any, **__: Any) -> "StandIn":
        """Accept any arguments."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        """Accept any state."""


def read_pickled(path: Path, size: int, *, foreign: bool = True) -> Any:
    """Load the content of a file of `torch.save`. Objects other than tensors and plain values become `StandIn`.

    The data of the tensors is memory-mapped, except for files of PyTorch before 1.6, and without ``foreign``.

    Args:
        path: a regular file.
        size: its size in bytes.
        foreign: whether the file may name classes and functions that tensors do not need.

    Raises:
        LimbeckError: the file is damaged, is not a file of torch.save, contains code, or declares more data than it
            has.
    """
    try:
        zipped = is_zipfile(path)
        names = _names_of_zip(path, size) if zipped else _names_of_legacy(path)
        allowed: list[Any] = [(_stand_in(name, kind), name) for name, kind in names.items()] if foreign else []
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about unknown protocols, and raises an error if it fails
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped and foreign)
    except UnpicklingError as error:
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        raise LimbeckError(
            f"{path} is damaged, or contains objects that need code to load ({reason[:200]}): {ALONE}"
        ) from error
    except LimbeckError:
        raise
    except Exception as error:  # zipfile, pickletools and torch raise many kinds of exceptions for damaged files
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> LimbeckError:
    """Return the error for a file that cannot be read."""
    return LimbeckError(f"{path} is truncated or damaged ({type(error).__name__}: {first_line(error)})")


def _names_of_zip(path: Path, size: int) -> Names:
    """Check a zip archive and return the classes and functions that its pickles name."""
    check_zip(path)
    with ZipFile(path) as file:
        entries = file.infolist()
        if any("/code/" in entry.filename or entry.filename.endswith("/constants.pkl") for entry in entries):
            raise LimbeckError(
                f"{path} is a TorchScript archive, which contains code as well as weights: load it yourself with "
                "torch.jit.load, and pass the module to limbeck.distill"
            )
        if any(entry.filename.rpartition("/")[2] == "archive_format" for entry in entries):
            raise LimbeckError(
                f"{path} is an archive of torch.export, which contains code as well as weights: load it yourself with "
                "torch.export.load, and pass its .module() to limbeck.distill"
            )
        if any(entry.compress_type != ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
            raise BadZipFile("its entries are compressed or overlap, which torch.save never does")
        wrong = file.testzip()  # torch.load does not verify the checksums
        if wrong:
            raise BadZipFile(f"{wrong} does not match its checksum")
        names: Names = {}
        for entry in entries:
            if entry.filename.rpartition("/")[2].lower() == "data.pkl":  # as torch compares the name
                with file.open(entry) as stream:
                    names |= _names(path, stream, entry.file_size)
    return names


def _names_of_legacy(path: Path) -> Names:
    with path.open("rb") as file:
        if file.read(len(_LEGACY)) != _LEGACY:
            raise ValueError("it is not a file of torch.save")
        for _ in range(2):  # the protocol version and the sizes of C types
            _names(path, file, PICKLE)
        names = _names(path, file, PICKLE)
        _names(path, file, PICKLE)  # the keys of the tensors that follow
        return names


def _names(path: Path, stream: IO[bytes], size: int) -> Names:
    """Return the classes and functions that a pickle names, and check that unpickling it takes bounded time.

    A pickle of a few hundred bytes can describe nested tuples that take years to compare, because each tuple contains
    the previous one twice. So this function simulates the stack and tracks the number of entries of each value.

    Raises:
        LimbeckError: the pickle is larger than `PICKLE`, nests tuples like this, or names a harmful function.
    """
    if size > PICKLE:
        raise LimbeckError(f"{path} has a pickle of {size:,} bytes, allowed are at most {PICKLE:,}: {ALONE}")
    names: Names = {}
    stack: list[_Value] = []
    marks: list[int] = []
    memo: dict[int, _Value] = {}
    handled = hashed = large = 0
    for code, argument, place in _operations(path, stream):
        if code.name == "MARK":
            marks.append(len(stack))
        elif code.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif code.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif code.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif code.name == "GLOBAL":
            name = _full_name(path, str(argument))
            names.setdefault(name, StandIn)
            stack.append(_Value(1, name))
        elif not code.stack_before:  # a plain value, or no value
            large += isinstance(argument, int) and abs(argument) >= _ALIKE
            stack += [_PLAIN] * len(code.stack_after)
        else:
            before = code.stack_before
            marked = pickletools.markobject in before
            start = marks.pop() - before.index(pickletools.markobject) if marked else len(stack) - len(before)
            taken = stack[start:]
            entries = sum(value.entries for value in taken)
            handled += entries
            if start < 0 or (entries > NESTED and code.name.startswith("TUPLE")) or handled > HANDLED:
                raise LimbeckError(f"{path} nests its values too deeply, byte {place}: {ALONE}")
            hashed += sum(value.entries for value in _hashable(code, taken) if value.entries > 1)
            if hashed > HASHED or large > LARGE:
                raise LimbeckError(f"{path} has too many tuples or large integers, byte {place}: {ALONE}")
            del stack[start:]
            if code.name in _FILLS and taken[0].name is not None:
                names[taken[0].name] = _FILLS[code.name]
            name_kept = taken[0].name if code.name in _KEEPS else None
            tuples = code.name.startswith("TUPLE") or (code.name in ("REDUCE", "NEWOBJ") and name_kept in _AS_TUPLES)
            result = _Value(entries + 1 if tuples else 1, name_kept)
            stack += [result] * len(code.stack_after)
    return names


def _hashable(code: pickletools.OpcodeInfo, taken: Sequence[_Value]) -> Sequence[_Value]:
    """Return the values that become dictionary keys, or list items (a set can be made from a list)."""
    if code.name in ("SETITEM", "SETITEMS"):
        return taken[1::2]
    return taken[1:] if code.name in ("APPEND", "APPENDS") else ()


def _operations(path: Path, stream: IO[bytes]) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int]]:
    start = stream.tell()
    for step, (code, argument, place) in enumerate(pickletools.genops(stream)):
        if (place or 0) - start > PICKLE or step >= STEPS:
            raise LimbeckError(f"{path} has a pickle of more than {PICKLE:,} bytes or {STEPS:,} opcodes: {ALONE}")
        yield code, argument, place or 0


def _full_name(path: Path, argument: str) -> str:
    """Return the dotted name in Python 3.

    Raises:
        LimbeckError: the name is harmful and weights never need it.
    """
    module, _, name = argument.partition(" ")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    full = f"{module}.{name}"
    if module.partition(".")[0] in _HARMFUL or full in _HARMFUL_BUILTINS:
        raise LimbeckError(
            f"{path} names {full}, which weights never need and which can do harm; no code was run. Do not open this "
            f"file with other tools unless you trust its source. If it is yours: {ALONE}"
        )
    return full


def _stand_in(name: str, kind: type[Any]) -> type[StandIn]:
    """Return a subclass of `StandIn` for a name; it makes dictionaries or lists if the pickle fills it."""
    made = {} if kind is StandIn else {"__new__": lambda *_, **__: kind()}
    return type(name.rpartition(".")[2], (StandIn,), {"path": name, **made})


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).splitlines() or [""])[0]
