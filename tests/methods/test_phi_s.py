import math
from functools import partial

import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError, Tap
from limbeck.data import arrays
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods.phi_s import Standardised, hadamard, phi_s, standardisation
from limbeck.models import Ensemble
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

ENGINE = make_engine(device="cpu", precision="32")
DATA = arrays(torch.randn(40, 6, generator=torch.Generator().manual_seed(5)), torch.arange(40) % 4, normalise=False)
TRAINING = Training(2, 8, sgd(lr=0.02), constant())


def network(width):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4))


def networks(*widths):
    members = [network(width) for width in widths]
    return {"student": network(5), "teacher": Ensemble(members, "arithmetic") if len(members) > 1 else members[0]}


def planned(nets=None, **options):
    (stage,) = plan(partial(phi_s, **options), nets or networks(8), DATA, TRAINING)
    return stage


def trained(stage, nets):
    return list(run([stage], nets, training_batches(DATA, TRAINING, seed=0, engine=ENGINE), ENGINE))


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 20, 24, 48, 64, 192])
def test_a_known_hadamard_matrix_is_orthogonal_and_has_entries_of_one_size(size):
    matrix = hadamard(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, 1 / math.sqrt(size)))


@pytest.mark.parametrize("size", [3, 5, 6, 10, 28 + 8])
def test_another_size_gets_an_orthogonal_matrix_and_always_the_same(size):
    matrix = hadamard(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    torch.manual_seed(7)
    assert torch.equal(hadamard(size), matrix)


def test_a_rotation_by_hand():
    """Variances 9 and 1 become 1 and 1: the mean is 5, and H mixes both dimensions equally."""
    matrix = standardisation(torch.tensor([[9.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(matrix.abs(), torch.full((2, 2), 1 / math.sqrt(10), dtype=torch.float64))


@pytest.mark.parametrize("width", [4, 12])
def test_every_dimension_has_variance_1_and_distances_are_scaled_by_one_number(width):
    features = torch.randn(500, width, dtype=torch.float64) @ torch.randn(width, width, dtype=torch.float64) + 3
    covariance = torch.cov(features.T)
    given = features @ standardisation(covariance).T
    torch.testing.assert_close(given.var(dim=0), torch.ones(width, dtype=torch.float64))
    ratio = torch.cdist(given[:9], given[9:20]) / torch.cdist(features[:9], features[9:20])
    torch.testing.assert_close(ratio, torch.full_like(ratio, math.sqrt(width / covariance.trace().item())))


def test_features_that_do_not_vary_are_only_shifted():
    matrix = standardisation(torch.zeros(4, 4, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(4, dtype=torch.float64))


def test_the_loss_is_the_formula_in_loops():
    loss = Standardised(3, 2).double()
    student, teacher = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    loss.fit(4, teacher.sum(0), teacher.T @ teacher)
    weight, bias = (one.tolist() for one in loss.connector.parameters())
    mean, matrix = teacher.mean(dim=0).tolist(), standardisation(torch.cov(teacher.T)).tolist()
    total = 0.0
    for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        for row in range(2):
            given = sum(weight[row][place] * mine[place] for place in range(3)) + bias[row]
            total += (given - sum(matrix[row][place] * (theirs[place] - mean[place]) for place in range(2))) ** 2
    assert loss(student, teacher).item() == pytest.approx(total / 8, rel=1e-8)


def test_the_gradient_is_that_of_the_value_and_none_is_the_teachers():
    loss = Standardised(3, 2).double()
    student, teacher = (torch.randn(1, width, dtype=torch.float64, requires_grad=True) for width in (3, 2))
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)
    loss(student, teacher).backward()
    assert teacher.grad is None


def test_each_teacher_is_standardised_by_the_training_set():
    nets = networks(8, 4)
    nets["teacher"].members[1][0].weight.data *= 100
    stage = planned(nets, teacher_layers=("members.0.2:input", "members.1.2:input"))
    assert list(stage.terms) == ["hard", "features0", "features1"]
    before = stage.terms["features1"].loss.connector.weight.clone()
    trained(stage, nets)
    for number, member in enumerate(nets["teacher"].members):
        loss = stage.terms[f"features{number}"].loss
        given = (member[:2](DATA.train.inputs) - loss.mean) @ loss.matrix.T
        torch.testing.assert_close(given.mean(dim=0), torch.zeros(given.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(given.var(dim=0), torch.ones(given.shape[1]), atol=1e-3, rtol=0)
    assert not torch.equal(before, stage.terms["features1"].loss.connector.weight)


def test_one_teacher_is_read_where_its_classifier_is():
    stage = planned(features=2.0, hard=0)
    assert {name: (term.reads, term.weight) for name, term in stage.terms.items()} == {
        "features": ((Tap("student", "2", "input"), Tap("teacher", "2", "input")), 2.0)
    }
    assert planned(features=0).prepare is None


def test_an_ensemble_without_layers_and_a_map_are_refused():
    with pytest.raises(LimbeckError, match=r"the teacher has no linear layer .* name the layers to read"):
        planned(networks(8, 4))
    nets = networks(8)
    nets["teacher"] = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(24, 4))
    with pytest.raises(LimbeckError, match=r"phi_s reads vectors \(D,\), but teacher\.1 gives \(4, 2, 3\)"):
        planned(nets, teacher_layers=("1",))
