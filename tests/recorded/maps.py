"""Methods on maps and on the relations of a batch."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from limbeck.methods.at import attention_loss
from limbeck.methods.cc import correlation_loss, neighbour_loss
from limbeck.methods.nst import selectivity_loss
from limbeck.methods.pkt import probability_loss
from limbeck.methods.rkd import angle_loss, distance_loss
from limbeck.methods.sp import similarity_loss
from limbeck.methods.vid import Information
from recorded import Case, Recorded, numbered, with_parameters


def layers(case: Case) -> zip:
    return zip(numbered(case, "student_feature"), numbered(case, "teacher_feature"), strict=True)


def embeddings(case: Case) -> tuple[Tensor, Tensor]:
    return case["student_embedding"], case["teacher_embedding"]


def at(case: Case, options: Mapping[str, Any]) -> Tensor:
    return sum(attention_loss(*pair, form="code", power=options["p"]) for pair in layers(case))


def at_paper(case: Case, options: Mapping[str, Any]) -> Tensor:
    """Recorded with beta/2 = 1."""
    return 2 * sum(attention_loss(*pair, form="paper", average="batch", power=options["p"]) for pair in layers(case))


def sp(case: Case, options: Mapping[str, Any]) -> Tensor:
    return sum(similarity_loss(*pair) for pair in layers(case))


def nst(case: Case, options: Mapping[str, Any]) -> Tensor:
    return sum(selectivity_loss(*pair) for pair in layers(case))


def vid(case: Case, options: Mapping[str, Any]) -> Tensor:
    student, teacher = case["student_feature"], case["teacher_feature"]
    module = Information(
        student.shape[1],
        teacher.shape[1],
        hidden=options["mid_channels"],
        variance=options["init_pred_var"],
        floor=options["eps"],
    )
    parameters = {f"regressor.{index}.weight": case[f"param/regressor.{index}.weight"] for index in (0, 2, 4)}
    return with_parameters(module, {"spread": case["param/log_scale"], **parameters}, student, teacher)


def rkd(case: Case, options: Mapping[str, Any]) -> Tensor:
    distance, angle = (loss(*embeddings(case)) for loss in (distance_loss, angle_loss))
    return options["w_distance"] * distance + options["w_angle"] * angle


def rkd_distance(case: Case, options: Mapping[str, Any]) -> Tensor:
    return distance_loss(*embeddings(case))


def rkd_angle(case: Case, options: Mapping[str, Any]) -> Tensor:
    return angle_loss(*embeddings(case))


def pkt(case: Case, options: Mapping[str, Any]) -> Tensor:
    return probability_loss(*embeddings(case))


def cc_repdistiller(case: Case, options: Mapping[str, Any]) -> Tensor:
    return neighbour_loss(*embeddings(case))


def cc_taylor(case: Case, options: Mapping[str, Any]) -> Tensor:
    return correlation_loss(*embeddings(case), gamma=options["gamma"], order=options["P_order"])


OURS: Mapping[str, Recorded] = {
    "at": at,
    "at_paper": at_paper,
    "sp": sp,
    "nst": nst,
    "vid": vid,
    "rkd": rkd,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "pkt": pkt,
    "cc_repdistiller": cc_repdistiller,
    "cc_taylor": cc_taylor,
}
