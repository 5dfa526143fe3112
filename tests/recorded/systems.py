"""FitNets, FSP, class distance and SRRL."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from limbeck.connectors import Through
from limbeck.methods.class_distance import class_distance_loss
from limbeck.methods.fitnets import hint_loss
from limbeck.methods.fitnets_one_stage import one_stage_regressor
from limbeck.methods.fsp import FlowPair
from limbeck.methods.srrl import Classifier, Representation, connector
from recorded import Case, Recorded, numbered, with_parameters


def fitnet_hint(case: Case, options: Mapping[str, Any]) -> Tensor:
    student, teacher = case["student_feature"], case["teacher_feature"]
    regressor = one_stage_regressor(tuple(student.shape[1:]), tuple(teacher.shape[1:]))
    loss = Through(regressor, partial(hint_loss, average="elements"))
    convolution = next(name for name, layer in loss.named_modules() if hasattr(layer, "kernel_size"))
    places = {"conv": convolution, "bn": "connector.2"}
    parameters = {
        f"{at}.{part}": case[f"param/{name}.{part}"] for name, at in places.items() for part in ("weight", "bias")
    }
    return with_parameters(loss, parameters, student, teacher)


def fsp(form: str, pool: str, case: Case, options: Mapping[str, Any]) -> Tensor:
    students, teachers = numbered(case, "student_feature"), numbered(case, "teacher_feature")
    loss = FlowPair(pool=options.get("pool", pool), form=form)
    weights = options.get("weights", 1)
    each = weights if isinstance(weights, list) else [weights] * len(options["pairs"])
    return sum(
        weight * loss(students[a], students[b], teachers[a], teachers[b])
        for weight, (a, b) in zip(each, options["pairs"], strict=True)
    )


def class_distance(case: Case, options: Mapping[str, Any]) -> Tensor:
    centres, labels = case["centres"], case["labels"]
    distance = class_distance_loss(
        case["student_feature"], centres[labels], centres[case["other_class"]], phi=options["phi"]
    )
    return nn.functional.cross_entropy(case["student_logits"], labels) + options["lambda"] * distance


def _srrl(student: Tensor, teacher: Tensor, names: str, case: Case, weight: float) -> Tensor:
    classes, width = case["teacher_param/fc.weight"].shape
    module = Representation(
        connector(tuple(student.shape[1:]), width), Classifier(nn.Linear(width, classes)), alpha=1.0, beta=weight
    )
    first = case[f"param/{names}.0.weight"]
    parameters = {
        "connector.0.weight": first if student.dim() == 4 else first.flatten(1),
        "connector.1.weight": case[f"param/{names}.1.weight"],
        "connector.1.bias": case[f"param/{names}.1.bias"],
        "above.layer.weight": case["teacher_param/fc.weight"],
        "above.layer.bias": case["teacher_param/fc.bias"],
    }
    return with_parameters(module, parameters, student, teacher, case["teacher_logits"])


def srrl(case: Case, options: Mapping[str, Any]) -> Tensor:
    return _srrl(case["student_feature"], case["teacher_feature"], "Connectors", case, options.get("weight", 1.0))


def srrl_vector(case: Case, options: Mapping[str, Any]) -> Tensor:
    return _srrl(case["student_embedding"], case["teacher_embedding"], "transfer", case, 1.0)


OURS: Mapping[str, Recorded] = {
    "fitnet_hint": fitnet_hint,
    "fsp_paper": partial(fsp, "paper", "max"),
    "fsp_repdistiller": partial(fsp, "elements", "average"),
    "fsp_torchdistill": partial(fsp, "columns", "max"),
    "class_distance": class_distance,
    "srrl": srrl,
    "srrl_vector": srrl_vector,
}
