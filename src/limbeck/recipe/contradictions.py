"""Find keys of a recipe that are valid alone and contradict each other."""

from collections.abc import Container, Iterator
from typing import Any

from limbeck.errors import nearest
from limbeck.options import Block
from limbeck.recipe.blocks import HARD_LOSSES, MemberBlock, Recipe, StudentBlock, TaskBlock, TeacherBlock
from limbeck.recipe.of_teacher import KEYS as FROM_TEACHER
from limbeck.user_code import is_code
from limbeck.wording import Problem, shown

_KINDS = (
    "write weights: FILE or onnx: FILE for a trained teacher, or a model: and train: {epochs: N} to train it in this "
    "run, or a model: and untrained: true for a method that trains it, or a table: of its soft labels"
)

WORKERS = 256
"""The most processes that decode images."""


def contradictions(recipe: Recipe, teacherless: Container[str]) -> Iterator[Problem]:
    """Yield all contradictions of a recipe whose keys are valid. The methods ``teacherless`` need no teacher."""
    for method in dict.fromkeys(map(_method, (recipe.method, *recipe.methods))):
        if recipe.teacher is None and method not in teacherless:
            yield Problem((), f"the method {method} needs a teacher: block; {_KINDS}")
    if recipe.teacher is not None:
        yield from _teacher(recipe.teacher)
        yield from _sharded(recipe.teacher, recipe)
        if recipe.teacher.table is not None and recipe.cache.use is True:
            yield Problem(("cache",), "the table: already contains this teacher's outputs: remove cache:")
    for name in sorted({"student", "teacher", "batch"} & set(recipe.networks)):
        yield Problem(("networks", name), f"the name {name!r} is taken: choose another")
    named = [(("networks", name), block) for name, block in recipe.networks.items()]
    for path, block in [(("student",), recipe.student), *named]:
        yield from _student(path, block)
        yield from _pruned(path, block, recipe)
    yield from task_problems(recipe.task)
    if recipe.share_first_stage and len(recipe.seeds) < 2:
        yield Problem(("share_first_stage",), "only several seeds can share a first stage: write seeds: [0, 1]")
    if not recipe.seeds:
        yield Problem(("seeds",), "got []: write at least one seed, such as seeds: [0]")
    if len(set(recipe.seeds)) < len(recipe.seeds):
        yield Problem(("seeds",), f"got {list(recipe.seeds)[:20]}: write each seed only once")


def _method(block: Block) -> Any:
    """The name of a block's method, which `as:` does not change."""
    parts = block.get("parts", ())
    return parts[0].get("name") if len(parts) == 1 else block.get("name")


def streaming_contradictions(options: Block) -> Iterator[Problem]:
    """Those of the keys of the sources ``folder`` and ``table``, at their places in the ``data`` block."""
    workers = options["workers"]
    if workers is not None and not 0 <= workers <= WORKERS:
        yield Problem(("workers",), f"got {workers}: it must be from 0 to {WORKERS}")
    for key in ("workers", "transform"):
        if options[key] is not None and not options["streaming"]:
            yield Problem((key,), f"only streamed data has {key}: write streaming: true, or leave out {key}:")


def task_problems(task: TaskBlock) -> Iterator[Problem]:
    """Yield a problem for each name in the block ``task`` that is neither known nor a function."""
    loss, metric, code = task.hard_loss, task.metric, "path/to/file.py:function"
    if loss is not None and loss not in HARD_LOSSES and not is_code(loss):
        yield Problem(
            ("task", "hard_loss"), f"there is no loss {shown(loss)}: {nearest(loss, HARD_LOSSES)}, and {code}"
        )
    if metric is not None and not is_code(metric):
        yield Problem(("task", "metric"), f"got {shown(metric)}: it must be {code}")


def _teacher(teacher: TeacherBlock) -> Iterator[Problem]:
    if teacher.table is not None:
        networks = (teacher.model, teacher.weights, teacher.onnx, teacher.trained, teacher.train, teacher.untrained)
        if any(networks) or teacher.new_members != 1:
            yield Problem(("teacher",), "a teacher with a table: has no network: keep only table: and values:")
        if teacher.output is not None:
            yield Problem(("teacher", "output"), "a table: has no network output: write values: for what it contains")
    elif teacher.listed:
        yield from _listed(teacher)
    elif teacher.onnx or teacher.trained:
        yield from _member(("teacher",), teacher)
        if teacher.train or teacher.untrained or teacher.new_members > 1 or teacher.init != "as_is":
            kind = "onnx:" if teacher.onnx else "trained: true"
            known = f"a teacher with {kind} is already trained: remove train:, untrained:, members: and init:"
            yield Problem(("teacher",), known)
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


def _sharded(teacher: TeacherBlock, recipe: Recipe) -> Iterator[Problem]:
    """Yield the contradictions of a teacher that is divided among processes."""
    if not teacher.shard:
        return
    if not teacher.is_trained or teacher.onnx or teacher.listed or len(teacher.weights or ()) > 1:
        told = "only a trained network can be divided among processes: write weights: FILE or trained: true"
        yield Problem(("teacher", "shard"), told)
    if recipe.cache.use is True:
        yield Problem(("cache",), "only the first process builds a store, so it needs the whole teacher: remove shard:")
    if recipe.compile:
        yield Problem(("compile",), "a teacher with shard: true cannot be compiled: remove compile:")
    if recipe.precision == "auto":
        yield Problem(("precision",), "with shard: true it cannot be measured: write precision: 32 or precision: bf16")
    if any(block.of for block in (recipe.student, *recipe.networks.values())):
        yield Problem(("teacher", "shard"), "a student with of: teacher needs the whole teacher: remove shard:")


def _listed(teacher: TeacherBlock) -> Iterator[Problem]:
    """Yield the contradictions of an ensemble whose members have blocks of their own."""
    for key in MemberBlock.model_fields:
        if getattr(teacher, key):
            yield Problem(("teacher", key), "with a list of members:, this key belongs to each member: move it there")
    if teacher.train or teacher.untrained or teacher.init != "as_is":
        known = "the members: of a list are already trained: remove train:, untrained: and init:"
        yield Problem(("teacher",), known)
    for number, member in enumerate(teacher.listed):
        path = ("teacher", "members", number)
        yield from _member(path, member)
        if not member.is_trained:
            yield Problem(path, "a member is a trained network: write weights: FILE, onnx: FILE or trained: true")
        if len(member.weights or ()) > 1:
            yield Problem((*path, "weights"), "a member has one file: write weights: FILE")


def _member(path: tuple[str | int, ...], member: MemberBlock) -> Iterator[Problem]:
    """Yield the contradictions of a trained network."""
    ways = [key for key in ("weights", "onnx", "trained") if getattr(member, key)]
    if len(ways) > 1:
        yield Problem(path, f"got {' and '.join(f'{key}:' for key in ways)}, allowed is one of them")
    if member.onnx and member.model:
        yield Problem((*path, "model"), "a file of ONNX contains its network: remove model:")
    if member.trained and not is_code(str((member.model or {}).get("name"))):
        known = "the model: must be path/to/file.py:function, which returns a trained network or a function"
        yield Problem((*path, "trained"), known)


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
        if teacher.new_members > 1:
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
    if block.init != "as_is" and block.weights is None and block.of is None:
        yield Problem((*path, "init"), f"got {block.init!r} without weights: to start from: write weights: FILE")
    if block.noise and block.init != "net2net":
        yield Problem((*path, "noise"), f"got {block.noise}, but only init: net2net uses noise:")


def _pruned(path: tuple[str, ...], block: StudentBlock, recipe: Recipe) -> Iterator[Problem]:
    """Yield the contradictions of a network that is pruned."""
    shares = [key for key in ("macs", "parameters") if getattr(block, key) is not None]
    if block.init != "pruned":
        for key in (*shares, *(key for key in ("of", "from_scratch") if getattr(block, key))):
            yield Problem((*path, key), f"got {shown(getattr(block, key))}, but only init: pruned uses {key}:")
    elif len(shares) != 1:
        given = " and ".join(f"{key}:" for key in shares) or "neither"
        yield Problem(path, f"init: pruned needs either macs: or parameters:, such as macs: 0.25; got {given}")
    if block.from_scratch and _pretrained(block.model):
        told = "starts from random weights, but the model names pretrained ones: remove them and write weights: FILE"
        yield Problem((*path, "from_scratch"), told)
    if block.of != "teacher":
        return
    teacher = recipe.teacher
    if block.weights is not None:
        yield Problem((*path, "weights"), "with of: teacher, the weights are those of the teacher: remove weights:")
    plain = teacher is not None and teacher.model and not (teacher.trained or teacher.listed or teacher.untrained)
    if teacher is None or not plain or len(teacher.weights or ()) > 1 or teacher.new_members > 1:
        told = "of: teacher needs a teacher: block with one network: model: and either weights: FILE or train:"
        yield Problem((*path, "of"), told)
    elif any(getattr(block, key) != getattr(teacher, key) for key in FROM_TEACHER):
        told = f"with of: teacher, these keys are those of the teacher: remove {', '.join(FROM_TEACHER)} here"
        yield Problem((*path, "of"), told)
    if recipe.share_first_stage:
        yield Problem(("share_first_stage",), "with of: teacher, the students of the seeds have different layers")


def _pretrained(model: Block | None) -> bool:
    """Whether the model has pretrained weights of timm or torchvision."""
    if model is None:
        return False
    name = str(model.get("name"))
    return (name.startswith("timm:") and bool(model.get("pretrained"))) or (
        name.startswith("torchvision:") and model.get("weights") is not None
    )
