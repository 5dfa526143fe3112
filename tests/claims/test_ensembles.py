"""Ensembles of the students of a study, and the claims on them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from limbeck import claims, load
from limbeck.claims.checks import Part, judge
from limbeck.claims.claim import Claim, Results, Study, System
from limbeck.claims.ensembles import Ensemble, ensemble
from limbeck.claims.fsp import COPIED, FSP_2017, SHARED
from limbeck.claims.ledger import rows
from limbeck.cli import app
from limbeck.methods.kd import PAPER


def test_an_ensemble_predicts_by_the_mean_of_the_probabilities():
    first = torch.tensor([[0.001, 0.4, 0.6, 0.1], [0.7, 0.45, 0.3, 0.7], [0.85, 0.8, 0.2, 0.75]])  # of class 0
    logits = torch.stack([first, 1 - first], dim=2).log() + torch.randn(3, 4, 1)  # a constant changes no probability
    found = ensemble(list(logits), torch.tensor([0, 0, 1, 1]))
    # means 0.517, 0.55, 0.367, 0.517; by the mean of the logits sample 0 would be of class 1, by votes sample 1
    assert (found.networks, found.accuracy, found.gain) == pytest.approx(((1 + 2 + 3) / 12, 3 / 4, 1 / 4))
    assert found.disagreement == pytest.approx((3 + 4 + 1) / 12)
    one = ensemble([logits[2]], torch.tensor([0, 0, 1, 1]))
    assert one == Ensemble(networks=0.75, accuracy=0.75, disagreement=0.0)


@pytest.mark.parametrize(
    ("claim", "others", "verdicts"),
    [
        ("C4", {}, [True, True, True, True]),  # the figures of the paper
        ("C4", {"shared": (92.14, 94.20)}, [False, False, True, False]),
        ("C4", {"shuffled": (92.08, 93.30)}, [True, True, False, True]),
        ("C5", {}, [True, True]),
        ("C5", {"copied": (91.00, 94.00)}, [False, False]),
    ],
)
def test_the_figures_of_ensembles_decide_the_claims(claim, others, verdicts):
    published = {
        "alone": (91.75, 93.48),
        "shared": (92.14, 93.26),
        "shuffled": (92.08, 93.67),
        "copied": (92.04, 92.71),
    }
    figures = {
        f"fsp_{kind}": [Ensemble(one / 100 + number / 1e5, all_ / 100 + number / 1e5, 0.1) for number in range(5)]
        for kind, (one, all_) in (published | others).items()
    }
    (parts,) = (one.parts for one in FSP_2017.claims if one.name == claim)
    found = [judge(part) for part in parts(Results(ensembles=figures))]
    assert found == ["holds" if verdict else "does not hold" for verdict in verdicts]


@pytest.mark.parametrize(
    ("study", "start"),
    [
        (SHARED, "fsp_first_stages/fsp-seed6/fsp/seed6/after_fsp.safetensors"),
        (COPIED, "fsp_alone/alone-seed6/alone/seed6/student.safetensors"),
    ],
)
def test_the_students_of_an_ensemble_start_from_the_same_weights(study, start):
    folder = Path("claims/cpu")
    found = study.divided(study.at("cpu", data_root=Path("/data")), folder)
    assert [one.seeds for one in found.values()] == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11), (12, 13, 14)]
    assert found[folder / f"{study.name}-seed6"].student.weights == str(folder / start)


FEW = (
    "student.model={name: mlp, hidden: [8]}",
    "data.limit=96",
    "train.epochs=1",
    "teacher=null",
    "method=alone",
    "methods=[alone]",
)
STARTS = Study("starts", "digits_kd", (*FEW, "seeds=[0, 2]"))
TWO = Study(
    "two",
    "digits_kd",
    (*FEW, "seeds=[0, 1, 2, 3]"),
    ensemble=2,
    starts=(STARTS, "alone-seed{seed}/alone/seed{seed}/student.safetensors"),
)


def test_a_study_of_two_ensembles_is_trained_once_and_decides(tmp_path, monkeypatch):
    def parts(results):
        yield Part("an ensemble is above its networks", tuple(100 * one.gain for one in results.ensembles["two"]))

    system = System("tiny", PAPER, (Claim("T1", "It gains.", "it did", parts, (TWO,)),))
    monkeypatch.setattr(claims, "SYSTEMS", {"tiny": system})
    command = ["reproduce", "T1", "--scale", "cpu", "--out", str(tmp_path)]
    first, again = (CliRunner().invoke(app, command).output for _ in range(2))
    assert "[1/" in first
    assert "[1/" not in again
    (row,) = rows(tmp_path, system)
    assert (row.verdict, row.parts[0].n) == ("inconclusive", 2)
    assert list(row.figures) == ["two, mean of the networks", "two, ensemble", "two, disagreement"]
    targets, gains = load("digits", limit=96, validation=0.25).test.targets, []
    for start in (0, 2):
        places = [tmp_path / "cpu" / f"two-seed{start}" / f"alone-seed{seed}" for seed in (start, start + 1)]
        assert all(f"starts/alone-seed{start}/alone/" in (place / "recipe.yaml").read_text() for place in places)
        files = [next(place.glob("alone/seed*/outputs.safetensors")) for place in places]
        outputs = torch.stack([load_file(file)["test"] for file in files])
        right = (outputs.softmax(2).mean(0).argmax(1) == targets).double().mean()
        gains.append(right - (outputs.argmax(2) == targets).double().mean())
    assert row.parts[0].mean == pytest.approx(100 * float(sum(gains) / 2))
