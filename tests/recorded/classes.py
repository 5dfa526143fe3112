"""Methods on classes and their logits."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.methods.alone import hard_loss
from limbeck.methods.cat_kd import class_attention_loss
from limbeck.methods.crd import MemoryContrast
from limbeck.methods.dist import inter_loss, intra_loss
from limbeck.methods.dkd import nontarget_loss, target_loss
from limbeck.methods.mlkd import batch_loss, category_loss, instance_loss
from limbeck.methods.standardised import standardised_loss
from limbeck.methods.wsld import weighted_soft_loss
from recorded import Case, Recorded, with_parameters


def crd(case: Case, options: Mapping[str, Any]) -> Tensor:
    module = MemoryContrast(
        case["student_feature"][0].numel(),
        case["teacher_feature"][0].numel(),
        torch.arange(options["n_data"]),
        negatives=options["n_negatives"],
        embedding=options["feat_dim"],
        temperature=options["tau"],
        momentum=options["momentum"],
    )
    before = case["Z_before"]
    parameters = {
        "student.linear.weight": case["param/embed_s.linear.weight"],
        "student.linear.bias": case["param/embed_s.linear.bias"],
        "teacher.linear.weight": case["param/embed_t.linear.weight"],
        "teacher.linear.bias": case["param/embed_t.linear.bias"],
        "student_memory": case["memory_student"],
        "teacher_memory": case["memory_teacher"],
        "log_normalisers": before.double().clamp(min=0).log(),  # -1, not known yet, to -inf
    }
    contrasted = case["contrast_index"][:, 1:]  # the first column is the sample itself
    return with_parameters(
        module, parameters, case["student_feature"], case["teacher_feature"], case["index"], contrasted
    )


def dkd(case: Case, options: Mapping[str, Any]) -> Tensor:
    given = case["student_logits"], case["teacher_logits"], case["labels"]
    target, nontarget = (loss(*given, temperature=options["T"]) for loss in (target_loss, nontarget_loss))
    return options["alpha"] * target + options["beta"] * nontarget


def kd_logit_standardization(case: Case, options: Mapping[str, Any]) -> Tensor:
    return standardised_loss(
        case["student_logits"], case["teacher_logits"], temperature=options["T"], deviation="sample"
    )


def dist(case: Case, options: Mapping[str, Any]) -> Tensor:
    given = case["student_logits"], case["teacher_logits"]
    inter, intra = (loss(*given, temperature=options["tau"]) for loss in (inter_loss, intra_loss))
    return options["beta"] * inter + options["gamma"] * intra


def mlkd_terms(case: Case, options: Mapping[str, Any]) -> Tensor:
    given = case["student_logits"], case["teacher_logits"]
    levels = (instance_loss, category_loss, batch_loss)
    return torch.stack([level(*given, temperatures=(options["T"],), masks="none") for level in levels]).sum()


def mlkd_full(case: Case, options: Mapping[str, Any]) -> Tensor:
    # The authors' objective on a weak and a strong view: all levels on the weak view with masks that scale, then the
    # instances without masks, at three temperatures on the strong view and at the other two on the weak view.
    weak = case["student_logits_weak"], case["teacher_logits_weak"]
    strong = case["student_logits_strong"], case["teacher_logits_strong"]
    first, others = (options["T0"], 3.0, 5.0), (2.0, 6.0)
    scaled = [
        level(*weak, temperatures=first + others, masks="scale") for level in (instance_loss, batch_loss, category_loss)
    ]
    levels = torch.stack(scaled).sum() + instance_loss(*strong, temperatures=first, masks="none")
    levels = levels + instance_loss(*weak, temperatures=others, masks="none")
    hard = hard_loss(case["student_logits_weak"], case["labels"])
    hard = hard + hard_loss(case["student_logits_strong"], case["labels"])
    return options["w_ce"] * hard + options["w_kd"] * levels


def cat_kd(case: Case, options: Mapping[str, Any]) -> Tensor:
    loss = class_attention_loss(
        case["student_cam"],
        case["teacher_cam"],
        resolution=options["resolution"],
        normalise=options["normalize"],
        binarise=options["binarize"],
        average="elements",
    )
    return options["weight"] * loss


def wsld(case: Case, options: Mapping[str, Any]) -> Tensor:
    given = case["student_logits"], case["teacher_logits"], case["labels"]
    soft = weighted_soft_loss(*given, temperature=options["T"])
    return hard_loss(case["student_logits"], case["labels"]) + options["alpha"] * soft


def wsld_mmrazor(case: Case, options: Mapping[str, Any]) -> Tensor:
    given = case["student_logits"], case["teacher_logits"], case["labels"]
    return options["weight"] * weighted_soft_loss(*given, temperature=options["T"])


OURS: Mapping[str, Recorded] = {
    "crd": crd,
    "dkd": dkd,
    "kd_logit_standardization": kd_logit_standardization,
    "dist": dist,
    "mlkd_terms": mlkd_terms,
    "mlkd_full": mlkd_full,
    "cat_kd": cat_kd,
    "wsld": wsld,
    "wsld_mmrazor": wsld_mmrazor,
}
