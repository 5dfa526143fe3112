import math
from functools import partial

import pytest
import timm
import torch
from torch import nn

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.shared import OverLayers
from limbeck.methods.vid import Information, vid
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

SECTIONS = [f"stage{number}" for number in (1, 2, 3)]
DATA = arrays(torch.rand(40, 3, 16, 16), torch.arange(40) % 4)
TRAINING = Training(epochs=3, batch_size=8, optimizer=sgd(lr=0.01), schedule=constant())


def maps(n=2, channels=(4, 3), size=(2, 3)):
    return [torch.randn(n, count, *size, dtype=torch.float64) for count in channels]


def perceptron(*widths):
    layers = [nn.Flatten()]
    for before, after in zip((768, *widths), widths, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 4))


def networks(student=None, teacher=None):
    small, large = (build(name, classes=4, shape=(3, 16, 16)) for name in ("resnet8", "resnet14"))
    return {"student": student or small, "teacher": teacher or large}


def planned(student=None, teacher=None, **options):
    (stage,) = plan(partial(vid, **options), networks(student, teacher), DATA, TRAINING)
    return stage


def loop(module, student, teacher, average):
    """One number at a time; the regression is three matrices."""
    first, second, third = (module.regressor[index].weight[:, :, 0, 0].tolist() for index in (0, 2, 4))

    def times(matrix, vector):
        return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]

    def above(vector):
        return [max(value, 0.0) for value in vector]

    total = 0.0
    for n in range(len(teacher)):
        for row in range(teacher.shape[2]):
            for column in range(teacher.shape[3]):
                means = times(third, above(times(second, above(times(first, student[n, :, row, column].tolist())))))
                for channel, mean in enumerate(means):
                    variance = math.log(1 + math.exp(module.spread[channel].item())) + module.floor
                    error = (teacher[n, channel, row, column].item() - mean) ** 2
                    total += math.log(math.sqrt(variance)) + error / (2 * variance)
    return total / (len(teacher) if average == "batch" else teacher.numel())


def information(average="elements", spread=True, **options):
    module = Information(4, 3, average=average, **options).double()
    if spread:
        nn.init.normal_(module.spread)
    return module


@pytest.mark.parametrize("average", ["elements", "batch"])
def test_is_the_formula_in_loops(average):
    module, (student, teacher) = information(average, hidden=5), maps()
    assert module(student, teacher).item() == pytest.approx(loop(module, student, teacher, average), rel=1e-12)


def test_the_papers_sum_is_the_mean_times_the_elements_of_a_sample():
    module, (student, teacher) = information(), maps()
    mean = module(student, teacher)
    module.average = "batch"
    assert module(student, teacher).item() == pytest.approx(3 * 2 * 3 * mean.item(), rel=1e-12)


def test_the_best_variance_is_the_mean_squared_error():
    module, (student, teacher) = information(), maps(8)
    with torch.no_grad():
        module.regressor[4].weight.zero_()
        module.spread.copy_((teacher.square().mean((0, 2, 3)) - module.floor).expm1().log())
    module(student, teacher).backward()
    assert module.spread.grad.abs().max() < 1e-12


def test_the_gradient_is_that_of_the_value():
    module, (student, teacher) = information(hidden=2), maps()
    names = [name for name, _ in module.named_parameters()]

    def value(student, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (student, teacher))

    assert torch.autograd.gradcheck(value, (student.requires_grad_(), *module.parameters()))


@pytest.mark.parametrize("variance", [1e-3, 1.0, 5.0, 1000.0])
def test_starts_at_the_given_variance(variance):
    module, (student, teacher) = information(spread=False, variance=variance), maps()
    with torch.no_grad():
        module.regressor[4].weight.zero_()
    wanted = (teacher.square().mean().item() / variance + math.log(variance)) / 2
    assert module(student, teacher).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("spread", [-1e3, 1e3])
def test_stays_finite_for_one_sample_of_a_thousand_and_extreme_variances(spread):
    module, (student, teacher) = information().float(), (1e3 * one.float() for one in maps(1))
    nn.init.constant_(module.spread, spread)
    student.requires_grad_()
    value = module(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert module.spread.grad.isfinite().all()


def test_no_gradient_reaches_the_teacher():
    student, teacher = (one.requires_grad_() for one in maps())
    information()(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("larger", [0, 1])
def test_the_larger_map_is_pooled(larger):
    module, both = information(), maps()
    wanted = module(*both).item()
    both[larger] = both[larger].repeat_interleave(2, dim=2).repeat_interleave(3, dim=3)
    assert module(*both).item() == pytest.approx(wanted, rel=1e-12)


def test_a_vector_is_a_map_of_one_place():
    module, (student, teacher) = information(), maps(size=(1, 1))
    assert module(student[:, :, 0, 0], teacher[:, :, 0, 0]).item() == module(student, teacher).item()


def test_layers_are_summed_in_pairs():
    one, other = information(), information()
    (a, b), (c, d) = maps(), maps()
    found = OverLayers([one, other])(a, c, b, d)
    assert found.item() == pytest.approx((one(a, b) + other(c, d)).item(), rel=1e-12)


# --- the method


def test_reads_every_sections_map():
    stage = planned(information=2.0)
    assert {name: term.weight for name, term in stage.terms.items()} == {"hard": 1, "information": 2}
    wanted = tuple(Tap(who, layer) for who in ("student", "teacher") for layer in SECTIONS)
    assert stage.terms["information"].reads == wanted
    assert (stage.name, stage.epochs, stage.learns) == ("vid", 3, ("student",))


def test_can_read_the_last_alone():
    stage = planned(sections="last")
    assert stage.terms["information"].reads == (Tap("student", "stage3"), Tap("teacher", "stage3"))


def test_the_options_reach_the_regressors():
    stage = planned(hidden=7, variance=2.0, floor=0.1, average="batch", sections="last")
    (module,) = stage.terms["information"].loss.losses
    assert [tuple(module.regressor[index].weight.shape[:2]) for index in (0, 2, 4)] == [(7, 64), (7, 7), (64, 7)]
    assert (module.floor, module.average) == (0.1, "batch")
    assert nn.functional.softplus(module.spread).tolist() == [pytest.approx(1.9)] * 64


def test_the_hidden_layers_are_as_wide_as_the_teachers_map():
    modules = planned(teacher=build("wrn_16_2", classes=4, shape=(3, 16, 16))).terms["information"].loss.losses
    assert [tuple(module.regressor[0].weight.shape[:2]) for module in modules] == [(32, 16), (64, 32), (128, 64)]


def test_a_map_and_a_vector_meet_as_maps_of_one_place():
    """A convolutional teacher and a student without maps, the deepest layers."""
    stage = planned(student=perceptron(8))
    assert stage.terms["information"].reads == (Tap("student", "2"), Tap("teacher", "stage3"))


def test_reads_the_named_layers():
    stage = planned(student_layers=("stage1", "pool"), teacher_layers=("stem", "pool"))
    wanted = [("student", "stage1"), ("student", "pool"), ("teacher", "stem"), ("teacher", "pool")]
    assert stage.terms["information"].reads == tuple(Tap(*one) for one in wanted)


def test_the_regressors_and_the_variance_learn_with_the_student():
    both = networks()
    stages = plan(vid, both, DATA, TRAINING)
    before = {name: value.clone() for name, value in stages[0].terms["information"].loss.state_dict().items()}
    engine = make_engine(device="cpu", precision="32")
    losses = [
        epoch.loss for epoch in run(stages, both, training_batches(DATA, TRAINING, seed=0, engine=engine), engine)
    ]
    after = stages[0].terms["information"].loss.state_dict()
    assert losses[-1] < losses[0]
    assert all(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": -1}, "hidden is -1: it must be at least 0"),
        ({"floor": 0.0}, "variance is 5.0 and floor 0.0: allowed is 0 < floor < variance"),
        ({"variance": 1e-6}, "variance is 1e-06 and floor 1e-05"),
        ({"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
        ({"hard": 0, "information": 0}, "hard and soft and information are all 0"),
        (
            {"student_layers": ("stem",), "teacher_layers": ("stem", "pool")},
            "student_layers has 1 layers and teacher_",
        ),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(LimbeckError, match=message):
        planned(**options)


def test_tokens_are_refused():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, num_classes=4, depth=1)
    with pytest.raises(LimbeckError, match=r"vid reads maps .* and vectors .*, but teacher.blocks.0 gives \(5, 192\)"):
        planned(teacher=vit)
