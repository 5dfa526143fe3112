"""Which methods work with label smoothing, mixup, CutMix, unlabelled samples and sample weights."""

from functools import partial

import pytest
import torch

from limbeck.core import TARGETS, LimbeckError
from limbeck.data import arrays
from limbeck.data.soft_targets import soft_targets
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training
from limbeck.methods import ABOUT, METHODS
from limbeck.methods.alone import hard_loss
from limbeck.methods.combined import combined
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant

NEED_CLASSES = {"class_distance", "crd", "crd_in_batch", "dkd", "kd_plus_plus", "nkd", "ofa", "specialists", "wsld"}


def planned(method, networks, *, targets=None, **options):
    count = 12
    targets = torch.arange(count) % 3 if targets is None else targets
    data = arrays(torch.rand(count, 3, 32, 32), targets, test_set=(torch.rand(3, 3, 32, 32), [0, 1, 2]), validation=0)
    soft = soft_targets(data.train, 3, **options)
    training = Training(epochs=2, batch_size=4, optimizer=sgd(lr=0.1), schedule=constant(), soft=soft)
    made = {role: build(name, classes=3, shape=(3, 32, 32)) for role, name in networks.items()}
    return plan(method, made, data, training)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_works_with_mixed_targets_or_says_by_name_that_it_cannot(name):
    networks = ABOUT[name].networks
    if name not in NEED_CLASSES:
        terms = [term for stage in planned(METHODS[name], networks, mixup=0.2) for term in stage.terms.values()]
        assert {term.loss for term in terms if TARGETS in term.reads} <= {hard_loss}
        return
    with pytest.raises(LimbeckError, match=f"^{name} needs the class index .* does not work with mixup: choose"):
        planned(METHODS[name], networks, mixup=0.2)


def test_the_refusal_names_everything_that_prevents_class_indices():
    networks = {"student": "resnet8", "teacher": "resnet14"}
    targets = torch.tensor([0, 1, 2, -1] * 3)
    with pytest.raises(LimbeckError, match="does not work with label_smoothing and unlabelled samples: choose"):
        planned(METHODS["dkd"], networks, targets=targets, label_smoothing=0.1)
    with pytest.raises(LimbeckError, match=r"^wsld needs the class index"):
        planned(partial(combined, parts=[METHODS["kd"], METHODS["wsld"]]), networks, targets=targets)
