import copy
import json
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from limbeck.cache.fingerprint import Fingerprint, Format, refuse_difference, structure_digest, weights_digest
from limbeck.core import LimbeckError, Tap
from limbeck.models import Ensemble


class Odd(nn.Module):
    """A layer with all that a digest might overlook."""

    def __init__(self, table=3.0):
        super().__init__()
        self.place = object()
        self.scale = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.register_buffer("table", torch.tensor(table), persistent=False)

    def extra_repr(self):
        return f"{self.place}"


def digests(network):
    return weights_digest(network), structure_digest(network)


def changed(change):
    network = tiny.teacher()
    change(network)
    return digests(network) != digests(tiny.teacher())


def test_the_digest_of_a_network_is_the_same_for_a_copy_in_another_place():
    assert not changed(lambda network: None)
    assert not changed(lambda network: network.to(memory_format=torch.channels_last))
    assert not changed(lambda network: network.eval())
    assert not changed(lambda network: setattr(network[2], "inplace", True))
    assert not changed(lambda network: network.requires_grad_(False))
    assert structure_digest(nn.Dropout(0.5)) == structure_digest(nn.Dropout(0.5, inplace=True))


def test_the_digest_of_a_network_does_not_depend_on_addresses():
    first, second = Odd(), Odd()
    assert repr(first) != repr(second)
    assert digests(first) == digests(second)


@pytest.mark.parametrize(
    ("change", "weights", "structure"),
    [
        (lambda network: network[4].bias.data[3].add_(1e-6), True, False),
        (lambda network: network[1].running_mean.add_(1e-6), True, False),
        (lambda network: network[1].num_batches_tracked.add_(1), True, False),
        (lambda network: network.double(), True, False),
        (lambda network: setattr(network[1], "eps", 1e-3), False, True),
        (lambda network: network.__setitem__(2, nn.GELU()), False, True),
        (lambda network: network.__setitem__(4, nn.Linear(108, 9)), True, True),
    ],
)
def test_one_digest_sees_weights_and_buffers_and_the_other_the_structure(change, weights, structure):
    network, before = tiny.teacher(), tiny.teacher()
    change(network)
    assert (weights_digest(network) != weights_digest(before)) == weights
    assert (structure_digest(network) != structure_digest(before)) == structure


@pytest.mark.parametrize(
    "pair",
    [
        [nn.TransformerEncoderLayer(8, 2, 16, norm_first=first) for first in (True, False)],
        [nn.TransformerEncoderLayer(8, 2, 16, activation=function) for function in ("relu", "gelu")],
        [nn.TransformerEncoderLayer(8, heads, 16) for heads in (2, 4)],
        [Ensemble([nn.Linear(2, 2)], mean) for mean in ("arithmetic", "geometric")],
    ],
    ids=["order", "activation", "heads", "mean"],
)
def test_the_digest_of_a_network_changes_with_what_its_repr_does_not_show(pair):
    one, other = pair
    other.load_state_dict(one.state_dict())
    assert repr(one) == repr(other)
    assert weights_digest(one) == weights_digest(other)
    assert structure_digest(one) != structure_digest(other)
    assert digests(one) == digests(copy.deepcopy(one))


def test_the_digest_of_a_network_is_the_same_whether_equal_weights_are_one_or_two():
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    assert digests(tied) == digests(apart(tied))


def apart(network):
    network = copy.deepcopy(network)
    network[1].weight = nn.Parameter(network[1].weight.detach().clone())
    return network


def test_the_digest_of_a_network_sees_buffers_that_are_not_saved():
    assert weights_digest(Odd(table=3.0)) != weights_digest(Odd(table=3.5))


def fingerprint(**parts):
    return tiny.fingerprint(tiny.teacher(), **parts)


def test_a_fingerprint_comes_back_from_json():
    taps = {Tap("teacher", "0", "input", 1): Format("bfloat16"), Tap("teacher"): Format("float16", 3)}
    there = fingerprint(taps=taps, transform={"crop": (4, 4), "mean": [0.5]})
    back = Fingerprint.from_json(json.loads(json.dumps(there.as_json())))
    assert back.taps == taps
    assert back.as_json() == there.as_json()
    assert back.digest == there.digest
    refuse_difference(Path("store"), back, there)


def test_a_fingerprint_does_not_depend_on_the_order_of_its_mappings():
    turned = dict(reversed(tiny.TAPS.items()))
    versions = {"torch": "2", "numpy": "1"}
    first = fingerprint(versions=versions, transform={"a": 1, "b": 2})
    second = fingerprint(versions=dict(reversed(versions.items())), transform={"b": 2, "a": 1}, taps=turned)
    assert first.digest == second.digest


def test_the_digest_of_a_fingerprint_changes_with_the_layout_of_stores(monkeypatch):
    before = fingerprint().digest
    monkeypatch.setattr("limbeck.cache.fingerprint.SCHEMA", 3)
    assert fingerprint().digest != before


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"weights": "w2"}, r"the teacher's weights or buffers are not those that the store was built with\. Delete"),
        ({"structure": "s2"}, r"the teacher's structure .* is not that which the store was built with\. Delete"),
        ({"data": "e"}, r"the training samples are not those that the store was built from\. Delete"),
        (
            {"transform": {"crop": 2, "flip": True}},
            "the transform of the samples: crop is 4 in the store, needed is 2; .*: flip is absent in .* needed is T",
        ),
        ({"seed": 6}, "the seed of the views is 5 in the store, needed is 6"),
        ({"views": 3}, "the number of views is 2 in the store, needed is 3"),
        ({"taps": {Tap("teacher"): Format()}}, r"has the taps teacher, teacher\.0, needed are teacher\. "),
        (
            {"taps": {tiny.LOGITS: Format("float32", 3), tiny.MAPS: Format("float16")}},
            "the tap teacher is stored as float32, needed is float32 of the 3 largest",
        ),
        (
            {"taps": {**tiny.TAPS, tiny.MAPS: Format("bfloat16")}},
            r"the tap teacher\.0 is stored as float16, needed is bfloat16",
        ),
        ({"precision": "bf16"}, "the precision of the teacher is 32 in the store, needed is bf16"),
        ({"versions": {"torch": "3"}}, "the version of torch is 2 in the store, needed is 3"),
        ({"weights": "w2", "seed": 6}, "the teacher's weights .*; the seed of the views is 5"),
    ],
)
def test_each_part_that_differs_has_a_message_of_its_own(parts, message):
    other = fingerprint(**parts)
    assert other.digest != fingerprint().digest
    with pytest.raises(LimbeckError, match=message):
        refuse_difference(Path("store"), fingerprint(), other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Format("float8"), "cannot hold 'float8': allowed are float32, float16, bfloat16"),
        (lambda: Format(top_k=0), "top_k is 0: allowed are 1 and greater"),
        (lambda: fingerprint(views=0), "0 views: allowed are 1"),
        (lambda: fingerprint(taps={}), "at least one tap"),
        (lambda: fingerprint(precision="16"), "precision is '16': allowed are 32, bf16"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(LimbeckError, match=message):
        make()


def test_the_digest_leaves_the_network_as_it_was():
    network = tiny.teacher()
    before = copy.deepcopy(network.state_dict())
    digests(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
