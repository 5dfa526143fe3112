"""Kim, Kim (2017).

Of the paper, only the abstract and the formulas were found: lambda, phi, the networks and the schedules are limbeck's.
All students have one teacher, which is trained with cross-entropy. The methods train copies of it further, one for each
seed: ``class_distance`` with the class-distance loss, and ``cross-entropy`` for as many epochs without it (lambda = 0).
In the paper, the teacher is trained with the loss from the start.

In A3, the networks learn some of CIFAR-10's classes but are tested on all, so accuracies are divided by the share of
the classes. The number of training steps is about the same for 2 and 10 classes. The paper's many classes are those of
other data; here 10 are many.

The schedules of ``cpu`` were not tuned. In a trial with 5,000 images, a teacher of 12 epochs reached 49.5 % on the
validation split, so the images were doubled and the epochs raised to 20.
"""

from collections.abc import Iterator

from limbeck.claims.checks import Part, above, closer, greater, points, scores
from limbeck.claims.claim import Claim, Results, Study, System
from limbeck.comparison.results import ComparisonResult
from limbeck.experiment.results import NetworkResult
from limbeck.methods.class_distance import PAPER

_CPU = "batch_size: 64, optimizer: {name: adam, lr: 2e-3}, augment: {crop: 2, flip: true}"
_PAPER = (  # of He et al. for these networks: 64,064 steps, with 45,000 images
    "batch_size: 128, optimizer: {name: sgd, lr: 0.1, weight_decay: 1e-4}, augment: {crop: 4, flip: true}, "
    "schedule: {name: steps, at: [0.5, 0.75]}"
)


def _training(train: str, epochs: tuple[int, int, int], classes: int) -> Iterator[str]:
    """Settings: with 10 classes, the teacher, its copies and the students are trained for so many epochs."""
    teacher, copies, students = (count * 10 // classes for count in epochs)
    rest = f"exclude: {list(range(classes, 10))}, {train}"
    yield f"teacher.train={{epochs: {teacher}, {rest}}}"
    yield f"train={{epochs: {students}, {rest}}}"
    own = f"name: class_distance, teacher_epochs: {copies}"
    others = "kd, mimic, " if classes == 10 else ""
    yield f"methods=[{others}{{{own}}}, {{{own}, weight: 0, as: cross-entropy}}]"


def _with_classes(count: int) -> Study:
    return Study(
        f"class_distance_{count}",
        "class_distance_cifar10",
        (
            *("teacher.untrained=false", "data.validation=1000", "data.size=[16, 16]", "seeds=[0, 1, 2, 3, 4]"),
            f"baseline={str(count == 10).lower()}",
            *_training(_CPU, (20, 10, 12), count),
        ),
        (
            *("data.limit=null", "data.validation=5000", "data.size=null"),
            *("teacher.model=resnet26", "student.model=resnet14"),
            *_training(_PAPER, (182, 182, 182), count),
        ),
    )


STUDIES = {count: _with_classes(count) for count in (2, 10)}
TEN = STUDIES[10]


def _teachers(result: ComparisonResult, arm: str) -> list[NetworkResult]:
    """The teachers that an arm trained, in the order of the seeds."""
    return [one.teacher_after for one in result.of(arm) if one.teacher_after is not None]


def _better(results: Results) -> list[Part]:
    return [above(results[TEN.name], "class_distance", "cross-entropy")]


def _close(results: Results) -> Iterator[Part]:
    result = results[TEN.name]
    student, alone = scores(result, "class_distance"), scores(result, "alone")
    large = points(_teachers(result, "cross-entropy"), result.task)
    yield greater(large, alone, "the large network is above alone")
    yield closer(student, large, alone, "class_distance is closer to the large network than to alone")
    differences = tuple(student[seed] - large[seed] + 1 for seed in sorted(student))
    yield Part("class_distance is less than 1 point below the large network", differences)


def _removed(results: Results, classes: int) -> tuple[float, ...]:
    """By how many percent the student has fewer errors with class distance, by seed."""
    result = results[STUDIES[classes].name]
    found, plain = scores(result, "class_distance"), scores(result, "cross-entropy")
    return tuple(100 * (found[seed] - plain[seed]) / (10 * classes - plain[seed]) for seed in sorted(found))


def _few_classes(results: Results) -> Iterator[Part]:
    few, many = _removed(results, 2), _removed(results, 10)
    yield Part("with 2 classes, class distance removes errors", few, "% of the errors")
    says = "class distance removes a larger share of the errors with 2 classes than with 10"
    yield Part(says, tuple(one - other for one, other in zip(few, many, strict=True)), "% of the errors")


def _dense(results: Results) -> list[Part]:
    dense, plain = (
        [one.class_scatter for one in _teachers(results[TEN.name], arm) if one.class_scatter is not None]
        for arm in ("class_distance", "cross-entropy")
    )
    differences = tuple(100 * (one - other) for one, other in zip(plain, dense, strict=True))
    says = "relative to the distance between the classes, features are spread less within the classes"
    return [Part(says, differences, "% of the squared distance between classes")]


def _conventional(results: Results) -> list[Part]:
    return [above(results[TEN.name], "alone", arm, below=1.0) for arm in ("mimic", "kd")]


CLASS_DISTANCE_2017 = System(
    "class_distance",
    PAPER,
    (
        Claim(
            "A1",
            "A student that regresses the features of a teacher trained with class distance is better than one of a "
            "teacher trained with cross-entropy.",
            "no figures found",
            _better,
            (TEN,),
        ),
        Claim(
            "A2",
            "A student of about half the size comes close to the large network.",
            '"close to the original network on CIFAR-10"',
            _close,
            (TEN,),
        ),
        Claim(
            "A3",
            "With 2 classes, the gain from class distance is larger than with 10.",
            "no figures found",
            _few_classes,
            tuple(STUDIES.values()),
        ),
        Claim(
            "A4",
            "Class distance makes the clusters of the teacher's features denser.",
            "no figures found",
            _dense,
            (TEN,),
        ),
        Claim(
            "A5",
            "Without class distance, ResNets with BatchNorm gain little from a teacher: less than 1 point.",
            '"little benefit"',
            _conventional,
            (TEN,),
        ),
    ),
)
