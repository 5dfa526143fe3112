"""`limbeck bench-export`, the peak memory of exports, and cards as received data."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import limbeck
from limbeck.cli import app
from limbeck.evaluate import Latency
from limbeck.exports import EXPORTERS
from limbeck.exports.bench import bench_exports
from limbeck.exports.card import CARD, read_card, read_metadata
from limbeck.exports.memory import STUDENT, _before, _limit, is_told, metadata_of, peak_memory
from limbeck.files.atomic import read_sealed, write_sealed
from limbeck.models import build
from tests.exports.conftest import installed

INSTALLED = [name for name, one in EXPORTERS.items() if name != "web" and one.load and installed(name)]
pytestmark = [
    pytest.mark.skipif("onnx" not in INSTALLED, reason="needs limbeck[export]"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # some of the packages warn
]

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
    shown = CliRunner().invoke(app, ["bench-export", *map(str, folders)], env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.output
    assert order == [[str(folder) for folder in folders]]
    assert shown.output.splitlines()[0] == f"in {exports}:"
    for folder in folders:
        row = next(line for line in shown.output.splitlines()[1:] if line.startswith(folder.name))
        assert row.split() == [folder.name, "student", "fp32", "1.250", "2.500", f"{read_card(folder).results.bytes:,}"]
    assert "unreliable: other processes used 1.5 cores" in shown.output


@pytest.mark.parametrize("to", INSTALLED)
def test_a_file_alone_says_what_it_reads(exports, to, tmp_path):
    for file in (exports / to).glob("student.*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "student.safetensors").write_bytes(bytes(1000))  # not of the export
    found = bench_exports([tmp_path / f"student{EXPORTERS[to].suffix}"])[0]
    card = read_card(exports / to)
    assert found.about.reads == card.reads
    assert found.bytes == card.results.bytes
    assert found.latency.runs >= 10


peak_is_told = pytest.mark.skipif(not is_told(EXPORTERS["onnx"]), reason="the system does not tell the peak")


@peak_is_told
def test_the_peak_memory_holds_the_weights_of_student_and_file(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.exports.make.peak_memory", peak_memory)
    done = exported(tmp_path / "out", "onnx")
    assert set(done.card.results.memory) == {"student", "file"}
    for peak in done.card.results.memory.values():
        assert WEIGHTS < peak < 8 * WEIGHTS


@peak_is_told
@pytest.mark.parametrize("to", [name for name in INSTALLED if name != "onnx"])
def test_the_peak_memory_of_every_backend_holds_the_weights(exports, to):
    peak = peak_memory(to, exports / to / f"student{EXPORTERS[to].suffix}", read_card(exports / to).reads)
    assert WEIGHTS < peak < 8 * WEIGHTS


@peak_is_told
def test_a_peak_memory_that_cannot_be_measured_does_not_end_an_export(tmp_path, monkeypatch):
    def fails(backend, *_):
        if backend == STUDENT:
            raise limbeck.LimbeckError("student.pt2 cannot be run: Killed")
        return 7

    monkeypatch.setattr("limbeck.exports.make.peak_memory", fails)
    results = exported(tmp_path / "out", "onnx").card.results
    assert results.memory == {"student": None, "file": 7}
    assert results.memory_problem == "student.pt2 cannot be run: Killed"


def test_where_the_system_does_not_tell_the_peak_the_student_is_not_exported_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.exports.make.is_told", lambda exporter: False)
    monkeypatch.setattr("limbeck.exports.make.peak_memory", None)
    assert exported(tmp_path / "out", "onnx").card.results.memory == {}


def test_the_metadata_of_a_file_are_read_in_another_process(exports, tmp_path, monkeypatch):
    file = exports / "onnx" / "student.onnx"
    assert read_metadata(metadata_of("onnx", file), file).reads == read_card(exports / "onnx").reads
    monkeypatch.setattr("limbeck.exports.bench.metadata_of", metadata_of)
    (tmp_path / "student.onnx").write_bytes(b"no network")
    with pytest.raises(limbeck.LimbeckError, match=r"limbeck did not export it: .*InvalidProtobuf"):
        bench_exports([tmp_path / "student.onnx"])


def test_to_measure_a_file_only_its_runtime_is_needed(exports, monkeypatch):
    monkeypatch.setattr(
        "limbeck.exports.base.find_spec", lambda name: None if name in ("onnx", "onnxscript") else object()
    )
    assert bench_exports([exports / "onnx", exports / "onnx" / "student.onnx"])
    monkeypatch.setattr("limbeck.exports.base.find_spec", lambda name: None)
    with pytest.raises(limbeck.LimbeckError, match="a file for onnx needs onnxruntime: pip install"):
        bench_exports([exports / "onnx"])


def test_a_card_with_long_texts_does_not_break_the_other_process(one):
    reads = replace(read_card(one).reads, name="x" * 300_000)
    assert peak_memory("onnx", one / "student.onnx", reads) is None or is_told(EXPORTERS["onnx"])


@pytest.mark.parametrize(("python", "message"), [("/bin/echo", "Expecting value"), ("no/such/python", "No such file")])
def test_another_process_that_does_not_answer_is_one_error(python, message, one, monkeypatch):
    monkeypatch.setattr("limbeck.exports.memory.sys.executable", python)
    with pytest.raises(limbeck.LimbeckError, match=rf"student\.onnx cannot be run: .*{message}"):
        peak_memory("onnx", one / "student.onnx", read_card(one).reads)


@peak_is_told
def test_a_file_that_its_process_cannot_run_is_not_opened_here(one, monkeypatch):
    (one / "student.onnx").write_bytes(b"no network")
    monkeypatch.setattr("limbeck.exports.bench.peak_memory", peak_memory)
    monkeypatch.setattr("limbeck.exports.bench._runner", None)
    with pytest.raises(limbeck.LimbeckError, match=r"student\.onnx cannot be run: .*InvalidProtobuf"):
        bench_exports([one])


def test_a_system_that_tells_neither_peak_nor_size_limits_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("limbeck.exports.memory._RESET", tmp_path / "no" / "file")
    assert not is_told(EXPORTERS["onnx"])
    assert _before() is None
    monkeypatch.setattr("limbeck.exports.memory._STATUS", tmp_path / "no" / "file")
    _limit()


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


def test_a_folder_of_exports_is_told_how_to_name_them(exports, tmp_path):
    run = shutil.copytree(exports / "onnx", tmp_path / "run" / "export" / "onnx").parents[1]
    for given, place in ((run, run / "export"), (run / "export", run / "export")):
        with pytest.raises(limbeck.LimbeckError) as caught:
            bench_exports([given])
        assert str(caught.value) == f"there is no {given / CARD}: the exports are in {place}, so name {place}/*"


@pytest.mark.parametrize("name", ["student.onnx", "student.txt"])
def test_a_file_that_limbeck_did_not_export_is_one_error(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(limbeck.LimbeckError, match=r"limbeck did not export it|holds no export"):
        bench_exports([tmp_path / name])


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", json.dumps({"schema": 2})])
def test_metadata_that_are_no_card_are_one_error(text, tmp_path):
    with pytest.raises(limbeck.LimbeckError, match=r"damaged|schema 2|is not the card of an export"):
        read_metadata(text, tmp_path / "student.onnx")
