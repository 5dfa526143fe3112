import json
import os
import shutil
import time
from dataclasses import replace

import pytest
import tiny
import torch
from safetensors import safe_open
from torch import nn

from limbeck.cache import building as module
from limbeck.cache.building import build, estimate
from limbeck.cache.fingerprint import Format
from limbeck.cache.folder import place
from limbeck.cache.manifest import digest_of, info, read_manifest
from limbeck.cache.reading import Store
from limbeck.core import LimbeckError, Tap
from limbeck.data import Augment, Batches, Split
from limbeck.files.atomic import NoSpace
from limbeck.models import Ensemble

BYTES = tiny.ROWS * tiny.VIEWS * (tiny.CLASSES * 4 + 3 * 6 * 6 * 2)  # of the numbers of a store

MEMBERS = [Tap("teacher", "members.0"), Tap("teacher", "members.1")]


@pytest.fixture
def network():
    return tiny.teacher()


@pytest.fixture
def undisturbed(tmp_path, network):
    tiny.run(tmp_path / "undisturbed", network)
    return tiny.contents(tmp_path / "undisturbed")


def start(folder, network, steps, **options):
    """A build that has come so many steps far."""
    options = {"fingerprint": tiny.fingerprint(network), "rows": tiny.ROWS, "shard_bytes": tiny.SHARD_BYTES, **options}
    going = build(folder, tiny.Reader(network), tiny.Source(), **options)
    for _ in range(steps):
        next(going)
    return going


def flip(path, place=-1):
    bits = bytearray(path.read_bytes())
    bits[place] ^= 4
    path.write_bytes(bits)


def test_the_rows_are_those_of_a_fresh_forward_to_the_stored_precision(tmp_path, network):
    tiny.run(tmp_path, network)
    store = Store(tmp_path, tiny.fingerprint(network))
    for view in range(tiny.VIEWS):
        for batch in tiny.Source().view(view):
            fresh, read = tiny.Reader(network)(batch), store.read(batch.index, view)
            torch.testing.assert_close(read[tiny.LOGITS], fresh[tiny.LOGITS], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(read[tiny.MAPS], fresh[tiny.MAPS], rtol=2**-11, atol=1e-6)


def test_views_differ(tmp_path, network):
    tiny.run(tmp_path, network)
    store, index = Store(tmp_path, tiny.fingerprint(network)), torch.arange(tiny.ROWS)
    assert not torch.allclose(store.read(index, 0)[tiny.LOGITS], store.read(index, 1)[tiny.LOGITS], atol=0.1)


def test_the_files_are_safetensors_that_any_reader_reads(tmp_path, network):
    tiny.run(tmp_path, network)
    whole = Store(tmp_path, tiny.fingerprint(network)).read(torch.arange(12, 18), 1)[tiny.LOGITS]
    with safe_open(tmp_path / "tap0-view001-shard0002.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("values"), whole)
        notes = json.loads(file.metadata()["limbeck"])
    assert notes["fingerprint"] == tiny.fingerprint(network).digest
    assert {name: notes[name] for name in ("tap", "view", "rows")} == {"tap": "teacher", "view": 1, "rows": [12, 18]}


def test_progress_counts_every_row_once_and_ends_with_all(tmp_path, network):
    steps = tiny.run(tmp_path, network)
    assert [step.done for step in steps[:9]] == [4, 6, 10, 12, 16, 18, 22, 23, 27]
    assert len(steps) == 16
    assert {step.total for step in steps} == {tiny.ROWS * tiny.VIEWS}
    assert steps[-1].done == tiny.ROWS * tiny.VIEWS
    assert steps[-1].bytes == BYTES


def test_the_last_progress_is_that_of_a_finished_store(tmp_path, network):
    going = start(tmp_path, network, 15)
    assert not (tmp_path / "manifest.json").exists()
    assert next(going).done == tiny.ROWS * tiny.VIEWS
    Store(tmp_path, tiny.fingerprint(network))


def test_a_writer_with_nothing_to_do_says_so(tmp_path, network):
    (step,) = tiny.run(tmp_path, network, part=(50, 51))
    assert (step.done, step.total, step.bytes) == (0, 0, 0)


def test_the_teacher_runs_once_on_every_row_of_every_view(tmp_path, network):
    reader = tiny.Reader(network)
    tiny.run(tmp_path, reader=reader)
    assert reader.samples == tiny.ROWS * tiny.VIEWS + tiny.BATCH  # one batch to see the shapes


def test_the_members_of_an_ensemble_are_stored_in_one_pass(tmp_path):
    network = Ensemble([tiny.teacher(1), tiny.teacher(2)], "arithmetic")
    runs = []
    network.members[1].register_forward_hook(lambda module, inputs, output: runs.append(len(output)))
    taps = dict.fromkeys(MEMBERS, Format("float32"))
    expected = tiny.fingerprint(network, taps=taps)
    tiny.run(tmp_path, network, reader=tiny.Reader(network, taps), fingerprint=expected)
    assert sum(runs) == tiny.ROWS * tiny.VIEWS + tiny.BATCH
    batch = next(tiny.Source(batch=tiny.ROWS).view(1))
    read = Store(tmp_path, expected).read(batch.index, 1)
    for tap, member in zip(MEMBERS, network.members, strict=True):
        torch.testing.assert_close(read[tap], member.eval()(batch.inputs).detach(), rtol=1e-5, atol=1e-6)


def test_the_views_are_those_that_training_sees(tmp_path):
    split = Split(torch.randint(0, 256, (10, 2, 8, 8), dtype=torch.uint8), torch.arange(10))
    batches = Batches(split, batch_size=3, seed=1, mean=[0.5] * 2, std=[0.2] * 2, augment=Augment(crop=2, flip=True))
    network = nn.Flatten()
    expected = tiny.fingerprint(network, taps={tiny.LOGITS: Format("float32")}, views=3)
    tiny.run(tmp_path, network, batches, tiny.Reader(network, [tiny.LOGITS]), fingerprint=expected, rows=10)
    store = Store(tmp_path, expected)
    for view in range(3):
        for batch in batches(view):
            assert torch.equal(store.read(batch.index, view)[tiny.LOGITS], batch.inputs.flatten(1))


def finished(going):
    """What a build returns at its end."""
    while True:
        try:
            next(going)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("part", [(0, 1), (1, 2)])
def test_a_build_reads_the_files_of_its_part_and_opening_reads_none_of_them_again(tmp_path, network, monkeypatch, part):
    finished(start(tmp_path, network, 0))
    read = []
    monkeypatch.setattr("limbeck.cache.folder.check_numbers", lambda path, *_: read.append(path.name))
    monkeypatch.setattr("limbeck.cache.reading.check_numbers", lambda path, *_: read.append(path.name))
    store = Store(tmp_path, tiny.fingerprint(network), finished(start(tmp_path, network, 0, part=part)))
    assert len(read) == 16 / part[1]
    for view in range(tiny.VIEWS):
        store.read(torch.arange(tiny.ROWS), view)
    assert sorted(read) == sorted(path.name for path in tmp_path.glob("*.safetensors"))


def test_a_build_without_checks_reads_no_file_and_makes_what_is_missing_or_truncated(tmp_path, network, undisturbed):
    folder, reader = tmp_path / "undisturbed", tiny.Reader(network)
    flip(folder / "tap0-view000-shard0000.safetensors")
    os.truncate(folder / "tap0-view001-shard0001.safetensors", 300)
    (folder / "tap1-view001-shard0003.safetensors").unlink()
    tiny.run(folder, reader=reader, check=False)
    assert reader.samples == 6 + 5
    different = {name for name, content in tiny.contents(folder).items() if content != undisturbed[name]}
    assert different == {"tap0-view000-shard0000.safetensors"}  # is found when it is read
    tiny.run(folder, network)
    assert tiny.contents(folder) == undisturbed


def test_a_view_has_files_for_many_workers_and_no_more_than_can_be_described(tmp_path, network, monkeypatch):
    monkeypatch.setattr(module, "LEAST_ROWS", 2)
    tiny.run(tmp_path / "s", network, shard_bytes=10**6)
    assert read_manifest(tmp_path / "s" / "manifest.json")["shard_rows"] == 2  # at least 16 files, of 23 samples
    monkeypatch.setattr(module, "SHARD_ROWS", 1)
    monkeypatch.setattr(module, "MOST_FILES", 91)
    with pytest.raises(LimbeckError, match="would have 92 files, allowed are 91: store fewer views or taps"):
        start(tmp_path / "t", network, 0)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("steps", range(1, 16, 2))
def test_a_build_that_stopped_continues_with_the_range_it_was_at_and_equals_an_undisturbed_one(
    tmp_path, network, undisturbed, steps
):
    start(tmp_path / "s", network, steps).close()
    reader = tiny.Reader(network)
    tiny.run(tmp_path / "s", reader=reader)
    assert tiny.contents(tmp_path / "s") == undisturbed
    assert reader.samples == tiny.ROWS * tiny.VIEWS - [0, 6, 12, 18, 23, 29, 35, 41][steps // 2]


def test_a_finished_store_runs_no_teacher(tmp_path, network, undisturbed):
    reader = tiny.Reader(network)
    (step,) = tiny.run(tmp_path / "undisturbed", reader=reader)
    assert (step.done, step.total, step.bytes) == (tiny.ROWS * tiny.VIEWS, tiny.ROWS * tiny.VIEWS, BYTES)
    assert reader.samples == 0


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: flip(path, 20),
        lambda path: os.truncate(path, 300),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: shutil.copy(path.with_name(path.name.replace("shard0001", "shard0002")), path),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_shard_is_made_anew_and_no_other(tmp_path, network, undisturbed, damage, finished):
    folder = tmp_path / "undisturbed"
    if not finished:
        shutil.copy(folder / "manifest.json", folder / "building.json")
        (folder / "manifest.json").rename(tmp_path / "old")
    damage(folder / "tap1-view001-shard0001.safetensors")
    reader = tiny.Reader(network)
    tiny.run(folder, reader=reader)
    assert tiny.contents(folder) == undisturbed
    assert reader.samples == 6


def test_a_store_that_is_being_repaired_is_refused_for_what_is_damaged(tmp_path, network, undisturbed):
    folder = tmp_path / "undisturbed"
    flip(folder / "tap1-view001-shard0001.safetensors")
    repairing = start(folder, network, 0)
    next(repairing)
    with pytest.raises(LimbeckError, match=r"tap1-view001-shard0001\.safetensors"):
        Store(folder, tiny.fingerprint(network), check=True)
    list(repairing)
    Store(folder, tiny.fingerprint(network))


def test_a_slower_builder_takes_no_finished_store_away(tmp_path, network, undisturbed):
    folder = tmp_path / "undisturbed"
    flip(folder / "tap1-view001-shard0001.safetensors")
    slower = start(folder, network, 0)
    next(slower)
    tiny.run(folder, network)
    next(slower)
    Store(folder, tiny.fingerprint(network))
    list(slower)
    assert tiny.contents(folder) == undisturbed


def test_a_shard_of_another_store_is_made_anew(tmp_path, network, undisturbed):
    tiny.run(tmp_path / "other", tiny.teacher(1))
    start(tmp_path / "s", network, 1).close()
    for tap in range(2):
        shutil.copy(tmp_path / "other" / f"tap{tap}-view000-shard0001.safetensors", tmp_path / "s")
    tiny.run(tmp_path / "s", network)
    assert tiny.contents(tmp_path / "s") == undisturbed


@pytest.mark.parametrize("check", [False, True])
def test_a_shard_of_other_numbers_made_in_the_same_way_is_made_anew(tmp_path, network, undisturbed, check):
    reader = lambda batch: {tap: -tensor for tap, tensor in tiny.Reader(network)(batch).items()}  # noqa: E731
    tiny.run(tmp_path / "other", reader=reader)
    tiny.run(tmp_path / "store", network)
    name = next(name for name in sorted(undisturbed) if name.startswith("tap0"))
    shutil.copy(tmp_path / "other" / name, tmp_path / "store")
    tiny.run(tmp_path / "store", network, check=check)
    assert tiny.contents(tmp_path / "store") == undisturbed


def test_what_a_killed_writer_left_is_cleared_and_nothing_else(tmp_path, network, undisturbed):
    start(tmp_path / "s", network, 1).close()
    for name in ("tap0-view000-shard0001.safetensors.71-0a1b2c3d.tmp", "building.json.7-0a1b2c3d"):
        (tmp_path / "s" / name).write_text("half")
    (tmp_path / "s" / "notes.txt").write_text("mine")
    tiny.run(tmp_path / "s", network)
    assert tiny.contents(tmp_path / "s") == {**undisturbed, "notes.txt": b"mine"}


def test_a_build_killed_after_its_manifest_is_finished(tmp_path, network, undisturbed):
    folder = tmp_path / "undisturbed"
    shutil.copy(folder / "manifest.json", folder / "building.json")
    (folder / "manifest.json.71-0a1b2c3d.tmp").write_text("half")
    tiny.run(folder, network)
    assert tiny.contents(folder) == undisturbed


def test_the_size_of_the_shards_is_that_of_the_build_that_began(tmp_path, network, undisturbed):
    start(tmp_path / "s", network, 1).close()
    tiny.run(tmp_path / "s", network, shard_bytes=10**6)
    assert tiny.contents(tmp_path / "s") == undisturbed


@pytest.mark.parametrize(("shard_bytes", "files"), [(1, 2 * 2 * 23), (10**6, 2 * 2)])
def test_a_shard_holds_at_least_one_row_and_at_most_a_view(tmp_path, network, shard_bytes, files):
    tiny.run(tmp_path, network, shard_bytes=shard_bytes)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert Store(tmp_path, tiny.fingerprint(network)).rows == tiny.ROWS


def test_writers_of_several_parts_make_the_same_store(tmp_path, network, undisturbed):
    first = start(tmp_path / "s", network, 4, part=(0, 2))
    second = tiny.run(tmp_path / "s", network, part=(1, 2))
    assert second[-1].total == second[-1].done == 6 + 5 + 6 + 5
    assert not (tmp_path / "s" / "manifest.json").exists()
    assert list(first)[-1].done == 6 + 6 + 6 + 6
    assert tiny.contents(tmp_path / "s") == undisturbed


@pytest.mark.parametrize("steps", [1, 2, 3, 15])
def test_a_writer_whose_store_another_finishes_meanwhile_goes_on_to_the_end(tmp_path, network, undisturbed, steps):
    going = start(tmp_path / "s", network, steps)
    tiny.run(tmp_path / "s", network)
    list(going)
    assert tiny.contents(tmp_path / "s") == undisturbed


def test_a_file_that_is_cleared_away_half_written_is_not_needed_only_where_the_store_is_finished(tmp_path):
    def save(temporary):
        temporary.write_text("half")
        temporary.unlink()

    with pytest.raises(FileNotFoundError):
        place(tmp_path / "file", save)
    (tmp_path / "manifest.json").touch()
    place(tmp_path / "file", save)
    assert tiny.contents(tmp_path) == {"manifest.json": b""}


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    def save(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(NoSpace, match=r"file cannot be written: No space left on device\. It needs more than 4 bytes"):
        place(tmp_path / "file", save)
    assert tiny.contents(tmp_path) == {}


def test_a_disk_that_fills_up_ends_a_build_that_goes_on_later(tmp_path, network, undisturbed, monkeypatch):
    written = []

    def full(file, done=os.fsync):
        written.append(file)
        if len(written) == 8:
            raise OSError(28, "No space left on device")
        done(file)

    with monkeypatch.context() as patched:
        patched.setattr("limbeck.files.atomic.os.fsync", full)
        with pytest.raises(NoSpace, match="safetensors cannot be written"):
            tiny.run(tmp_path / "store", network)
    assert not [name for name in tiny.contents(tmp_path / "store") if name.endswith(".tmp")]
    tiny.run(tmp_path / "store", network)
    assert tiny.contents(tmp_path / "store") == undisturbed


@pytest.mark.parametrize("kind", ["FIFO", "link to a device", "folder"])
def test_what_is_no_regular_file_is_told_or_made_anew(tmp_path, network, undisturbed, kind):
    shutil.copytree(tmp_path / "undisturbed", tmp_path / "store")
    for name in sorted(undisturbed):
        file = tmp_path / "store" / name
        file.unlink()
        if kind == "FIFO":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        else:
            file.symlink_to("/dev/zero")
        if name == "manifest.json":
            with pytest.raises(
                LimbeckError, match=r"manifest\.json is not a regular file: delete it and build the store again"
            ):
                tiny.run(tmp_path / "store", network)
            file.rmdir() if kind == "folder" else file.unlink()
        elif kind == "folder":
            with pytest.raises(LimbeckError, match=f"{name} cannot be written: Is a directory"):
                tiny.run(tmp_path / "store", network)
            file.rmdir()
        else:
            with pytest.raises(LimbeckError, match=rf"{name} is missing\. limbeck cache build RECIPE makes damaged"):
                Store(tmp_path / "store", tiny.fingerprint(network))
        tiny.run(tmp_path / "store", network)
        assert tiny.contents(tmp_path / "store") == undisturbed


def described(folder, undisturbed, change):
    """Write a description with this change and a valid checksum."""
    values = json.loads(undisturbed["manifest.json"])
    values.pop("xxh3_128")
    change(values)
    (folder / "manifest.json").write_text(json.dumps({**values, "xxh3_128": digest_of(values)}))


@pytest.mark.parametrize(
    "change",
    [
        *({"rows": 10**18}, {"rows": "9"}, {"rows": True}, {"shard_rows": 0}, {"more": 1}),
        *({"shapes": {}}, {"shapes": {"teacher": [7]}}, {"shapes": {"teacher": 7}}, {"files": 3}, {"files": {"a": 1}}),
        *({"shapes": {"teacher": [7], "teacher.0": [3, 6, 0]}}, {"fingerprint": {}}, {"fingerprint": []}),
    ],
    ids=str,
)
def test_a_description_that_cannot_be_is_refused(tmp_path, undisturbed, change):
    described(tmp_path, undisturbed, lambda values: values.update(change))
    with pytest.raises(LimbeckError, match=r"manifest\.json is damaged: delete it and build the store again"):
        read_manifest(tmp_path / "manifest.json")


PARTS = ("weights", "structure", "data", "transform", "seed", "views", "taps", "precision", "versions")
TAP = ["teacher", "", "output", None, "float32", None]


@pytest.mark.parametrize(
    "change",
    [
        *({"seed": "5"}, {"seed": 5.5}, {"views": 0}, {"views": True}, {"more": 1}, {"precision": "64"}),
        *({"transform": []}, {"transform": {"crop": {"a": 1}}}, {"versions": {"torch": 2}}, {"versions": ["torch"]}),
        *({part: None} for part in PARTS),
        *(
            {"taps": {"teacher": tap, "teacher.0": ["teacher", "0", "output", None, "float16", None]}}
            for tap in (
                *(
                    [],
                    {},
                    TAP[:5],
                    [*TAP, None],
                    [None, *TAP[1:]],
                    [*TAP[:2], "both", *TAP[3:]],
                    [*TAP[:4], "int8", None],
                ),
                *([*TAP[:3], "0", *TAP[4:]], [*TAP[:5], 0], [*TAP[:5], "3"]),
            )
        ),
    ],
    ids=str,
)
def test_a_fingerprint_of_other_types_is_refused(tmp_path, undisturbed, change):
    described(tmp_path, undisturbed, lambda values: values["fingerprint"].update(change))
    with pytest.raises(LimbeckError, match=r"manifest\.json is damaged: delete it and build the store again"):
        read_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize("part", PARTS)
def test_a_fingerprint_without_one_of_its_parts_is_refused(tmp_path, network, undisturbed, part):
    described(tmp_path, undisturbed, lambda values: values["fingerprint"].pop(part))
    for use in (tiny.run, info, lambda folder: Store(folder, tiny.fingerprint(network))):
        with pytest.raises(LimbeckError, match=r"manifest\.json is damaged"):
            use(tmp_path)


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        (["teacher", "1", *TAP[2:]], r"its taps are named teacher, teacher\.0, but are teacher\.0, teacher\.1\. "),
        (["teacher", "0", *TAP[2:]], r"its taps are named teacher, teacher\.0, but are teacher\.0\. "),
        ([*TAP[:5], 7], r"top_k is 7 for a tensor of \(7,\) a sample.* "),
    ],
)
def test_taps_that_do_not_fit_their_names_and_shapes_are_refused(tmp_path, network, undisturbed, tap, message):
    described(tmp_path, undisturbed, lambda values: values["fingerprint"]["taps"].update(teacher=tap))
    words = f"the description of the store .* is damaged: {message}Delete its manifest.json or building.json"
    for use in (tiny.run, lambda folder: Store(folder, tiny.fingerprint(network))):
        with pytest.raises(LimbeckError, match=words):
            use(tmp_path)


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_store_is_refused_and_left_as_it_was(tmp_path, network, finished):
    list(start(tmp_path, network, 4)) if finished else start(tmp_path, network, 4).close()
    before = tiny.contents(tmp_path)
    with pytest.raises(LimbeckError, match="the seed of the views is 5 in the store, needed is 6"):
        tiny.run(tmp_path, network, fingerprint=tiny.fingerprint(network, seed=6))
    with pytest.raises(LimbeckError, match="has 23 samples in a view, needed are 22"):
        tiny.run(tmp_path, network, rows=22)
    assert tiny.contents(tmp_path) == before


@pytest.mark.parametrize("name", ["building.json", "manifest.json"])
def test_a_damaged_description_is_refused_and_the_shards_kept_once_it_is_gone(tmp_path, network, undisturbed, name):
    folder = tmp_path / "undisturbed"
    (folder / "manifest.json").rename(folder / name)
    flip(folder / name, 300)
    with pytest.raises(LimbeckError, match=rf"{name} is damaged: delete it and build the store again"):
        tiny.run(folder, network)
    (folder / name).unlink()
    reader = tiny.Reader(network)
    tiny.run(folder, reader=reader)
    assert tiny.contents(folder) == undisturbed
    assert reader.samples == tiny.BATCH  # to see the shapes


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"schema": 2, "xxh3_128": 3}'])
def test_any_text_in_the_place_of_a_manifest_is_refused(tmp_path, network, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(LimbeckError, match=r"manifest\.json is damaged"):
        tiny.run(tmp_path, network)


def test_a_store_of_another_schema_is_refused(tmp_path, network):
    tiny.run(tmp_path, network)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "schema": 1}))
    with pytest.raises(LimbeckError, match=r"has the layout 1, .* the layout 2: delete the folder .*, and build"):
        tiny.run(tmp_path, network)


def usage(monkeypatch, free):
    def disk_usage(path):
        assert path.is_dir()
        return shutil._ntuple_diskusage(10**12, 10**12 - free, free)

    monkeypatch.setattr(module.shutil, "disk_usage", disk_usage)


def test_a_store_larger_than_the_disk_is_refused_before_anything_is_written(tmp_path, network, monkeypatch):
    needed = estimate(
        tmp_path, tiny.Reader(network), tiny.Source(), fingerprint=tiny.fingerprint(network), rows=tiny.ROWS
    ).bytes
    folder, options = tmp_path / "new" / "store", {"shard_bytes": 10**6}
    usage(monkeypatch, needed + module.LEFT_FREE - 1)
    with pytest.raises(LimbeckError, match=rf"needs about {needed:,} bytes, .* but the disk of .*store has 67,"):
        tiny.run(folder, network, **options)
    assert not (tmp_path / "new").exists()
    usage(monkeypatch, needed + module.LEFT_FREE)
    tiny.run(folder, network, **options)


def test_of_a_store_that_was_begun_only_what_is_missing_needs_space(tmp_path, network, undisturbed, monkeypatch):
    start(tmp_path / "s", network, 15).close()
    missing = BYTES * 5 // (tiny.ROWS * tiny.VIEWS)  # the last range has 5 rows
    usage(monkeypatch, missing + module.LEFT_FREE - 1)
    with pytest.raises(LimbeckError, match=f"needs about {missing:,} bytes"):
        tiny.run(tmp_path / "s", network)
    usage(monkeypatch, missing + module.LEFT_FREE)
    tiny.run(tmp_path / "s", network)
    usage(monkeypatch, 0)
    tiny.run(tmp_path / "s", network)  # a finished one needs none


def test_the_estimate_is_the_size_of_the_numbers_and_counts_every_view(tmp_path, network):
    few = {"fingerprint": tiny.fingerprint(network), "rows": tiny.ROWS}
    found = estimate(tmp_path / "s", tiny.Reader(network), tiny.Source(), **few)
    assert not (tmp_path / "s").exists()
    tiny.run(tmp_path / "s", network, shard_bytes=10**6)
    files = list((tmp_path / "s").glob("*.safetensors"))
    assert found.bytes == BYTES < sum(file.stat().st_size for file in files) < BYTES + 500 * len(files)
    assert found.free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)


def test_the_estimate_of_a_part_is_a_share_of_that_of_the_store(tmp_path, network, monkeypatch):
    monkeypatch.setattr(module, "LEAST_ROWS", 12)  # two files, of 12 and 11 samples
    few = {"fingerprint": tiny.fingerprint(network, views=1), "rows": tiny.ROWS}
    whole, *parts = (
        estimate(tmp_path, tiny.Reader(network), tiny.Source(), **few, part=part) for part in ((0, 1), (0, 2), (1, 2))
    )
    assert whole.bytes == sum(part.bytes for part in parts) == parts[0].whole
    assert parts[0].bytes * 11 == parts[1].bytes * 12


def test_the_estimate_times_the_batches_after_the_first(tmp_path, network):
    class Slow(tiny.Reader):
        pauses = [0.5, 0.03, 0.03]  # noqa: RUF012

        def __call__(self, batch):
            time.sleep(self.pauses.pop(0))
            return super().__call__(batch)

    options = {"fingerprint": tiny.fingerprint(network), "rows": tiny.ROWS, "batches": 2}
    found = estimate(tmp_path, Slow(network), tiny.Source(), **options)
    assert Slow.pauses == []
    assert 0.03 * 46 / 4 <= found.seconds < 0.5 * 46 / 8


class Odd(tiny.Source):
    """A source whose second batch of the second shard, and so its last, is changed."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def view(self, number, *, start=0, stop=None):
        for batch in super().view(number, start=start, stop=stop):
            yield self.change(batch) if batch.index[0] == 10 else batch


def one_more(batch):
    index = torch.cat([batch.index, batch.index[-1:] + 1])
    return replace(batch, index=index, inputs=batch.inputs.new_zeros(len(index), 2, 8, 8))


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: replace(batch, index=batch.index.flip(0)),
        lambda batch: replace(batch, index=batch.index + 1),
        lambda batch: replace(batch, view=batch.view + 1),
        one_more,
    ],
)
def test_a_source_that_does_not_give_the_samples_in_order_is_refused(tmp_path, network, change):
    with pytest.raises(LimbeckError, match=r"does not give the samples from \d+ of view 0 in order, each once"):
        tiny.run(tmp_path, network, Odd(change))


def test_a_source_that_ends_early_is_refused(tmp_path, network):
    with pytest.raises(LimbeckError, match="view 0 ends before sample 23: needed are 24 samples"):
        tiny.run(tmp_path, network, Short(), rows=24)


class Short(tiny.Source):
    def view(self, number, *, start=0, stop=None):
        yield from super().view(number, start=start, stop=min(stop, self.rows))


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda batch, tensors: {tiny.LOGITS: tensors[tiny.LOGITS]}, r"does not give teacher\.0, only teacher"),
        (
            lambda batch, tensors: {**tensors, tiny.MAPS: torch.zeros(2, 3)},
            r"gives \(2, 3\) for 4 samples: not one row",
        ),
        (
            lambda batch, tensors: {**tensors, tiny.MAPS: torch.zeros(len(batch.index), 3 + int(batch.index[0]))},
            r"teacher\.0 gives \(7,\) for sample 4 of view 0, but \(3,\) for the first: a store needs one shape",
        ),
        (
            lambda batch, tensors: {**tensors, tiny.LOGITS: tensors[tiny.LOGITS] / (batch.index != 7)[:, None]},
            "teacher of sample 7 holds a NaN",
        ),
    ],
)
def test_a_teacher_that_gives_something_else_is_refused(tmp_path, network, give, message):
    def reader(batch):
        count = len(batch.index)
        return give(batch, {tiny.LOGITS: torch.zeros(count, 7), tiny.MAPS: torch.zeros(count, 3)})

    with pytest.raises(LimbeckError, match=message):
        tiny.run(tmp_path, network, reader=reader)
    assert not (tmp_path / "manifest.json").exists()


def test_a_format_that_does_not_fit_is_refused_at_the_call(tmp_path, network):
    taps = {**tiny.TAPS, tiny.LOGITS: Format(top_k=7)}
    with pytest.raises(LimbeckError, match="top_k is 7"):
        start(tmp_path / "s", network, 0, fingerprint=tiny.fingerprint(network, taps=taps))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": (2, 2)}, "no part 2 of 2: allowed are 0 to 1"),
        ({"part": (-1, 2)}, "no part -1 of 2"),
        ({"rows": 0}, "a store of 0 samples"),
    ],
)
def test_parts_and_rows_out_of_range_are_refused(tmp_path, network, options, message):
    with pytest.raises(LimbeckError, match=message):
        start(tmp_path, network, 0, **options)
