"""Locks of the processes that work in one folder."""

import subprocess
import sys
from threading import Thread

import pytest
from filelock import FileLock

from limbeck.comparison.locks import claim, count_held, is_held, lock
from limbeck.errors import LimbeckError


def test_what_another_process_holds_cannot_be_claimed(tmp_path):
    first = claim(tmp_path, "seed0")
    assert claim(tmp_path, "seed0") is None
    assert is_held(tmp_path, "seed0")
    first.release()
    assert not is_held(tmp_path, "seed0")
    assert claim(tmp_path, "seed0") is not None


def test_the_locks_that_are_held_are_counted(tmp_path):
    held = [claim(tmp_path, name) for name in ("seed0", "seed7", "teacher-seed0")]
    claim(tmp_path, "seed3").release()
    assert count_held(tmp_path, "seed") == 2
    held[1].release()
    assert count_held(tmp_path, "seed") == 1


def test_nothing_is_written_through_links(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("kept")
    inside = tmp_path / "folder"
    (inside / "locks").mkdir(parents=True)
    (inside / "locks/seed0").symlink_to(outside / "victim")
    with pytest.raises(LimbeckError, match="seed0 is a link"):
        claim(inside, "seed0")
    assert (outside / "victim").read_text() == "kept"
    (tmp_path / "locks").symlink_to(outside)
    with pytest.raises(LimbeckError, match="locks is a link"):
        claim(tmp_path, "seed0")
    assert [file.name for file in outside.iterdir()] == ["victim"]


def test_a_claim_waits_while_another_process_looks_whether_a_lock_is_held(tmp_path):
    """A look takes the lock for a moment, in which the claim would fail, and nobody would have it."""
    found = []
    claiming = Thread(target=lambda: found.append(claim(tmp_path, "seed0")))
    with lock(tmp_path, "claims"):
        claiming.start()
        claiming.join(0.2)
        assert claiming.is_alive()
    claiming.join(10)
    assert isinstance(found[0], FileLock)


def test_a_process_that_is_killed_releases_its_locks(tmp_path):
    program = """
import sys
from pathlib import Path
from limbeck.comparison.locks import claim
held = claim(Path(sys.argv[1]), "seed0")
print("held", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert is_held(tmp_path, "seed0")
        other.kill()
        other.wait()
        assert not is_held(tmp_path, "seed0")
