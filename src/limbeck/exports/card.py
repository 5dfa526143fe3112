"""What an exported file says about itself."""

from dataclasses import dataclass, field

from limbeck.evaluate import Latency
from limbeck.exports.deferring import Deferring
from limbeck.exports.graph import Layout, Precision
from limbeck.exports.parity import Parity

CARD = "card.json"
SCHEMA = 1


@dataclass(frozen=True)
class Reads:
    """The input of a file."""

    name: str
    shape: tuple[int | None, ...]  #: None for any number of samples
    type: str  #: "uint8", 0 to 255, or "float32"
    layout: Layout | None  #: of images
    channels: str | None  #: of images: "rgb" or "gray"


@dataclass(frozen=True)
class Results:
    """What was measured on the finished file."""

    bytes: int  #: of all its files
    student_bytes: int  #: of the student as safetensors
    parity: Parity | None  #: None if this machine cannot run the file
    figure: str  #: what the next two are, on the test split
    student: float | None  #: None without parity
    exported: float | None
    latency: dict[str, Latency] = field(default_factory=dict)  #: of one sample: of the student in PyTorch and the file
    #: How many operators of each kind XNNPACK does not run (ExecuTorch), or stay in 32 bits (convolutions and matrix
    #: products of ONNX in int8). Not known of other backends.
    fallbacks: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class About:
    """What is known of a file before it is written. The metadata of the file hold it, too."""

    schema: int
    backend: str
    precision: Precision
    network: str  #: such as kd/seed0
    weights_sha256: str | None  #: of the student's weights, if they come from a run folder
    task: str
    reads: Reads
    outputs: tuple[str, ...]  #: by name, in order; the first has the logits, or the numbers
    classes: tuple[str, ...]  #: the names of what the outputs stand for
    temperature: float | None  #: of the probabilities; None if the file returns none
    deferring: Deferring | None  #: None unless a teacher is behind the file
    versions: dict[str, str]


@dataclass(frozen=True)
class Card(About):
    """What ``card.json`` holds: what was known before, and what was measured."""

    results: Results
