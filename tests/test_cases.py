"""Faults that were found, each with the input that showed it: what their own scripts print now."""

import re
import runpy

import pytest

from limbeck.core import LimbeckError

SAID = {
    "04-batch-of-one": [
        *(rf"^{name} \| works$" for name in ("squeeze, 500 test images", "squeeze, 501 test images")),
        *(rf"^{name} \| works$" for name in ("squeeze, a sweep of 399", "statistics of the batch")),
        r"^BatchNorm, batch_size 1 \| LimbeckError after \[\] \| .*the student.*use a batch_size of 2 or more",
    ],
    "05-not-copyable-student": [
        rf"^{name} \| baseline {baseline} \| works$"
        for name in ("pruned", "weight_norm", "keeps its feature")
        for baseline in (True, False)
    ],
    "06-torchscript": [rf"^{name} \| works$" for name in ("scripted teacher", "traced teacher", "scripted student")],
    "07-checkpoint-forms": [
        rf"^{re.escape(name)} \| loaded$"
        for name in ("_orig_mod.module.", "torch's AveragedModel", "model_state_dict", "net")
    ],
    "10-output-is-no-tensor": [
        rf"^{name} \| {method} \| works$"
        for name in ("tuple", "dict", "ModelOutput")
        for method in ("kd", re.escape("{'name': 'kd', 'teacher_layer': 'network'}"))
    ],
    "11-nan-for-a-few-samples": [
        r"^cache False \| Diverged \| .*the teacher gives NaN or infinite values for 1 of 288 .*, 5; correct that",
        r"^cache True \| LimbeckError \| teacher of sample 5 holds a NaN",
    ],
    "12-inference-mode-and-no-grad": [
        rf"^{name} \| works$"
        for name in (
            "forward under inference_mode",
            "weights made under inference_mode",
            "distill called under no_grad",
        )
    ],
    "13-frozen-batchnorm": [r"^changed in the frozen part: \[\]$"],
}


@pytest.fixture
def case(shared_data, tmp_path, monkeypatch, capsys):
    def run(name):
        script = shared_data.parent / "cases" / name / "run.py"
        if not script.is_file():
            pytest.skip(f"no case {script}")
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.filterwarnings("ignore")  # of what torch deprecates, such as TorchScript
@pytest.mark.parametrize("name", SAID)
def test_a_fault_that_was_found_is_not_there_any_more(case, name):
    printed = case(name)
    for line in SAID[name]:
        assert re.search(line, printed, re.MULTILINE), (line, printed)


def test_a_layer_that_both_networks_have_is_refused(case):
    with pytest.raises(LimbeckError, match=r"student.0 \(Linear\) is teacher.0"):
        case("02-shared-layer")


def test_a_soft_loss_is_right_within_a_hundredth_at_every_temperature(case):
    pairs = re.findall(r"reported\s+(\S+), in 64 bits\s+(\S+)", case("16-high-temperature-loss"))
    assert len(pairs) == 4
    for reported, true in pairs:
        assert float(reported) == pytest.approx(float(true), rel=0.01)
