"""Tar files at URLs, which fsspec reads."""

import contextlib
import http.server
import os
import re
import threading
from types import SimpleNamespace

import fsspec
import pytest
import torch
from test_shards import order, png, shards

from limbeck.core import LimbeckError
from limbeck.data import load, remote
from limbeck.data.ahead import THREADS
from limbeck.data.overlap import identical
from limbeck.data.remote import AT_ONCE, Server
from limbeck.data.tars import Folder, Tars
from limbeck.exports.source import Finished
from limbeck.report.pictures import data_of


@pytest.fixture
def memory():
    """The file system of the URLs memory://, which is empty again afterwards."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def uploaded(folder, memory):
    for path in folder.glob("*.tar"):
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())


@pytest.fixture
def both(tmp_path, memory):
    """The same tar files in a folder and at URLs."""
    shards(tmp_path)
    shards(tmp_path, count=1, kind="test")
    uploaded(tmp_path, memory)

    def loaded(place):
        path, test = f"{place}/train-{{00..03}}.tar", f"{place}/test-00.tar"
        return load("webdataset", path=path, test_path=test, validation=0.2, workers=0, together=2)

    return loaded(tmp_path), loaded("memory://bucket")


def test_the_samples_and_their_order_are_those_of_the_same_files_in_a_folder(both):
    here, there = both
    assert there.train.names == here.train.names
    assert there.train.digest() == here.train.digest()
    assert order(there, 3).tolist() == order(here, 3).tolist()
    every = torch.arange(len(here.train))
    assert torch.equal(there.train.inputs[every], here.train.inputs[every])
    assert there.origins == here.origins


def named(name):
    """What messages call a sample."""
    return re.escape(f"{name.split(':')[2]} in memory://bucket/{name.split(':')[0]}")


def test_parts_of_files_are_requested_a_few_at_a_time(memory, monkeypatch):
    memory.pipe_file("/bucket/a.tar", bytes(range(100)))
    asked, cat = [], type(memory).cat_ranges
    counted = lambda self, paths, *rest, **options: asked.append(len(paths)) or cat(self, paths, *rest, **options)  # noqa: E731
    monkeypatch.setattr(type(memory), "cat_ranges", counted)
    parts = Server("memory://bucket").parts(("a.tar", place, 2) for place in range(AT_ONCE + 5))
    assert next(parts) == bytes([0, 1])
    assert asked == [AT_ONCE]
    assert list(parts)[-1] == bytes([AT_ONCE + 4, AT_ONCE + 5])
    assert asked == [AT_ONCE, 5]


def test_parts_that_are_requested_at_a_time_have_few_bytes(memory, monkeypatch):
    monkeypatch.setattr(remote, "BYTES_AT_ONCE", 50)
    memory.pipe_file("/bucket/a.tar", bytes(100))
    asked, cat = [], type(memory).cat_ranges
    counted = lambda self, paths, *rest, **options: asked.append(len(paths)) or cat(self, paths, *rest, **options)  # noqa: E731
    monkeypatch.setattr(type(memory), "cat_ranges", counted)
    sizes = [20, 30, 60, 10, 41]
    assert [len(part) for part in Server("memory://bucket").parts(("a.tar", 0, size) for size in sizes)] == sizes
    assert asked == [2, 1, 1, 1]


def test_several_tar_files_are_read_at_a_time_also_with_one_processor(both, monkeypatch):
    together, opened = threading.Barrier(THREADS), Server.open  # fewer threads break the barrier
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(Server, "open", lambda self, name: (together.wait(5), opened(self, name))[1])
    assert len(load("webdataset", path="memory://bucket/train-{00..03}.tar", workers=0).train)


def test_images_in_two_splits_are_found_without_reading_the_others(both, monkeypatch):
    _, there = both
    read = []
    monkeypatch.setattr(Tars, "__call__", lambda self, name: read.append(name) or b"")
    found = identical({"train": there.train, "test": there.test})
    assert len(found["test"]) == sum(name.split(":")[-1] < "000005" for name in there.train.names)
    assert len(read) == 2 * len(found["test"])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://bucket/none-{00..03}.tar", "memory://bucket/none-00.tar cannot be read: it is not there"),
        ("memory://bucket/cut-00.tar", "memory://bucket/cut-00.tar is cut short: it has no end of a tar file"),
    ],
)
def test_what_cannot_be_read_is_told_when_the_data_is_loaded(url, said, tmp_path, memory):
    shards(tmp_path, count=1, kind="cut")
    uploaded(tmp_path, memory)
    memory.pipe_file("/bucket/cut-00.tar", memory.cat_file("/bucket/cut-00.tar")[:-10240])
    with pytest.raises(LimbeckError, match=said):
        load("webdataset", path=url, workers=0)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("reference://::memory://refs.json/x.tar", "a URL with :: is not read, allowed are URLs such as s3://"),
        ("s3://bucket/a::b.tar", "a URL with :: is not read"),
        ("reference://refs.json/x.tar", "the protocol 'reference' is not read; allowed are abfs, "),
        ("s4://bucket/x.tar", "the protocol 's4' is not read; did you mean 's3'?"),
        ("file:///data/x.tar", "give a path, such as /data/train-00.tar"),
    ],
)
def test_only_urls_of_one_server_reach_fsspec(url, said, monkeypatch):
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda place: pytest.fail(f"fsspec got {place}"))
    with pytest.raises(LimbeckError, match=re.escape(f"got {url!r}: {said}")):
        load("webdataset", path=url, workers=0)


def test_the_package_for_a_protocol_that_is_missing_is_named(monkeypatch):
    def connected(place):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", connected)
    with pytest.raises(LimbeckError, match=r"s3://b/t.tar cannot be read: a package .* not installed: Install s3fs"):
        load("webdataset", path="s3://b/t.tar", workers=0)


def test_the_image_of_a_group_that_cannot_be_read_is_named(both, memory):
    _, there = both
    names = [there.train.names[0], there.train.names[-1], there.train.names[1]]
    memory.rm_file("/bucket/train-03.tar")
    images = there.train.inputs.reader.several(names)
    assert next(images)[0] == names[0]
    with pytest.raises(LimbeckError, match=f"{named(names[1])} cannot be read: it is not there"):
        next(images)


def test_a_file_that_changes_later_is_told_when_its_image_is_read(both, memory):
    _, there = both
    last = there.train.names[-1]
    memory.pipe_file("/bucket/train-03.tar", b"")
    with pytest.raises(LimbeckError, match=f"{named(last)} cannot be read: the tar file is cut"):
        there.train.inputs.reader(last)


def test_tar_files_in_a_folder_and_at_urls_cannot_be_mixed(tmp_path, memory):
    shards(tmp_path)
    with pytest.raises(LimbeckError, match=r"are in .* and .*: allowed is one server, or this machine"):
        load("webdataset", path=tmp_path / "train-{00..03}.tar", test_path="memory://bucket/test-00.tar", workers=0)


def test_the_splits_may_be_in_different_folders_of_a_server(tmp_path, memory):
    shards(tmp_path)
    for path in tmp_path.glob("*.tar"):
        memory.pipe_file(f"/bucket/{path.stem}/{path.name}", path.read_bytes())
    path, test = (f"memory://bucket/train-{number}/train-{number}.tar" for number in ("00", "01"))
    data = load("webdataset", path=path, test_path=test, validation=0, workers=0)
    assert data.test.inputs[torch.arange(5)][:, 0, 0, 0].tolist() == list(range(5, 10))
    with pytest.raises(LimbeckError, match=r"are in memory://bucket/train-00 and memory://other: allowed is one"):
        load("webdataset", path=path, test_path="memory://other/test-00.tar", workers=0)


def test_a_report_and_an_export_do_not_read_a_url_that_a_received_run_names():
    options = {"source": "webdataset", "path": "https://host/train-00.tar"}
    recipe = SimpleNamespace(data=SimpleNamespace(model_dump=lambda: options))
    with pytest.raises(LimbeckError, match="a report makes no request"):
        data_of(SimpleNamespace(recipe=recipe))
    with pytest.raises(LimbeckError, match=r"read from https://host/train-00.tar: allow it with --trust-code"):
        Finished._data(SimpleNamespace(_folder="run", _trust_code=False), options, "", None, None)


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A server that answers requests for parts of files; some files are forbidden."""

    ranges, forbidden, excess = True, "/forbidden", b""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.directory / self.path.strip("/")
        if self.path.startswith(self.forbidden):
            return self.send_error(403)
        if not path.is_file():
            return self.send_error(404)
        data, found = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = data[int(found[1]) : int(found[2]) + 1] + self.excess if found and self.ranges else data
        self.send_response(206 if found and self.ranges else 200)
        self.send_header("Content-Length", str(len(part)))
        if found and self.ranges:
            self.send_header("Content-Range", f"bytes {found[1]}-{int(found[1]) + len(part) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(ConnectionError):  # who asked for a part does not want the whole file
                self.wfile.write(part)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    pytest.importorskip("aiohttp")
    handler = type("Handler", (Ranges,), {"directory": tmp_path})
    handler.__init__ = lambda self, *given: http.server.BaseHTTPRequestHandler.__init__(self, *given)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", handler
        running.shutdown()


def test_worker_processes_read_parts_of_files_over_http(tmp_path, server):
    shards(tmp_path)
    data = load("webdataset", path=f"{server[0]}/train-{{00..03}}.tar", validation=0, workers=2)
    assert data.train.inputs[torch.arange(2)][:, 0, 0, 0].tolist() == [int(n[-6:-4]) for n in data.train.names[:2]]
    assert sorted(order(data, 0).tolist()) == list(range(len(data.train)))
    name = data.train.names[0]
    assert data.train.inputs.reader(name) == Tars(Folder(tmp_path))(name) == png(int(name[-6:-4]))


@pytest.mark.parametrize(("name", "said"), [("forbidden.tar", "403"), ("missing.tar", "404")])
def test_the_answer_of_a_server_is_told(name, said, server):
    with pytest.raises(LimbeckError, match=f"{name} cannot be read: it is not there, it may not be read, or .*{said}"):
        load("webdataset", path=f"{server[0]}/{name}", workers=0)


def test_the_answer_of_a_server_is_told_also_after_the_data_is_loaded(tmp_path, server):
    shards(tmp_path, count=2)
    data = load("webdataset", path=f"{server[0]}/train-{{00..01}}.tar", validation=0, workers=0)
    server[1].forbidden = "/train-01"
    names = [data.train.names[0], data.train.names[-1]]
    with pytest.raises(LimbeckError, match=r"\d+.png in .*/train-01.tar cannot be read: ClientResponseError: 403"):
        list(data.train.inputs.reader.several(names))


def test_a_server_that_sends_more_than_was_asked_for_is_refused(tmp_path, server):
    shards(tmp_path, count=1)
    url, more = f"{server[0]}/train-00.tar", "cannot be read: the server sends more than the part that was asked for"
    data = load("webdataset", path=url, validation=0, workers=0)
    server[1].excess = b"x"
    with pytest.raises(LimbeckError, match=rf"\d+.png in {url} {more}"):
        data.train.inputs.reader(data.train.names[0])
    with pytest.raises(LimbeckError, match=f"train-00.tar {more}"):
        load("webdataset", path=url, workers=0)


def test_a_server_that_sends_only_whole_files_is_refused(tmp_path, server):
    shards(tmp_path, count=1)
    server[1].ranges = False
    with pytest.raises(
        LimbeckError, match=r"train-00.tar cannot be read: the server sends only whole files, .* range requests"
    ):
        load("webdataset", path=f"{server[0]}/train-00.tar", workers=0)
