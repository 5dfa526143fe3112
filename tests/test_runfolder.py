import json

import pytest
import torch

from limbeck import checkpoint
from limbeck.core import LimbeckError
from limbeck.runfolder import CHECKPOINT_SHARE, RunFolder, clear, write, write_json

FIGURES = {"arm": "kd", "seed": 0, "test": {"errors": 3}, "weights_sha256": "ab"}
RECIPE = "name: tiny\nepochs: 3\nseed: 0\n"


class Clock:
    """Stands in for `time.monotonic`."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("limbeck.runfolder.time.monotonic", clock)
    return clock


def opened(path, recipe=RECIPE, *, resume=False):
    folder = RunFolder(path, recipe, resume=resume)
    folder.open({"python": "3"})
    return folder


def line(job, epoch, stage=0):
    return {"job": job, "stage": "kd", "stage_number": stage, "epoch": epoch, "loss": 0.1 + epoch}


def lines(path):
    return [json.loads(text) for text in (path / "metrics.jsonl").read_text().splitlines()]


def crashed(path, *, at, job="kd/seed0", logged=()):
    """A folder as a crash leaves it: the checkpoint of ``job`` at (stage, epoch), and a log."""
    folder = opened(path)
    folder.save(job, lambda: {"stage": at[0], "epoch": at[1]})
    for entry in logged:
        folder.log(entry)
    return path


def test_building_it_writes_nothing(tmp_path):
    RunFolder(tmp_path / "run", RECIPE, resume=False)
    assert list(tmp_path.iterdir()) == []


def test_opening_it_writes_the_recipe_and_the_environment(tmp_path):
    opened(tmp_path / "a" / "run")
    assert (tmp_path / "a" / "run" / "recipe.yaml").read_text() == RECIPE
    assert json.loads((tmp_path / "a" / "run" / "environment.json").read_text()) == {"python": "3"}
    assert sorted(file.name for file in (tmp_path / "a" / "run").iterdir()) == ["environment.json", "recipe.yaml"]


def test_a_folder_with_a_run_is_refused(tmp_path):
    opened(tmp_path)
    with pytest.raises(LimbeckError, match="already holds a run: go on with it by --resume, or give another folder"):
        RunFolder(tmp_path, RECIPE, resume=False)


def test_a_folder_with_other_things_is_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    opened(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_in_the_folders_place_is_refused(tmp_path, resume):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(LimbeckError, match="run is no folder: give another one by --out"):
        RunFolder(tmp_path / "run", RECIPE, resume=resume)
    assert (tmp_path / "run").read_text() == "mine"


def test_clearing_deletes_the_run_and_nothing_else(tmp_path):
    crashed(tmp_path, at=(0, 1), logged=[line("kd/seed0", 1)])
    (tmp_path / "kd" / "seed0").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    clear(tmp_path, arms=["alone", "kd"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "other"]
    assert opened(tmp_path).state("kd/seed0") is None


def test_a_run_of_the_same_recipe_is_resumed(tmp_path):
    opened(tmp_path)
    assert opened(tmp_path, resume=True).state("kd/seed0") is None


def test_resuming_where_there_is_nothing_begins(tmp_path):
    assert opened(tmp_path / "run", resume=True).state("kd/seed0") is None


def test_a_run_of_another_recipe_is_refused_with_the_differences(tmp_path):
    opened(tmp_path)
    with pytest.raises(LimbeckError) as caught:
        RunFolder(tmp_path, "name: tiny\nepochs: 4\nseed: 0\nextra: 1\n", resume=True)
    first, *rest = str(caught.value).splitlines()
    assert first == f"{tmp_path} holds a run of another recipe, so it cannot be resumed:"
    assert rest == ["  it has    epochs: 3", "  asked for epochs: 4", "  asked for extra: 1"]


def test_of_many_differences_the_first_are_shown(tmp_path):
    opened(tmp_path, "".join(f"a{number}: 1\n" for number in range(50)))
    with pytest.raises(LimbeckError) as caught:
        RunFolder(tmp_path, "a0: 2\n", resume=True)
    assert len(str(caught.value).splitlines()) == 13


def test_lines_in_another_order_are_another_recipe(tmp_path):
    opened(tmp_path, "a: 1\nb: 2\n")
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
    with pytest.raises(LimbeckError, match="is not a whole checkpoint"):
        RunFolder(tmp_path, RECIPE, resume=True)


def test_a_half_written_checkpoint_beside_it_does_no_harm(tmp_path):
    crashed(tmp_path, at=(0, 1))
    (tmp_path / "checkpoint" / "last.pt.tmp").write_bytes(b"PK half")
    assert opened(tmp_path, resume=True).state("kd/seed0") == {"stage": 0, "epoch": 1}


def test_the_epochs_after_the_checkpoint_leave_the_log(tmp_path):
    before = [line("alone/seed0", 1), line("alone/seed0", 9), line("kd/seed0", 1), line("kd/seed0", 2)]
    crashed(tmp_path, at=(0, 2), logged=[*before, line("kd/seed0", 3), line("kd/seed0", 4)])
    opened(tmp_path, resume=True).state("kd/seed0")
    assert lines(tmp_path) == before


def test_the_stage_counts_before_the_epoch(tmp_path):
    before = [line("kd/seed0", 7, stage=0), line("kd/seed0", 1, stage=1)]
    crashed(tmp_path, at=(1, 1), logged=[*before, line("kd/seed0", 2, stage=1), line("kd/seed0", 1, stage=2)])
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
    crashed(tmp_path, at=(0, 1), logged=[line("kd/seed0", 1), line(job, 2)])
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


@pytest.mark.parametrize("broken", ["{no json", "3", "[]", '{"epoch": 1}', '{"job": "kd/seed0"}', "\0\0\0"])
def test_a_log_that_is_damaged_inside_is_refused(tmp_path, broken):
    crashed(tmp_path, at=(0, 5), logged=[line("kd/seed0", 1)])
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write(broken + "\n" + json.dumps(line("kd/seed0", 2)) + "\n")
    with pytest.raises(LimbeckError, match=r"metrics\.jsonl is damaged"):
        opened(tmp_path, resume=True).state("kd/seed0")


def test_figures_that_are_not_finite_are_kept_in_the_log(tmp_path):
    crashed(tmp_path, at=(0, 1), logged=[line("kd/seed0", 1) | {"loss": float("inf")}, line("kd/seed0", 2)])
    opened(tmp_path, resume=True).state("kd/seed0")
    assert lines(tmp_path)[0]["loss"] == float("inf")


def test_a_finished_network_has_its_figures(tmp_path):
    opened(tmp_path)
    folder = opened(tmp_path, resume=True)
    assert folder.result("kd/seed0") is None
    write_json(tmp_path / "kd" / "seed0" / "result.json", FIGURES)
    assert folder.result("kd/seed0") == FIGURES


def test_figures_that_lie_there_are_not_used_unless_the_run_is_resumed(tmp_path):
    write_json(tmp_path / "kd" / "seed0" / "result.json", FIGURES)
    assert opened(tmp_path).result("kd/seed0") is None


@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.jsonl", "result.json", "checkpoint"])
def test_whatever_a_run_leaves_shows_that_there_was_one(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(LimbeckError, match="already holds a run"):
        RunFolder(tmp_path, RECIPE, resume=False)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    opened(tmp_path)
    checkpoint.save(tmp_path / "checkpoint" / "last.pt", {"epoch": 3})
    with pytest.raises(LimbeckError, match="is no checkpoint of a run"):
        RunFolder(tmp_path, RECIPE, resume=True)


def test_the_environment_before_a_resume_is_kept_beside_the_new_one(tmp_path):
    folder = opened(tmp_path)
    for threads in (1, 1, 2):
        folder.open({"threads": threads})
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["threads"] == 2
    assert [entry.get("threads") for entry in found["earlier"]] == [None, 1]


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


@pytest.mark.parametrize(
    "content", ['{"test": {"errors": 3}}', "", "{", '{"test": {"errors": 3}', "[]", "3", "{}", "null"]
)
def test_figures_that_are_cut_short_are_refused(tmp_path, content):
    opened(tmp_path)
    folder = opened(tmp_path, resume=True)
    (tmp_path / "kd" / "seed0").mkdir(parents=True)
    (tmp_path / "kd" / "seed0" / "result.json").write_text(content)
    with pytest.raises(LimbeckError, match=r"result\.json is damaged"):
        folder.result("kd/seed0")


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
    assert checkpoint.load(tmp_path / "checkpoint" / "last.pt") == {"job": "kd/seed0", "train": {"epoch": 2}}


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
        patched.setattr("limbeck.whole.os.fsync", fails)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "recipe.yaml", "new, and longer")
    assert (tmp_path / "recipe.yaml").read_text() == "old"
    write(tmp_path / "recipe.yaml", "new")
    assert (tmp_path / "recipe.yaml").read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]


def test_values_are_written_as_json(tmp_path):
    value = {"errors": 3, "share": 0.1 + 0.2, "none": None, "list": [1, [2]], "name": "ümlaut"}
    write_json(tmp_path / "result.json", value)
    assert json.loads((tmp_path / "result.json").read_text()) == value
    assert (tmp_path / "result.json").read_text().endswith("}\n")
