"""Each method with each task: it trains where its `ABOUT` says so, and is refused by name elsewhere."""

from functools import cache, partial

import pytest
import torch
from kinds import OTHERS, Places, data_of
from torch import nn

from limbeck.core import LimbeckError
from limbeck.experiment.arms import check_task
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.methods import ABOUT, METHODS
from limbeck.models import build
from limbeck.optimizers import adam
from limbeck.recipe.blocks import Recipe, TrainBlock
from limbeck.schedules import constant
from limbeck.taps import Taps
from limbeck.train.engine import make_engine
from limbeck.train.loop import run
from tests.unchecked import unchecked

ENGINE = make_engine(device="cpu", precision="32")
SEVERAL = {"student_layers": ("stage1", "stage2"), "teacher_layers": ("stage1", "stage2")}
ONE = {"guided_layer": "stage2", "hint_layer": "stage2"}
LAYERS = {
    "fitnets": ONE,
    "fitnets_one_stage": ONE,
    "fsp": SEVERAL | {"adapter": "conv1x1"},
    "ft": {"student_layer": "stage2", "teacher_layer": "stage2"},
    "ofd": SEVERAL | {"teacher_norms": ("stage1.1", "stage2.1")},
    **dict.fromkeys(("at", "nst", "vid", "ab", "reviewkd"), SEVERAL),
}
"""The layers to name if a network returns its outputs for every pixel and so has no linear classifier."""


@cache
def data(task):
    return data_of(task, 72)


def networks(name, task):
    made = {}
    for number, (role, model) in enumerate(ABOUT[name].networks.items()):
        torch.manual_seed(number)
        shown = data(task)
        if task == "segmentation":
            made[role] = Places(8 if role == "teacher" else 4, len(shown.outputs))
        else:
            made[role] = build(model, classes=len(shown.outputs), shape=shown.shape)
    return made


@pytest.mark.parametrize("task", OTHERS)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_for_its_tasks_and_is_refused_for_others(name, task):
    if task not in ABOUT[name].tasks:
        reads = "the class of each sample or the distribution over the classes|one vector of each sample"
        message = rf"method: {name} is for .*, because its loss reads ({reads}); the task of the data is {task}: "
        recipe = Recipe.model_construct(method={"name": name}, train=TrainBlock(epochs=1), teacher=None)
        with pytest.raises(LimbeckError, match=message + "allowed are alone, kd, "):
            check_task(recipe, task)
        return
    nets, setting = networks(name, task), Training(1, 16, adam(lr=2e-3), constant())
    before = {key: tensor.clone() for key, tensor in nets["student"].state_dict().items()}
    options = LAYERS.get(name, {}) if task == "segmentation" else {}
    stages = plan(partial(METHODS[name], **options), nets, data(task), setting)
    with unchecked():
        epochs = list(run(stages, nets, training_batches(data(task), setting, seed=0, engine=ENGINE), ENGINE))
    assert epochs
    assert all(torch.tensor(value).isfinite() for epoch in epochs for value in epoch.terms.values())
    after = nets["student"].state_dict()
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_every_task_has_methods_with_and_without_a_teacher():
    for task in ("classification", *OTHERS):
        fitting = {name for name, about in ABOUT.items() if task in about.tasks}
        assert {"alone", "kd", "fitnets", "at"} <= fitting


def test_srrl_for_landmarks_is_the_regression_loss_and_the_distances_of_feature_and_coordinates():
    """L_reg + alpha * ||h_T - r(h_S)||² + beta * ||W_T h_T - W_T r(h_S)||², with the mean over the elements."""
    nets, alpha, beta = networks("srrl", "landmarks"), 0.5, 3.0
    for net in nets.values():
        net.eval()
    setting = Training(1, 16, adam(lr=2e-3), constant())
    (stage,) = plan(partial(METHODS["srrl"], alpha=alpha, beta=beta), nets, data("landmarks"), setting)
    batch = next(iter(training_batches(data("landmarks"), setting, seed=0, engine=ENGINE).sweep()))
    with Taps(nets, stage.reads, learns=["student"]) as taps, torch.no_grad():
        read = taps.read(batch)
    points, truth = (read[tap].flatten(1) for tap in stage.terms["hard"].reads)
    hard = stage.terms["hard"].loss(points, batch.targets)
    assert hard.item() == pytest.approx((points - truth).square().mean().item())
    term, head = stage.terms["conv4"], [part for part in nets["teacher"].modules() if isinstance(part, nn.Linear)][-1]
    maps, feature, coordinates = (read[tap] for tap in term.reads)
    connected = term.loss.connector(maps).mean(dim=(2, 3))
    matching = (feature - connected).square().mean()
    regression = (coordinates - head(connected)).square().mean()
    torch.testing.assert_close(coordinates, head(feature))
    expected = alpha * matching + beta * regression
    assert term.loss(maps, feature, coordinates).item() == pytest.approx(expected.item(), rel=1e-4)
