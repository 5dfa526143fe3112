"""The lock of a folder in which a process trains."""

import errno
import subprocess
import sys
from threading import Event, Thread

import pytest

from limbeck.errors import LimbeckError
from limbeck.files import alone as module
from limbeck.files.alone import LOCK, alone, is_locked

HOLDS = """
import sys
from pathlib import Path
from limbeck.files.alone import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

fcntl = pytest.importorskip("fcntl")

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.3)


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    folder = tmp_path / "new" / "run"
    assert not is_locked(folder / LOCK)
    command = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert is_locked(folder / LOCK)
        with pytest.raises(LimbeckError, match=r"a training is running in .*run: wait until it ends"), alone(folder):
            pass
        other.kill()
    with alone(folder):
        assert is_locked(folder / LOCK)
    assert not is_locked(folder / LOCK)


def test_an_error_releases_the_lock(tmp_path):
    with pytest.raises(ValueError, match="inside"), alone(tmp_path):
        raise ValueError("inside")
    assert not is_locked(tmp_path / LOCK)


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_in_which_nothing_was_written_is_as_before(tmp_path, exists):
    folder = tmp_path / "runs" / "new"
    if exists:
        folder.mkdir(parents=True)
    with alone(folder):
        assert [file.name for file in folder.iterdir()] == [LOCK]
    assert folder.exists() is exists
    assert (tmp_path / "runs").exists() is exists
    assert not exists or [*folder.iterdir()] == []


def test_the_lock_of_a_folder_with_a_run_stays(tmp_path):
    with alone(tmp_path / "run"):
        (tmp_path / "run" / "recipe.yaml").touch()
    assert (tmp_path / "run" / LOCK).exists()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EPERM])
def test_a_file_system_without_locks_does_not_stop_a_run(tmp_path, monkeypatch, code):
    (tmp_path / LOCK).touch()

    def refuse(*_):
        raise OSError(code, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    entered = []
    with alone(tmp_path):
        entered.append(is_locked(tmp_path / LOCK))
    assert entered == [False]


def test_nothing_is_written_through_a_link(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / LOCK).symlink_to(tmp_path / "victim")
    with alone(folder):
        assert not (tmp_path / "victim").exists()


def test_processes_that_look_do_not_keep_a_run_from_starting(tmp_path):
    (tmp_path / LOCK).touch()
    ended = Event()

    def look():
        while not ended.is_set():
            is_locked(tmp_path / LOCK)

    threads = [Thread(target=look) for _ in range(3)]
    try:
        for one in threads:
            one.start()
        for _ in range(20):
            with alone(tmp_path):
                (tmp_path / "recipe.yaml").touch()
    finally:
        ended.set()
        for one in threads:
            one.join()
