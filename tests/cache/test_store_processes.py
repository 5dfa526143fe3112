import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from limbeck.cache.manifest import info
from limbeck.cache.reading import Store

PROGRAM = Path(tiny.__file__)
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and forks are those of POSIX")


def started(*arguments):
    return subprocess.Popen([sys.executable, str(PROGRAM), *map(str, arguments)])


def shards(folder):
    return len(list(folder.glob("*.safetensors")))


def test_a_build_that_is_killed_and_built_again_equals_an_undisturbed_one(tmp_path):
    tiny.run(tmp_path / "undisturbed")
    folder = tmp_path / "killed"
    writer = started("build", folder, 0.1)
    until = time.monotonic() + 60
    while shards(folder) < 4 and writer.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    assert 4 <= shards(folder) < 16
    assert not info(folder).finished
    reader = tiny.Reader(tiny.teacher())
    tiny.run(folder, reader=reader)
    assert reader.samples <= tiny.ROWS * tiny.VIEWS - 12
    assert tiny.contents(folder) == tiny.contents(tmp_path / "undisturbed")


def test_two_processes_that_build_one_store_at_once_make_one_and_both_end_well(tmp_path):
    tiny.run(tmp_path / "undisturbed")
    folder = tmp_path / "twice"
    writers = [started("build", folder, 0.01), started("build", folder, 0.01)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert tiny.contents(folder) == tiny.contents(tmp_path / "undisturbed")


def test_processes_read_at_once_what_was_opened_before_they_were_forked(tmp_path):
    tiny.run(tmp_path)
    Store(tmp_path, tiny.fingerprint(tiny.teacher()))
    assert started("read", tmp_path).wait() == 0
