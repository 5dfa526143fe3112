import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image

from benchmarks.tasks import command, training
from benchmarks.tasks.demonstrations import DEMONSTRATIONS
from benchmarks.tasks.picture import picture
from benchmarks.tasks.report import half_width, table
from limbeck.evaluate.landmarks import LandmarkFigures
from limbeck.experiment.results import NetworkResult


def tiny(task, *methods):
    """The demonstration with 40 images, one epoch, and these methods."""
    full = DEMONSTRATIONS[task]
    kept = {name: full.methods.get(name, {}) for name in methods}
    few = {"images": 40, "teacher_images": 40, "teacher_epochs": 1, "epochs": 1}
    return replace(full, methods=kept, allow=("chance",), **few)


@pytest.fixture
def here(monkeypatch):
    """Students are trained in this process."""
    monkeypatch.setattr(training, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))


def test_the_interval_is_that_of_students_t():
    assert half_width(1.0, 5) == pytest.approx(2.776445 / 5**0.5)  # t(0.975, 4) in a printed table
    assert half_width(0.5, 2) == pytest.approx(0.5 * 12.706205 / 2**0.5)


def face(arm, seed, nme, validation=None):
    figures = [None if value is None else LandmarkFigures(value, 0.0, 0.0, 10) for value in (nme, validation)]
    return NetworkResult(arm, seed, None, figures[0], figures[1], 1234, None, 0)


def test_the_table_has_intervals_and_differences_paired_by_seed():
    results = [face("teacher", 0, 0.08)]
    results += [face("alone", seed, nme) for seed, nme in enumerate((0.20, 0.22, 0.24))]
    results += [face("kd", seed, nme) for seed, nme in enumerate((0.19, 0.20, 0.23))]
    _, _, teacher, alone, kd = table(results, "landmarks")
    assert teacher == "| `teacher` | 8.00 |  | 1 | 1,234 |"
    assert alone == f"| `alone` | 22.00 ± {100 * half_width(0.02, 3):.2f} |  | 3 | 1,234 |"
    assert f"| +1.33 ± {100 * half_width(3**-0.5 / 100, 3):.2f} |" in kd  # of the differences 1, 2, 1


def test_the_best_method_is_chosen_on_validation():
    results = [face("alone", 0, 0.2, 0.05), face("kd", 0, 0.1, 0.3), face("srrl", 0, 0.3, 0.2)]
    assert command.best(results, "landmarks") == "srrl"


@pytest.mark.parametrize("task", DEMONSTRATIONS)
def test_teacher_and_student_have_other_training_images_and_the_same_test_images(task):
    demonstration = tiny(task)
    data, more = demonstration.data(), demonstration.teacher_data()
    assert [len(split) for split in (data.train, data.validation, data.test, more.train)] == [28, 4, 8, 40]
    assert not torch.equal(more.train.inputs[:1], data.train.inputs[:1])
    assert torch.equal(more.test.inputs, data.test.inputs)
    assert (more.mean, more.task) == (data.mean, task)
    sizes = [
        sum(one.numel() for one in build().parameters()) for build in (demonstration.teacher, demonstration.student)
    ]
    assert sizes[0] > 5 * sizes[1]


@pytest.mark.parametrize("task", DEMONSTRATIONS)
def test_a_demonstration_can_be_sent_to_a_process(task):
    sent = pickle.loads(pickle.dumps(DEMONSTRATIONS[task]))
    assert sent.arms == DEMONSTRATIONS[task].arms


@pytest.mark.parametrize("task", DEMONSTRATIONS)
def test_what_is_trained_is_not_trained_again(task, here, tmp_path, capsys):
    demonstration = tiny(task, "kd")
    command.run(demonstration, tmp_path, seeds=1, jobs=1)
    first = capsys.readouterr()
    assert "kd/seed0: validation" in first.err
    assert [line.split("|")[1].strip() for line in first.out.splitlines()[2:]] == ["`teacher`", "`alone`", "`kd`"]
    logs = {path: path.read_bytes() for path in tmp_path.rglob("metrics.jsonl")}
    assert len(logs) == 3
    command.run(demonstration, tmp_path, seeds=2, jobs=1)
    assert {path: path.read_bytes() for path in logs} == logs
    second = capsys.readouterr().out.splitlines()
    assert second[2] == first.out.splitlines()[2]
    assert "| 2 |" in second[4]


@pytest.mark.parametrize(("task", "rows"), [("landmarks", 2), ("segmentation", 3)])
def test_the_picture_has_a_row_for_the_truth_and_each_network(task, rows):
    demonstration = tiny(task)
    page = picture(demonstration.data(), {"alone": demonstration.student().eval()}, columns=3, zoom=40)
    assert page.size == (56 + 3 * 40, rows * 40)


def test_the_command_writes_a_picture(here, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "smaller", lambda demonstration: tiny(demonstration.task, "mimic"))
    target = tmp_path / "faces.png"
    command.main(["landmarks", "--seeds", "1", "--smoke", "--out", str(tmp_path), "--picture", str(target)])
    with Image.open(target) as page:
        assert page.size == (56 + 8 * 96, 3 * 96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["faces"], "invalid choice: 'faces'"),
        (["landmarks", "--seeds", "0"], "--seeds is 0 and --jobs is 2: allowed are 1 and more"),
        (["multi_label", "--picture", "x.png"], "--picture is for landmarks and segmentation, not for multi_label"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err
