"""The blocks of a recipe with their keys, types and defaults."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, NonNegativeInt, model_validator

from limbeck.options import Checked, Named, as_block, with_known_home
from limbeck.wording import needed


def _several(value: Any) -> Any:
    if not isinstance(value, str | list | tuple):
        raise needed("a path or a list of paths")
    return (value,) if isinstance(value, str) else tuple(value)


def _square(value: Any) -> Any:
    if type(value) is int:
        return (value, value)
    if not isinstance(value, list | tuple):
        raise needed("a number of pixels, or a list of height and width")
    return tuple(value)


def _cache(value: Any) -> Any:
    if not isinstance(value, bool | str | Mapping | CacheBlock):
        raise needed("true, false, auto or a block of options")
    return as_cache(value)


NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""What may be the name of a folder: that of a recipe, or that which `as:` gives a method."""

NAMED = "a name for a folder: letters, digits, . _ and -, beginning with a letter or digit"
"""The same in words."""


def _name(value: str) -> str:
    if not re.fullmatch(NAME, value):
        raise needed(NAMED)
    return value


def _network(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", value):
        raise needed("a name of lower-case letters, digits and _, beginning with a letter")
    return value


HARD_LOSSES = ("l2", "smooth_l1", "wing")
"""The names in `limbeck.tasks.HARD_LOSSES`, which needs torch."""


# Upper bounds catch typing errors that would ask for more memory or processes than a machine has.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Samples = Annotated[int, Field(ge=1, le=1_000_000_000)]
Pixels = Annotated[int, Field(ge=0, le=10_000)]
Side = Annotated[int, Field(ge=1, le=10_000)]
Share = Annotated[float, Field(ge=0, lt=1)]
Part = Annotated[float, Field(gt=0, lt=1)]
Alpha = Annotated[float, Field(ge=0, le=1000)]  # of a Beta distribution; 0: off
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Refusal = Literal["chance", "permuted", "input", "probabilities", "random", "not_finite", "shared", "overlap"]
ClassName = NonNegativeInt | str
Output = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
Layer = Output  # the layers of a Sequential are numbers
Size = Annotated[tuple[Side, Side], BeforeValidator(_square)]
PathText = Annotated[str, AfterValidator(with_known_home)]
Statistics = str | float | Annotated[tuple[float, ...], Field(min_length=1, max_length=10_000)]
Labels = Annotated[tuple[ClassName, ...], Field(min_length=2, max_length=1_000_000)]
Files = Annotated[tuple[PathText, ...], Field(min_length=1, max_length=100), BeforeValidator(_several)]


def as_methods(value: Any) -> Any:
    """Turn a list of methods into one block ``{"name": "kd+srrl", "parts": [...]}``; see `as_block` for the rest.

    A block ``{"name": "kd", "as": "warm"}`` gets the same form: ``{"name": "warm", "parts": [{"name": "kd"}]}``.
    """
    if not isinstance(value, str | Mapping | list):
        raise needed("a name, a block with a name, or a list of these")
    if isinstance(value, Mapping) and "as" in value:
        return {"name": value["as"], "parts": [{key: one for key, one in value.items() if key != "as"}]}
    if not isinstance(value, list):
        return as_block(value)
    if len(value) < 2:
        raise needed("a list of two methods or more")
    parts = [as_block(part) for part in value]
    names = [str(part.get("name")) if isinstance(part, dict) else str(part) for part in parts]
    return {"name": "+".join(names), "parts": parts}


Methods = Annotated[dict[str, Any], BeforeValidator(as_methods)]


def as_cache(value: Any) -> Any:
    """Turn ``true``, ``false`` or ``auto`` into ``{"use": ...}``; a block without ``use`` means ``true``."""
    if isinstance(value, bool | str):
        return {"use": value}
    return {"use": True, **value} if isinstance(value, Mapping) and value else value


class AugmentBlock(Checked):
    """See `limbeck.data.Augment`."""

    crop: Pixels = 0
    shift: Pixels = 0
    flip: bool = False
    cutout: Pixels = 0


class DataKeys(Checked):
    """The keys of any source of data, see `limbeck.data.load`."""

    source: str
    root: PathText | None = None
    validation: Annotated[int, Field(ge=0, le=1_000_000_000)] | Share = 0.1
    normalise: bool = True
    size: Size | None = None
    limit: Samples | None = None
    seed: Seed = 0


class DataBlock(DataKeys):
    """The same with the keys of the source beside them, which `limbeck.recipe.read` checks and completes."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The keys of the source."""
        return self.model_extra or {}


class CacheBlock(Checked):
    """Whether and how the teacher's outputs are computed once and stored; see docs/speed.md.

    ``true``, ``false`` and ``auto`` are short for a block with only ``use``. A block with other keys and without
    ``use`` means ``use: true``, see `as_cache`. ``auto`` stores the outputs if that changes only rounding, that is if
    the student sees the same view of a sample in every epoch, and if they fit easily.
    """

    use: bool | Literal["auto"] = "auto"
    views: Count | None = None
    seed: Seed = 0
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    top_k: Count | None = None
    folder: PathText | None = None

    @model_validator(mode="after")
    def _auto_changes_nothing(self) -> Self:
        options = [name for name in ("views", "dtype", "top_k") if getattr(self, name) is not None]
        if self.use == "auto" and options:
            raise ValueError(f"use: auto does not allow {', '.join(options)}: remove these keys, or write use: true")
        return self


class FreezeBlock(Checked):
    """Layers that do not change in the first epochs of each stage."""

    layers: Annotated[tuple[Layer, ...], Field(min_length=1, max_length=10_000)]
    epochs: Count


class QuantiseBlock(Checked):
    """See `limbeck.train.quantise.Quantise`."""

    bits: Annotated[int, Field(ge=2, le=8)] = 8
    epochs: Count = 5
    rate: Annotated[float, Field(gt=0, le=1)] = 0.1


class RegimeBlock(Checked):
    """See `limbeck.train.regime.Regime`."""

    clip: Annotated[float, Field(gt=0)] | None = None
    accumulate: Count = 1
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    warmup: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    freeze: FreezeBlock | None = None
    rates: Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(max_length=10_000)] = Field(default_factory=dict)
    keep: Literal["last", "best"] = "last"
    stop_after: Count | None = None
    sync_batch_norm: bool = True
    quantise: QuantiseBlock | None = None


class TrainBlock(RegimeBlock):
    """The training of a network. ``exclude`` lists classes that are removed from its training set.

    With ``per_device``, ``batch_size`` is that of each process; see docs/how-to/several-processes.md.
    See `limbeck.data.soft_targets.SoftTargets` for ``label_smoothing``, ``mixup`` and ``cutmix``.
    """

    epochs: Count
    batch_size: Count = 128
    per_device: bool = False
    optimizer: Named = Field(default={"name": "adam"})
    schedule: Named = Field(default={"name": "cosine"})
    augment: AugmentBlock = AugmentBlock()
    exclude: tuple[ClassName, ...] = ()
    label_smoothing: Share = 0.0
    mixup: Alpha = 0.0
    cutmix: Alpha = 0.0
    balanced: bool = False


class InputBlock(Checked):
    """What a network reads, if that differs from the data, see `limbeck.models.inputs.Input`."""

    mean: Statistics | None = None
    std: Statistics | None = None
    size: Size | None = None
    channels: Literal["rgb", "bgr", "gray"] | None = None
    range: Annotated[float, Field(gt=0, le=65535)] = 1.0


class MemberBlock(Checked):
    """A trained network: of files or run folders (``weights``), of ONNX (``onnx``), or of your own code (``trained``).

    With ``trained``, the function that ``model`` names returns a trained network or a function from inputs to logits.
    ``output`` selects the logits in the network's output, see `limbeck.models.outputs`. ``classes`` lists the classes
    in the order of its logits, if that is not the order of the data; it may have classes that the data has not.
    """

    model: Named | None = None
    weights: Files | None = None
    trained: bool = False
    onnx: PathText | None = None
    input: InputBlock | None = None
    classes: Labels | None = None
    output: Output | None = None

    @property
    def is_trained(self) -> bool:
        """Whether the block names a trained network."""
        return bool(self.weights or self.trained or self.onnx)


Members = Annotated[int, Field(ge=1, le=100)] | Annotated[tuple[MemberBlock, ...], Field(min_length=2, max_length=100)]


class TeacherBlock(MemberBlock):
    """The teacher: a trained network, an ensemble of those (``members``), or trained in this run (``train``).

    ``untrained`` is for a method that trains its teacher, such as ``class_distance``. ``table`` is a file of soft
    labels by image name and replaces the network; ``values`` states what the table contains if limbeck cannot tell.
    ``init: fine_tune`` trains the teacher in this run from all ``weights`` except the classifier's. ``members`` is a
    list of trained networks, or the number of networks that this run trains. ``shard`` divides a trained teacher among
    several processes.
    """

    init: Literal["as_is", "fine_tune"] = "as_is"
    table: PathText | None = None
    values: Literal["probabilities", "log-probabilities", "logits"] | None = None
    train: TrainBlock | None = None
    untrained: bool = False
    members: Members = 1
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    seed: Seed | None = None
    shard: bool = False

    @property
    def listed(self) -> tuple[MemberBlock, ...]:
        """The members of an ensemble of trained networks that have blocks of their own."""
        return () if isinstance(self.members, int) else self.members

    @property
    def is_trained(self) -> bool:
        """Whether the block names a trained teacher, which this run does not train."""
        return self.init == "as_is" and bool(self.listed or super().is_trained)

    @property
    def new_members(self) -> int:
        """The number of networks that are trained in this run, if the teacher is not trained."""
        return self.members if isinstance(self.members, int) else 0


class StudentBlock(Checked):
    """The student or another network that is trained, and a file of initial weights.

    ``init`` states how the weights are used: ``as_is``; ``fine_tune``, all except the classifier's; ``net2net``, from
    a smaller network of the same family, which is widened and deepened; ``pruned``, without the least important
    channels. ``noise`` is added to the copies that ``net2net`` makes, in units of the standard deviation of a layer's
    weights. Without noise, copies may stay equal. ``pruned`` starts from ``weights``, or from the teacher of the seed
    (``of: teacher``), and keeps a share of its ``macs`` or ``parameters``. With ``from_scratch``, the pruned network
    gets random weights.
    """

    model: Named
    weights: PathText | None = None
    input: InputBlock | None = None
    output: Output | None = None
    init: Literal["as_is", "fine_tune", "net2net", "pruned"] = "as_is"
    noise: Annotated[float, Field(ge=0)] = 0.0
    of: Literal["teacher"] | None = None
    macs: Part | None = None
    parameters: Part | None = None
    from_scratch: bool = False

    @property
    def share(self) -> float:
        """The share of its ``macs`` or ``parameters`` that the network keeps: 1 unless it is pruned."""
        return self.macs or self.parameters or 1.0


Networks = Annotated[
    dict[Annotated[str, Field(max_length=100), AfterValidator(_network)], StudentBlock], Field(max_length=100)
]


class TaskBlock(Checked):
    """Options of the task of the data, see `limbeck.experiment.task_options`.

    ``hard_loss`` is a name in `HARD_LOSSES` or a function. ``eyes`` are the names or indices of the points whose
    distance is the size of a face. ``metric`` is a function that is computed for every network on the test split.
    """

    hard_loss: str | None = None
    eyes: tuple[ClassName, ClassName] | None = None
    metric: str | None = None


class EvaluateBlock(Checked):
    """Options of the evaluation. ``shift_bias`` lists the classes of the omitted-class study."""

    shift_bias: tuple[ClassName, ...] = ()
    latency_runs: Annotated[int, Field(ge=1, le=100_000)] = 100


class Recipe(Checked):
    """One experiment. Every named block (model, method, optimizer, schedule) contains all its options.

    ``allow`` lists checks whose failure is ignored, see `limbeck.experiment.verdicts`. ``methods`` lists those that
    `limbeck compare` compares; ``method`` is then the first of them.
    """

    name: Annotated[str, Field(max_length=100), AfterValidator(_name)]
    data: DataBlock
    student: StudentBlock
    train: TrainBlock
    method: Methods
    methods: Annotated[tuple[Methods, ...], Field(max_length=100)] = ()
    task: TaskBlock = TaskBlock()
    networks: Networks = Field(default_factory=dict)
    share_first_stage: bool = False
    teacher: TeacherBlock | None = None
    baseline: bool = True
    seeds: Annotated[tuple[Seed, ...], Field(max_length=1000)] = (0,)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Annotated[Literal["auto", "32", "bf16"], BeforeValidator(lambda v: str(v) if v == 32 else v)] = "auto"
    compile: bool = False
    allow: tuple[Refusal, ...] = ()
    cache: Annotated[CacheBlock, BeforeValidator(_cache)] = CacheBlock()
    evaluate: EvaluateBlock = EvaluateBlock()
