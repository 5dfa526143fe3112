import json
import os
import shutil
import tracemalloc
from hashlib import sha256

import pytest
import torch

from limbeck.core import LimbeckError
from limbeck.evaluate import ClassFigures
from limbeck.experiment.folder import CHECKPOINT_SHARE, RunFolder, check_folder
from limbeck.experiment.results import SCHEMA, NetworkResult, RunResult, summarise
from limbeck.experiment.runfiles import clear
from limbeck.files import checkpoint
from limbeck.files.atomic import NoSpace, append, read_sealed, write, write_sealed

TEST = ClassFigures(accuracy=0.7, errors=3, samples=10, cross_entropy=0.5, ece=0.1)
RECIPE = "name: tiny\nepochs: 3\nseed: 0\n"


def result_of(name="kd/seed0", **figures):
    """A network's result."""
    arm, seed = name.split("/seed")
    given = {"arm": arm, "seed": int(seed), "member": None, "test": TEST, "validation": None}
    return NetworkResult(**given, parameters=9, macs=8, file_bytes=36, **figures)


def run_of(*runs):
    """A run's result."""
    return RunResult(
        schema=SCHEMA,
        name="tiny",
        task="classification",
        metric=None,
        method="kd",
        seeds=(0,),
        teacher=None,
        student=runs[0],
        alone=None,
        summary=summarise(runs),
        splits={},
        notes=(),
        decided={},
        runs=runs,
    )


SAID = {"missing": "was missing", "damaged": "is damaged or was edited"}


class Clock:
    """Stands in for `time.monotonic`."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("limbeck.experiment.folder.time.monotonic", clock)
    return clock


def opened(path, recipe=RECIPE, *, resume=False):
    folder = RunFolder(path, recipe, resume=resume)
    folder.open({"python": "3"})
    return folder


def line(job, epoch, stage=0):
    return {"job": job, "stage": "kd", "stage_number": stage, "epoch": epoch, "loss": 0.1 + epoch}


def lines(path):
    return [json.loads(text) for text in (path / "metrics.jsonl").read_text().splitlines()]


def crashed(path, *, at, job="kd/seed0", logged=(), lost=()):
    """A folder as a crash leaves it: a log, the checkpoint of ``job`` at (stage, epoch), and lines after it."""
    folder = opened(path)
    for entry in logged:
        folder.log(entry)
    folder.save(job, lambda: {"stage": at[0], "epoch": at[1]})
    for entry in lost:
        folder.log(entry)
    return path


def finished(path, name="kd/seed0", *, weights=b"weights", epochs=2, **figures):
    """A folder with one finished network."""
    folder = opened(path)
    for epoch in range(1, epochs + 1):
        folder.log(line(name, epoch))
    place(folder, name, weights)
    folder.finish(name, result_of(name, **figures), "student.safetensors")
    return path


@pytest.fixture(autouse=True)
def plain_weights(monkeypatch):
    """A network's weights are the bytes that stand for it."""

    def save(network, path, *, spec):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(network)

    monkeypatch.setattr("limbeck.experiment.folder.save_network", save)


def place(folder, name, weights=b"weights"):
    """Write what stands for a network's weights."""
    folder.write(name, "student.safetensors", weights, None)


def end(folder):
    """The result of a run with one network, and whether it was made."""
    result, made = folder.result("kd/seed0"), []
    found = folder.conclude((result,), "kd/seed0", lambda: made.append(True) or run_of(result))
    return found, bool(made)


def concluded(path):
    """A folder with a run that is over."""
    finished(path)
    folder = opened(path, resume=True)
    end(folder)
    return path


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_building_it_writes_nothing(tmp_path):
    RunFolder(tmp_path / "run", RECIPE, resume=False)
    assert list(tmp_path.iterdir()) == []


def test_opening_it_writes_the_recipe_and_the_environment(tmp_path):
    opened(tmp_path / "a" / "run")
    assert (tmp_path / "a" / "run" / "recipe.yaml").read_text() == RECIPE
    assert read_sealed(tmp_path / "a" / "run" / "environment.json") == {"python": "3"}
    assert sorted(file.name for file in (tmp_path / "a" / "run").iterdir()) == ["environment.json", "recipe.yaml"]


def test_a_folder_with_a_finished_epoch_is_refused(tmp_path):
    crashed(tmp_path, at=(0, 1))
    with pytest.raises(LimbeckError, match="already holds a run: resume it with --resume, choose another folder"):
        RunFolder(tmp_path, RECIPE, resume=False)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("recipe", [RECIPE, "name: other\n"])
def test_a_folder_without_a_finished_epoch_is_no_run(tmp_path, resume, recipe):
    opened(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"job": "kd/seed0", "epo')
    folder = opened(tmp_path, recipe, resume=resume)
    assert folder.state("kd/seed0") is None
    folder.log(line("kd/seed0", 1))
    assert lines(tmp_path) == [line("kd/seed0", 1)]
    assert folder.notes == []


def test_a_folder_with_other_things_is_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    opened(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_in_the_folders_place_is_refused(tmp_path, resume):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(LimbeckError, match="run is not a folder: choose another one with --out"):
        RunFolder(tmp_path / "run", RECIPE, resume=resume)
    assert (tmp_path / "run").read_text() == "mine"


def test_clearing_deletes_the_run_and_nothing_else(tmp_path):
    crashed(tmp_path, at=(0, 1), logged=[line("kd/seed0", 1)])
    (tmp_path / "kd" / "seed0").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "kd" / "seed0" / "mine.txt").write_text("mine")
    place(opened(tmp_path, resume=True), "alone/seed1")
    (tmp_path / "store" / "teacher-seed0").mkdir(parents=True)
    (tmp_path / "store" / "teacher-seed0" / "tap0-view000-shard0000.safetensors").write_text("numbers")
    clear(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir())
    assert left == ["kd/seed0/mine.txt", "notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kd", "notes.txt", "other"]
    assert opened(tmp_path).state("kd/seed0") is None


def test_clearing_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "result.json").write_text("mine")
    with pytest.raises(LimbeckError, match=r"holds no recipe\.yaml, so it is not a run that can be replaced"):
        clear(tmp_path)
    assert (tmp_path / "result.json").read_text() == "mine"
    clear(tmp_path / "nothing")


def test_clearing_follows_no_link(tmp_path):
    finished(tmp_path / "other", "kd/seed0")
    finished(tmp_path / "run", "alone/seed0")
    (tmp_path / "run" / "kd").symlink_to(tmp_path / "other" / "kd")
    (tmp_path / "run" / "alone" / "seed1").symlink_to(tmp_path / "other" / "kd" / "seed0")
    clear(tmp_path / "run")
    assert (tmp_path / "other" / "kd" / "seed0" / "result.json").is_file()


def test_a_run_of_the_same_recipe_is_resumed(tmp_path):
    opened(tmp_path)
    assert opened(tmp_path, resume=True).state("kd/seed0") is None


def test_resuming_where_there_is_nothing_begins(tmp_path):
    assert opened(tmp_path / "run", resume=True).state("kd/seed0") is None


def test_a_run_of_another_recipe_is_refused_with_the_differences(tmp_path):
    crashed(tmp_path, at=(0, 1))
    with pytest.raises(LimbeckError) as caught:
        RunFolder(tmp_path, "name: tiny\nepochs: 4\nseed: 0\nextra: 1\n", resume=True)
    first, *rest = str(caught.value).splitlines()
    assert first == f"{tmp_path} holds a run of another recipe, so it cannot be resumed:"
    assert rest == ["  it has    epochs: 3", "  asked for epochs: 4", "  asked for extra: 1"]


def test_the_shortest_change_is_shown_first_and_of_a_long_one_the_beginning(tmp_path):
    gone = "".join(f"a{number}: 1\n" for number in range(50))
    opened(tmp_path, f"{gone}same: 0\nepochs: 3\n").log(line("kd/seed0", 1))
    with pytest.raises(LimbeckError) as caught:
        RunFolder(tmp_path, "b: 2\nsame: 0\nepochs: 4\n", resume=True)
    assert str(caught.value).splitlines()[1:] == [
        "  it has    epochs: 3",
        "  asked for epochs: 4",
        *(f"  it has    a{number}: 1" for number in range(3)),
        "  it has    ...",
        "  asked for b: 2",
    ]


def test_a_difference_is_named_by_the_keys_of_its_block(tmp_path):
    text = "student:\n  model:\n    hidden:\n    - 8\n    - 4\ntrain:\n  epochs: 3\n"
    opened(tmp_path, text).log(line("kd/seed0", 1))
    with pytest.raises(LimbeckError) as caught:
        RunFolder(tmp_path, text.replace("- 4", "- 5").replace("3", "6"), resume=True)
    assert str(caught.value).splitlines()[1:] == [
        "  it has    student.model.hidden.- 4",
        "  asked for student.model.hidden.- 5",
        "  it has    train.epochs: 3",
        "  asked for train.epochs: 6",
    ]


def test_the_differences_to_a_huge_recipe_are_found_with_bounded_memory(tmp_path):
    opened(tmp_path, f"{'a' * 2**20}:\n" + "".join(f"{' ' * place}b:\n" for place in range(1, 1500))).log(
        line("kd/seed0", 1)
    )
    tracemalloc.start()
    try:
        with pytest.raises(LimbeckError, match="holds a run of another recipe"):
            RunFolder(tmp_path, "b: 1\n", resume=True)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_of_many_differences_the_first_are_shown(tmp_path):
    opened(tmp_path, "".join(f"a{number}: 1\nsame: 0\n" for number in range(50))).log(line("kd/seed0", 1))
    with pytest.raises(LimbeckError) as caught:
        RunFolder(tmp_path, "a: 2\nsame: 0\n" * 50, resume=True)
    assert len(str(caught.value).splitlines()) == 13


def test_lines_in_another_order_are_another_recipe(tmp_path):
    opened(tmp_path, "a: 1\nb: 2\n").log(line("kd/seed0", 1))
    with pytest.raises(LimbeckError, match="another recipe"):
        RunFolder(tmp_path, "b: 2\na: 1\n", resume=True)


def test_the_state_of_the_job_in_progress_comes_back_and_no_others(tmp_path):
    folder = opened(tmp_path)
    folder.save("kd/seed0", lambda: {"stage": 0, "epoch": 2, "weights": torch.arange(3.0)})
    again = opened(tmp_path, resume=True)
    assert again.state("kd/seed1") is None
    assert again.state("alone/seed0") is None
    state = again.state("kd/seed0")
    assert (state["stage"], state["epoch"]) == (0, 2)
    assert torch.equal(state["weights"], torch.arange(3.0))


def test_a_damaged_checkpoint_is_refused_before_anything_is_written(tmp_path):
    crashed(tmp_path, at=(0, 1))
    file = tmp_path / "checkpoint" / "last.pt"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(LimbeckError, match="is not a complete checkpoint"):
        RunFolder(tmp_path, RECIPE, resume=True)


def test_a_half_written_checkpoint_beside_it_does_no_harm(tmp_path):
    crashed(tmp_path, at=(0, 1))
    (tmp_path / "checkpoint" / "last.pt.tmp").write_bytes(b"PK half")
    assert opened(tmp_path, resume=True).state("kd/seed0") == {"stage": 0, "epoch": 1}


def test_the_epochs_after_the_checkpoint_leave_the_log(tmp_path):
    before = [line("alone/seed0", 1), line("alone/seed0", 9), line("kd/seed0", 1), line("kd/seed0", 2)]
    crashed(tmp_path, at=(0, 2), logged=before, lost=[line("kd/seed0", 3), line("kd/seed0", 4)])
    opened(tmp_path, resume=True).state("kd/seed0")
    assert lines(tmp_path) == before


def test_a_job_without_a_checkpoint_loses_all_its_lines(tmp_path):
    crashed(tmp_path, at=(0, 3), job="alone/seed0", logged=[line("alone/seed0", 3), line("kd/seed0", 1)])
    opened(tmp_path, resume=True).state("kd/seed0")
    assert lines(tmp_path) == [line("alone/seed0", 3)]


def test_a_log_that_is_right_is_left_alone(tmp_path):
    crashed(tmp_path, at=(0, 2), logged=[line("alone/seed0", 3), line("kd/seed0", 1), line("kd/seed0", 2)])
    stamp = (tmp_path / "metrics.jsonl").stat()
    opened(tmp_path, resume=True).state("kd/seed0")
    after = (tmp_path / "metrics.jsonl").stat()
    assert (after.st_ino, after.st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)


@pytest.mark.parametrize("cut", [1, 2, 20, 60])
@pytest.mark.parametrize("job", ["kd/seed0", "alone/seed0"])
def test_a_line_that_a_crash_cut_short_leaves_the_log(tmp_path, cut, job):
    crashed(tmp_path, at=(0, 1), logged=[line("kd/seed0", 1)], lost=[line(job, 2)])
    log = tmp_path / "metrics.jsonl"
    log.write_text(log.read_text()[:-cut])
    folder = opened(tmp_path, resume=True)
    assert folder.state("kd/seed0") == {"stage": 0, "epoch": 1}
    folder.log(line("kd/seed0", 2))
    assert lines(tmp_path) == [line("kd/seed0", 1), line("kd/seed0", 2)]


def test_a_log_of_one_cut_line_becomes_empty(tmp_path):
    crashed(tmp_path, at=(0, 1))
    (tmp_path / "metrics.jsonl").write_text('{"job": "kd')
    opened(tmp_path, resume=True).state("kd/seed0")
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("broken", ["{no json", "3", "[]", '{"epoch": 1}', '{"job": 3}', "\0\0\0", "[" * 10**5])
def test_a_log_that_is_damaged_inside_is_refused(tmp_path, broken):
    crashed(tmp_path, at=(0, 5), logged=[line("kd/seed0", 1)])
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write(broken + "\n" + json.dumps(line("kd/seed0", 2)) + "\n")
    message = r"metrics\.jsonl is damaged: line 2 does not describe an epoch\. Delete the file"
    with pytest.raises(LimbeckError, match=message):
        RunFolder(tmp_path, RECIPE, resume=True)


@pytest.mark.parametrize("damage", ["edited", "removed", "doubled", "renamed"])
@pytest.mark.parametrize("ended", [False, True])
def test_epochs_that_were_changed_are_refused(tmp_path, damage, ended):
    if ended:
        finished(tmp_path, epochs=3)
    else:
        crashed(tmp_path, at=(0, 3), logged=[line("kd/seed0", epoch) for epoch in (1, 2, 3)])
    log = tmp_path / "metrics.jsonl"
    held = log.read_text().splitlines(keepends=True)
    first = {"edited": held[0].replace("1.1", "0.1"), "removed": "", "doubled": held[0] * 2, "renamed": held[0]}[damage]
    log.write_text("".join([first.replace("seed0", "seed1") if damage == "renamed" else first, *held[1:]]))
    folder = opened(tmp_path, resume=True)
    message = r"metrics\.jsonl is damaged or was edited: the lines of kd/seed0 have changed"
    with pytest.raises(LimbeckError, match=message):
        folder.result("kd/seed0") if ended else folder.state("kd/seed0")


@pytest.mark.parametrize("ended", [False, True])
def test_a_log_that_was_deleted_is_told_and_the_run_goes_on(tmp_path, ended):
    finished(tmp_path) if ended else crashed(tmp_path, at=(0, 1), logged=[line("kd/seed0", 1)])
    (tmp_path / "metrics.jsonl").unlink()
    folder = opened(tmp_path, resume=True)
    assert (folder.result("kd/seed0") if ended else folder.state("kd/seed0")) is not None
    assert [note for note in folder.notes if "has lost the epochs of kd/seed0" in note]
    folder.log(line("kd/seed1", 1))
    assert lines(tmp_path) == [line("kd/seed1", 1)]


@pytest.mark.parametrize("name", ["metrics.jsonl", "recipe.yaml", "environment.json", "kd/seed0/result.json"])
@pytest.mark.parametrize("kind", ["FIFO", "folder", "device"])
def test_what_is_no_regular_file_is_told_at_once(tmp_path, name, kind):
    finished(tmp_path)
    (tmp_path / name).unlink()
    if kind == "FIFO":
        os.mkfifo(tmp_path / name)
    elif kind == "folder":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    if name == "environment.json":  # it is written anew, where it can be
        if kind == "folder":
            with pytest.raises(LimbeckError, match=r"environment\.json cannot be written: Is a directory"):
                opened(tmp_path, resume=True)
        else:
            assert "environment.json is damaged or was edited" in opened(tmp_path, resume=True).notes[0]
        return
    with pytest.raises(LimbeckError, match=rf"{name.split('/')[-1]} is not a regular file"):
        opened(tmp_path, resume=True).result("kd/seed0")


def test_figures_that_are_not_finite_are_kept_in_the_log(tmp_path):
    crashed(tmp_path, at=(0, 1), logged=[line("kd/seed0", 1) | {"loss": float("inf")}, line("kd/seed0", 2)])
    opened(tmp_path, resume=True).state("kd/seed0")
    assert lines(tmp_path)[0]["loss"] == float("inf")


def test_a_finished_network_has_its_figures(tmp_path):
    folder = opened(tmp_path)
    assert folder.result("kd/seed0") is None
    place(folder, "kd/seed0")
    written = folder.finish("kd/seed0", result_of(), "student.safetensors")
    assert written == result_of(weights_sha256=sha256(b"weights").hexdigest())
    assert folder.result("kd/seed0") == written
    again = opened(tmp_path, resume=True)
    assert again.result("kd/seed0") == written
    assert again.weights("kd/seed0", "student.safetensors") == tmp_path / "kd/seed0/student.safetensors"
    assert again.notes == []


def test_every_flipped_bit_of_a_networks_figures_is_refused(tmp_path):
    finished(tmp_path)
    file = tmp_path / "kd" / "seed0" / "result.json"
    for place_of_bit in range(len(file.read_bytes())):
        flip(file, place_of_bit)
        with pytest.raises(LimbeckError, match=r"result\.json is damaged.* to train kd/seed0 again"):
            RunFolder(tmp_path, RECIPE, resume=True).result("kd/seed0")
        flip(file, place_of_bit)


def test_figures_that_were_edited_are_refused(tmp_path):
    file = finished(tmp_path) / "kd" / "seed0" / "result.json"
    file.write_text(file.read_text().replace('"errors": 3', '"errors": 0'))
    with pytest.raises(LimbeckError, match=r"was changed after it was written: delete .* to train kd/seed0 again"):
        opened(tmp_path, resume=True).result("kd/seed0")


def test_figures_without_a_hash_are_refused(tmp_path):
    file = finished(tmp_path) / "kd" / "seed0" / "result.json"
    write(file, json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "sha256"}))
    with pytest.raises(LimbeckError, match="is damaged, or was changed"):
        opened(tmp_path, resume=True).result("kd/seed0")


@pytest.mark.parametrize("damage", ["flipped", "cut", "grown", "removed", "FIFO", "folder", "link to a device"])
def test_weights_that_are_not_whole_are_refused(tmp_path, damage):
    file = finished(tmp_path) / "kd" / "seed0" / "student.safetensors"
    if damage == "flipped":
        flip(file, 3)
    elif damage in ("cut", "grown"):
        file.write_bytes(b"weight" if damage == "cut" else b"weights and more")
    else:
        file.unlink()
    if damage == "FIFO":
        os.mkfifo(file)
    elif damage == "folder":
        file.mkdir()
    elif damage == "link to a device":
        file.symlink_to("/dev/zero")
    message = r"student\.safetensors is missing, damaged or not the file .*to train kd/seed0 again"
    with pytest.raises(LimbeckError, match=message):
        opened(tmp_path, resume=True).result("kd/seed0")


@pytest.mark.parametrize(("there", "asked"), [("kd/seed1", "kd/seed0"), ("alone/seed0", "kd/seed0")])
def test_a_network_in_anothers_place_is_refused(tmp_path, there, asked):
    finished(tmp_path, there)
    shutil.copytree(tmp_path / there, tmp_path / asked)
    message = rf"result\.json belongs to {there}, not to {asked}: move it back, or delete"
    with pytest.raises(LimbeckError, match=message):
        opened(tmp_path, resume=True).result(asked)


def test_a_network_of_another_recipe_is_refused(tmp_path):
    finished(tmp_path / "run")
    other = opened(tmp_path / "other", "name: other\n")
    place(other, "kd/seed0")
    other.finish("kd/seed0", result_of(), "student.safetensors")
    shutil.rmtree(tmp_path / "run" / "kd")
    shutil.copytree(tmp_path / "other" / "kd", tmp_path / "run" / "kd")
    message = r"result\.json belongs to a run of another recipe: delete .*to train kd/seed0 again"
    with pytest.raises(LimbeckError, match=message):
        opened(tmp_path / "run", resume=True).result("kd/seed0")


@pytest.mark.parametrize(
    "change",
    [
        {"files": None},
        {"files": {"../x": {"bytes": 1, "sha256": ""}}},
        {"files": {"x": 3}},
        {"log": 3},
        {"log": {"lines": "3", "sha256": ""}},
        {"seed": "0"},
        {"arm": 3},
        {"test": []},
        {"test": {"errors": 3}},
        {"weights_sha256": None},
    ],
    ids=str,
)
def test_sealed_figures_of_another_form_are_refused(tmp_path, change):
    file = finished(tmp_path) / "kd" / "seed0" / "result.json"
    write_sealed(file, read_sealed(file) | change)
    with pytest.raises(LimbeckError, match="contains no results of a network"):
        opened(tmp_path, resume=True).result("kd/seed0")


def test_a_network_whose_result_is_gone_is_trained_again_and_this_is_said(tmp_path):
    finished(tmp_path)
    (tmp_path / "kd" / "seed0" / "result.json").unlink()
    folder = opened(tmp_path, resume=True)
    assert folder.result("kd/seed0") is None
    assert folder.state("kd/seed0") is None
    assert folder.notes == ["kd/seed0 was started, but has neither a result nor a checkpoint: it is trained again"]
    assert lines(tmp_path) == []


def test_weights_between_stages_are_checked_on_resume(tmp_path):
    folder = opened(tmp_path)
    folder.log(line("kd/seed0", 1))
    place(folder, "kd/seed0", b"first stage")
    folder.save("kd/seed0", lambda: {"stage": 0, "epoch": 1})
    assert opened(tmp_path, resume=True).state("kd/seed0") == {"stage": 0, "epoch": 1}
    (tmp_path / "kd" / "seed0" / "student.safetensors").write_bytes(b"First stage")
    with pytest.raises(LimbeckError, match=r"student\.safetensors is missing or damaged: delete .*last\.pt to train"):
        opened(tmp_path, resume=True).state("kd/seed0")


def test_weights_that_the_run_did_not_write_are_not_given(tmp_path):
    place(opened(tmp_path), "kd/seed0")
    with pytest.raises(LimbeckError, match="missing or damaged: delete"):
        opened(tmp_path).weights("kd/seed0", "student.safetensors")


def test_figures_that_lie_there_are_not_used_unless_the_run_is_resumed(tmp_path):
    finished(tmp_path / "other")
    shutil.copytree(tmp_path / "other" / "kd", tmp_path / "run" / "kd")
    with pytest.raises(LimbeckError, match="already holds a run"):
        RunFolder(tmp_path / "run", RECIPE, resume=False)


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "checkpoint/last.pt", "kd/seed0/result.json"])
def test_whatever_an_epoch_leaves_shows_that_there_was_one(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(LimbeckError, match="already holds a run"):
        RunFolder(tmp_path, RECIPE, resume=False)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    opened(tmp_path)
    checkpoint.save(tmp_path / "checkpoint" / "last.pt", {"epoch": 3})
    with pytest.raises(LimbeckError, match="is not a checkpoint of a run"):
        RunFolder(tmp_path, RECIPE, resume=True)


@pytest.mark.parametrize("nested", [{"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}, {"log": {}}, {"train": 3}])
def test_a_checkpoint_of_another_form_is_refused(tmp_path, nested):
    crashed(tmp_path, at=(0, 1))
    file = tmp_path / "checkpoint" / "last.pt"
    checkpoint.save(file, checkpoint.load(file) | nested)
    with pytest.raises(LimbeckError, match="is not a checkpoint of a run"):
        RunFolder(tmp_path, RECIPE, resume=True)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    opened(tmp_path / "other", "name: other\n").save("kd/seed0", dict)
    crashed(tmp_path / "run", at=(0, 1))
    shutil.copy(tmp_path / "other" / "checkpoint" / "last.pt", tmp_path / "run" / "checkpoint")
    with pytest.raises(
        LimbeckError, match=r"last\.pt belongs to a run of another recipe: delete it to train kd/seed0 again"
    ):
        RunFolder(tmp_path / "run", RECIPE, resume=True)


def test_a_state_that_does_not_fit_is_refused_with_the_files_name(tmp_path):
    def check(state):
        raise LimbeckError(f"its stage is {state['stage']}")

    crashed(tmp_path, at=(7, 1))
    with pytest.raises(LimbeckError, match=r"last\.pt does not fit this training: its stage is 7: delete .*last\.pt"):
        opened(tmp_path, resume=True).state("kd/seed0", check)


def test_the_environment_before_a_resume_is_kept_beside_the_new_one(tmp_path):
    crashed(tmp_path, at=(0, 1))
    for threads in (1, 1, 2):
        RunFolder(tmp_path, RECIPE, resume=True).open({"threads": threads})
    found = read_sealed(tmp_path / "environment.json")
    assert found["threads"] == 2
    assert [entry.get("threads") for entry in found["earlier"]] == [None, 1]


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_an_environment_that_is_not_whole_is_written_anew_and_this_is_said(tmp_path, damage):
    file = crashed(tmp_path, at=(0, 1)) / "environment.json"
    file.unlink() if damage == "missing" else flip(file, 15)
    folder = opened(tmp_path, resume=True)
    assert f"{file} {SAID[damage]}" in folder.notes[0]
    assert read_sealed(file) == {"python": "3"}


def test_a_recipe_that_is_missing_is_written_anew_and_this_is_said(tmp_path):
    crashed(tmp_path, at=(0, 1))
    (tmp_path / "recipe.yaml").unlink()
    assert opened(tmp_path, resume=True).notes == [f"{tmp_path / 'recipe.yaml'} was missing and is written again"]
    assert (tmp_path / "recipe.yaml").read_text() == RECIPE


def test_a_run_that_is_over_stays_as_it_is(tmp_path):
    concluded(tmp_path)
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.rglob("*.*") if path.is_file()}
    folder = RunFolder(tmp_path, RECIPE, resume=True)
    assert end(folder) == (run_of(folder.result("kd/seed0")), False)
    assert folder.notes == []
    assert {path: (path.read_bytes(), path.stat().st_ino) for path in before} == before
    assert (tmp_path / "student.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_runs_own_figures_that_are_not_whole_are_made_anew_and_this_is_said(tmp_path, damage):
    file = concluded(tmp_path) / "result.json"
    file.unlink() if damage == "missing" else flip(file, 15)
    folder = opened(tmp_path, resume=True)
    assert end(folder) == (run_of(folder.result("kd/seed0")), True)
    assert f"{file} {SAID[damage]}" in folder.notes[0]
    assert "it is written again, and latencies are measured again" in folder.notes[0]


def test_a_runs_own_figures_that_are_not_the_networks_are_made_anew_and_this_is_said(tmp_path):
    file = concluded(tmp_path) / "result.json"
    found = read_sealed(file)
    found["runs"][0]["test"]["errors"] = 0
    write_sealed(file, found)
    folder = opened(tmp_path, resume=True)
    assert end(folder) == (run_of(folder.result("kd/seed0")), True)
    assert "did not agree with the networks' results" in folder.notes[0]


def test_a_runs_figures_of_another_schema_are_refused_and_stay(tmp_path):
    file = concluded(tmp_path) / "result.json"
    write_sealed(file, read_sealed(file) | {"schema": SCHEMA + 1})
    before = file.read_bytes()
    with pytest.raises(LimbeckError, match=f"has schema {SCHEMA + 1}, but .* reads schema {SCHEMA}"):
        end(opened(tmp_path, resume=True))
    assert file.read_bytes() == before


@pytest.mark.parametrize("damage", ["missing", "damaged", "FIFO"])
def test_a_runs_student_that_is_not_whole_is_copied_anew_and_this_is_said(tmp_path, damage):
    file = concluded(tmp_path) / "student.safetensors"
    flip(file, 3) if damage == "damaged" else file.unlink()
    if damage == "FIFO":
        os.mkfifo(file)
    folder = opened(tmp_path, resume=True)
    assert end(folder) == (run_of(folder.result("kd/seed0")), False)
    assert folder.notes == [f"{file} was missing or damaged, and is copied again"]
    assert file.read_bytes() == b"weights"


def test_a_network_that_another_run_trained_in_the_same_way_is_found_with_its_epochs(tmp_path):
    finished(tmp_path / "a", "alone/seed0", trained_as="one way", weights=b"of a")
    finished(tmp_path / "b", "alone/seed0", trained_as="another way")
    (tmp_path / "c").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    folder = opened(tmp_path / "run", "name: other\n")
    assert folder.take("alone/seed0", "a third way") is None
    assert folder.take("alone/seed1", "one way") is None
    assert folder.take("alone/seed0", "one way")[0] == tmp_path / "a"
    ours, theirs = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("run", "a"))
    assert ours == [one for one in theirs if json.loads(one)["job"] == "alone/seed0"] != []


@pytest.mark.parametrize("file", ["student.safetensors", "result.json"])
def test_a_network_that_is_damaged_elsewhere_is_not_found(tmp_path, file):
    finished(tmp_path / "a", "alone/seed0", trained_as="one way")
    flip(tmp_path / "a" / "alone" / "seed0" / file, 5)
    assert opened(tmp_path / "run").take("alone/seed0", "one way") is None


def test_a_run_finds_nothing_where_nothing_lies_beside_it(tmp_path):
    assert RunFolder(tmp_path / "deep" / "er", RECIPE, resume=False).take("alone/seed0", "one way") is None


def test_a_folder_that_may_not_be_written_is_told(tmp_path, monkeypatch):
    def refuses(*paths):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("limbeck.files.atomic.os.replace", refuses)
    with pytest.raises(LimbeckError, match=r"recipe\.yaml cannot be written: Permission denied") as caught:
        opened(tmp_path)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_an_epoch_is_logged_leaves_the_lines_before(tmp_path, monkeypatch):
    folder, write_part = opened(tmp_path), os.write
    folder.log(line("kd/seed0", 1))

    def full(file, data, written=[]):  # noqa: B006 (counts the calls)
        written.append(data)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        return write_part(file, data[:20])

    with monkeypatch.context() as patched:
        patched.setattr("limbeck.files.atomic.os.write", full)
        with pytest.raises(NoSpace, match=r"metrics\.jsonl cannot be written: No space left on device") as caught:
            folder.log(line("kd/seed0", 2))
    assert caught.value.exit_code == 3
    assert lines(tmp_path) == [line("kd/seed0", 1)]
    folder.log(line("kd/seed0", 2))
    assert lines(tmp_path) == [line("kd/seed0", 1), line("kd/seed0", 2)]


def test_a_log_is_not_written_through_a_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(LimbeckError, match=r"metrics\.jsonl cannot be written"):
        append(tmp_path / "metrics.jsonl", "line")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_nothing_is_written_through_what_lies_in_the_temporary_files_place(tmp_path, kind):
    (tmp_path / "mine").write_text("mine")
    if kind == "link":
        (tmp_path / "result.json.tmp").symlink_to(tmp_path / "mine")
    else:
        os.mkfifo(tmp_path / "result.json.tmp")
    write_sealed(tmp_path / "result.json", {"errors": 3})
    assert read_sealed(tmp_path / "result.json") == {"errors": 3}
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    "text",
    ["", "{", "3", "[]", "null", "{}", "[" * 10**5, '{"a": ' + "1" * 5000 + "}", "\0", '{"sha256": 3}', "\ud800"],
)
def test_json_that_is_none_of_ours_is_refused(tmp_path, text):
    (tmp_path / "result.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(LimbeckError, match="is damaged, or was changed after it was written"):
        read_sealed(tmp_path / "result.json")


def test_json_in_the_place_of_another_file_is_refused(tmp_path):
    write_sealed(tmp_path / "result.json", {"errors": 3})
    shutil.copy(tmp_path / "result.json", tmp_path / "environment.json")
    with pytest.raises(LimbeckError, match=r"environment\.json is damaged, or was changed"):
        read_sealed(tmp_path / "environment.json")


def test_json_beyond_its_bound_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.files.atomic.JSON_BYTES", 100)
    write_sealed(tmp_path / "result.json", {"values": [0] * 100})
    with pytest.raises(LimbeckError, match="has more than 100 bytes"):
        read_sealed(tmp_path / "result.json")


def test_a_networks_first_checkpoint_is_always_written(tmp_path, clock):
    folder, written = opened(tmp_path), []

    def state():
        clock.now += 2.0
        written.append(clock.now)
        return {}

    folder.save("alone/seed0", state)
    folder.save("kd/seed0", state)
    folder.save("kd/seed0", state)
    assert len(written) == 2


def test_checkpoints_take_no_more_than_their_share_of_the_time(tmp_path, clock):
    folder, written = opened(tmp_path), []

    def state():
        clock.now += 2.0  # that long does writing take
        written.append(clock.now)
        return {"epoch": len(written)}

    folder.save("kd/seed0", state)
    assert len(written) == 1
    wait = 2.0 / CHECKPOINT_SHARE
    clock.now += wait - 0.001
    folder.save("kd/seed0", state)
    assert len(written) == 1
    clock.now += 0.001
    folder.save("kd/seed0", state)
    assert len(written) == 2
    assert checkpoint.load(tmp_path / "checkpoint" / "last.pt")["train"] == {"epoch": 2}


def test_students_that_are_trained_at_the_same_time_share_the_time_for_checkpoints(tmp_path, clock):
    folder, written = opened(tmp_path), []

    def state():
        clock.now += 2.0
        written.append(clock.now)
        return {}

    for wait in (0, 3 * 2.0 / CHECKPOINT_SHARE - 0.001, 0.001):
        clock.now += wait
        folder.save("kd/seed0", state, beside=2)
    assert len(written) == 2


def test_a_checkpoint_that_costs_nothing_is_written_every_time(tmp_path, clock):
    folder, written = opened(tmp_path), []
    for epoch in range(3):
        folder.save("kd/seed0", lambda epoch=epoch: written.append(epoch) or {"epoch": epoch})
    assert written == [0, 1, 2]


def test_a_write_that_fails_leaves_the_old_text(tmp_path, monkeypatch):
    write(tmp_path / "recipe.yaml", "old")

    def fails(*paths):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("limbeck.files.atomic.os.fsync", fails)
        with pytest.raises(NoSpace, match=r"recipe\.yaml cannot be written: No space left"):
            write(tmp_path / "recipe.yaml", "new, and longer")
    assert (tmp_path / "recipe.yaml").read_text() == "old"
    write(tmp_path / "recipe.yaml", "new")
    assert (tmp_path / "recipe.yaml").read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_data_is_read(tmp_path, monkeypatch):
    def fails(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("limbeck.experiment.folder.TemporaryDirectory", fails)
    with pytest.raises(LimbeckError, match=r"new/run cannot be written: .*Permission denied.*: choose another folder"):
        check_folder(tmp_path / "new" / "run", resume=False)
    assert not check_folder(tmp_path / "new" / "run", resume=True)  # the store of a folder is verified by reading


def test_a_run_is_not_written_into_its_data(tmp_path):
    for place in (tmp_path / "photos", tmp_path / "photos" / "runs" / "kd"):
        with pytest.raises(LimbeckError, match=r"is in the folder of the data, .*photos: choose"):
            check_folder(place, resume=True, data=tmp_path / "photos")
    assert not check_folder(tmp_path / "photos-kd", resume=False, data=tmp_path / "photos")
