import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from limbeck.cache.building import build
from limbeck.cache.encoding import decode, encode
from limbeck.cache.fingerprint import Format
from limbeck.cache.folder import HEADER
from limbeck.cache.reading import Store
from limbeck.core import LimbeckError, Tap
from limbeck.errors import DamagedStore

DTYPES = ("float32", "float16", "bfloat16")
SHARD = "tap0-view001-shard0002.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    tiny.run(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "store"))


def opened(folder, *, check=False, **parts):
    return Store(folder, tiny.fingerprint(tiny.teacher(), **parts), check=check)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_rows_are_read_in_any_order_as_often_as_asked(data):
    rows, views = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 2))
    shapes = {Tap("teacher"): (5,), Tap("teacher", "maps"): (2, 3, 2), Tap("teacher", "tokens"): (4, 3)}
    taps = {tap: Format(data.draw(st.sampled_from(DTYPES))) for tap in shapes}
    taps[Tap("teacher")] = Format(taps[Tap("teacher")].dtype, data.draw(st.sampled_from([None, 1, 4])))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    known = {tap: torch.randn(views, rows, *shape, generator=generator) for tap, shape in shapes.items()}
    expected = tiny.fingerprint(tiny.teacher(), taps=taps, views=views)
    index = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), max_size=20)), dtype=torch.int64)
    view = data.draw(st.integers(0, views - 1))
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "fingerprint": expected,
            "rows": rows,
            "shard_bytes": data.draw(st.sampled_from([1, 300, 700, 10**6])),
        }
        reader = lambda batch: {tap: tensor[batch.view, batch.index] for tap, tensor in known.items()}  # noqa: E731
        list(build(Path(folder), reader, tiny.Source(rows, data.draw(st.integers(1, 8))), **options))
        store = Store(Path(folder), expected)
        read = store.read(index, view)
    assert store.taps == read.keys() == shapes.keys()
    assert (store.rows, store.views) == (rows, views)
    for tap, shape in shapes.items():
        assert read[tap].dtype == torch.float32
        assert read[tap].shape == (len(index), *shape)
        for place, sample in enumerate(index.tolist()):
            alone = encode(tap, known[tap][view, sample][None], taps[tap], torch.tensor([sample]))
            assert torch.equal(read[tap][place], decode(alone, shape)[0])


def test_what_is_read_is_the_readers_own(folder):
    store, index = opened(folder), torch.arange(4)
    before = store.read(index, 0)[tiny.LOGITS].clone()
    store.read(index, 0)[tiny.LOGITS].zero_()
    assert torch.equal(store.read(index, 0)[tiny.LOGITS], before)


@pytest.mark.parametrize("view", [-1, tiny.VIEWS])
def test_a_view_that_there_is_not_is_refused(made, view):
    with pytest.raises(LimbeckError, match=f"the store has no view {view}: allowed are 0 to 1"):
        opened(made).read(torch.arange(2), view)


@pytest.mark.parametrize(("index", "asked"), [([3, -1], "-1 to 3"), ([0, 23], "0 to 23")])
def test_a_sample_that_there_is_not_is_refused(made, index, asked):
    with pytest.raises(LimbeckError, match=f"the store has no samples {asked}: allowed are 0 to 22"):
        opened(made).read(torch.tensor(index), 0)


def test_a_store_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(LimbeckError, match=r"there is no store in .*: build it first"):
        opened(tmp_path)


def test_a_store_that_is_not_finished_is_refused(folder):
    (folder / "manifest.json").rename(folder / "building.json")
    with pytest.raises(LimbeckError, match="is not finished: build it again, which keeps the files that are there"):
        opened(folder)


@pytest.mark.parametrize("place", [3, 40, -1, -17])
def test_a_flipped_bit_is_refused(folder, place):
    bits = bytearray((folder / SHARD).read_bytes())
    bits[place] ^= 1
    (folder / SHARD).write_bytes(bits)
    with pytest.raises(LimbeckError, match=f"{SHARD} is (truncated or )?damaged.* limbeck cache build RECIPE makes"):
        opened(folder, check=True)


def test_all_damaged_and_missing_files_are_named_up_to_a_bound(folder, monkeypatch):
    files = sorted(folder.glob("*.safetensors"))
    files[0].unlink()
    os.truncate(files[1], 300)
    bits = bytearray(files[2].read_bytes())
    bits[-1] ^= 1
    files[2].write_bytes(bits)
    named = ", ".join(file.name for file in files[:3])
    words = f"3 of the 16 files of the store .* are damaged or missing: {named}. limbeck cache build RECIPE makes"
    with pytest.raises(DamagedStore, match=words):
        opened(folder, check=True)
    monkeypatch.setattr("limbeck.cache.folder.MOST_NAMED", 1)
    with pytest.raises(DamagedStore, match=f"2 of the 16 files .*: {files[0].name}, \\.\\.\\.\\. limbeck"):
        opened(folder)


def test_a_damaged_file_is_refused_when_it_is_first_read(folder):
    bits = bytearray((folder / SHARD).read_bytes())
    bits[-1] ^= 1
    (folder / SHARD).write_bytes(bits)
    store, index = opened(folder), torch.arange(tiny.ROWS)
    whole = (index < 12) | (index >= 18)  # all but the rows of the file
    assert store.read(index[whole], 1)[tiny.LOGITS].shape == (17, tiny.CLASSES)
    for _ in range(2):
        with pytest.raises(LimbeckError, match=f"{SHARD} is damaged: its numbers do not have the checksum"):
            store.read(index, 1)


def test_a_file_is_compared_with_its_checksum_once_and_unmapped_when_many_others_are_read(folder, monkeypatch):
    checked = []
    monkeypatch.setattr("limbeck.cache.reading.check_numbers", lambda path, *_: checked.append(path.name))
    monkeypatch.setattr("limbeck.cache.reading.MOST_MAPPED", 2)
    store, index = opened(folder), torch.arange(tiny.ROWS)
    rows = [store.read(index, view)[tiny.MAPS] for view in (0, 1, 0)]
    assert torch.equal(rows[0], rows[2])
    assert sorted(checked) == sorted(path.name for path in folder.glob("*.safetensors"))


def test_a_shard_made_of_other_numbers_in_the_same_way_is_refused(folder, tmp_path):
    reader = lambda batch: {tap: -tensor for tap, tensor in tiny.Reader(tiny.teacher())(batch).items()}  # noqa: E731
    tiny.run(tmp_path / "other", reader=reader)
    shutil.copy(tmp_path / "other" / SHARD, folder)
    with pytest.raises(LimbeckError, match=f"{SHARD} is damaged"):
        opened(folder, check=True)


@pytest.mark.parametrize("size", [0, 100, 390])
def test_a_truncated_file_is_refused(folder, size):
    os.truncate(folder / SHARD, size)
    with pytest.raises(LimbeckError, match=rf"{SHARD} is truncated or damaged: .*\. limbeck cache build RECIPE makes "):
        opened(folder)


def refuse_to_open(*_, **__):
    raise AssertionError("the file was opened before it was checked")


def test_a_file_of_another_size_is_not_opened(folder, monkeypatch):
    size = (folder / SHARD).stat().st_size
    with (folder / SHARD).open("ab") as file:
        file.write(b"0")
    monkeypatch.setattr("limbeck.cache.folder.safe_open", refuse_to_open)
    shutil.copy(folder / SHARD, folder / "tap0-view000-shard0000.safetensors")
    os.truncate(folder / SHARD, size)
    with pytest.raises(
        LimbeckError, match=rf"shard0000\.safetensors .* it has {size + 1} bytes and a header of \d+, needed are {size}"
    ):
        opened(folder)


def test_a_file_with_a_long_header_is_not_opened(folder, monkeypatch):
    (folder / "tap0-view000-shard0000.safetensors").write_bytes((HEADER + 1).to_bytes(8, "little"))
    monkeypatch.setattr("limbeck.cache.folder.safe_open", refuse_to_open)
    with pytest.raises(LimbeckError, match=r"shard0000\.safetensors .* a header of 65,537, needed .* at most 65,536"):
        opened(folder)


@pytest.mark.parametrize("names", [["values", "more"], ["more"]])
def test_a_file_with_other_tensors_is_refused(folder, names):
    size = 6 * tiny.CLASSES * 4 // len(names)  # together the bytes of the file
    save_file({name: torch.zeros(size, dtype=torch.uint8) for name in names}, folder / SHARD)
    with pytest.raises(LimbeckError, match=rf"{SHARD} .* it has {len(names)} tensors, needed are values\. limbeck"):
        opened(folder, check=True)


def test_a_missing_file_is_refused(folder):
    (folder / SHARD).unlink()
    with pytest.raises(LimbeckError, match=rf"{SHARD} is missing\. limbeck cache build RECIPE makes "):
        opened(folder)


def test_every_flipped_bit_of_the_manifest_is_refused(folder):
    whole = (folder / "manifest.json").read_bytes()
    for place in range(0, len(whole), 29):
        (folder / "manifest.json").write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        if _same(whole, (folder / "manifest.json").read_bytes()):
            continue  # white space that became other white space
        with pytest.raises(LimbeckError, match=r"manifest\.json is damaged|has the layout"):
            opened(folder)


def _same(whole, flipped):
    try:
        return json.loads(flipped) == json.loads(whole)
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"weights": "w2"}, "the teacher's weights"),
        ({"structure": "s2"}, "the teacher's structure"),
        ({"data": "e"}, "the training samples"),
        ({"transform": {"crop": 2}}, "the transform"),
        ({"seed": 6}, "the seed"),
        ({"views": 1}, "the number of views"),
        ({"taps": {tiny.LOGITS: Format("float32")}}, "has the taps"),
        ({"taps": {**tiny.TAPS, tiny.MAPS: Format("float32")}}, "is stored as"),
        ({"precision": "bf16"}, "the precision"),
        ({"versions": {"torch": "3"}}, "the version of torch"),
    ],
)
def test_a_store_of_another_fingerprint_is_refused(made, parts, message):
    with pytest.raises(LimbeckError, match=f"{message}.* Delete the folder or name another one, and build"):
        opened(made, **parts)


def test_a_store_is_read_from_a_folder_that_cannot_be_written(folder):
    for path in folder.iterdir():
        path.chmod(0o400)
    folder.chmod(0o500)
    try:
        assert opened(folder).read(torch.arange(2), 0)[tiny.LOGITS].shape == (2, tiny.CLASSES)
    finally:
        folder.chmod(0o700)
