"""Exports in the report of a run: points, a row each, and only those of its networks."""

from dataclasses import asdict

import example
import pytest
from test_report_page import rows, section, text
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.evaluate import Latency
from limbeck.exports.card import CARD, SCHEMA, Card, Reads, Results
from limbeck.exports.parity import Parity
from limbeck.files.atomic import write_sealed
from limbeck.report.found import read
from limbeck.report.numbers import NONE
from limbeck.report.page import page


def card(weights, **results):
    """A card of the student of kd."""
    return Card(
        schema=SCHEMA,
        backend="onnx",
        precision="int8",
        network="kd/seed0",
        weights_sha256=weights,
        task="classification",
        reads=Reads("images", (None, 8, 8, 1), "uint8", "nhwc", "gray"),
        outputs=("logits",),
        classes=tuple("0123456789"),
        temperature=None,
        deferring=None,
        versions={"torch": "2.14"},
        results=Results(
            **{
                "bytes": 90_000,
                "student_bytes": 318_640,
                "parity": Parity("validation", 256, (1, 2, 8), 0.1, 0.01, 1.0),
                "figure": "accuracy",
                "student": 0.94,
                "exported": 0.93,
                "latency": {"student": Latency(0.8, 0.9, 100), "file": Latency(0.25, 0.3, 100)},
                "memory": {"student": 4_000_000, "file": None},
                "processor": example.ENVIRONMENT["cpu"],
                **results,
            }
        ),
    )


@pytest.fixture
def folder(tmp_path):
    """A run with the export onnx-int8 of its student."""
    example.write_run(tmp_path / "run", seeds=2)
    written(tmp_path / "run", "onnx-int8")
    return tmp_path / "run"


def written(folder, name, weights=None, **results):
    (folder / "export" / name).mkdir(parents=True)
    weights = weights or read(folder).result.of("kd")[0].weights_sha256
    write_sealed(folder / "export" / name / CARD, asdict(card(weights, **results)))


def test_an_export_is_a_point_beside_its_student_and_a_row(folder):
    costs = section(page(read(folder)), "costs")
    figures = {one.get("id"): rows(one) for one in costs.iter() if one.tag.endswith("figure")}
    assert [found.get("onnx-int8") for found in figures.values()] == [
        ["93", "0.250", "yes"],
        None,
        ["93", "90,000", "yes"],
    ]
    assert rows(costs)["onnx-int8"] == [
        "kd/seed0",
        "8x8x1",
        "94.00",
        "93.00",
        "0.800",
        "0.250",
        "4.0",
        NONE,
        "90,000",
    ]
    assert "Not shown" not in text(costs)


def test_an_export_of_other_weights_is_not_shown(folder):
    written(folder, "foreign", weights="0" * 64)
    costs = section(page(read(folder)), "costs")
    assert "foreign" not in rows(costs)
    assert "foreign was not exported from a network of this folder" in text(costs)


def test_a_latency_of_another_processor_is_only_in_the_table(folder):
    written(folder, "phone", processor="another")
    costs = section(page(read(folder)), "costs")
    figures = [rows(one) for one in costs.iter() if one.tag.endswith("figure")]
    assert ["phone" in found for found in figures] == [False, False, True]
    assert "the latency of phone in the figure, because it was measured on another processor" in text(costs)
    assert rows(costs)["phone"][5] == "0.250"


def test_a_file_that_was_not_run_has_only_a_row(folder):
    written(folder, "coreml-fp16", parity=None, student=None, exported=None, latency={}, memory={}, processor="")
    costs = section(page(read(folder)), "costs")
    assert rows(costs)["coreml-fp16"] == ["kd/seed0", "8x8x1", *[NONE] * 6, "90,000"]
    assert not any("coreml-fp16" in rows(one) for one in costs.iter() if one.tag.endswith("figure"))
    assert "another processor" not in text(costs)


def test_an_export_with_the_name_of_a_network_does_not_replace_its_point(folder):
    written(folder, "kd")
    costs = section(page(read(folder)), "costs")
    latency = next(rows(one) for one in costs.iter() if one.tag.endswith("figure"))
    assert {"teacher", "alone", "kd", "export/kd"} <= latency.keys()
    assert latency["kd"] != latency["export/kd"]


def test_the_number_of_exports_that_do_not_fit_is_told(folder, monkeypatch):
    monkeypatch.setattr("limbeck.report.found.MOST_EXPORTS", 1)
    written(folder, "second")
    written(folder, "third")
    costs = section(page(read(folder)), "costs")
    assert "Not shown: 2 of 3 exports, because at most 1 are shown" in text(costs)
    assert "second" not in rows(costs)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"bytes": 0}, "a size or a latency is not above 0"),
        ({"bytes": 10**400}, "card.results.bytes has 401 digits"),
        ({"memory": {"file": 10**400}}, "card.results.memory.file has 401 digits"),
        ({"memory": {"file": -1}}, "a memory is below 0"),
        ({"latency": {"file": Latency(0.1, -5.0, 100)}}, "a size or a latency is not above 0"),
        ({"exported": float("inf")}, "card.results.exported is inf"),
        ({"exported": "0.9"}, "is not the card of an export"),
        ({"figure": "x" * 20_000}, "card.results.figure has 20,000 characters"),
    ],
)
def test_a_card_that_cannot_be_shown_is_left_out(folder, results, message):
    written(folder, "strange", **results)
    costs = section(page(read(folder)), "costs")
    assert "strange" not in rows(costs)
    assert message in text(costs)


def test_a_damaged_card_is_left_out(folder):
    (folder / "export" / "onnx-int8" / CARD).write_text("{}")
    assert "is damaged" in text(section(page(read(folder)), "costs"))


def test_the_figure_against_the_size_can_be_written(folder, tmp_path):
    out = tmp_path / "size.svg"
    found = CliRunner().invoke(app, ["report", str(folder), "--figure", "cost-size", "--out", str(out)])
    assert found.exit_code == 0, found.output
    assert "onnx-int8" in out.read_text()


def test_a_run_without_exports_has_no_figure_against_the_size(tmp_path):
    example.write_run(tmp_path / "run", seeds=2)
    found = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--figure", "cost-size"])
    assert "did you mean" in " ".join(found.output.split())
