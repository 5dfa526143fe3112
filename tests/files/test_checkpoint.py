import hashlib
import os
import pickle
import resource
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch

from limbeck.core import LimbeckError
from limbeck.files import atomic as whole
from limbeck.files import checkpoint


def state():
    """Of every kind that a training state holds."""
    torch.manual_seed(3)
    return {
        "job": "kd/seed0",
        "train": {
            "stage": 1,
            "epoch": 2**40,
            "modules": {
                "0.weight": torch.randn(4, 3),
                "0.count": torch.tensor(7),
                "strided": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
                "small": torch.randn(5).bfloat16(),
                "empty": torch.zeros(0, 3),
                "bad": torch.tensor([float("nan"), float("inf"), -0.0]),
            },
            "optimizer": {
                "state": {0: {"step": torch.tensor(3.0)}, 1: {}},
                "param_groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "fused": True, "none": None}],
            },
            "generators": {"cpu": torch.get_rng_state()},
        },
    }


@contextmanager
def limited(room):
    """Inside the block, no file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def octets(tensor):
    return tensor.reshape(-1).view(torch.uint8)


def same(one, other):
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        alike = (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        return alike and torch.equal(octets(one), octets(other))
    return one == other


def test_what_is_read_back_is_the_same_to_the_bit(tmp_path):
    checkpoint.save(tmp_path / "deep" / "er" / "last.pt", state())
    assert same(checkpoint.load(tmp_path / "deep" / "er" / "last.pt"), state())


def test_a_generator_goes_on_where_it_was_saved(tmp_path):
    checkpoint.save(tmp_path / "last.pt", {"cpu": torch.get_rng_state()})
    drawn = torch.rand(5)
    torch.rand(11)
    torch.set_rng_state(checkpoint.load(tmp_path / "last.pt")["cpu"])
    assert torch.equal(torch.rand(5), drawn)


def test_the_newer_state_replaces_the_older(tmp_path):
    checkpoint.save(tmp_path / "last.pt", {"epoch": 1})
    checkpoint.save(tmp_path / "last.pt", {"epoch": 2})
    assert checkpoint.load(tmp_path / "last.pt") == {"epoch": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_save_that_fails_half_way_leaves_the_old_state_whole(tmp_path, monkeypatch):
    def fails(state, file):
        file.write_bytes(b"PK half of a checkpoint")
        raise OSError(28, "No space left on device")

    checkpoint.save(tmp_path / "last.pt", state())
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", fails)
        with pytest.raises(whole.NoSpace, match=r"last\.pt cannot be written: No space left.* --resume"):
            checkpoint.save(tmp_path / "last.pt", {"epoch": 2})
    assert same(checkpoint.load(tmp_path / "last.pt"), state())
    checkpoint.save(tmp_path / "last.pt", {"epoch": 3})  # over what was left behind
    assert checkpoint.load(tmp_path / "last.pt") == {"epoch": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_first_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fails(state, file):
        file.write_bytes(b"PK")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", fails)
        with pytest.raises(whole.NoSpace, match=r"last\.pt cannot be written: No space left.* --resume"):
            checkpoint.save(tmp_path / "last.pt", {"epoch": 2})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LimbeckError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "last.pt")


def test_the_bytes_are_on_the_disk_before_they_get_the_name(tmp_path, monkeypatch):
    done = []
    replace = whole.os.replace
    monkeypatch.setattr(whole.os, "fsync", lambda file: done.append("fsync"))
    monkeypatch.setattr(whole.os, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    checkpoint.save(tmp_path / "last.pt", {"epoch": 1})
    assert done == ["fsync", "replace", "fsync"]


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(LimbeckError, match=r"there is no checkpoint .*last\.pt"):
        checkpoint.load(tmp_path / "last.pt")
    with pytest.raises(LimbeckError, match="there is no checkpoint"):
        checkpoint.load(tmp_path)


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    file = tmp_path / "last.pt"
    checkpoint.save(file, state())
    whole = file.read_bytes()
    near_the_end = range(len(whole) - 30, len(whole))
    for length in [*range(0, len(whole), 53), *near_the_end]:
        file.write_bytes(whole[:length])
        with pytest.raises(LimbeckError, match="is not a complete checkpoint"):
            checkpoint.load(file)


@pytest.mark.parametrize("bits", [0xFF, 0x01])
def test_every_flipped_byte_is_refused(tmp_path, bits):
    file = tmp_path / "last.pt"
    checkpoint.save(file, state())
    whole = file.read_bytes()
    for place in [*range(100), *range(100, len(whole), 67), *range(len(whole) - 100, len(whole))]:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :])
        with pytest.raises(LimbeckError, match="is not a complete checkpoint"):
            checkpoint.load(file)


def test_bytes_after_the_end_are_refused(tmp_path):
    checkpoint.save(tmp_path / "last.pt", state())
    with (tmp_path / "last.pt").open("ab") as file:
        file.write(b"\0" * 7)
    with pytest.raises(LimbeckError, match="is not a complete checkpoint"):
        checkpoint.load(tmp_path / "last.pt")


def test_a_state_that_was_edited_and_saved_by_torch_is_refused(tmp_path):
    checkpoint.save(tmp_path / "last.pt", state())
    torch.save(torch.load(tmp_path / "last.pt", weights_only=True), tmp_path / "last.pt")
    with pytest.raises(LimbeckError, match="is not a complete checkpoint: it is damaged, changed"):
        checkpoint.load(tmp_path / "last.pt")


def test_torch_itself_reads_a_checkpoint(tmp_path):
    checkpoint.save(tmp_path / "last.pt", state())
    assert same(torch.load(tmp_path / "last.pt", weights_only=True), state())


def test_a_compressed_checkpoint_that_would_take_more_memory_than_its_file_is_refused(tmp_path):
    torch.save({"zeros": torch.zeros(10**6)}, tmp_path / "plain.pt")
    with ZipFile(tmp_path / "plain.pt") as plain, ZipFile(tmp_path / "last.pt", "w", ZIP_DEFLATED) as small:
        for part in plain.infolist():
            small.writestr(part.filename, plain.read(part))
    packed = (tmp_path / "last.pt").read_bytes()[:-2]
    seal = b"limbeck " + hashlib.sha256(packed).hexdigest().encode()
    (tmp_path / "last.pt").write_bytes(packed + len(seal).to_bytes(2, "little") + seal)
    with pytest.raises(LimbeckError, match="is not a complete checkpoint"):
        checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize("kind", ["FIFO", "device", "link to a device"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, kind):
    if kind == "FIFO":
        os.mkfifo(tmp_path / "last.pt")
    (tmp_path / "link").symlink_to("/dev/zero")
    file = {"FIFO": tmp_path / "last.pt", "device": Path("/dev/zero"), "link to a device": tmp_path / "link"}[kind]
    with pytest.raises(LimbeckError, match="there is no checkpoint"):
        checkpoint.load(file)


@pytest.mark.parametrize("room", [100, 3000, 9000])
def test_a_disk_that_takes_no_more_is_told_and_the_old_state_stays(tmp_path, room):
    checkpoint.save(tmp_path / "last.pt", {"epoch": 1})
    with limited(room), pytest.raises(whole.NoSpace, match=r"last\.pt cannot be written: File too large"):
        checkpoint.save(tmp_path / "last.pt", {"values": torch.zeros(5000)})
    assert checkpoint.load(tmp_path / "last.pt") == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_flipped_byte_in_a_tensor_is_seen(tmp_path):
    values = torch.arange(500, dtype=torch.int64)
    checkpoint.save(tmp_path / "last.pt", {"values": values})
    whole = (tmp_path / "last.pt").read_bytes()
    place = whole.index(values.numpy().tobytes()) + 1234
    (tmp_path / "last.pt").write_bytes(whole[:place] + b"\x55" + whole[place + 1 :])
    with pytest.raises(LimbeckError, match="is not a complete checkpoint"):
        checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 4096,
        b"some text\n",
        pickle.dumps({"epoch": 3}, protocol=0),
        pickle.dumps({"epoch": 3}, protocol=2),
        pickle.dumps({"epoch": 3}),
        pickle.dumps(Path("elsewhere")),
        b"PK\x03\x04" + b"\0" * 60,
    ],
    ids=["empty", "zeros", "text", "pickle 0", "pickle 2", "pickle", "pickled object", "half a zip"],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(LimbeckError, match="is not a complete checkpoint"):
        checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize("value", [[1, 2], torch.zeros(2), {"path": Path("code")}], ids=["list", "tensor", "object"])
def test_what_torch_saved_of_something_else_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "last.pt")
    with pytest.raises(LimbeckError, match="is not a complete checkpoint"):
        checkpoint.load(tmp_path / "last.pt")


def test_reading_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    checkpoint.save(tmp_path / "last.pt", {"trap": Trap()})
    with pytest.raises(LimbeckError, match="not a complete checkpoint"):
        checkpoint.load(tmp_path / "last.pt")
    assert not (tmp_path / "ran").exists()
