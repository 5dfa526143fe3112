"""Find a network's weights in the checkpoint of a training script."""

from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from limbeck.files.pickled import StandIn
from limbeck.models.fitting import listed

Keys = tuple[str, ...]

_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that wrappers insert: torch.compile; DataParallel, DDP and AveragedModel; FSDP."""

_NO_WEIGHTS = frozenset({"n_averaged", "num_batches_tracked", "total_ops", "total_params"})
"""Last parts of names that are optional: those of AveragedModel, BatchNorm and the profiler thop."""

_FIRST = (
    *("model", "state_dict", "model_state_dict", "model_state", "net", "network", "module", "weights", "params"),
    *("student", "student_state_dict", "backbone", "encoder"),
)
"""Keys under which training scripts save the network that they train, the most common first."""

_LAST = ("ema", "average", "swa", "momentum", "shadow", "teacher", "best")
"""Words in the keys of a copy of it or of another network."""

_DEEP, _MANY, _PREFIXES = 8, 100_000, 32


@dataclass(frozen=True)
class Found:
    """The state dict in a file that matches a network best."""

    state: dict[str, Tensor]  # under the network's names
    note: str = ""  # which weights these are; empty if the file is a plain state dict
    fits: bool = True  # whether all names and shapes match
    beside: tuple[str, ...] = ()  # the names of the tensors under other prefixes


@dataclass(frozen=True)
class _Candidate:
    state: dict[str, Tensor]  # under the network's names
    keys: Keys  # its location in the file
    prefix: str  # the prefix that only the file's names have
    added: str  # the prefix that only the network's names have
    wrong: int  # the number of tensors that are missing, unexpected or of another shape
    matched: int  # the number of tensors that match
    beside: tuple[str, ...]  # the names of the tensors under other prefixes

    @property
    def place(self) -> Keys:
        """The keys and the parts of the prefix."""
        return (*self.keys, *filter(None, self.prefix.split(".")))

    def rank(self) -> tuple[int, ...]:
        """Return a sort key, lowest for the best: candidates that fit, by their keys; then the closest ones."""
        copies = any(word in text.lower() for text in self.place for word in _LAST)
        places = [_FIRST.index(word) if word in _FIRST else len(_FIRST) for word in self.place]
        return (bool(self.wrong), -self.matched, self.wrong, copies, len(places) + sum(places))


def find_state(content: Any, expected: Mapping[str, Tensor], *, classifier: str = "") -> Found | None:
    """Find a network's weights in the content of a checkpoint, under any keys and prefixes.

    The search covers every mapping that contains tensors, and every prefix that turns its names into the network's.
    Name parts that torch.compile, DDP, FSDP and AveragedModel insert are ignored in the file and in the network.
    Entries that are not weights are dropped, and counts of batches that old files lack are taken from the network. If
    several state dicts fit, one under a key that names the model comes before averages and teachers.

    Args:
        content: the content of the file, or a state dict.
        expected: the network's state dict.
        classifier: the name of a layer that keeps the network's weights; the file's are ignored.

    Returns:
        The state dict that fits, or the closest one; None if no mapping contains tensors.
    """
    skip = f"{classifier}." if classifier else None
    own = {name: tensor for name, tensor in expected.items() if skip is not None and name.startswith(skip)}
    needed = {name: tensor for name, tensor in expected.items() if name not in own}
    candidates = [
        _candidate(state, needed, skip, keys, prefix, added)
        for keys, state in _mappings(content)
        for prefix, added in _prefixes(state, needed)
    ]
    if not candidates:
        return None
    best = min(candidates, key=_Candidate.rank)
    others = [".".join(one.place) for one in candidates if not one.wrong and one is not best]
    return Found({**best.state, **own}, _note(best, others), not best.wrong, best.beside)


def described(content: Any) -> str:
    """Describe the content of a file: its first keys and some tensor names, or the class that loading would run."""
    if isinstance(content, StandIn):
        return f"it contains an object of {content.path}, and loading that would run its code"
    if not isinstance(content, Mapping):
        return f"it contains a {type(content).__name__}"
    if not content:
        return "it is empty"
    names = (".".join((*place, name)) for place, state in _mappings(content) for name in state)
    few = ", ".join(name[:100] for name in islice(names, 3))
    tensors = f"it contains tensors such as {few}" if few else "it contains no tensors"
    keys = [str(key)[:60] if isinstance(key, str | int) else type(key).__name__ for key in islice(content, 6)]
    more = f" and {len(content) - len(keys)} more" if len(content) > len(keys) else ""
    plain = all(isinstance(value, Tensor) for value in islice(content.values(), 6))
    objects = [f"{str(key)[:60]!r} is an object of {it.path}" for key, it in content.items() if isinstance(it, StandIn)]
    code = f"; {objects[0]}, and loading that would run its code" if objects and not few else ""
    return tensors if plain else f"its keys are {', '.join(keys)}{more}; {tensors}{code}"


def _mappings(content: Any) -> Iterator[tuple[Keys, dict[str, Tensor]]]:
    """Yield every mapping that has tensors under string keys, with the keys that lead to it."""
    waiting: deque[tuple[Keys, Any]] = deque([((), content)])
    seen: set[int] = set()
    while waiting and len(seen) < _MANY:
        keys, value = waiting.popleft()
        if not isinstance(value, Mapping) or id(value) in seen:
            continue
        seen.add(id(value))
        named = {key: inner for key, inner in value.items() if isinstance(key, str)}
        tensors = {key: inner for key, inner in named.items() if isinstance(inner, Tensor) and not is_lazy(inner)}
        if tensors:
            yield keys, tensors
        if len(keys) < _DEEP:
            waiting += [((*keys, key), inner) for key, inner in named.items() if isinstance(inner, Mapping)]


def _bare(names: Collection[str]) -> dict[str, str]:
    """Map each name without wrapper parts to the full name; the names stay as they are if two would collide."""
    bare = {".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in names}
    return bare if len(bare) == len(names) else {name: name for name in names}


def _prefixes(state: Collection[str], expected: Collection[str]) -> list[tuple[str, str]]:
    """Return pairs of a prefix to remove and a prefix to add that turn the file's names into the network's."""
    have, need = _bare(state), _bare(expected)
    taken: Counter[str] = Counter({"": 0})
    for name in have:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in need:
                taken["".join(f"{part}." for part in parts[:start])] += 1
    added, first = [], next(iter(need), "")
    for end in range(1, len(first.split("."))):
        front = "".join(f"{part}." for part in first.split(".")[:end])
        added += [front] if all(name.startswith(front) for name in need) else []
    return [(prefix, "") for prefix, _ in taken.most_common(_PREFIXES)] + [("", front) for front in added]


def _candidate(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], skip: str | None, keys: Keys, prefix: str, added: str
) -> _Candidate:
    """Return the tensors under a prefix as a state dict of the network."""
    need = _bare(expected)
    renamed, beside = {}, list[str]()
    for bare, name in _bare(state).items():
        inside = added + bare.removeprefix(prefix)
        own = need.get(inside, inside)
        needless = own not in expected and own.rpartition(".")[2] in _NO_WEIGHTS
        if needless or (skip is not None and own not in expected and inside.startswith(skip)):
            continue
        if bare.startswith(prefix):
            renamed[own] = state[name]
        else:
            beside.append(name)
    known = all(part in _FIRST or any(word in part.lower() for word in _LAST) for part in prefix.split(".")[:-1])
    for name, tensor in expected.items():
        if name.rpartition(".")[2] in _NO_WEIGHTS:
            renamed.setdefault(name, tensor)
    matched = sum(name in renamed and renamed[name].shape == tensor.shape for name, tensor in expected.items())
    unexpected = sum(name not in expected for name in renamed)
    wrong = len(expected) - matched + unexpected + (0 if known else len(beside))
    return _Candidate(renamed, keys, prefix, added, wrong, matched, tuple(beside))


def _note(best: _Candidate, others: list[str]) -> str:
    parts = [
        f"under {'.'.join(best.keys)!r}" if best.keys else "",
        f"one of {len(others) + 1} state dicts that fit (also {listed(others)})" if others else "",
        f"without the prefix {best.prefix!r}" if best.prefix else "",
        f"with the prefix {best.added!r} added" if best.added else "",
        f"{len(best.beside)} other tensors ignored ({listed(best.beside)})" if best.beside else "",
    ]
    return f"takes the weights {', '.join(filter(None, parts))}" if any(parts) else ""
