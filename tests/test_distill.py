"""The Python call beside a run: several seeds, a folder to resume from, progress, threads."""

import re
import tempfile
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

import limbeck
from limbeck.core import LimbeckError
from limbeck.experiment.results import read
from limbeck.methods import METHODS
from limbeck.train.threads import SMALL, threads_for

QUICK = {"epochs": 2, "batch_size": 16, "device": "cpu", "precision": "32", "compile": False, "cache": False}


def network(width=8, *, seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


@pytest.fixture
def data():
    torch.manual_seed(0)
    targets = torch.arange(120) % 3
    return limbeck.arrays(torch.randn(120, 6) + 2 * targets[:, None], targets)


@pytest.fixture
def teacher(data):
    made, _ = limbeck.distill(None, network(16, seed=2), data, method="alone", **QUICK | {"epochs": 10})
    return made


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class Stop(Exception):
    pass


def stops_after(count):
    epochs = []

    def stop(arm, epoch):
        epochs.append(arm)
        if len(epochs) == count:
            raise Stop

    return stop


def test_several_seeds_give_means_and_the_student_of_the_first(data, teacher):
    student = network()
    trained, result = limbeck.distill(teacher, student, data, seeds=(3, 4), **QUICK)
    assert trained is student
    assert (result.student.seed, result.seeds) == (3, (3, 4))
    assert result.summary["kd"].headline.n == result.summary["alone"].headline.n == 2
    assert sorted((run.arm, run.seed) for run in result.runs) == [
        *(("alone", seed) for seed in (3, 4)),
        *(("kd", seed) for seed in (3, 4)),
        ("teacher", 3),
    ]
    one = network()
    limbeck.distill(teacher, one, data, seed=3, **QUICK)
    assert same(one, student)
    second = network()
    _, other = limbeck.distill(teacher, second, data, seed=4, **QUICK)
    of_second = next(run for run in result.of("kd") if run.seed == 4)
    assert of_second.test == other.student.test


class NormReadByHand(nn.Module):
    """Uses a parameter of the norm besides the norm, so that the norm cannot be folded."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 3), nn.BatchNorm1d(3)

    def forward(self, inputs):
        return self.norm(self.linear(inputs)) * self.norm.weight.mean()


@pytest.mark.parametrize("cache", [True, False])
def test_a_teacher_that_cannot_be_fused_is_a_note(data, cache):
    made, _ = limbeck.distill(None, NormReadByHand(), data, method="alone", **QUICK | {"epochs": 10})
    _, result = limbeck.distill(made, network(), data, baseline=False, **QUICK | {"cache": cache})
    why = "1 BatchNorm layer could not be folded: the folded network would give other tensors"
    assert result.notes.count(f"the teacher is not fused in full: {why}") == 1


def test_a_function_builds_the_student_of_every_seed_and_arm_anew(data, teacher):
    starts = []

    def make():
        made = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        starts.append(made[0].weight.detach().clone())
        return made

    student, result = limbeck.distill(teacher, make, data, seeds=(0, 1), **QUICK)
    assert isinstance(student, nn.Sequential)
    times = Counter(tuple(start.flatten().tolist()) for start in starts)
    assert sorted(times.values())[-2:] == [2, 3]  # alone, kd and the checks of the first seed start alike; seeds do not
    assert result.summary["kd"].headline.n == 2


def test_a_function_that_builds_no_module_is_refused(data, teacher):
    with pytest.raises(LimbeckError, match=r"student returns a int: the function must build a torch.nn.Module"):
        limbeck.distill(teacher, lambda: 3, data, **QUICK)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_stopped_call_goes_on_from_its_folder_to_the_same_bits(data, teacher, tmp_path, monkeypatch, count):
    monkeypatch.setattr("limbeck.experiment.folder.CHECKPOINT_SHARE", 1e9)
    whole, stopped = network(), network()
    _, expected = limbeck.distill(teacher, whole, data, **QUICK)
    with pytest.raises(Stop):
        limbeck.distill(teacher, stopped, data, out=tmp_path / "run", on_epoch=stops_after(count), **QUICK)
    resumed, told = network(), []
    _, result = limbeck.distill(
        teacher, resumed, data, out=tmp_path / "run", on_epoch=lambda arm, epoch: told.append(arm), **QUICK
    )
    assert same(whole, resumed)
    assert len(told) == 4 - count
    assert (result.alone.test, result.student.test) == (expected.alone.test, expected.student.test)
    assert read(tmp_path / "run") == result


def test_a_call_is_refused_while_another_one_trains_in_its_folder(data, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.files.alone.PATIENCE", 0.1)

    def again(*_):
        with pytest.raises(LimbeckError, match="a training is running in"):
            limbeck.distill(teacher, network(), data, out=tmp_path, **QUICK)
        raise Stop

    with pytest.raises(Stop):
        limbeck.distill(teacher, network(), data, out=tmp_path, on_epoch=again, **QUICK)
    assert limbeck.distill(teacher, network(), data, out=tmp_path, **QUICK)[1].method == "kd"


def test_networks_without_names_are_refused(data, teacher):
    with pytest.raises(LimbeckError, match="networks is a list: pass a dict of networks by name"):
        limbeck.distill(teacher, network(), data, networks=[network()], **QUICK)


def test_a_finished_call_is_read_from_its_folder(data, teacher, tmp_path):
    student, again = network(), network()
    limbeck.distill(teacher, student, data, out=tmp_path, **QUICK)
    _, result = limbeck.distill(teacher, again, data, out=tmp_path, on_epoch=stops_after(1), **QUICK)
    assert same(student, again)
    assert result.method == "kd"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Where the process may write: the working folder and the one of temporary files; the files that lie there."""
    folders = [tmp_path / "here", tmp_path / "temporary"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.chdir(folders[0])
    monkeypatch.setattr(tempfile, "tempdir", str(folders[1]))
    return lambda: [path.name for folder in folders for path in folder.rglob("*") if not path.is_dir()]


def in_two_stages(setup):
    """A run folder has the student's weights after the first stage as well."""
    (stage,) = METHODS["kd"](setup)
    return replace(stage, name="first"), replace(stage, name="second")


@pytest.mark.parametrize("method", ["kd", in_two_stages, "mutual"])
def test_without_a_folder_no_file_is_written(data, teacher, elsewhere, method):
    seen = []
    note = lambda arm, epoch: seen.append(elsewhere())  # noqa: E731
    _, result = limbeck.distill(teacher, network(), data, method=method, seeds=(0, 1), on_epoch=note, **QUICK)
    assert len(seen) >= 8
    assert not any(seen)
    assert elsewhere() == []
    assert {one.weights_sha256 for one in result.runs} == {None}


def test_without_a_folder_the_teachers_outputs_alone_are_written_and_removed(data, teacher, elsewhere):
    seen = []
    note = lambda arm, epoch: seen.append(elsewhere())  # noqa: E731
    limbeck.distill(teacher, network(), data, on_epoch=note, **QUICK | {"cache": True})
    assert set(seen[-1]) == {"manifest.json", "tap0-view000-shard0000.safetensors"}
    assert elsewhere() == []


@pytest.mark.parametrize("changed", ["student", "teacher", "data", "option"])
def test_a_folder_of_another_call_is_refused(data, teacher, tmp_path, changed):
    limbeck.distill(teacher, network(), data, out=tmp_path, **QUICK)
    student = network(seed=7) if changed == "student" else network()
    teacher = network(16, seed=9) if changed == "teacher" else teacher
    options = QUICK | ({"epochs": 3} if changed == "option" else {})
    if changed == "data":
        data = limbeck.arrays(torch.randn(120, 6), torch.arange(120) % 3)
    with pytest.raises(LimbeckError, match="holds a run of another recipe"):
        limbeck.distill(teacher, student, data, out=tmp_path, allow=("chance",), **options)


def test_progress_is_shown_where_it_is_asked_for_and_goes_to_standard_error(data, teacher, capsys):
    limbeck.distill(teacher, network(), data, progress=True, **QUICK)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(r"^distill: \d+ training, \d+ validation and \d+ test samples of 3 classes", shown.err)
    assert re.search(r"^kd/seed0: test accuracy", shown.err, re.MULTILINE)
    limbeck.distill(teacher, network(), data, progress=False, **QUICK)
    assert capsys.readouterr().err == ""


def test_small_networks_take_one_thread_for_the_time_of_the_call(data, teacher):
    torch.set_num_threads(2)
    try:
        seen = []
        note = lambda arm, epoch: seen.append(torch.get_num_threads())  # noqa: E731
        limbeck.distill(teacher, network(), data, on_epoch=note, **QUICK)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
        with threads_for(SMALL):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_method_cannot_be_called_as_the_teacher_is(data, teacher):
    def member(setup):
        raise AssertionError

    with pytest.raises(LimbeckError, match="a method cannot be called 'member'"):
        limbeck.distill(teacher, network(), data, method=member, **QUICK)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("teacher.pth", network()), {}, "teacher is a str: it must be a torch.nn.Module"),
        ((network(), network()), {"seeds": 2}, "got the seeds 2: allowed are one or more"),
    ],
)
def test_what_is_no_network_or_seed_is_told(data, arguments, options, message):
    with pytest.raises(LimbeckError, match=message):
        limbeck.distill(*arguments, data, **options, **QUICK)


def test_the_file_of_a_call_says_how_it_is_loaded(data, teacher, tmp_path):
    student, other = network(), network(seed=5)
    limbeck.distill(teacher, student, data, out=tmp_path, **QUICK)
    with pytest.raises(LimbeckError, match="pass it as network="):
        limbeck.load_network(tmp_path / "student.safetensors")
    with pytest.raises(LimbeckError, match="network is a function"):
        limbeck.load_network(tmp_path / "student.safetensors", network=network)
    loaded, _ = limbeck.load_network(tmp_path / "student.safetensors", network=other)
    assert same(loaded, student)


class Dicts(nn.Sequential):
    def forward(self, inputs):
        return {"logits": super().forward(inputs)}


def flags(module):
    hooks = [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in module.modules()]
    learn = [parameter.requires_grad for parameter in module.parameters()]
    return hooks, learn, [one.training for one in module.modules()]


def test_a_refusal_leaves_the_networks_as_they_were(data):
    first, *rest = network()
    teacher, student = Dicts(first, *network()[1:]), Dicts(first, *rest)
    before = flags(teacher), flags(student)
    with pytest.raises(LimbeckError, match="share layers"):
        limbeck.distill(teacher, student, data, **QUICK)
    assert (flags(teacher), flags(student)) == before


def test_an_error_of_the_callers_leaves_the_teacher_as_it_was(data, teacher):
    before = flags(teacher)
    with pytest.raises(Stop) as caught:
        limbeck.distill(teacher, network(), data, on_epoch=stops_after(1), baseline=False, **QUICK)
    assert caught.value.__traceback__ is not None  # as a notebook holds it, and with it all that runs
    assert flags(teacher) == before


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1,), (1.5,), (True,), (2**32,)])
def test_seeds_are_checked_as_in_a_recipe(data, teacher, seeds):
    with pytest.raises(LimbeckError, match=r"allowed are one or more whole numbers from 0 to 2\*\*32 - 1, each once"):
        limbeck.distill(teacher, network(), data, seeds=seeds, **QUICK)


@pytest.mark.parametrize(("allow", "hint"), [(["chanse"], "chance"), ("chance", "it takes a list of names")])
def test_a_refusal_that_there_is_not_cannot_be_allowed(data, teacher, allow, hint):
    with pytest.raises(LimbeckError, match=hint):
        limbeck.distill(teacher, network(), data, allow=allow, **QUICK)


def test_a_peer_that_learns_as_well_may_begin_untrained():
    data = limbeck.arrays(torch.randn(300, 6), torch.arange(300) % 3)
    peer = network(16)
    with torch.no_grad():
        peer[2].weight.zero_()
    _, result = limbeck.distill(peer, network(), data, method="mutual", **QUICK)
    assert result.student.teacher_after is not None
    assert [note for note in result.notes if note.endswith("before the method trains it")]


class Curved(nn.Sequential):
    curve = staticmethod(torch.relu)

    def forward(self, inputs):
        return self[1](self.curve(self[0](inputs)))


def curved():
    torch.manual_seed(1)
    return Curved(nn.Linear(6, 8), nn.Linear(8, 3))


def test_a_student_whose_code_has_changed_is_not_found_beside_the_run(data, teacher, tmp_path, monkeypatch, capsys):
    limbeck.distill(teacher, curved(), data, out=tmp_path / "a", **QUICK)
    limbeck.distill(teacher, curved(), data, out=tmp_path / "b", method="dkd", progress=True, **QUICK)
    assert "reused from" in capsys.readouterr().err
    monkeypatch.setattr(Curved, "curve", staticmethod(torch.sin))
    limbeck.distill(teacher, curved(), data, out=tmp_path / "c", progress=True, **QUICK)
    assert "reused from" not in capsys.readouterr().err


def test_what_a_resumed_call_finds_wrong_is_told(data, teacher, tmp_path, capsys):
    limbeck.distill(teacher, network(), data, out=tmp_path, **QUICK)
    (tmp_path / "result.json").write_text("{}")
    _, result = limbeck.distill(teacher, network(), data, out=tmp_path, progress=True, **QUICK)
    (note,) = [note for note in result.notes if "result.json is damaged or was edited" in note]
    assert capsys.readouterr().err.count(note) == 1


def test_further_keys_of_the_training_are_those_of_a_recipe(data, teacher):
    plain, _ = limbeck.distill(teacher, network(), data, **QUICK)
    mixed, _ = limbeck.distill(teacher, network(), data, training={"mixup": 0.2, "balanced": True}, **QUICK)
    again, _ = limbeck.distill(teacher, network(), data, training={"balanced": True, "mixup": 0.2}, **QUICK)
    assert same(mixed, again)
    assert not same(plain, mixed)
    for wrong, message in (
        ({"mixpu": 0.2}, "training: mixpu: unknown key 'mixpu': did you mean 'mixup'"),
        ({"epochs": 3}, "training: epochs is an argument of distill: write epochs="),
        ({"cutmix": 1.0}, r"cutmix is 1.0, but the inputs have shape \(86, 6\)"),
        ({"label_smoothing": 1}, "training: label_smoothing: got 1: it must be below 1"),
    ):
        with pytest.raises(LimbeckError, match=message):
            limbeck.distill(teacher, network(), data, training=wrong, **QUICK)


def test_repeated_samples_are_read_from_a_store_to_the_same_bits(data, teacher):
    stored, computed = (
        limbeck.distill(teacher, network(), data, training={"balanced": True}, **QUICK | {"cache": cache})[0]
        for cache in (True, False)
    )
    assert same(stored, computed)


def test_weights_of_samples_count_in_the_training(data, teacher):
    inputs, targets = torch.randn(60, 6), torch.arange(60) % 3
    weighted = limbeck.arrays(inputs, targets, weights=torch.where(targets == 0, 0.0, 1.0))
    plain = limbeck.arrays(inputs, targets)
    one, other = (
        limbeck.distill(None, network(), made, method="alone", **QUICK | {"epochs": 20})[0]
        for made in (weighted, plain)
    )
    assert (one(inputs).argmax(1) == 0).sum() < (other(inputs).argmax(1) == 0).sum()


def test_a_function_that_gives_the_same_weights_again_is_refused(data, teacher):
    one, body = network(), nn.Linear(6, 8)
    for make in (lambda: one, lambda: nn.Sequential(body, nn.ReLU(), nn.Linear(8, 3))):
        with pytest.raises(LimbeckError, match="the function must build a new network"):
            limbeck.distill(teacher, make, data, **QUICK)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a.b": network()}, "got the name 'a.b': allowed are letters"),
        ({"peer": network()}, "kd does not use peer"),
    ],
)
def test_networks_that_cannot_be_used_are_refused(data, teacher, other, message):
    with pytest.raises(LimbeckError, match=message):
        limbeck.distill(teacher, network(), data, networks=other, **QUICK)


def test_a_teacher_that_is_no_module_is_refused(data):
    with pytest.raises(LimbeckError, match=r"teacher is a str: it must be a torch.nn.Module or a function"):
        limbeck.distill("teacher.pth", network(), data, **QUICK)
