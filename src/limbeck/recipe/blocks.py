"""The blocks of a recipe: their keys, types and defaults."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, model_validator

from limbeck.errors import LimbeckError
from limbeck.files.paths import expanded
from limbeck.options import Checked, Named, as_block
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


def _kept(value: Any) -> Any:
    if not isinstance(value, bool | str | Mapping | CacheBlock):
        raise needed("true, false, auto or a block that says how")
    return as_cache(value)


def _methods(value: Any) -> Any:
    if not isinstance(value, str | Mapping | list):
        raise needed("a name, a block with a name, or a list of these")
    return as_methods(value)


def _path(value: str) -> str:
    try:
        expanded(value)
    except LimbeckError as error:
        raise ValueError(str(error)) from error  # what pydantic lists with all else
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise needed("a name for a folder: letters, digits, . _ and -, beginning with a letter or digit")
    return value


def _network(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", value):
        raise needed("a name of lower-case letters, digits and _, beginning with a letter")
    return value


# Upper bounds keep a slip of the finger from asking for more memory or processes than a machine has.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Samples = Annotated[int, Field(ge=1, le=1_000_000_000)]
Pixels = Annotated[int, Field(ge=0, le=10_000)]
Side = Annotated[int, Field(ge=1, le=10_000)]
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Refusal = Literal["chance", "permuted", "probabilities", "random", "not_finite", "shared"]
ClassName = NonNegativeInt | str
Output = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
Size = Annotated[tuple[Side, Side], BeforeValidator(_square)]
PathText = Annotated[str, AfterValidator(_path)]
Files = Annotated[tuple[PathText, ...], Field(min_length=1, max_length=100), BeforeValidator(_several)]


def as_methods(value: Any) -> Any:
    """A list of methods to the one block ``{"name": "kd+srrl", "parts": [...]}``; anything else as `as_block`."""
    if not isinstance(value, list):
        return as_block(value)
    parts = [as_block(part) for part in value]
    names = [str(part.get("name")) if isinstance(part, dict) else str(part) for part in parts]
    return {"name": "+".join(names), "parts": parts}


Methods = Annotated[dict[str, Any], BeforeValidator(_methods)]


def as_cache(value: Any) -> Any:
    """``true``, ``false`` or ``auto`` to ``{"use": ...}``; a block that says anything but ``use`` means ``true``."""
    if isinstance(value, bool | str):
        return {"use": value}
    return {"use": True, **value} if isinstance(value, Mapping) and value else value


class AugmentBlock(Checked):
    """See `limbeck.data.Augment`."""

    crop: Pixels = 0
    shift: Pixels = 0
    flip: bool = False
    cutout: Pixels = 0


class DataBlock(Checked):
    """See `limbeck.data.load`."""

    source: str
    root: PathText | None = None
    path: PathText | None = None
    validation: Annotated[int, Field(ge=0, le=1_000_000_000)] | Share = 0.1
    normalise: bool = True
    download: bool = True
    size: Size | None = None
    exif_orientation: bool = True
    limit: Samples | None = None
    seed: Seed = 0
    streaming: bool = False
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    transform: str | None = None


class CacheBlock(Checked):
    """Whether the teacher's outputs are computed once and kept; see docs/speed.md.

    ``true``, ``false`` and ``auto`` stand for the block with ``use`` alone, and who says how they are kept without
    ``use`` says that they are, see `as_cache`. ``auto`` keeps them where that changes nothing but
    rounding: the student sees each sample always the same, and the rows fit easily.
    """

    use: bool | Literal["auto"] = "auto"
    views: Count | None = None
    seed: Seed = 0
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    top_k: Count | None = None
    folder: PathText | None = None

    @model_validator(mode="after")
    def _auto_changes_nothing(self) -> Self:
        said = [name for name in ("views", "dtype", "top_k") if getattr(self, name) is not None]
        if self.use == "auto" and said:
            raise ValueError(f"auto keeps what changes nothing: leave out {', '.join(said)}, or say use: true")
        return self


class TrainBlock(Checked):
    """How a network is trained; ``exclude`` names classes that are left out of its training set."""

    epochs: Count
    batch_size: Count = 128
    optimizer: Named = Field(default={"name": "adam"})
    schedule: Named = Field(default={"name": "cosine"})
    augment: AugmentBlock = AugmentBlock()
    exclude: tuple[ClassName, ...] = ()


class TeacherBlock(Checked):
    """Where the teacher comes from: files or run folders (``weights``), or trained on the spot (``train``).

    ``untrained`` leaves the training to a method that trains its teacher, such as ``class_distance``. ``table`` is a
    file of soft labels by image name, of a teacher that nobody has; ``values`` says what it holds where that is not
    plain. ``init: fine_tune`` starts a teacher that is trained here from the ``weights``, all but the classifier.
    ``output`` says what of the network's output are the logits, see `limbeck.models.outputs`.
    """

    model: Named | None = None
    weights: Files | None = None
    init: Literal["as_is", "fine_tune"] = "as_is"
    output: Output | None = None
    table: PathText | None = None
    values: Literal["probabilities", "log-probabilities", "logits"] | None = None
    train: TrainBlock | None = None
    untrained: bool = False
    members: Annotated[int, Field(ge=1, le=100)] = 1
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    seed: Seed | None = None


class StudentBlock(Checked):
    """The student, or another network that learns, and a file of weights to start from.

    ``init`` says how the weights are taken: ``as_is``; ``fine_tune``, all but the classifier; ``net2net``, from a
    smaller network of the same kind, which is widened and deepened. ``noise`` is added to the copies
    that ``net2net`` makes, in deviations of a layer's weights; without any they stay alike.
    """

    model: Named
    weights: PathText | None = None
    output: Output | None = None
    init: Literal["as_is", "fine_tune", "net2net"] = "as_is"
    noise: Annotated[float, Field(ge=0)] = 0.0


Networks = Annotated[
    dict[Annotated[str, Field(max_length=100), AfterValidator(_network)], StudentBlock], Field(max_length=100)
]


class EvaluateBlock(Checked):
    """What is measured besides the usual: ``shift_bias`` names the classes of the omitted-class study."""

    shift_bias: tuple[ClassName, ...] = ()
    latency_runs: Annotated[int, Field(ge=1, le=100_000)] = 100


class Recipe(Checked):
    """One experiment. Every named block (model, method, optimizer, schedule) has all its options written out.

    ``allow`` names the refusals of a teacher or a network that are left out, see `limbeck.experiment.checks`.
    """

    name: Annotated[str, Field(max_length=100), AfterValidator(_name)]
    data: DataBlock
    student: StudentBlock
    train: TrainBlock
    method: Methods
    networks: Networks = Field(default_factory=dict)
    share_first_stage: bool = False
    teacher: TeacherBlock | None = None
    baseline: bool = True
    seeds: Annotated[tuple[Seed, ...], Field(max_length=1000)] = (0,)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Annotated[Literal["auto", "32", "bf16"], BeforeValidator(lambda v: str(v) if v == 32 else v)] = "auto"
    compile: bool = False
    allow: tuple[Refusal, ...] = ()
    cache: Annotated[CacheBlock, BeforeValidator(_kept)] = CacheBlock()
    evaluate: EvaluateBlock = EvaluateBlock()
