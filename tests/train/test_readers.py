import torch

from limbeck.core import Tap
from limbeck.train import readers as resident
from limbeck.train.readers import Resident

LOGITS = Tap("teacher")


class Rows:
    """Row i of view v is (i, v)."""

    taps = frozenset({LOGITS})
    rows = 10

    def __init__(self):
        self.read_views = []

    def read(self, index, view):
        self.read_views.append(view)
        return {LOGITS: torch.stack([index.float(), torch.full((len(index),), float(view))], dim=1)}


def test_gives_the_rows_that_are_asked_for(monkeypatch):
    monkeypatch.setattr(resident, "CHUNK", 4)
    near = Resident(Rows(), torch.device("cpu"))
    assert (near.taps, near.rows) == (Rows.taps, 10)
    for view in (0, 2):
        found = near.read(torch.tensor([9, 0, 9, 4]), view)[LOGITS]
        assert found.tolist() == [[9.0, view], [0.0, view], [9.0, view], [4.0, view]]


def test_brings_a_view_once(monkeypatch):
    monkeypatch.setattr(resident, "CHUNK", 4)
    rows = Rows()
    near = Resident(rows, torch.device("cpu"))
    for view in (0, 0, 1, 1, 0):
        near.read(torch.tensor([1]), view)
    assert rows.read_views == [0] * 3 + [1] * 3 + [0] * 3
