"""Yim, Joo, Bae, Kim (2017), on CIFAR-10 with the networks of the paper.

At the scale ``cpu``: 10,000 training images, Adam and a cosine in both stages. A third of the iterations, 21,000 of
64,000, is 10 of 30 epochs, and the FSP stage has 5 epochs; C1 to C3 have ResNet-14 instead of ResNet-26. C6 has 24
epochs after 8 of the FSP stage, also for hints, which have more in the paper (35,000 and 21,000 iterations).

At the scale ``paper``, iterations are epochs of 391 batches of 128. In C1 to C6, all stages of a student have the steps
of its last one. In C7, the first stage has 70 % of the epochs of the last (21,000 of 30,000 iterations in the paper).
C7 has no data of the paper at any scale: its teacher learned classes 0 to 4 of CIFAR-10, and its students learn classes
5 to 9 from 200 images each. The test split has all ten, so at most 50 % can be right.

C4 and C5 have five ensembles of three networks of each kind, paired by their number; at the scale ``cpu`` all networks
are ResNet-8. To take less time, the epochs are four fifths of those of C1 to C3: 24 for a network alone, 4 for the FSP
stage, 8 after it or for a copy. A copy has all weights, also those of the classifier, and is trained with batches of
its own. In the paper, the ensemble with shuffled FSP stages has the highest accuracy, but gains less over its networks
(1.59 points) than that of networks alone (1.73). The paper's ensembles of FitNets and of networks alone with a third of
the iterations are left out.

These epochs were fixed before any run of the studies, from validation accuracies of ``limbeck compare
recipes/compare_cifar10.yaml`` (ResNet-20 to ResNet-8): with 4 + 4 epochs, 61.2 % after an FSP stage, 63.0 % after hints
and 60.7 % alone for 8 epochs (6 seeds); with ``train.epochs=8``, 68.2 % and 68.9 % (1 seed).
"""

from collections.abc import Callable, Iterator, Sequence

from limbeck.claims.checks import Part, above, greater, scores
from limbeck.claims.claim import Claim, Curve, Results, Study, System
from limbeck.claims.ensembles import Ensemble
from limbeck.methods.fsp import PAPER

# bf16 instead of auto, so that all studies are alike; estimated on a CPU with AMX, slower without bf16 units
_SEEDS = ("seeds=[0, 1, 2, 3, 4]", "precision=bf16")


def _sgd(place: str, epochs: int, steps: str) -> tuple[str, ...]:
    """The published training of a network; the paper does not give the batch size."""
    values = (f"epochs={epochs}", "batch_size=128", f"schedule={{name: steps, at: {steps}}}", "augment={crop: 4}")
    return (*(f"{place}.{one}" for one in values), f"{place}.optimizer={{name: sgd, lr: 0.1, weight_decay: 1e-4}}")


_WHOLE_DATA = ("data.limit=null", "data.validation=0", "precision=32")
_TEACHER = _sgd("teacher.train", 164, "[0.5, 0.75]")
_SLOW_ALONE = (*_WHOLE_DATA, *_sgd("train", 164, "[0.5, 0.75]"))
_FAST_ALONE = (*_WHOLE_DATA, *_sgd("train", 54, "[0.524, 0.762]"))
_SLOW, _FAST = (*_SLOW_ALONE, *_TEACHER), (*_FAST_ALONE, *_TEACHER)

_EQUAL = ("teacher.model=fsp_resnet14", "student.model=fsp_resnet14", "teacher.train.epochs=30")
_EQUAL_PAPER = ("teacher.model=fsp_resnet26", "student.model=fsp_resnet26")

FAST = Study(
    "fsp_fast",
    "fsp_cifar10",
    (
        *(*_EQUAL, "train.epochs=10", *_SEEDS),
        "methods=[{name: fsp, fsp_epochs: 5, fsp_rate: 1}, {name: fitnets, hint_epochs: 5}, "
        "{name: fitnets, hint_epochs: 5, hint: sections, as: three-hints}]",
    ),
    (
        *(*_EQUAL_PAPER, *_FAST),
        "methods=[{name: fsp, fsp_epochs: 54, fsp_rate: 0.01}, {name: fitnets, hint_epochs: 90, hint_rate: 0.001}, "
        "{name: fitnets, hint_epochs: 90, hint_rate: 0.001, hint: sections, as: three-hints}]",
    ),
)
"""A third of the iterations, with and without a stage before."""

FASTER = Study(
    "fsp_faster",
    "fsp_cifar10",
    (
        *("student.model=fsp_resnet14", "train.epochs=5", "baseline=false", *_SEEDS),
        "methods=[{name: fsp, fsp_epochs: 5, fsp_rate: 1}]",
    ),
    ("student.model=fsp_resnet26", *_FAST, "train.epochs=27", "methods=[{name: fsp, fsp_epochs: 27, fsp_rate: 0.01}]"),
    FAST,
)
"""Half of that, for the figure only."""

WHOLE = Study(
    "fsp_whole",
    "fsp_cifar10",
    (*_EQUAL, "train.epochs=30", "methods=[alone]", *_SEEDS),
    (*_EQUAL_PAPER, *_SLOW),
    FAST,
)
"""All iterations, without a teacher."""

SMALL = Study(
    "fsp_small",
    "fsp_cifar10",
    (
        *("teacher.model=fsp_resnet26", "student.model=fsp_resnet8", "teacher.train.epochs=30", "train.epochs=24"),
        *("methods=[{name: fsp, fsp_epochs: 8, fsp_rate: 1}, {name: fitnets, hint_epochs: 8}]", *_SEEDS),
    ),
    (
        *_SLOW,
        "methods=[{name: fsp, fsp_epochs: 54, fsp_rate: 0.01}, {name: fitnets, hint_epochs: 90, hint_rate: 0.001}]",
    ),
)

OTHER_CLASSES = Study(
    "fsp_other_classes",
    "fsp_cifar10",
    (
        *("teacher.model=fsp_resnet14", "teacher.train.exclude=[5, 6, 7, 8, 9]", "teacher.train.epochs=20"),
        *("student.model=fsp_resnet8", "train.epochs=1", "methods=[alone]", "seeds=[0]"),  # only its teacher is used
        *("data.limit=null", "precision=bf16"),
    ),
    (*_TEACHER, "precision=32"),
)

_FEW = ("data.limit=2000", "train.exclude=[0, 1, 2, 3, 4]", "train.epochs=40", *_SEEDS)
_FEW_PAPER = (*_sgd("train", 300, "[0.333, 0.667]"), "precision=32")

CROSS_TASK = Study(
    "fsp_cross_task",
    "fsp_cifar10",
    (
        *("student.model=fsp_resnet8", *_FEW),
        "methods=[{name: fsp, fsp_epochs: 28, fsp_rate: 1}, "
        "{name: fitnets, hint_epochs: 28, lambda_start: 0, lambda_end: 0}]",
    ),
    (
        *_FEW_PAPER,
        "methods=[{name: fsp, fsp_epochs: 210, fsp_rate: 1}, "
        "{name: fitnets, hint_epochs: 210, lambda_start: 0, lambda_end: 0}]",
    ),
    OTHER_CLASSES,
)

FINE_TUNED = Study(
    "fsp_fine_tuned",
    "fsp_cifar10",
    ("student.model=fsp_resnet14", "baseline=false", "method=fine_tune", "methods=[fine_tune]", *_FEW),
    _FEW_PAPER,
    OTHER_CLASSES,
    fine_tunes=True,
)


_SIZE = 3
"""Networks of an ensemble."""

_ENSEMBLES = ("student.model=fsp_resnet8", f"seeds={list(range(5 * _SIZE))}", "precision=bf16")
_WITHOUT_TEACHER = (*_ENSEMBLES, "teacher=null", "method=alone", "methods=[alone]")
_WITH_TEACHER = (*_ENSEMBLES, "teacher.model=fsp_resnet8", "teacher.train.epochs=24", "baseline=false")

FIRST_STAGES = Study(
    "fsp_first_stages",
    "fsp_cifar10",
    (
        # only the first stage is used
        *(*_WITH_TEACHER, f"seeds={list(range(0, 5 * _SIZE, _SIZE))}", "train.epochs=1"),
        "methods=[{name: fsp, fsp_epochs: 4, fsp_rate: 1}]",
    ),
    (*_EQUAL_PAPER, *_FAST, "train.epochs=1", "methods=[{name: fsp, fsp_epochs: 54, fsp_rate: 0.01}]"),
)

SHARED = Study(
    "fsp_shared",
    "fsp_cifar10",
    (*_WITHOUT_TEACHER, "train.epochs=8"),
    ("student.model=fsp_resnet26", *_FAST_ALONE),
    ensemble=_SIZE,
    starts=(FIRST_STAGES, "fsp-seed{seed}/fsp/seed{seed}/after_fsp.safetensors"),
)
"""The students of an ensemble have one FSP stage."""

SHUFFLED = Study(
    "fsp_shuffled",
    "fsp_cifar10",
    (*_WITH_TEACHER, "train.epochs=8", "methods=[{name: fsp, fsp_epochs: 4, fsp_rate: 1, shuffle: true}]"),
    (*_EQUAL_PAPER, *_FAST, "methods=[{name: fsp, fsp_epochs: 54, fsp_rate: 0.01, shuffle: true}]"),
    FIRST_STAGES,
    ensemble=_SIZE,
)
"""Each student has an FSP stage of its own, in which the teacher's channels are in another order."""

ALONE = Study(
    "fsp_alone",
    "fsp_cifar10",
    (*_WITHOUT_TEACHER, "train.epochs=24"),
    ("student.model=fsp_resnet26", *_SLOW_ALONE),
    ensemble=_SIZE,
)
"""All iterations, without a teacher: the ensembles of teachers of the paper."""

COPIED = Study(
    "fsp_copied",
    "fsp_cifar10",
    (*_WITHOUT_TEACHER, "train.epochs=8"),
    ("student.model=fsp_resnet26", *_FAST_ALONE),
    ensemble=_SIZE,
    starts=(ALONE, "alone-seed{seed}/alone/seed{seed}/student.safetensors"),
)
"""The first network of each of those, copied and trained further."""


def _fast(results: Results) -> Iterator[Part]:
    fast, whole = (scores(results[name], arm) for name, arm in (("fsp_fast", "fsp"), ("fsp_whole", "alone")))
    yield greater(fast, whole, "fsp is less than 0.5 points below alone with all iterations", below=0.5)


def _by_epochs(results: Results) -> dict[str, Sequence[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {"fsp": [], "alone": []}
    for arm in (arm for name in ("fsp_faster", "fsp_fast", "fsp_whole") for arm in results[name].arms):
        line = lines.get(arm.arm.partition("@")[0])  # alone@2x
        if line is not None:
            line.append((arm.epochs, 100 * arm.headline.mean))
    return {name: sorted(line) for name, line in lines.items()}


def _equal_iterations(results: Results) -> Iterator[Part]:
    fast = results["fsp_fast"]
    yield above(fast, "fsp", "alone")
    whole = scores(results["fsp_whole"], "alone")
    yield greater(whole, scores(fast, "alone"), "alone with all iterations is above alone with a third of them")


def _hints(results: Results) -> Iterator[Part]:
    yield above(results["fsp_fast"], "fitnets", "three-hints")


def _of(results: Results, study: str, figure: Callable[[Ensemble], float]) -> dict[int, float]:
    """A figure of the ensembles of a study by their number, in points."""
    return {number: 100 * figure(one) for number, one in enumerate(results.ensembles[study])}


def _ensembles(results: Results) -> Iterator[Part]:
    kinds = ("fsp_alone", "fsp_shared", "fsp_shuffled")
    alone, shared, shuffled = (_of(results, kind, lambda one: one.gain) for kind in kinds)
    yield greater(alone, shared, "an ensemble of networks alone gains more than one that shares an FSP stage")
    yield greater(shuffled, shared, "an ensemble with shuffled FSP stages gains more than one that shares an FSP stage")
    alone, shared, shuffled = (_of(results, kind, lambda one: one.accuracy) for kind in kinds)
    yield greater(shuffled, alone, "an ensemble with shuffled FSP stages is above one of networks alone")
    yield greater(shuffled, shared, "an ensemble with shuffled FSP stages is above one that shares an FSP stage")


def _copies(results: Results) -> Iterator[Part]:
    copied, alone = (_of(results, kind, lambda one: one.networks) for kind in ("fsp_copied", "fsp_alone"))
    yield greater(copied, alone, "copies that are trained further are above networks alone")
    copied, alone = (_of(results, kind, lambda one: one.accuracy) for kind in ("fsp_copied", "fsp_alone"))
    yield greater(alone, copied, "an ensemble of networks alone is above one of copies")


def _small(results: Results) -> Iterator[Part]:
    for arm, other in (("fitnets", "alone"), ("fsp", "fitnets"), ("teacher", "fsp")):
        yield above(results["fsp_small"], arm, other)


def _cross_task(results: Results) -> Iterator[Part]:
    students = results["fsp_cross_task"]
    yield above(students, "fitnets", "alone")
    yield above(students, "fsp", "fitnets")
    tuned = scores(results["fsp_fine_tuned"], "fine_tune")
    yield greater(tuned, scores(students, "fsp"), "the teacher, fine-tuned, is above fsp")


FSP_2017 = System(
    "fsp",
    PAPER,
    (
        Claim(
            "C1",
            "After an FSP stage, a network needs a third of the iterations to be as good as one trained without it.",
            "ResNet-26: 92.14 % after 21,000 + 21,000 iterations, 91.75 % after 64,000 without FSP; "
            "three networks: 8.6 h without FSP, 4.84 h with it",
            _fast,
            (FAST, FASTER, WHOLE),
            Curve("epochs of all stages", "test accuracy in %", _by_epochs),
        ),
        Claim(
            "C2",
            "With a third of the iterations, a network without the FSP stage is worse.",
            "ResNet-26, 21,000 iterations: 92.14 % after an FSP stage, 90.64 % without; 64,000: 91.75 %",
            _equal_iterations,
            (FAST, WHOLE),
        ),
        Claim(
            "C3",
            "Hints in all three sections are worse than one in the middle.",
            "ResNet-26: one hint 91.72 %, three hints 89.09 %",
            _hints,
            (FAST,),
        ),
        Claim(
            "C4",
            "An ensemble of students that share an FSP stage gains less than one of networks trained alone. With an "
            "FSP stage for each, with shuffled matrices, it gains more than with a shared one, and is the best of all.",
            "ResNet-26, average and ensemble of three: alone 91.75 % and 93.48 %, shared 92.14 % and 93.26 %, "
            "shuffled 92.08 % and 93.67 %",
            _ensembles,
            (ALONE, SHARED, SHUFFLED),
        ),
        Claim(
            "C5",
            "Copies of a trained network, each trained further, are better than networks trained alone, but their "
            "ensemble is worse.",
            "ResNet-26, average and ensemble of three: copies 92.04 % and 92.71 %, alone 91.75 % and 93.48 %",
            _copies,
            (ALONE, COPIED),
        ),
        Claim(
            "C6",
            "For a small student, FSP is better than hints, hints are better than no teacher; the teacher is best.",
            "ResNet-8: alone 87.91 %, FitNet 88.57 %, FSP 88.70 %; teacher, ResNet-26: 91.91 %",
            _small,
            (SMALL,),
        ),
        Claim(
            "C7",
            "From a teacher of other classes, FSP gives more than hints, and less than fine-tuning the teacher.",
            "ImageNet to CUB-200: alone 47.73 %, FitNet 70.19 %, FSP 74.26 %, the teacher fine-tuned 77.72 %",
            _cross_task,
            (CROSS_TASK, FINE_TUNED),
        ),
    ),
)
