"""Find keys of a recipe that are valid alone and contradict each other."""

from collections.abc import Container, Iterator

from limbeck.options import Block
from limbeck.recipe.blocks import Recipe, StudentBlock, TeacherBlock
from limbeck.wording import Problem

_KINDS = (
    "write weights: FILE for a trained teacher, or a model: and train: {epochs: N} to train it in this run, or a "
    "model: and untrained: true for a method that trains it, or a table: of its soft labels"
)


WORKERS = 256
"""The most processes that decode images."""


def contradictions(recipe: Recipe, teacherless: Container[str]) -> Iterator[Problem]:
    """Yield all contradictions of a recipe whose keys are valid. The methods ``teacherless`` need no teacher."""
    method = recipe.method.get("name")
    if recipe.teacher is None and method not in teacherless:
        yield Problem((), f"the method {method} needs a teacher: block; {_KINDS}")
    if recipe.teacher is not None:
        yield from _teacher(recipe.teacher)
        if recipe.teacher.table is not None and recipe.cache.use is True:
            yield Problem(("cache",), "the table: already contains this teacher's outputs: remove cache:")
    for name in sorted({"student", "teacher", "batch"} & set(recipe.networks)):
        yield Problem(("networks", name), f"the name {name!r} is taken: choose another")
    yield from _student(("student",), recipe.student)
    for name, other in recipe.networks.items():
        yield from _student(("networks", name), other)
    if recipe.share_first_stage and len(recipe.seeds) < 2:
        yield Problem(("share_first_stage",), "only several seeds can share a first stage: write seeds: [0, 1]")
    if not recipe.seeds:
        yield Problem(("seeds",), "got []: write at least one seed, such as seeds: [0]")
    if len(set(recipe.seeds)) < len(recipe.seeds):
        yield Problem(("seeds",), f"got {list(recipe.seeds)[:20]}: write each seed only once")


def streaming_contradictions(options: Block) -> Iterator[Problem]:
    """Those of the keys of the sources ``folder`` and ``table``, at their places in the ``data`` block."""
    workers = options["workers"]
    if workers is not None and not 0 <= workers <= WORKERS:
        yield Problem(("workers",), f"got {workers}: it must be from 0 to {WORKERS}")
    for key in ("workers", "transform"):
        if options[key] is not None and not options["streaming"]:
            yield Problem((key,), f"only streamed data has {key}: write streaming: true, or leave out {key}:")


def _teacher(teacher: TeacherBlock) -> Iterator[Problem]:
    if teacher.table is not None:
        if teacher.model or teacher.weights or teacher.train or teacher.untrained or teacher.members > 1:
            yield Problem(("teacher",), "a teacher with a table: has no network: keep only table: and values:")
        if teacher.output is not None:
            yield Problem(("teacher", "output"), "a table: has no network output: write values: for what it contains")
    elif teacher.weights is not None:
        yield from _restored(teacher)
    elif teacher.init == "fine_tune":
        yield Problem(("teacher", "init"), "got 'fine_tune' without the weights: to start from: write weights: FILE")
    elif _pretrained(teacher.model) and teacher.train is None and not teacher.untrained:
        yield Problem(
            ("teacher",),
            "a pretrained model has no classifier for your classes yet: write train: {epochs: N} to train it in this "
            "run from its pretrained weights, or weights: FILE for a file that was trained on your classes",
        )
    elif teacher.model is None or (teacher.train is None) is not teacher.untrained:
        yield Problem(("teacher",), f"this block does not define one teacher: {_KINDS}")
    if teacher.values is not None and teacher.table is None:
        yield Problem(("teacher", "values"), "describes a table:, which is missing: write table: FILE")


def _restored(teacher: TeacherBlock) -> Iterator[Problem]:
    """Yield the contradictions of a teacher with weights."""
    if teacher.untrained:
        yield Problem(("teacher", "untrained"), "a teacher with weights: is already trained: remove untrained:")
    if teacher.init == "as_is":
        if teacher.train is not None:
            yield Problem(
                ("teacher",),
                "a teacher with weights: is not trained in this run: remove train:, or write init: fine_tune to train "
                "it from these weights",
            )
        if teacher.members > 1:
            yield Problem(("teacher", "members"), "list the members' files, weights: [FILE, FILE], and remove members:")
        return
    if teacher.train is None or teacher.model is None:
        lacking = [
            key for key, value in (("model: NAME", teacher.model), ("train: {epochs: N}", teacher.train)) if not value
        ]
        yield Problem(("teacher",), f"init: fine_tune trains a model from the weights: write {' and '.join(lacking)}")
    if len(teacher.weights or ()) > 1:
        yield Problem(("teacher", "weights"), "init: fine_tune starts from one file: write weights: FILE")


def _student(path: tuple[str, ...], block: StudentBlock) -> Iterator[Problem]:
    if block.init != "as_is" and block.weights is None:
        yield Problem((*path, "init"), f"got {block.init!r} without weights: to start from: write weights: FILE")
    if block.noise and block.init != "net2net":
        yield Problem((*path, "noise"), f"got {block.noise}, but only init: net2net uses noise:")


def _pretrained(model: Block | None) -> bool:
    """Whether the model has pretrained weights of timm or torchvision."""
    if model is None:
        return False
    name = str(model.get("name"))
    return (name.startswith("timm:") and bool(model.get("pretrained"))) or (
        name.startswith("torchvision:") and model.get("weights") is not None
    )
