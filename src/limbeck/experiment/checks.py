"""Checks before training: networks that share parts, teachers that cannot be right, steps that would fail.

Each refusal has the name of its check in `limbeck.experiment.verdicts`, by which a user can allow it.
`limbeck.experiment.first_step` tries a real training step.
"""

from collections.abc import Callable, Collection
from contextlib import ExitStack
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from limbeck.core import LimbeckError, Networks
from limbeck.data import Data, Split
from limbeck.data.targets import NUMBERS, TaskName
from limbeck.evaluate.outputs import check_finite
from limbeck.experiment.input_forms import better_input, described
from limbeck.experiment.measuring import EVALUATION_BATCH, outputs_of
from limbeck.experiment.significance import UNSURE, at_least
from limbeck.experiment.verdicts import OF_TEACHER, Note, refuse_unless_allowed, skipped
from limbeck.experiment.workspace import example_batch
from limbeck.taps import evaluation_mode
from limbeck.tasks import Task, task_of
from limbeck.train.copies import close
from limbeck.train.engine import Engine

SAMPLES_PER_CLASS = 5
"""With fewer validation samples a class, chance cannot be told from a weak teacher."""

TWICE = 64
"""Samples on which a teacher runs twice, to see whether it returns the same outputs."""

ROUNDING = 1e-4
"""The largest difference of two runs that counts as rounding, as a share of the largest logit."""

_STATELESS = ("activation", "container", "flatten", "linear", "padding", "pixelshuffle", "pooling", "upsampling")
"""Modules of `torch.nn` without tensors whose mode does not matter: two networks may share them."""

_DIVIDES = "limbeck divides a teacher itself (teacher.shard)"
_FOREIGN = {
    "DataParallel": "pass the network inside it, its `.module`",
    "DistributedDataParallel": "pass the network inside it, its `.module`",
    "FullyShardedDataParallel": f"{_DIVIDES}: build the network without it and load the full state",
    "FSDPModule": f"{_DIVIDES}: build the network without fully_shard and load the full state",
}


def unwrapped(name: str, network: nn.Module) -> tuple[nn.Module, list[str]]:
    """The network, or the one with the same parameters inside the wrapper of `torch.compile`; and notes.

    Raises:
        LimbeckError: the network is distributed over processes, or has no weights yet.
    """
    inside = dict(network.named_children()).get("_orig_mod", network)
    notes = [f"the {name} is compiled by torch.compile: the network inside it is used, which has the same weights"]
    for layer, module in inside.named_modules():
        for kind in {one.__name__ for one in type(module).__mro__} & _FOREIGN.keys():
            raise LimbeckError(f"the {name}{layer and f'.{layer}'} is a {kind}: {_FOREIGN[kind]}")
    if any(parameter.is_meta for parameter in inside.parameters()):
        raise LimbeckError(f"the {name} has parameters on the meta device, so it has no weights yet: load them")
    return inside, notes if inside is not network else []


def refuse_shared(networks: Networks, *, allow: Collection[str] = ()) -> list[Note]:
    """Look for modules, parameters and buffers of two networks: frozen in one, they cannot learn in the other.

    The members of an ensemble are one network. Two networks may share modules without tensors that behave the same in
    every mode, such as an activation. Returns a note if the refusal is allowed.

    Raises:
        LimbeckError: two networks share parts, and ``shared`` is not allowed; or they are the same module.
    """
    parts = {name: _parts(network) for name, network in networks.items()}
    told = []
    for one, other in combinations(networks, 2):
        if networks[one] is networks[other]:
            raise LimbeckError(f"{one} and {other} are the same module: pass two modules")
        both = [(*parts[one][key], parts[other][key][0]) for key in parts[one] if key in parts[other]]
        outer = {place for place, _, _ in both}
        tops = [part for part in dict.fromkeys(both) if not any(_within(part[0], place) for place in outer)]
        if tops:
            named = [
                (f"{one}.{place}".rstrip("."), kind, f"{other}.{there}".rstrip(".")) for place, kind, there in tops
            ]
            listed = ", ".join(f"{place} ({kind}) is {there}" for place, kind, there in named[:4])
            more = f" and {len(tops) - 4} more" if len(tops) > 4 else ""
            told.append(f"the {one} and the {other} share layers: {listed}{more}")
    advice = (
        "A part that is frozen in one network would not learn in the other: give each its own copy, for example with "
        "copy.deepcopy"
    )
    return [refuse_unless_allowed("shared", "; ".join(told), advice, allow)] if told else []


def check_teacher(
    network: nn.Module, data: Data, engine: Engine, *, allow: Collection[str] = (), learns: bool = False
) -> list[Note]:
    """Refuse a trained teacher that cannot be right, judged by its outputs on the validation split.

    Without a validation split, its outputs on a few training samples are checked, but not its accuracy. The test split
    is never read. The teacher is moved to the engine's device and otherwise unchanged.

    Returns notes, also for the refusals that ``allow`` leaves out. If the method trains the teacher (``learns``), its
    accuracy does not matter yet.

    Raises:
        LimbeckError: it returns NaN or infinity (``not_finite``), probabilities (``probabilities``) or different
            outputs in each run (``random``); it is far more accurate on inputs of another form (``input``); its outputs
            are in another order than the classes (``permuted``); its accuracy, or the headline of
            another task, is no better than chance (``chance``).
    """
    which, split = ("validation", data.validation) if len(data.validation) else ("train", _few(data.train))
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        logits = outputs_of(network, split, data, engine, name="teacher")
    notes: list[Note] = []

    def refuse(key: str, what: str, advice: str) -> None:
        if learns and key == "chance":
            notes.append(Note(f"{what}, before the method trains it", key))
        else:
            notes.append(refuse_unless_allowed(key, what, advice, allow))

    finite = torch.isfinite(logits).flatten(1).all(dim=1)
    try:
        kind = "outputs" if data.task in NUMBERS else "logits"
        check_finite(logits, name="teacher", split=which, files=split.names, kind=kind)
    except LimbeckError as error:
        refuse("not_finite", str(error), "They would make the loss of the student NaN: fix the network")
    logits, targets = logits[finite], split.targets[finite]
    if not len(logits):
        return [*notes, *skipped("no output of the teacher is finite", *OF_TEACHER[1:])]
    if _are_probabilities(logits, data.task):
        sums = " and sums to 1" * (data.task != "multi_label")
        refuse(
            "probabilities",
            f"the teacher returns probabilities (each row is in [0, 1]{sums}), but logits are needed",
            "Remove the softmax or sigmoid at its end, or declare it: in a recipe teacher: {output: probabilities}, "
            'in Python teacher_output="probabilities"',
        )
    if _is_random(network, split, data, engine):
        refuse(
            "random",
            "the teacher returns different outputs in each run in eval mode",
            "Its forward draws random numbers, for example with F.dropout without training=self.training",
        )
    if which == "train":
        told = "there is no validation split, so the accuracy of the teacher was not checked"
        return [*notes, Note(told, "chance"), *skipped("there is no validation split", "input", "permuted")]
    if data.task != "classification":
        notes += skipped("the task is not classification", "input", "permuted")
        notes += _against_chance(logits, targets, data, refuse)
        return notes
    better = None if learns else better_input(network, data, engine)
    if better is not None:
        refuse("input", *described(*better))
    elif learns:
        notes += skipped("the method trains the teacher", "input")
    order = _fitting(logits.argmax(dim=1), targets, len(data.classes))
    if order is not None:
        refuse("permuted", *_permuted(order, logits, targets, data.classes))
    else:
        notes += _against_chance(logits, targets, data, refuse)
    return notes


def check_trained(network: nn.Module, data: Data, engine: Engine) -> list[str]:
    """Notes on a teacher that this run has trained and that is no better than chance on the validation split."""
    if not len(data.validation):
        return []
    said: list[str] = []
    logits = outputs_of(network, data.validation, data, engine, name="teacher")
    notes = _against_chance(logits, data.validation.targets, data, lambda check, what, advice: said.append(what))
    return [*said, *(note.said for note in notes)]


def check_student(network: nn.Module, data: Data) -> list[Note]:
    """A note if the outputs of a student are those of a sigmoid or softmax, which the loss computes from logits."""
    ends = [module for module in network.modules() if isinstance(module, nn.Sigmoid | nn.Softmax)]
    if data.task in NUMBERS or not ends:
        return []
    given: list[tuple[str, Tensor]] = []
    batch, device = example_batch(data), next((one.device for one in network.parameters()), torch.device("cpu"))
    with ExitStack() as hooks, evaluation_mode([network]), torch.no_grad():
        for end in ends:
            hooks.enter_context(end.register_forward_hook(lambda end, _, out: given.append((type(end).__name__, out))))
        outputs = network(batch.inputs.to(device))
    kinds = {kind for kind, out in given if torch.equal(out, outputs)}
    told = 'in a recipe student: {output: probabilities}, in Python student_output="probabilities"'
    return [
        Note(f"the student ends in nn.{kind}, but the loss needs logits: remove it, or declare it: {told}")
        for kind in kinds
    ]


def _parts(network: nn.Module) -> dict[tuple[str, int], tuple[str, str]]:
    """What must not be shared, with its name and kind: modules by identity, tensors by memory."""
    found: dict[tuple[str, int], tuple[str, str]] = {}
    for layer, module in network.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        home = type(module).__module__.rpartition(".")
        stateless = home[0] == "torch.nn.modules" and home[2] in _STATELESS and not isinstance(module, nn.RReLU)
        if own or not stateless:
            found.setdefault(("module", id(module)), (layer, type(module).__name__))
        for key, tensor in own:
            kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
            plain = tensor.layout == torch.strided and not is_lazy(tensor)
            memory = tensor.untyped_storage().data_ptr() if plain else 0
            if memory:  # a view has that of the whole
                found.setdefault(("memory", memory), (f"{layer}.{key}" if layer else key, kind))
    return found


def _within(place: str, other: str) -> bool:
    return place != other and (other == "" or place.startswith(f"{other}."))


def _few(split: Split) -> Split:
    """Samples spread evenly over the split."""
    count = min(EVALUATION_BATCH, len(split))
    return split.select(torch.arange(count) * len(split) // count)


def _are_probabilities(logits: Tensor, task: TaskName) -> bool:
    if task in NUMBERS or not bool((logits >= 0).all() and (logits <= 1).all()):
        return False
    return task == "multi_label" or bool(((logits.sum(dim=1) - 1).abs() <= 1e-3).all())


def _is_random(network: nn.Module, split: Split, data: Data, engine: Engine) -> bool:
    few = split.select(torch.arange(min(TWICE, len(split))))
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        one, other = (outputs_of(network, few, data, engine).nan_to_num() for _ in range(2))
    return not close(one, other, ROUNDING)


def _fitting(predicted: Tensor, targets: Tensor, classes: int) -> list[int] | None:
    """The class that each output stands for, where another order than the data's fits far better.

    The order is fitted on one half of the samples and judged on the other, by the classes that it moves.
    """
    order = _assignment(predicted, targets, classes)
    moved = (order != torch.arange(classes))[targets]
    held_out = torch.empty_like(predicted)
    first = _ranks(targets) % 2 == 0
    for half in (first, ~first):
        held_out[half] = _assignment(predicted[~half], targets[~half], classes)[predicted[half]]
    gained = moved & (held_out == targets) & (predicted != targets)
    lost = moved & (held_out != targets) & (predicted == targets)
    more, less, count = int(gained.sum()), int(lost.sum()), int(moved.sum())
    if count == 0 or (more - less) / count < 0.3 or at_least(more, more + less, 0.5) > UNSURE / 10:
        return None
    return [int(place) for place in order]


def _ranks(targets: Tensor) -> Tensor:
    """The position of each sample among those of its class."""
    by_class = torch.argsort(targets, stable=True)
    sizes = torch.bincount(targets)
    ranks = torch.empty_like(targets)
    ranks[by_class] = torch.arange(len(targets)) - (sizes.cumsum(0) - sizes)[targets[by_class]]
    return ranks


def _assignment(predicted: Tensor, targets: Tensor, classes: int) -> Tensor:
    """The one-to-one assignment of outputs to classes with the most hits; ties keep the data's order."""
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # takes a second to import

    counted = torch.bincount(predicted * classes + targets, minlength=classes * classes).view(classes, classes)
    own = torch.eye(classes, dtype=torch.float64) / (2 * classes)
    _, columns = linear_sum_assignment(counted + own, maximize=True)
    return torch.from_numpy(columns)


def _permuted(order: list[int], logits: Tensor, targets: Tensor, classes: tuple[str, ...]) -> tuple[str, str]:
    predicted = logits.argmax(dim=1)
    right, fitting = (int((one == targets).sum()) / len(targets) for one in (predicted, torch.tensor(order)[predicted]))
    moved = [place for place, meant in enumerate(order) if place != meant]
    pairs = ", ".join(f"its output {place} is the data's class {classes[order[place]]!r}" for place in moved[:4])
    more = f" and {len(moved) - 4} more" if len(moved) > 4 else ""
    named = [classes[place] for place in order]
    return (
        f"the teacher's outputs are in another order than the data's classes: {pairs}{more}; its accuracy "
        f"on {len(targets)} validation samples is {right:.1%} in this order and {fitting:.1%} in the data's order",
        f"Describe the order: in a recipe teacher: {{classes: {order}}}, in Python teacher_classes={named}",
    )


def _against_chance(
    outputs: Tensor, targets: Tensor, data: Data, refuse: Callable[[str, str, str], object]
) -> list[Note]:
    """Refuse a teacher that is no better than chance; a note if that cannot be decided."""
    task = task_of(data)
    constant = task.by_chance(data, targets)
    if constant is None:
        return _against_random_classes(outputs, targets, len(data.classes), refuse)
    return _against_constant(task, outputs, constant, targets, refuse)


def _against_constant(
    task: Task, outputs: Tensor, constant: Tensor, targets: Tensor, refuse: Callable[[str, str, str], object]
) -> list[Note]:
    """Refuse a teacher that is no better than outputs that do not depend on the input; a note if those are perfect."""
    figure, found, chance = task.headline, task.score(outputs, targets), task.score(constant, targets)
    if chance == (0.0 if figure.falls else 1.0):
        return [Note(f"constant outputs are right on all {len(targets)} validation samples", "chance")]
    if figure.score(found) <= figure.score(chance):
        refuse(
            "chance",
            f"the {figure.label} of the teacher on {len(targets)} validation samples is {figure.text(found)}, which is "
            f"no better than {figure.text(chance)} of the best constant outputs",
            "It may be undertrained, or the samples too few to tell; its outputs may have another order or unit; or it "
            "was trained on inputs of another form: describe them, in a recipe teacher: {input: {...}}, in Python "
            "teacher_input=limbeck.Input(...)",
        )
    return []


def _against_random_classes(
    logits: Tensor, targets: Tensor, classes: int, refuse: Callable[[str, str, str], object]
) -> list[Note]:
    """Refuse a teacher whose accuracy is no better than chance; a note where that cannot be decided."""
    count = len(targets)
    predicted = logits.argmax(dim=1)
    shares = (torch.bincount(one, minlength=classes).double() / count for one in (predicted, targets))
    chance = max(float(torch.stack([*shares]).prod(dim=0).sum()), 1 / (10 * classes))
    hits = int((predicted == targets).sum())
    below = 1 - at_least(hits + 1, count, chance) < UNSURE
    above = at_least(hits, count, chance) < UNSURE
    weak = 1 - at_least(hits + 1, count, (1 + chance) / 2) < UNSURE  # even an accuracy halfway to 1 would have shown
    if below or (not above and weak and count >= SAMPLES_PER_CLASS * classes):
        how = "lower" if below else "not clearly higher"
        refuse(
            "chance",
            f"the accuracy of the teacher is {how} than chance: {hits / count:.1%} of {count} validation samples; "
            f"chance is {chance:.1%}",
            "Most likely it was trained on inputs with another normalisation, range of values, order of channels or "
            "size: describe them, in a recipe teacher: {input: {mean: imagenet, std: imagenet, size: 224}}, in Python "
            'teacher_input=limbeck.Input(mean="imagenet", std="imagenet", size=224). Or its classes are in another '
            "order: in a recipe teacher: {classes: [...]}, in Python teacher_classes=[...]. Or these are not its "
            "weights",
        )
    elif not above:
        told = f"{hits} are classified correctly, {chance * count:.1f} are expected by chance"
        few = f"{count} validation samples are too few to tell whether the teacher is better than chance: {told}"
        return [Note(few, "chance")]
    return []
