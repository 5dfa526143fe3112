import re
from pathlib import Path

import pytest
import torch

import limbeck
from limbeck.experiment.plan import plan
from limbeck.experiment.workspace import Training, training_batches
from limbeck.models import build
from limbeck.optimizers import sgd
from limbeck.schedules import constant
from limbeck.train.engine import make_engine
from limbeck.train.loop import run

README = Path(__file__).parents[1] / "README.md"


def example() -> str:
    """The Python block of the README."""
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)[0]


def test_the_example_runs_and_gives_the_student_and_its_figures():
    found = {}
    exec(compile(example(), "README.md", "exec"), found)
    student, result = found["student"], found["result"]
    assert sum(parameter.numel() for parameter in student.parameters()) == result.student.parameters == 7510
    assert result.teacher.test.accuracy > 0.95
    assert result.student.test.accuracy > 0.85
    assert result.student.test.agreement > 0.85
    assert result.method == "kd"


def test_the_example_is_at_most_ten_lines():
    lines = [line for line in example().splitlines() if line.strip()]
    assert len(lines) <= 10


def test_the_two_commands_are_shown():
    text = README.read_text()
    assert "make demo" in text
    assert "make test" in text


@pytest.mark.parametrize("teacher", ["resnet8", "wrn_16_2"])
def test_the_method_in_contributing_works_and_its_connector_learns(teacher):
    text = (README.parent / "CONTRIBUTING.md").read_text()
    found = {}
    exec(compile(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0], "CONTRIBUTING.md", "exec"), found)
    nets = {
        name: build(kind, classes=3, shape=(3, 8, 8)) for name, kind in (("student", "resnet8"), ("teacher", teacher))
    }
    data = limbeck.arrays(torch.randn(30, 3, 8, 8), torch.arange(30) % 3)
    setting = Training(3, 8, sgd(lr=0.05), constant())
    engine = make_engine(device="cpu", precision="32")
    (stage,) = plan(found["angle"], nets, data, setting)
    connector = stage.terms["angle"].loss.connector
    before = connector.weight.clone()
    epochs = list(run([stage], nets, training_batches(data, setting, seed=0, engine=engine), engine))
    assert epochs[-1].terms["angle"] < epochs[0].terms["angle"]
    assert not torch.equal(connector.weight, before)
