"""A recipe's networks: built fresh, or restored from files and run folders."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from limbeck.cache.blackbox import BlackBox
from limbeck.core import LimbeckError, Stage
from limbeck.data import Data
from limbeck.data.targets import TaskName
from limbeck.experiment.arms import label_indices
from limbeck.experiment.runfiles import file_record
from limbeck.experiment.workspace import example_batch
from limbeck.files.paths import expanded
from limbeck.models import GIVEN, Ensemble, NetworkSpec, build, load_network, load_weights, read_spec
from limbeck.models.files import SHARDS, load_all_but_classifier, weights_files
from limbeck.models.fitting import FINE_TUNE
from limbeck.models.foreign import from_file, pretrained_input
from limbeck.models.inputs import AS_THE_DATA, Bridge, Input
from limbeck.models.net2net import net2net
from limbeck.models.onnx import onnx_files, onnx_network
from limbeck.options import Block
from limbeck.outline import outline
from limbeck.recipe.blocks import MemberBlock, Recipe, StudentBlock, TeacherBlock
from limbeck.recipe.paths import trained_files
from limbeck.user_code import code_digests

PROBE = 64
"""The number of training samples on which a new network is run before it is trained."""


IN_FOLDERS = (
    *("student.safetensors", "teacher.safetensors"),  # of a run
    *("model.safetensors", f"model.safetensors{SHARDS}", "pytorch_model.bin", f"pytorch_model.bin{SHARDS}"),
)
"""The names of weights files in a folder, in the order in which they are looked for."""


Trained = tuple[nn.Module, tuple[str, ...], MemberBlock]
"""A trained network, its classes in the order of its outputs, and the block that describes it."""


class NetworkFactory:
    """The networks of one recipe on its data.

    The code that the recipe names is run; with ``trust_code``, also Python files that weights files name.
    """

    def __init__(self, recipe: Recipe, data: Data, *, trust_code: bool = False) -> None:
        self._recipe, self._data, self._trust_code = recipe, data, trust_code
        self._notes: dict[str, None] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence on the weights that were used, for each file that holds those of more than one network."""
        return tuple(self._notes)

    def student(self, seed: int, arm: str) -> tuple[nn.Module, NetworkSpec, dict[str, nn.Module]]:
        """A new student, what builds it again, and the recipe's other networks by name."""
        made = {
            name: self._started(name, block, seed)
            for name, block in {"student": self._recipe.student, **self._recipe.networks}.items()
        }
        others = {name: network for name, (network, _) in made.items() if name != "student"}
        return *made["student"], others

    def teacher(self, block: TeacherBlock) -> tuple[nn.Module, NetworkSpec]:
        """A new teacher to be trained, or a member of an ensemble, and what builds it again.

        With ``init: fine_tune`` it starts from the weights in the block's file, except for the classifier.

        Raises:
            LimbeckError: the block names no model, or a file that the teacher cannot start from.
        """
        if block.model is None:
            raise LimbeckError("the teacher is trained in this run, so it needs a model:")
        network, spec = fresh(block.model, self._data, expected_input(block))
        if block.init == "fine_tune" and block.weights:  # of one file, says the check of the recipe
            self._fine_tune("teacher", network, block.weights[0])
        return network, spec

    def restored(self, block: TeacherBlock) -> list[Trained]:
        """The trained teacher, or the members of an ensemble, from the block's files; empty if it has none.

        For a table of soft labels it is a placeholder that must not be run. A teacher that is fine-tuned here
        (``init: fine_tune``) is not restored.
        """
        if block.table is not None:
            return [(BlackBox(len(self._data.outputs)), self._data.outputs, block)]
        if not block.is_trained:
            return []
        return [trained for one in block.listed or (block,) for trained in self._restored(one)]

    def _restored(self, block: MemberBlock) -> Iterator[Trained]:
        if not block.weights:
            yield *without_weights(block, self._data), block
        for path in block.weights or ():
            network, labels, said = restored(path, block, self._data, trust_code=self._trust_code)
            self._note("teacher", path, said)
            yield network, labels, block

    def _started(self, name: str, block: StudentBlock, seed: int) -> tuple[nn.Module, NetworkSpec]:
        expected, teacher = expected_input(block), self._recipe.teacher
        if block.of and teacher is not None and teacher.init == "as_is" and teacher.weights:
            expected = _expected_of(read_spec(find_weights(teacher.weights[0])), teacher, self._data)
        network, spec = fresh(block.model, self._data, expected)
        spec = replace(spec, pruned=block.init == "pruned")
        if block.weights is None:
            return network, spec
        if block.init == "fine_tune":
            self._fine_tune(name, network, block.weights)
            return network, spec
        file = find_weights(block.weights)
        if block.init in ("as_is", "pruned"):
            known = read_spec(file)
            _check_use(file, known, spec)
            self._note(name, block.weights, _load(network, file, known))
            return network, replace(spec, pruned=spec.pruned or (known is not None and known.pruned))
        small, known = load_network(file, trust_code=self._trust_code)
        _check_use(file, known, spec)
        net2net(small, network, example_batch(self._data, PROBE).inputs, noise=block.noise, seed=seed)
        return network, spec

    def _fine_tune(self, name: str, network: nn.Module, weights: str) -> None:
        """Load the weights of a file, except for the classifier, into a new network."""
        classifier = outline(name, network, example_batch(self._data, PROBE)).classifier
        self._note(name, weights, load_all_but_classifier(network, find_weights(weights), classifier))

    def _note(self, name: str, weights: str, said: str) -> None:
        if said:
            self._notes[f"{name}: of {weights} {said}"] = None


def teaches(stages: Sequence[Stage]) -> bool:
    """Whether the teacher, or a part of it, learns."""
    return any("teacher" in stage.networks for stage in stages)


def check_use(recipe: Recipe, stages: Sequence[Stage], others: Collection[str]) -> None:
    """Raise LimbeckError if the method does not use some of the networks ``others``."""
    name = recipe.method["name"]
    used = {name for stage in stages for name in (*stage.networks, *(tap.source for tap in stage.reads))}
    idle = sorted(set(others) - used)
    if idle:
        raise LimbeckError(f"networks: {name} does not use {', '.join(idle)}")
    if recipe.teacher is not None and recipe.teacher.untrained and not teaches(stages):
        raise LimbeckError(f"{name} does not train the teacher: write train: or weights: in the teacher block")
    if recipe.share_first_stage and len(stages) < 2:
        raise LimbeckError(f"share_first_stage: {name} has one stage, so there is nothing to share")
    if recipe.share_first_stage and stages[0].learns != ("student",):
        raise LimbeckError(
            f"share_first_stage: the first stage of {name} trains {', '.join(stages[0].learns)}, not the student"
        )


def ensemble(members: list[nn.Module], block: TeacherBlock, task: TaskName) -> nn.Module:
    """The teacher: one network, or an ensemble of several."""
    return members[0] if len(members) == 1 else Ensemble(members, block.mean, task)


def expected_input(block: MemberBlock | StudentBlock) -> Input:
    """What the network of a block reads: what the block says, else what is known of its pretrained weights."""
    if block.input is not None:
        return Input(**block.input.model_dump())
    options = {key: value for key, value in (block.model or {}).items() if key != "name"}
    return (pretrained_input(block.model["name"], options) if block.model else None) or AS_THE_DATA


def spec_of(model: Block, data: Data, bridge: Bridge, labels: Sequence[str]) -> NetworkSpec:
    """What builds a network again that reads the data through a bridge."""
    options = {key: value for key, value in model.items() if key != "name"}
    return NetworkSpec(
        model["name"],
        options,
        len(labels),
        bridge.own,
        tuple(labels),
        mean=bridge.mean,
        std=bridge.std,
        channels=bridge.expected.channels,
    )


def fresh(
    model: Block, data: Data, expected: Input = AS_THE_DATA, *, labels: Sequence[str] = ()
) -> tuple[nn.Module, NetworkSpec]:
    """A new network that reads the data as ``expected``, and what builds it again; its classes are those of the data.

    Raises:
        LimbeckError: there is no such model or option; the input does not fit the data.
    """
    bridge = Bridge(expected, data.shape, data.mean, data.std)
    spec = spec_of(model, data, bridge, labels or data.outputs)
    network = build(spec.name, classes=spec.classes, shape=spec.shape, **spec.options)
    if bridge.changes:
        bridge.install(network)
    return network, spec


def without_weights(block: MemberBlock, data: Data) -> tuple[nn.Module, tuple[str, ...]]:
    """Load a trained network from a file of ONNX or from the user's code. It reads the data as the block describes.

    Returns:
        The network, and its classes in the order of its outputs.

    Raises:
        LimbeckError: the file is missing or damaged; the code does not return a network or a function.
    """
    labels = labels_of(block, data) or data.outputs
    bridge = Bridge(expected_input(block), data.shape, data.mean, data.std)
    if block.onnx is not None:
        network: nn.Module = onnx_network(block.onnx)
    else:
        options = dict(block.model or {})
        file, _, function = options.pop("name").rpartition(":")
        shape = bridge.own
        network = from_file(expanded(file), function, classes=len(labels), shape=shape, options=options, trained=True)
    if bridge.changes:
        bridge.install(network)
    return network, labels


def restored(
    path: str, block: MemberBlock, data: Data, *, trust_code: bool = False
) -> tuple[nn.Module, tuple[str, ...], str]:
    """Load a trained teacher from a file or a run folder. It reads the data in the form that it was trained on.

    Args:
        path: a weights file, or a folder that `find_weights` finds one in.
        block: the model to load the weights into, which a file that limbeck did not write needs; and what the teacher
            reads and its classes, if the file does not say so.
        data: what the network is used on.
        trust_code: whether a Python file named by the weights file may be run, if the block names no model.

    Returns:
        The network, its classes in the order of its outputs, and which of the file's weights were used.

    Raises:
        LimbeckError: the file is missing or damaged; it does not name its model, or names code; its number of
            classes is not that of the data.
    """
    file = find_weights(path)
    spec = read_spec(file)
    labels = labels_of(block, data) or (spec.labels if spec else ()) or data.outputs
    if spec is not None and block.classes is None and labels == tuple(map(str, range(len(labels)))):
        labels = data.outputs  # numbers, which say nothing of other data
    expected = _expected_of(spec, block, data)
    if spec is not None and spec.classes != len(labels):
        listed = f"classes: lists {len(labels)}: list all classes of the file in the order of its logits"
        wrong = listed if block.classes else f"the data has {len(labels)}: {FINE_TUNE}"
        raise LimbeckError(f"{file} has {spec.classes} classes, but {wrong}")
    if block.model is not None:
        network = fresh(block.model, data, expected, labels=labels)[0]
        return network, labels, _load(network, file, spec)
    if spec is None:
        raise LimbeckError(f"{file} does not say which model it holds: name it under model:")
    network, _ = load_network(file, trust_code=trust_code)
    bridge = Bridge(expected, data.shape, data.mean, data.std)
    if bridge.changes:
        bridge.install(network)
    return network, labels, ""


def _load(network: nn.Module, file: Path, spec: NetworkSpec | None) -> str:
    """Load a file into a network, which gets the structure that limbeck saved; return which weights were used."""
    if spec is None:
        return load_weights(network, file)
    load_network(file, network=network)
    return ""


def labels_of(block: MemberBlock, data: Data) -> tuple[str, ...]:
    """The names of a teacher's classes in the order of its outputs, as its block gives them; empty if it does not.

    Raises:
        LimbeckError: a number is not that of a class of the data.
    """
    numbers = [label for label in block.classes or () if not isinstance(label, str)]
    names = dict(zip(numbers, label_indices(numbers, data.outputs), strict=True))
    return tuple(label if isinstance(label, str) else data.outputs[names[label]] for label in block.classes or ())


def _expected_of(spec: NetworkSpec | None, block: MemberBlock, data: Data) -> Input:
    """What a trained teacher reads: what its block says, else its weights file, if limbeck saved it."""
    if block.input is not None or spec is None or not spec.mean:
        return expected_input(block)
    images = len(spec.shape) == 3 and len(data.shape) == 3
    size = (spec.shape[1], spec.shape[2]) if images and spec.shape[1:] != data.shape[1:] else None
    channels = spec.channels
    if channels is None and images and spec.shape[0] != data.shape[0]:
        channels = "gray" if spec.shape[0] == 1 else "rgb"
    return Input(spec.mean, spec.std, size, channels)


def find_weights(path: str) -> Path:
    """The weights file at a path: the file itself, or the one in a run folder or a Hugging Face folder.

    Raises:
        LimbeckError: a folder holds none.
    """
    place = expanded(path)
    if place.is_dir():
        found = [place / name for name in IN_FOLDERS if (place / name).is_file()]
        if not found:
            raise LimbeckError(f"the folder {place} contains none of {', '.join(IN_FOLDERS)}")
        return found[0]
    return place


def file_digests(recipe: Recipe) -> list[str]:
    """Return a YAML comment with the current sha256 of each file of weights, soft labels or code that a recipe names.

    Raises:
        OSError: a file is missing.
        LimbeckError: an index of weights, or a file of ONNX, is damaged.
    """
    files = {
        place: onnx_files(expanded(text)) if place[-1] == "onnx" else weights_files(find_weights(text))
        for place, text in trained_files(recipe).items()
        if text != GIVEN
    }
    records = ((place, file_record(file)) for place, several in files.items() for file in several)
    lines = [f"# {'.'.join(map(str, place))}: {record['sha256']}" for place, record in records]
    return [*lines, *code_digests(recipe.model_dump())]


def _check_use(file: Path, known: NetworkSpec | None, spec: NetworkSpec) -> None:
    """Refuse weights that a network which is trained here should not start from."""
    if known is None:
        return
    if known.classes != spec.classes:
        raise LimbeckError(f"{file} has {known.classes} classes, but the data has {spec.classes}: {FINE_TUNE}")
    if known.labels and known.labels != spec.labels:
        its, ours = next(pair for pair in zip(known.labels, spec.labels, strict=True) if pair[0] != pair[1])
        raise LimbeckError(
            f"{file} has its classes in another order than the data: {its!r} where the data has {ours!r}"
        )
    scales = zip(known.mean, known.std, spec.mean, spec.std, strict=False)
    if any(abs(m - n) > 0.1 * s or abs(s - t) > 0.1 * s for m, s, n, t in scales):
        raise LimbeckError(
            f"{file} was trained on inputs normalised by mean {known.mean} and deviation {known.std}, but this network "
            f"reads {spec.mean} and {spec.std}: give it input: {{mean: {list(known.mean)}, std: {list(known.std)}}}"
        )
