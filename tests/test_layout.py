"""What the design says of the source as such, read from the source: nothing is imported here."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "limbeck"
FILES = {path.relative_to(SOURCE).with_suffix("").as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


@cache
def nodes(tree):
    """All nodes of a tree, which most of these tests look at."""
    return tuple(ast.walk(tree))


@cache
def imported(tree):
    """The modules that a tree imports, anywhere, `from limbeck import x` as `limbeck.x`."""
    found = set()
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            inside = node.module == "limbeck"
            found |= {f"limbeck.{alias.name}" for alias in node.names} if inside else {node.module}
    return frozenset(found)


def ours(tree):
    """The parts of limbeck that a tree imports: `core`, `methods`, ...; all may use `errors`."""
    return {module.split(".")[1] for module in imported(tree) if module.startswith("limbeck.")} - {"errors"}


def outside(tree):
    """The top-level packages that a tree imports from elsewhere."""
    return {module.split(".")[0] for module in imported(tree)} - {"limbeck"}


def part(name):
    return name.split("/")[0]


def test_the_source_is_found():
    assert {"core", "train/loop", "methods/kd", "data/sources/cifar", "__init__"} <= set(FILES)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from limbeck.core import Tap", {"core"}),
        ("import limbeck.methods.kd", {"methods"}),
        ("from limbeck import checkpoint, taps", {"checkpoint", "taps"}),
        ("def late():\n    from limbeck.methods import METHODS", {"methods"}),
        ("import torch\nfrom limbecks.core import x", set()),
    ],
)
def test_imports_are_read_rightly(source, expected):
    assert ours(ast.parse(source)) == expected


ORDER = (
    "errors",
    "files",
    "core",
    "wording",
    "schedules",
    "optimizers",
    "connectors",
    "taps",
    "user_code",
    "options",
    "outline",
    "data",
    "models",
    "methods",
    "train",
    "cache",
    "evaluate",
    "tasks",
    "recipe",
    "experiment",
    "comparison",
    "exports",
    "report",
    "claims",
    "cli",
    "arguments",
    "api",
    "__main__",
    "__init__",
)
"""The folders and top modules; each imports only what stands before it."""


EDGES = {(part(name), target, name) for name, tree in TREES.items() for target in ours(tree) if target != part(name)}
"""Every import of one part by another, with the module that has it."""


def test_every_part_has_its_place():
    assert sorted(ORDER) == sorted({part(name) for name in FILES})


def test_a_part_imports_only_what_stands_before_it():
    places = {name: place for place, name in enumerate(ORDER)}
    assert [edge for edge in sorted(EDGES) if edge[1] not in places or places[edge[1]] >= places[edge[0]]] == []


def test_the_house_is_low():
    below = {}
    for name in ORDER:  # in which what is imported comes first
        below[name] = 1 + max((below[target] for source, target, _ in EDGES if source == name), default=0)
    assert len(ORDER) <= 29
    assert max(below.values()) <= 15


def modules(tree):
    """The modules of limbeck that a tree imports."""
    found = set()
    for node in nodes(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("limbeck"):
            home = node.module.replace(".", "/").removeprefix("limbeck").removeprefix("/")
            for alias in node.names:
                inside = f"{home}/{alias.name}" if home else alias.name
                found.add(inside if inside in FILES else home if home in FILES else f"{home}/__init__")
    return found & set(FILES)


def test_no_modules_import_each_other_in_a_circle():
    open_, done = [], set()

    def visit(name):
        assert name not in open_, " -> ".join([*open_[open_.index(name) :], name])
        if name not in done:
            open_.append(name)
            for target in modules(TREES[name]):
                visit(target)
            done.add(open_.pop())

    for name in FILES:
        visit(name)


@pytest.mark.parametrize("name", [name for name in FILES if part(name) == "methods"])
def test_a_method_needs_only_the_nouns(name):
    below = {"core", "connectors", "schedules", "taps", "methods"}
    # SimKD's deployed student is a network of another structure, which the networks' side has to know
    also = {"methods/simkd": {"models"}, "methods/about": {"data"}, "methods/task_losses": {"data"}}.get(name, set())
    assert ours(TREES[name]) <= below | also
    from_data = {module for module in imported(TREES[name]) if module.startswith("limbeck.data")}
    assert from_data <= {"limbeck.data.targets"}  # the names of the tasks, and what a mask ignores


def test_only_one_module_runs_the_code_of_users():
    ways = {"exec_module", "module_from_spec", "spec_from_file_location", "SourceFileLoader", "exec", "eval", "compile"}

    def runs(tree):
        called = [node.func for node in nodes(tree) if isinstance(node, ast.Call)]
        names = {node.id for node in called if isinstance(node, ast.Name)}
        names |= {node.attr for node in called if isinstance(node, ast.Attribute)} - {"eval", "compile"}  # torch's
        loaders = imported(tree) & {"importlib.machinery", "runpy", "imp", "marshal", "shelve", "dill"}
        return bool(names & ways or loaders)

    assert {name for name, tree in TREES.items() if runs(tree)} == {"user_code"}


def test_only_the_reader_of_what_torch_saved_knows_pickles():
    # and of the module only its error: what torch.save wrote is read by torch, where it may hold no code
    knowing = {name for name, tree in TREES.items() if imported(tree) & {"pickle", "_pickle", "cPickle", "joblib"}}
    assert knowing == {"files/pickled"}
    assert "from pickle import UnpicklingError\n" in FILES["files/pickled"].read_text()


def test_what_torch_saved_is_only_read_where_it_may_hold_no_code():
    def loads(tree):
        return [
            {word.arg: ast.unparse(word.value) for word in node.keywords}
            for node in nodes(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load"
            if ast.unparse(node.func) in ("torch.load", "jit.load", "torch.jit.load")
        ]

    loading = {name: calls for name, tree in TREES.items() if (calls := loads(tree))}
    assert set(loading) == {"files/pickled"}
    assert all(words.get("weights_only") == "True" for calls in loading.values() for words in calls)


def test_only_the_command_line_talks():
    def prints(tree):
        calls = [node.func for node in nodes(tree) if isinstance(node, ast.Call)]
        return any(isinstance(call, ast.Name) and call.id == "print" for call in calls)

    talking = {name for name, tree in TREES.items() if prints(tree) or outside(tree) & {"rich", "typer"}}
    assert {part(name) for name in talking} == {"cli"}


def at_once(name):
    """The statements by which importing a module imports others, without what only a type checker sees."""
    body = [node for node in TREES[name].body if isinstance(node, ast.Import | ast.ImportFrom)]
    guarded = [ast.unparse(node.test) for node in TREES[name].body if isinstance(node, ast.If)]
    assert set(guarded) <= {"TYPE_CHECKING", "__name__ == '__main__'"}
    return ast.Module(body, [])


def test_help_does_not_wait_for_torch():
    waiting, seen = ["cli/__init__", "__init__", "__main__"], set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        tree = at_once(name)
        waiting += [one for one in modules(tree) if one not in seen]
        assert outside(tree) <= sys.stdlib_module_names | {"typer", "rich"}, name
    assert {"cli/run", "cli/doctor"} <= seen


def found(kind):
    """All nodes of a kind, with the file that each stands in."""
    return [(name, node) for name, tree in TREES.items() for node in nodes(tree) if isinstance(node, kind)]


def test_a_file_stays_short():
    counts = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert {name: count for name, count in counts.items() if count > 400} == {}


def test_a_function_stays_short_beside_its_docstring():
    def lines(node):
        return node.end_lineno - node.lineno + 1

    counts = [
        (name, node.name, lines(node) - (lines(node.body[0]) if ast.get_docstring(node) else 0))
        for name, node in found(ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [one for one in counts if one[2] > 60] == []


def test_only_tests_assert():
    assert [(name, node.lineno) for name, node in found(ast.Assert)] == []


def test_no_error_is_swallowed_whole():
    assert [(name, node.lineno) for name, node in found(ast.ExceptHandler) if node.type is None] == []
