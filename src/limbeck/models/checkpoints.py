"""A network's weights among all that a training script saves beside them."""

from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from limbeck.files.pickled import StandIn

Keys = tuple[str, ...]

_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that wrappers put in: torch.compile; DataParallel, DDP and AveragedModel; FSDP."""

_NO_WEIGHTS = frozenset({"n_averaged", "num_batches_tracked", "total_ops", "total_params"})
"""Last parts of names that a network may lack: of AveragedModel, of BatchNorm, and of the profiler thop."""

_FIRST = (
    *("model", "state_dict", "model_state_dict", "model_state", "net", "network", "module", "weights", "params"),
    *("student", "student_state_dict", "backbone", "encoder"),
)
"""What training scripts call the network that they train, the plainest first."""

_LAST = ("ema", "average", "swa", "momentum", "shadow", "teacher", "best")
"""Words in what they call a copy of it, or another network."""

_DEEP, _MANY, _PREFIXES = 8, 100_000, 32


@dataclass(frozen=True)
class Found:
    """A network's weights in a file, or what is nearest to them."""

    state: dict[str, Tensor]  # under the network's names
    said: str = ""  # which they are; empty where the file holds them plainly and nothing else
    fits: bool = True  # whether they are all, of the right shapes, and no others


@dataclass(frozen=True)
class _Candidate:
    state: dict[str, Tensor]  # under the network's names
    keys: Keys  # where it lies in the file
    prefix: str  # that its names have and the network's lack
    added: str  # that the network's names have and its lack
    wrong: int  # tensors that are missing, too many or of another shape
    matched: int  # tensors that are not
    beside: int  # tensors under other prefixes

    def rank(self) -> tuple[int, ...]:
        """Orders candidates, the best first: what fits, by its name; then what is nearest."""
        words = [*self.keys, *filter(None, self.prefix.split("."))]
        copies = any(word in text.lower() for text in words for word in _LAST)
        places = [_FIRST.index(word) if word in _FIRST else len(_FIRST) for word in words]
        return (bool(self.wrong), -self.matched, self.wrong, copies, len(words) + sum(places))


def find_state(content: Any, wanted: Mapping[str, Tensor], *, classifier: str = "") -> Found | None:
    """The weights of a network in what a training script saved, under whatever keys and prefixes.

    Each mapping in it that has tensors is looked at, and each prefix under which its names are the network's; what
    torch.compile, DDP, FSDP and AveragedModel put into names does not count, in the file and in the network. What is no
    weight is left out, and counts of batches that old files lack are the network's own. Where several fit, it is the
    one whose key names the model, before averages of it and teachers.

    Args:
        content: of the file, or a state dict.
        wanted: the network's state dict.
        classifier: a layer of which the network's own weights are taken, whatever the file has.

    Returns:
        What fits, or else what is nearest; None where no mapping in it has tensors.
    """
    kept = f"{classifier}." if classifier else None
    own = {name: tensor for name, tensor in wanted.items() if kept is not None and name.startswith(kept)}
    sought = {name: tensor for name, tensor in wanted.items() if name not in own}
    candidates = [
        _candidate(state, sought, kept, keys, prefix, added)
        for keys, state in _mappings(content)
        for prefix, added in _prefixes(state, sought)
    ]
    if not candidates:
        return None
    best = min(candidates, key=_Candidate.rank)
    fitting = sum(not candidate.wrong for candidate in candidates)
    return Found({**best.state, **own}, _said(best, fitting), not best.wrong)


def described(content: Any) -> str:
    """What a file holds: its first keys, and the names of some tensors; or the object whose code would be needed."""
    if isinstance(content, StandIn):
        return f"it holds an object of {content.path}, whose code would have to be run"
    if not isinstance(content, Mapping):
        return f"it holds a {type(content).__name__}"
    if not content:
        return "it is empty"
    names = (".".join((*place, name)) for place, state in _mappings(content) for name in state)
    few = ", ".join(name[:100] for name in islice(names, 3))
    tensors = f"it has tensors such as {few}" if few else "it has no tensors"
    keys = [str(key)[:60] if isinstance(key, str | int) else type(key).__name__ for key in islice(content, 6)]
    more = f" and {len(content) - len(keys)} more" if len(content) > len(keys) else ""
    plain = all(isinstance(value, Tensor) for value in islice(content.values(), 6))
    objects = [f"{str(key)[:60]!r} is an object of {it.path}" for key, it in content.items() if isinstance(it, StandIn)]
    code = f"; {objects[0]}, whose code would have to be run" if objects and not few else ""
    return tensors if plain else f"its keys are {', '.join(keys)}{more}; {tensors}{code}"


def _mappings(content: Any) -> Iterator[tuple[Keys, dict[str, Tensor]]]:
    """Every mapping in it that has tensors under texts, with the keys that lead to it."""
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
    """Each name, by the name without what wrappers put in; as they are where two would become one."""
    bare = {".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in names}
    return bare if len(bare) == len(names) else {name: name for name in names}


def _prefixes(state: Collection[str], wanted: Collection[str]) -> list[tuple[str, str]]:
    """What may be taken from the front of the file's names, or put there, so that they are the network's."""
    have, need = _bare(state), _bare(wanted)
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
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], kept: str | None, keys: Keys, prefix: str, added: str
) -> _Candidate:
    """What the file has under a prefix, as the network's weights."""
    need = _bare(wanted)
    renamed, beside = {}, 0
    for bare, name in _bare(state).items():
        inside = added + bare.removeprefix(prefix)
        own = need.get(inside, inside)
        needless = own not in wanted and own.rpartition(".")[2] in _NO_WEIGHTS
        if needless or (kept is not None and own not in wanted and inside.startswith(kept)):
            continue
        if bare.startswith(prefix):
            renamed[own] = state[name]
        else:
            beside += 1
    known = all(part in _FIRST or any(word in part.lower() for word in _LAST) for part in prefix.split(".")[:-1])
    for name, tensor in wanted.items():
        if name.rpartition(".")[2] in _NO_WEIGHTS:
            renamed.setdefault(name, tensor)
    matched = sum(name in renamed and renamed[name].shape == tensor.shape for name, tensor in wanted.items())
    unexpected = sum(name not in wanted for name in renamed)
    wrong = len(wanted) - matched + unexpected + (0 if known else beside)
    return _Candidate(renamed, keys, prefix, added, wrong, matched, beside)


def _said(best: _Candidate, fitting: int) -> str:
    parts = [
        f"under {'.'.join(best.keys)!r}" if best.keys else "",
        f"one of {fitting} sets that fit" if fitting > 1 else "",
        f"without the prefix {best.prefix!r}" if best.prefix else "",
        f"with the prefix {best.added!r} put before" if best.added else "",
        f"{best.beside} tensors beside them left out" if best.beside else "",
    ]
    return f"takes the weights {', '.join(filter(None, parts))}" if any(parts) else ""
