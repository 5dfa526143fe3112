"""`limbeck bench-export`, the peak memory of exports, and cards as received data."""

import json
import os
import shutil

import pytest
import torch
from typer.testing import CliRunner

import limbeck
from limbeck.cli import app
from limbeck.evaluate import Latency
from limbeck.exports import EXPORTERS
from limbeck.exports.base import missing_of
from limbeck.exports.bench import bench_exports
from limbeck.exports.card import CARD, read_card, read_metadata
from limbeck.exports.memory import peak_memory
from limbeck.files.atomic import read_sealed, write_sealed
from limbeck.models import build

ELSEWHERE = () if os.environ.get("LIMBECK_LITERT_PYTHON") else ("litert",)  # what cannot be written here
INSTALLED = [
    name
    for name, one in EXPORTERS.items()
    if name not in ("web", *ELSEWHERE) and one.load and not missing_of(one.modules)
]
pytestmark = pytest.mark.skipif("onnx" not in INSTALLED, reason="needs limbeck[export]")

LATENCY = Latency(1.25, 2.5, 10, 1.5)
WIDE = 1500
WEIGHTS = 4 * (3 * 8 * 8 * WIDE + WIDE * WIDE)


def exported(folder, to, **options):
    generator = torch.Generator().manual_seed(0)
    data = limbeck.arrays(torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=generator), [0, 1, 2] * 20)
    return limbeck.export(build("mlp", classes=3, shape=(3, 8, 8), hidden=(WIDE, WIDE)), data, folder, to=to, **options)


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A folder with an export for each backend; do not change it."""
    place = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.exports.make.peak_memory", lambda *_: None)
        for to in INSTALLED:
            exported(place / to, to)
    return place


@pytest.fixture
def one(exports, tmp_path):
    """A copy of the export to ONNX."""
    return shutil.copytree(exports / "onnx", tmp_path / "onnx")


def test_several_exports_are_measured_in_turns_in_one_table(exports, monkeypatch):
    order = []
    monkeypatch.setattr(
        "limbeck.exports.bench.times", lambda calls: order.append(list(calls)) or dict.fromkeys(calls, LATENCY)
    )
    folders = [exports / to for to in INSTALLED]
    shown = CliRunner().invoke(app, ["bench-export", *map(str, folders)], env={"COLUMNS": "400"})
    assert shown.exit_code == 0, shown.output
    assert order == [[str(folder) for folder in folders]]
    for folder in folders:
        row = next(line for line in shown.output.splitlines() if str(folder) in line)
        assert row.split()[1:] == ["student", "fp32", "1.250", "2.500", f"{read_card(folder).results.bytes:,}"]
    assert "unreliable: other processes used 1.5 cores" in shown.output


@pytest.mark.parametrize("to", INSTALLED)
def test_a_file_alone_says_what_it_reads(exports, to, tmp_path):
    for file in (exports / to).glob("student.*"):
        shutil.copy(file, tmp_path)
    found = bench_exports([tmp_path / f"student{EXPORTERS[to].suffix}"])[0]
    card = read_card(exports / to)
    assert found.about.reads == card.reads
    assert found.bytes == card.results.bytes
    assert found.latency.runs >= 10


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the system does not tell the peak")
def test_the_peak_memory_holds_the_weights_of_student_and_file(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.exports.make.peak_memory", peak_memory)
    done = exported(tmp_path / "out", "onnx")
    assert set(done.card.results.memory) == {"student", "file"}
    for peak in done.card.results.memory.values():
        assert WEIGHTS < peak < 8 * WEIGHTS


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the system does not tell the peak")
def test_a_file_that_its_process_cannot_run_is_not_opened_here(one, monkeypatch):
    (one / "student.onnx").write_bytes(b"no network")
    monkeypatch.setattr("limbeck.exports.bench.peak_memory", peak_memory)
    monkeypatch.setattr("limbeck.exports.bench._runner", None)
    with pytest.raises(limbeck.LimbeckError, match=r"student\.onnx cannot be run: .*InvalidProtobuf"):
        bench_exports([one])


def test_where_the_system_does_not_tell_the_peak_there_is_none(one, monkeypatch, tmp_path):
    monkeypatch.setattr("limbeck.exports.memory._RESET", tmp_path / "missing")
    assert peak_memory("onnx", one / "student.onnx", read_card(one).reads) is None


def changed(folder, **update):
    write_sealed(folder / CARD, read_sealed(folder / CARD) | update)


def reads(folder, shape):
    changed(folder, reads=read_sealed(folder / CARD)["reads"] | {"shape": shape})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / CARD).unlink(), "holds no export"),
        (lambda folder: (folder / CARD).write_text("{}"), "is damaged, or was changed"),
        (lambda folder: (folder / "student.onnx").unlink(), "there is no file"),
        (lambda folder: (folder / "student.onnx").write_bytes(b"\x08"), "cannot be run"),
        (lambda folder: changed(folder, schema=7), "has schema 7, but this version of limbeck reads schema 1"),
        (lambda folder: changed(folder, backend="onxn"), "for the backend 'onxn': did you mean 'onnx'"),
        (lambda folder: changed(folder, more=1), "is not the card of an export: more"),
        (lambda folder: changed(folder, reads=None), "is not the card of an export: reads"),
        (lambda folder: reads(folder, [None, 10**6, 10**6, 3]), "no sample of at most 268,435,456 values"),
        (lambda folder: reads(folder, [None, -1, -1, 3]), "no sample of at most"),
        (lambda folder: reads(folder, [None, None, 8, 3]), "no sample of at most"),
        (lambda folder: reads(folder, [None]), "no sample of at most"),
        (lambda folder: reads(folder, [None, 9, 9, 3]), "cannot be run"),
    ],
)
def test_what_is_no_export_is_one_error(one, change, message):
    change(one)
    shown = CliRunner().invoke(app, ["bench-export", str(one)])
    assert shown.exit_code == 2
    assert message in " ".join(shown.output.split())


@pytest.mark.parametrize("name", ["student.onnx", "student.txt"])
def test_a_file_that_limbeck_did_not_export_is_one_error(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(limbeck.LimbeckError, match=r"limbeck did not export it|holds no export"):
        bench_exports([tmp_path / name])


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", json.dumps({"schema": 2})])
def test_metadata_that_are_no_card_are_one_error(text, tmp_path):
    with pytest.raises(limbeck.LimbeckError, match=r"damaged|schema 2|is not the card of an export"):
        read_metadata(text, tmp_path / "student.onnx")
