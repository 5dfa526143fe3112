"""What `torch.save` wrote, read without running or importing anything that it names.

PyTorch's reader of tensors and plain values (`torch.load` with ``weights_only=True``) refuses a file of anything else,
and training scripts save much else beside the weights: their arguments, metrics, callbacks. In the place of each
class and function that such a file names stands one of ours here, which takes whatever it is given and does nothing.
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
"""The most bytes of what describes the tensors, without their numbers: 16 MiB, of some 100,000 tensors."""

NESTED = 30_000
"""The most entries that a tuple has together with the tuples inside it."""

HANDLED = 2**26
"""The most entries that are handled in all, tuples inside of tuples counted each time."""

STEPS = 3_000_000
"""The most steps of a description, of some 90,000 tensors: each is looked at here, in about 2 microseconds."""

HASHED, LARGE = 50_000, 10_000
"""The most entries of tuples that are keys or in lists, and whole numbers from 2**61 on: as keys they can be made to be
alike to a dictionary, which takes as many steps as the square of their number."""

ALONE = "save the weights alone, by torch.save(network.state_dict(), path)"

_HARMFUL = frozenset(
    [
        *("os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "importlib", "runpy", "ctypes", "pty"),
        *("webbrowser", "pickle", "marshal"),
    ]
)
"""Modules that no weights need: a file that names one is not read, as torch does not read one that names the first."""

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
"""What torch's reader fills so, and nothing else."""

_KEEPS = ("REDUCE", "NEWOBJ", "BUILD", *_FILLS)  # what they leave is the first that they take, or what that makes

_ALIKE = 2**61 - 1  # whole numbers of this distance are alike to a dictionary

_AS_TUPLES = ("torch.Size", "builtins.complex")  # of several numbers, which are a key together

_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of PyTorch before 1.6 begin

Names = dict[str, type[Any]]
"""What a pickle names, and what is to be in its place: something that takes all, a dictionary or a list."""


class _Value(NamedTuple):
    entries: int
    name: str | None  # of what made it


_PLAIN = _Value(1, None)


class StandIn:
    """In the place of an object that a file names: it takes what it is given, and does nothing."""

    path = ""  # the name in the file

    def __new__(cls, *_: Any, **__: Any) -> "StandIn":
        """Take any arguments."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        """Take any state."""


def read_plain(path: Path, size: int) -> Any:
    """What a file of `torch.save` holds, all of it in memory: tensors and plain values, else as `read_pickled`.

    Raises:
        LimbeckError: likewise; or it names any class or function beside those of tensors.
    """
    return _read(path, size, foreign=False)


def read_pickled(path: Path, size: int) -> Any:
    """What a file of `torch.save` holds; `StandIn` where it holds neither tensors nor plain values.

    The numbers of tensors stay in the file until they are used, but for files of PyTorch before 1.6.

    Args:
        path: a regular file.
        size: of it, in bytes.

    Raises:
        LimbeckError: it is damaged, no file of torch.save, or one of code; it describes more than it holds.
    """
    return _read(path, size, foreign=True)


def _read(path: Path, size: int, *, foreign: bool) -> Any:
    try:
        zipped = is_zipfile(path)
        names = _names_of_zip(path, size) if zipped else _names_of_legacy(path)
        allowed: list[Any] = [(_stand_in(name, kind), name) for name, kind in names.items()] if foreign else []
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols that the reader may not know: it says so by an error too
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped and foreign)
    except UnpicklingError as error:
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        raise LimbeckError(
            f"{path} is damaged, or holds what cannot be read without running code ({reason[:200]}): {ALONE}"
        ) from error
    except LimbeckError:
        raise
    except Exception as error:  # of a damaged file zipfile, pickletools and torch raise a dozen kinds
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> LimbeckError:
    """What to say of a file that cannot be read."""
    return LimbeckError(f"{path} is cut short or damaged ({type(error).__name__}: {_first_line(error)})")


def _names_of_zip(path: Path, size: int) -> Names:
    """The classes and functions that are named, after a look at the archive itself."""
    check_zip(path)
    with ZipFile(path) as file:
        entries = file.infolist()
        if any("/code/" in entry.filename or entry.filename.endswith("/constants.pkl") for entry in entries):
            raise LimbeckError(
                f"{path} is a TorchScript archive, which holds code beside its weights: load it yourself, by "
                "torch.jit.load, and pass the module to limbeck.distill"
            )
        if any(entry.compress_type != ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
            raise BadZipFile("its entries are compressed or overlap, which torch.save never does")
        wrong = file.testzip()  # torch.load does not look at the checksums
        if wrong:
            raise BadZipFile(f"{wrong} does not agree with its checksum")
        names: Names = {}
        for entry in entries:
            if entry.filename.rpartition("/")[2].lower() == "data.pkl":  # as torch's reader looks for it
                with file.open(entry) as stream:
                    names |= _names(path, stream, entry.file_size)
    return names


def _names_of_legacy(path: Path) -> Names:
    with path.open("rb") as file:
        if file.read(len(_LEGACY)) != _LEGACY:
            raise ValueError("it is no file of torch.save")
        for _ in range(2):  # the protocol, and sizes of C's types
            _names(path, file, PICKLE)
        names = _names(path, file, PICKLE)
        _names(path, file, PICKLE)  # of the tensors that follow
        return names


def _names(path: Path, stream: IO[bytes], size: int) -> Names:
    """The classes and functions that a pickle names, unless it takes more time than its size allows.

    A pickle of some hundred bytes can describe a tuple of tuples that takes years to compare, since each holds the one
    before it twice. So the stack is followed here, each value as the number of entries that it has.

    Raises:
        LimbeckError: it is larger than `PICKLE` or such a tuple, or names what does harm.
    """
    if size > PICKLE:
        raise LimbeckError(f"{path} describes its tensors in {size:,} bytes, allowed are at most {PICKLE:,}: {ALONE}")
    found: Names = {}
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
            found.setdefault(name, StandIn)
            stack.append(_Value(1, name))
        elif not code.stack_before:  # a plain value, or none
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
                raise LimbeckError(f"{path} nests its values without end, byte {place}: {ALONE}")
            hashed += sum(value.entries for value in _hashable(code, taken) if value.entries > 1)
            if hashed > HASHED or large > LARGE:
                raise LimbeckError(f"{path} has more tuples or large numbers than weights need, byte {place}: {ALONE}")
            del stack[start:]
            if code.name in _FILLS and taken[0].name is not None:
                found[taken[0].name] = _FILLS[code.name]
            name_kept = taken[0].name if code.name in _KEEPS else None
            tuples = code.name.startswith("TUPLE") or (code.name in ("REDUCE", "NEWOBJ") and name_kept in _AS_TUPLES)
            result = _Value(entries + 1 if tuples else 1, name_kept)
            stack += [result] * len(code.stack_after)
    return found


def _hashable(code: pickletools.OpcodeInfo, taken: Sequence[_Value]) -> Sequence[_Value]:
    """What becomes a key of a dictionary; or is in a list, of which a set can be made."""
    if code.name in ("SETITEM", "SETITEMS"):
        return taken[1::2]
    return taken[1:] if code.name in ("APPEND", "APPENDS") else ()


def _operations(path: Path, stream: IO[bytes]) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int]]:
    start = stream.tell()
    for step, (code, argument, place) in enumerate(pickletools.genops(stream)):
        if (place or 0) - start > PICKLE or step >= STEPS:
            raise LimbeckError(
                f"{path} describes its tensors in more than {PICKLE:,} bytes or {STEPS:,} steps: {ALONE}"
            )
        yield code, argument, place or 0


def _full_name(path: Path, argument: str) -> str:
    """The dotted name, as Python 3 has it.

    Raises:
        LimbeckError: no weights need it, and it can do harm.
    """
    module, _, name = argument.partition(" ")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    full = f"{module}.{name}"
    if module.partition(".")[0] in _HARMFUL or full in _HARMFUL_BUILTINS:
        raise LimbeckError(
            f"{path} names {full}, which no weights need and which can do harm; nothing of it was run. Do not open "
            f"this file with other tools unless you know where it is from. If it is yours: {ALONE}"
        )
    return full


def _stand_in(name: str, kind: type[Any]) -> type[StandIn]:
    """A class to stand in the place of one that makes objects, or what is filled as a dictionary or a list is."""
    made = {} if kind is StandIn else {"__new__": lambda *_, **__: kind()}
    return type(name.rpartition(".")[2], (StandIn,), {"path": name, **made})


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
