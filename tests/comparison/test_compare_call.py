"""`limbeck.compare`: own modules and arrays."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import limbeck
from limbeck.arguments import called
from limbeck.comparison.listing import list_runs
from limbeck.core import LimbeckError


def network(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 2))


NETWORK, PEER = network(4), network(4)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(120, 16, generator=generator)
    return limbeck.arrays(inputs, (inputs[:, 0] > 0).long(), test=0.3)


@pytest.fixture(scope="module")
def teacher(data):
    torch.manual_seed(0)
    return limbeck.distill(
        None, network(16), data, method="alone", epochs=8, baseline=False, optimizer={"name": "adam", "lr": 0.01}
    )[0]


def compare(teacher, student, data, **options):
    return limbeck.compare(teacher, student, data, **{"seeds": 2, "epochs": 1, "precision": "32", **options})


def labels_only(setup):
    hard = limbeck.Term(F.cross_entropy, (limbeck.from_student(), limbeck.Tap("batch", "targets")))
    return (limbeck.Stage("own", {"hard": hard}, setup.epochs, setup.optimizer, setup.schedule, ("student",)),)


def test_own_modules_and_methods_are_compared(data, teacher, tmp_path):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = network(4)
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    warm = {"name": "kd", "temperature": 9, "as": "warm"}
    methods = ["kd", {"name": "srrl", "alpha": 0.5}, labels_only, ["kd", "srrl"], warm]
    result = compare(teacher, student, data, methods=methods, out=tmp_path / "x")
    assert [arm.arm for arm in result.arms] == ["alone", "kd", "srrl", "labels_only", "kd+srrl", "warm"]
    assert result.arms[2].options["alpha"] == 0.5
    assert result.arms[5].options["parts"][0]["temperature"] == 9
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    own, alone = result.of("labels_only"), result.of("alone")
    assert [one.test for one in own] == [one.test for one in alone]  # the same terms, batches and initial weights
    again = compare(teacher, student, data, methods=methods, out=tmp_path / "x")
    assert again.runs == result.runs
    page = (tmp_path / "x" / "report.html").read_text()
    assert "given to <code>limbeck.compare</code> in Python" in page
    (listed,) = list_runs(tmp_path / "x")
    assert (listed.state, listed.method, listed.command) == ("finished", "kd, srrl, labels_only, kd+srrl, warm", None)
    with pytest.raises(LimbeckError, match="holds a comparison of another recipe"):
        compare(teacher, network(4), data, methods=methods, out=tmp_path / "x")


def test_a_function_gives_each_seed_its_own_weights(data, teacher):
    seen = []

    def student():
        seen.append(network(4))
        return seen[-1]

    result = compare(teacher, student, data, methods=["kd"])
    assert result.of("alone")[0].test != result.of("alone")[1].test
    assert len(seen) >= 4


def of_the_peer(setup):
    mimic = limbeck.Term(F.mse_loss, (limbeck.from_student(), limbeck.Tap("peer")))
    return (limbeck.Stage("own", {"mimic": mimic}, setup.epochs, setup.optimizer, setup.schedule, ("student",)),)


def changed(again):
    """A method, a student, a teacher and another network; ``again`` with other code or weights and the same names."""
    if again:

        def method(setup):
            return (*of_the_peer(setup),)

        def student():
            return network(4).train()

        def function(inputs):
            return inputs[:, :2] + 0.0
    else:

        def method(setup):
            return of_the_peer(setup)

        def student():
            return network(4)

        def function(inputs):
            return inputs[:, :2]

    torch.manual_seed(again)
    return {"method": method, "student": student, "teacher": function, "peer": network(4)}


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("method", "code_at_the_call"),
        ("student", "code_at_the_call"),
        ("teacher", "structure_at_the_call"),
        ("peer", "weights_at_the_call"),
    ],
)
def test_a_folder_of_other_functions_or_networks_is_not_resumed(data, teacher, tmp_path, part, key):
    def call(again):
        given = {"method": of_the_peer, "student": NETWORK, "teacher": teacher, "peer": PEER}
        given[part] = changed(again)[part]
        return compare(
            given["teacher"],
            given["student"],
            data,
            methods=[given["method"]],
            networks={"peer": given["peer"]},
            seeds=1,
            allow=["chance"],
            out=tmp_path / "x",
        )

    first = call(again=False)
    assert call(again=False).runs == first.runs
    with pytest.raises(LimbeckError, match=rf"(?s)of another recipe.*it has +\S*{key}: .*asked for \S*{key}: "):
        call(again=True)


def test_a_lambda_on_other_lines_resumes(data, teacher, tmp_path):
    compare(teacher, lambda: network(4), data, methods=["kd"], seeds=1, out=tmp_path / "x")
    assert len(compare(teacher, lambda: network(4), data, methods=["kd"], seeds=2, out=tmp_path / "x").runs) == 4
    with pytest.raises(LimbeckError, match=r"of another recipe"):
        compare(teacher, lambda: network(5), data, methods=["kd"], seeds=2, out=tmp_path / "x")


def test_the_random_generators_are_those_from_before(data, teacher):
    student = network(4)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    compare(teacher, student, data, methods=["kd"])
    assert torch.rand(1) == expected


def test_a_folder_that_cannot_be_written_is_an_error_before_training(data, teacher, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LimbeckError, match="cannot be written: Not a directory"):
        compare(teacher, network(4), data, methods=["kd"], out=tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["kd"], "epoch": 1}, "compare has no argument 'epoch': did you mean 'epochs'"),
        ({"methods": "kd"}, r"methods is 'kd': pass a list"),
        ({"methods": []}, "pass a list"),
        ({"methods": ["kd", "kd"]}, "lists 'kd' twice"),
        ({"methods": ["kdd"]}, "did you mean 'kd'"),
        ({"methods": [{"name": "kd", "as": "srrl"}]}, "method.as: 'srrl' is taken"),
        ({"methods": ["kd"], "seeds": []}, "got the seeds"),
        ({"methods": ["kd"], "seeds": 0}, "got the seeds"),
        ({"methods": ["fsp"]}, "fsp: fsp compares maps"),
        ({"methods": ["kd"], "adjust": "bonferroni"}, "adjust is 'bonferroni'"),
    ],
)
def test_wrong_arguments_are_told_before_training(data, teacher, options, message):
    with pytest.raises(LimbeckError, match=message):
        compare(teacher, network(4), data, **options)


def test_the_defaults_are_those_of_distill():
    distill, shared = (inspect.signature(one).parameters for one in (limbeck.distill, called))
    common = distill.keys() & shared.keys() - {"seeds"}
    assert {"epochs", "optimizer", "precision", "baseline"} <= common
    assert {name: distill[name].default for name in common} == {name: shared[name].default for name in common}
