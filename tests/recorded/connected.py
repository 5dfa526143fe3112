"""Methods on maps through connectors of their own."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from limbeck.methods.ab import boundary_loss
from limbeck.methods.ft import FactorTransfer, Paraphraser, encoder, factor_loss, positions_loss
from limbeck.methods.ofd import Overhaul, overhaul_loss
from limbeck.methods.reviewkd import Review, context_loss
from limbeck.methods.semckd import Calibration
from limbeck.methods.shared import OverLayers
from limbeck.methods.simkd import Projection
from limbeck.models.reuse import Reuse, projector
from recorded import Case, Recorded, numbered, with_parameters


def renamed(case: Case, *replacements: tuple[str, str], prefix: str = "param/") -> dict[str, Tensor]:
    """The case's tensors under a prefix, by our names."""
    found = {}
    for key, value in case.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            for theirs, ours in replacements:
                name = name.replace(theirs, ours)
            found[name] = value
    return found


def ab(case: Case, options: Mapping[str, Any]) -> Tensor:
    students, teachers = numbered(case, "student_feature"), numbered(case, "teacher_feature")
    losses = [
        boundary_loss(*pair, margin=options["margin"], weight=2.0 ** (layer - len(students)))
        for layer, pair in enumerate(zip(students, teachers, strict=True), start=1)
    ]
    return 3 / 1000 * sum(losses)


def places(theirs: str, ours: str) -> list[tuple[str, str]]:
    """The names of the three convolutions of `limbeck.methods.ft.layers`, which has an activation after each."""
    return [(f"{theirs}{number}", f"{ours}{2 * number}") for number in range(3)]


def ft(case: Case, options: Mapping[str, Any]) -> Tensor:
    student, teacher = case["student_feature"], case["teacher_feature"]
    factors = options["factor_channels"]
    module = FactorTransfer(encoder(student.shape[1], factors), encoder(teacher.shape[1], factors), factor_loss)
    parameters = renamed(case, *places("conv", "translator."))
    parameters |= renamed(case, *places("conv", "paraphraser."), prefix="teacher_param/")
    return with_parameters(module, parameters, student, teacher)


def ft_paraphraser(case: Case, options: Mapping[str, Any]) -> Tensor:
    teacher = case["teacher_feature"]
    module = Paraphraser(teacher.shape[1], options["factor_channels"])
    parameters = renamed(case, *places("deconv", "decoder."), *places("conv", "encoder."))
    return with_parameters(module, parameters, teacher)


def ft_repdistiller(case: Case, options: Mapping[str, Any]) -> Tensor:
    powers = {"inner_power": options["p1"], "outer_power": options["p2"]}
    return positions_loss(case["student_feature"], case["teacher_feature"], **powers)


def ofd(case: Case, options: Mapping[str, Any]) -> Tensor:
    students, teachers = numbered(case, "student_feature"), numbered(case, "teacher_feature")
    margin = numbered(case, "margin")
    losses = []
    for layer, (mine, its, one) in enumerate(zip(students, teachers, margin, strict=True), start=1):
        connector = nn.Sequential(nn.Conv2d(mine.shape[1], its.shape[1], 1, bias=False), nn.BatchNorm2d(its.shape[1]))
        loss = partial(overhaul_loss, weight=2.0 ** (layer - len(margin)), average="sum")
        losses.append(Overhaul(connector, one, loss))
    places = [(f"Connectors.{layer}.", f"losses.{layer}.connector.") for layer in range(len(losses))]
    parameters = renamed(case, *places)
    parameters |= {f"losses.{layer}.margin": one for layer, one in enumerate(margin)}
    return with_parameters(OverLayers(losses), parameters, *students, *teachers)


def reviewkd(case: Case, options: Mapping[str, Any]) -> Tensor:
    module = Review(options["student_channels"], options["teacher_channels"], middle=options["mid_channels"])
    deepest = len(options["student_channels"]) - 1
    order = [(f"abfs.{place}.", f"fusions.{deepest - place}.") for place in range(deepest + 1)]
    parameters = renamed(case, *order, ("att_conv.0", "attention"))
    students, teachers = numbered(case, "student_feature"), numbered(case, "teacher_feature")
    return with_parameters(module, parameters, *students, *teachers)


def reviewkd_hcl(case: Case, options: Mapping[str, Any]) -> Tensor:
    return context_loss(numbered(case, "student_feature"), numbered(case, "teacher_feature"))


def semckd(case: Case, options: Mapping[str, Any]) -> Tensor:
    students, teachers = numbered(case, "student_feature"), numbered(case, "teacher_feature")
    module = Calibration(
        [one.shape[1] for one in students],
        [one.shape[1] for one in teachers],
        batch_size=len(students[0]),
        embedding=len(case["param/query_weight0.linear2.weight"]),
    )
    regressors = [
        (f"regressor{i}{j}.regressor", f"regressors.{i}.{j}")
        for i in range(len(students))
        for j in range(len(teachers))
    ]
    parameters = renamed(case, ("query_weight", "queries."), ("key_weight", "keys."), *regressors)
    return with_parameters(module, parameters, *students, *teachers)


def simkd(case: Case, options: Mapping[str, Any]) -> Tensor:
    student, teacher = case["student_feature"], case["teacher_feature"]
    reuse = Reuse(
        layer="stage",
        side="output",
        channels=student.shape[1],
        outside=teacher.shape[1],
        classifier="head",
        classes=len(case["teacher_param/fc.weight"]),
        factor=options["factor"],
    )
    return with_parameters(Projection(projector(reuse)), renamed(case, ("transfer", "projector")), student, teacher)


OURS: Mapping[str, Recorded] = {
    "ab": ab,
    "ft": ft,
    "ft_paraphraser": ft_paraphraser,
    "ft_repdistiller": ft_repdistiller,
    "ofd": ofd,
    "reviewkd": reviewkd,
    "reviewkd_hcl": reviewkd_hcl,
    "semckd": semckd,
    "simkd": simkd,
}
