"""The short list of facts that a faithful implementation of these methods must have: one test each, in its order.

Items 10 and 11 are on Huffman codes and binary networks, which limbeck does not have. Each method's own test file goes
further.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.data import arrays
from limbeck.evaluate import normalised_mean_error
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods import METHODS
from limbeck.methods.class_distance import class_distance, class_distance_loss
from limbeck.methods.fitnets import annealed, fitnets, regressor
from limbeck.methods.fsp import FlowPair, fsp_loss, fsp_matrix
from limbeck.methods.kd import PRESETS, soft_loss
from limbeck.methods.srrl import Classifier, Representation, connector
from limbeck.models import build
from limbeck.models.net2net import deepened, net2net, widened
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.taps import evaluation_mode
from limbeck.train.engine import make_engine
from limbeck.train.loop import Step, TrainingSweep, run

ENGINE = make_engine(device="cpu", precision="32")
SHAPE = (3, 16, 16)
DATA = arrays(torch.rand(24, *SHAPE, generator=torch.Generator().manual_seed(5)), torch.arange(24) % 4)
TRAINING = Training(1, 8, sgd(lr=1e-3), constant())


def networks():
    torch.manual_seed(1)
    names = {"student": "resnet8", "teacher": "resnet14"}
    return {role: build(name, classes=4, shape=SHAPE) for role, name in names.items()}


def batches():
    return training_batches(DATA, TRAINING, seed=0, engine=ENGINE)


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def gradient(loss, student):
    leaf = student.clone().requires_grad_()
    loss(leaf).backward()
    return leaf.grad


def test_01_kd_has_the_gradient_of_soft_cross_entropy_and_tends_to_centred_logit_matching():
    student, teacher = (2 * torch.randn(16, 10, dtype=torch.float64) for _ in range(2))
    found = gradient(lambda z: soft_loss(z, teacher, temperature=4.0), student)
    wanted = gradient(lambda z: 16 * F.cross_entropy(z / 4, (teacher / 4).softmax(dim=1)), student)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)
    difference = student - student.mean(dim=1, keepdim=True) - teacher + teacher.mean(dim=1, keepdim=True)
    limit = difference / (10 * 16)
    errors = []
    for temperature in (1e3, 1e4):
        high = gradient(lambda z, t=temperature: soft_loss(z, teacher, temperature=t), student)
        errors.append(((high - limit).norm() / limit.norm()).item())
    assert errors[0] < 5e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    value = soft_loss(student, teacher, temperature=1e4).item()
    assert value == pytest.approx(difference.square().sum().item() / (2 * 10 * 16), rel=1e-3)


def test_02_the_mean_over_all_elements_is_the_batch_mean_over_k():
    student, teacher = torch.randn(6, 7), torch.randn(6, 7)
    batch = soft_loss(student, teacher, temperature=2.0)
    assert soft_loss(student, teacher, temperature=2.0, average="elements").item() == pytest.approx(batch.item() / 7)


def test_03_fitnets_equation_2_has_no_squared_temperature():
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    plain = soft_loss(student, teacher, temperature=3.0, temperature_squared=False)
    assert soft_loss(student, teacher, temperature=3.0).item() == pytest.approx(9 * plain.item())
    preset = {key: value for key, value in PRESETS["fitnet_eq2"].items() if key != "soft"}
    for method in (partial(METHODS["kd"], **preset), fitnets):
        task = plan(method, networks(), DATA, TRAINING)[-1]
        assert torch.equal(task.terms["soft"].loss(student, teacher), plain)


@pytest.mark.parametrize(
    ("guided", "hint", "kind", "weights"),
    [
        ((80, 8, 8), (192, 7, 7), "conv", 61_440),
        ((80, 8, 8), (192, 7, 7), "full", 48_168_960),
        ((16, 4, 4), (48, 4, 4), "conv", 768),
    ],
)
def test_04_the_regressors_sizes_and_counts(guided, hint, kind, weights):
    with torch.device("meta"):
        pieces = regressor(guided, hint, kind=kind, activation="maxout", pieces=2)
    matrices = [p for p in pieces.parameters() if p.dim() > 1]
    assert sum(p.numel() for p in matrices) == 2 * weights
    if kind == "conv":
        assert matrices[0].shape[2:] == tuple(g - h + 1 for g, h in zip(guided[1:], hint[1:], strict=True))


@pytest.mark.parametrize(
    ("name", "classes", "shape", "count"),
    [
        ("mlp", 10, (1, 28, 28), 2_395_210),
        ("fitnet4", 10, (3, 32, 32), 2_544_712),  # weights without biases, as the paper counts
        ("maxout_cifar", 10, (3, 32, 32), 9_044_360),  # likewise
        ("fsp_resnet32", 10, (3, 32, 32), 464_154 + 6),  # the BatchNorm of the input
        ("resnet26", 10, (3, 32, 32), 369_690),
        ("wrn_40_4", 100, (3, 32, 32), 8_972_340),
        ("convnet_small", 10, (3, 32, 32), 769_162),
        ("convnet_big", 10, (3, 32, 32), 3_841_610),
    ],
)
def test_05_the_published_parameter_counts(name, classes, shape, count):
    """A few of each table; `tests/models/test_published_counts.py` has them all."""
    options = {"hidden": (1200, 1200)} if name == "mlp" else {}
    with torch.device("meta"):
        network = build(name, classes=classes, shape=shape, **options)
    weights_only = name in ("fitnet4", "maxout_cifar")
    assert sum(p.numel() for p in network.parameters() if p.dim() > 1 or not weights_only) == count


def test_06_fsp_matrices():
    first, last = torch.randn(3, 4, 6, 5, dtype=torch.float64), torch.randn(3, 7, 6, 5, dtype=torch.float64)
    matrix = fsp_matrix(first, last)
    assert matrix.shape == (3, 4, 7)
    one = sum((first[1, 2, s, t] * last[1, 5, s, t]).item() for s in range(6) for t in range(5)) / 30
    assert matrix[1, 2, 5].item() == pytest.approx(one)
    other = torch.randn_like(matrix)
    frobenius = sum(torch.linalg.matrix_norm(a - b).item() ** 2 for a, b in zip(matrix, other, strict=True)) / 3
    assert fsp_loss(matrix, other).item() == pytest.approx(frobenius)
    rows, columns = torch.randperm(4), torch.randperm(7)
    assert torch.allclose(fsp_matrix(first[:, rows], last[:, columns]), matrix[:, rows][:, :, columns])
    assert torch.allclose(fsp_matrix(first.flip(2, 3), last.flip(2, 3)), matrix)
    small = F.max_pool2d(first[:, :, :, :4], 2)
    assert torch.allclose(fsp_matrix(first[:, :, :, :4], last[:, :, :3, :2]), fsp_matrix(small, last[:, :, :3, :2]))
    assert FlowPair()(first, last, first, last).item() == 0


def test_07_srrl():
    teacher, layer = torch.rand(6, 9), nn.Linear(9, 4).requires_grad_(False)
    student = torch.randn(6, 5, 4, 4, requires_grad=True)
    r = connector((5, 4, 4), 9)
    assert r(student).shape == (6, 9, 4, 4)
    regression = Representation(r, Classifier(layer), alpha=0.0)
    value = regression(student, teacher, layer(teacher))
    value.backward()
    assert student.grad.any()
    assert layer.weight.grad is None
    shifted = nn.Linear(9, 4).requires_grad_(False)
    shifted.weight.copy_(layer.weight)
    shifted.bias.copy_(layer.bias + torch.tensor([5.0, -3.0, 0.0, 1.0]))
    with torch.no_grad():
        other = Representation(r, Classifier(shifted), alpha=0.0)(student, teacher, shifted(teacher))
        assert other.item() == pytest.approx(value.item(), rel=1e-4)
        equal = teacher[:, :, None, None].expand(6, 9, 4, 4)
        nothing = Representation(nn.Identity(), Classifier(layer))(equal, teacher, layer(teacher))
    assert nothing.item() == pytest.approx(0, abs=1e-10)


def test_08_class_distance():
    nets = networks()
    teaching, _ = plan(partial(class_distance, warmup_epochs=0), nets, DATA, TRAINING)
    teaching.prepare(TrainingSweep(0, nets, batches(), ENGINE))
    features = []
    hook = nets["teacher"].head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0][0]))
    labels = []
    with evaluation_mode([nets["teacher"]]), torch.no_grad():
        for batch in batches().sweep():
            for sample in batch.inputs:
                nets["teacher"](sample[None])
            labels += batch.targets.tolist()
    hook.remove()
    for label in range(4):
        own = [feature for feature, one in zip(features, labels, strict=True) if one == label]
        found = teaching.terms["distance"].loss.centres[label]
        torch.testing.assert_close(found, sum(own) / len(own), rtol=1e-4, atol=1e-6)
    feature, own, other = (torch.randn(5, 6, dtype=torch.float64, requires_grad=True) for _ in range(3))
    phi = 0.01  # below all of the distances
    value = class_distance_loss(feature, own, other, phi=phi)
    near = (feature - own).square().sum(dim=1).mean()
    assert value.item() == pytest.approx(near.item() - phi)
    assert class_distance_loss(own, own, other, phi=phi).item() == -phi
    value.backward()
    torch.testing.assert_close(feature.grad, 2 * (feature - own).detach() / 5)
    assert own.grad is None
    assert other.grad is None


def test_09_net2net_keeps_what_the_network_gives():
    inputs = torch.randn(7, *SHAPE)
    for large in ({"hidden": (11, 9)}, {"hidden": (5, 4, 4)}):  # wider; deeper
        small_net, large_net = (build("mlp", classes=4, shape=SHAPE, **o) for o in ({"hidden": (5, 4)}, large))
        net2net(small_net, large_net, inputs)
        with evaluation_mode([small_net, large_net]), torch.no_grad():
            wanted, given = small_net(inputs), large_net(inputs)
        assert (given - wanted).abs().max() < 1e-5 * wanted.abs().max()
    first, second, copies = torch.randn(3, 6), torch.randn(2, 3), torch.tensor([0, 1, 2, 1, 1])
    vectors = torch.randn(7, 6)
    wide = F.relu(vectors @ widened(first, torch.arange(6), copies).T) @ widened(second, copies, torch.arange(2)).T
    torch.testing.assert_close(wide, F.relu(vectors @ first.T) @ second.T, rtol=1e-5, atol=1e-5)
    maps = torch.randn(2, 3, 5, 5)
    assert torch.equal(F.conv2d(maps, deepened(3, (3, 3)), padding=1), maps)


def test_12_the_error_of_landmarks_by_hand():
    truth = torch.tensor([[[0.0, 0.0], [4.0, 0.0]], [[0.0, 0.0], [8.0, 0.0]]])
    predicted = torch.tensor([[[0.0, 3.0], [4.0, 1.0]], [[6.0, 8.0], [8.0, 0.0]]])
    assert normalised_mean_error(predicted, truth, torch.tensor([4.0, 8.0])) == pytest.approx((2 / 4 + 5 / 8) / 2)


@pytest.mark.parametrize("name", ["kd", "fitnets", "fsp", "mimic", "srrl"])
def test_13_the_teacher_is_in_eval_mode_and_unchanged_after_an_epoch_of_the_students_training(name):
    nets = networks()
    nets["teacher"].train()
    before, modes = state(nets["teacher"]), []
    stages = plan(METHODS[name], nets, DATA, TRAINING)
    norm = nets["teacher"].stage1[0].norm1
    hook = norm.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    epochs = list(run(stages, nets, batches(), ENGINE))
    hook.remove()
    assert {epoch.stage for epoch in epochs} == {stage.name for stage in stages}
    assert modes
    assert not any(modes)
    assert same(before, state(nets["teacher"]))


def test_14_the_switch_of_stages():
    made = []

    def optimizer(parameters):
        made.append(torch.optim.SGD(list(parameters), lr=1e-3, momentum=0.9))
        return made[-1]

    nets = networks()
    stages = plan(fitnets, nets, DATA, Training(1, 8, optimizer, constant()))
    made.clear()
    momenta = []
    for _ in run(stages, nets, batches(), ENGINE):
        momenta.append(len(made[-1].state))
        if len(made) == 2:
            assert made[1] is not made[0]
    held = [{id(p) for group in one.param_groups for p in group["params"]} for one in made]
    regressors = {id(p) for p in stages[0].terms["hint"].loss.parameters()}
    student = {id(p) for p in nets["student"].parameters()}
    assert held[0] == student | regressors
    assert held[1] == student == {id(p) for p in Step(stages[1], nets).parameters()}
    assert 0 < momenta[0] < len(held[0])
    assert momenta[1] == len(student)
    weight = stages[1].terms["soft"].weight
    assert [weight(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([4.0, 2.5, 1.0])
    code = annealed(4.0, 1.0, begin_epoch=5, end_epoch=400, epochs=500)
    step = 3 / 396
    assert [code(epoch / 500) for epoch in (0, 5, 202, 400, 499)] == pytest.approx([4, 4 - step, 4 - 198 * step, 1, 1])


def test_no_item_is_left_out():
    numbered = sorted(name.split("_")[1] for name in globals() if name.startswith("test_") and name[5:7].isdigit())
    assert numbered == [f"{number:02}" for number in range(1, 15) if number not in (10, 11)]
