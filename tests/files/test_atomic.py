import os
import resource
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.core import LimbeckError
from limbeck.files import checkpoint
from limbeck.files.atomic import NoSpace, append, digest, read, read_sealed, replacing, sync, write, write_sealed
from limbeck.models import NetworkSpec, save_network

SPEC = NetworkSpec("mlp", {"hidden": [50]}, 10, (50,))


@contextmanager
def limited(room):
    """Inside the block, no file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 kB, where this process may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


WRITERS = {
    "a checkpoint": lambda path: checkpoint.save(path, {"values": torch.zeros(200_000)}),
    "weights": lambda path: save_network(nn.Linear(500, 500), path, spec=SPEC),
    "a text": lambda path: write(path, "x" * 600_000),
    "sealed JSON": lambda path: write_sealed(path, {"values": [0.123456789] * 30_000}),
    "a line": lambda path: append(path, "x" * 600_000),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_is_one_message_and_what_was_there_stays(small_disk, what):
    file = small_disk / "file.safetensors"
    file.write_text("old\n")
    with pytest.raises(NoSpace, match=r"cannot be written: No space left .*bytes are free.*--resume") as caught:
        WRITERS[what](file)
    assert caught.value.exit_code == 3
    assert file.read_text() == "old\n"
    assert [path.name for path in small_disk.iterdir()] == ["file.safetensors"]


@pytest.mark.parametrize("what", WRITERS)
@pytest.mark.parametrize("room", [8, 5000, 100_000])
def test_a_bound_on_files_is_told_likewise(tmp_path, what, room):
    file = tmp_path / "file.safetensors"
    file.write_text("old\n")
    with limited(room), pytest.raises(NoSpace, match=r"file\.safetensors cannot be written: File too large"):
        WRITERS[what](file)
    assert file.read_text() == "old\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("what", [name for name in WRITERS if name != "a line"])
def test_a_file_has_the_permissions_that_the_umask_gives(tmp_path, what):
    before = os.umask(0o027)
    try:
        WRITERS[what](tmp_path / "file.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "file.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_that_is_not_the_disks_stays_as_it_is_and_leaves_nothing(tmp_path, error):
    def fails():
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fails()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_files_place_is_told(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(LimbeckError, match="file cannot be written: Is a directory") as caught:
        write(tmp_path / "file", "new")
    assert caught.value.exit_code == 2
    with pytest.raises(LimbeckError, match="file cannot be written"):
        append(tmp_path / "file", "new")


def test_a_file_in_a_folders_place_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LimbeckError, match=r"last\.pt cannot be written: (Not a directory|File exists)"):
        write(tmp_path / "file" / "last.pt", "new")
    assert read(tmp_path / "file" / "last.pt", 10) is None


def test_a_link_in_a_circle_is_told(tmp_path):
    (tmp_path / "file").symlink_to("file")
    with pytest.raises(LimbeckError, match="file cannot be read: Too many levels of symbolic links"):
        read(tmp_path / "file", 10)


def test_a_file_that_the_system_makes_up_is_read_no_further_than_its_bound():
    with pytest.raises(LimbeckError, match="has more than 3 bytes, the most that a file of limbeck has"):
        read(Path("/proc/self/maps"), 3)


def test_a_line_is_added_to_a_file_or_begins_one(tmp_path):
    append(tmp_path / "log", "one\n")
    append(tmp_path / "log", "zwei ü\n")
    assert (tmp_path / "log").read_text(encoding="utf-8") == "one\nzwei ü\n"
    sync(tmp_path / "log")
    sync(tmp_path / "nothing")


def test_the_digest_is_of_a_file_of_the_right_size(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert digest(tmp_path / "file", 3) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest(tmp_path / "file", 2) is None
    assert digest(tmp_path / "nothing", 0) is None


def test_line_endings_of_another_system_do_no_harm(tmp_path):
    write_sealed(tmp_path / "result.json", {"errors": 3, "nan": float("inf")})
    text = (tmp_path / "result.json").read_bytes()
    (tmp_path / "result.json").write_bytes(text.replace(b"\n", b"\r\n"))
    assert read_sealed(tmp_path / "result.json") == {"errors": 3, "nan": float("inf")}
