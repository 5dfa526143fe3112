import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import example
import matplotlib
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from limbeck.cli import app
from limbeck.comparison import results as comparisons
from limbeck.comparison.maps import read_maps, write_maps
from limbeck.errors import LimbeckError
from limbeck.experiment.results import plain
from limbeck.experiment.runfiles import file_record
from limbeck.files.atomic import read_sealed, write_sealed
from limbeck.recipe.read import read as read_recipe
from limbeck.report.found import read
from limbeck.report.numbers import MINUS
from limbeck.report.page import page, write_report

SPACE = "{http://www.w3.org/1999/xhtml}"
ORDER = [
    "Difference to the student alone",
    "Accuracy and cost",
    "Learning curves",
    "All networks",
    "Calibration",
    "Change by class",
    "What the student learned",
    "Where teacher and student disagree",
    "Student first, teacher behind it",
    "How it was made",
]


def tree(html):
    return ET.fromstring(html)


def text(node):
    return " ".join("".join(node.itertext()).split())


def section(html, name):
    return next(one for one in tree(html).iter(f"{SPACE}section") if one.get("id") == f"section-{name}")


def rows(node):
    """By the first cell, the other cells of the rows of all tables."""
    return {text(row[0]): [text(cell) for cell in row[1:]] for row in node.iter(f"{SPACE}tr")}


def change(folder, **update):
    """Write other values into comparison.json, with a hash that fits."""
    values = read_sealed(folder / "comparison.json")
    write_sealed(folder / "comparison.json", values | update)


def test_the_page_is_well_formed_and_says_everything_in_order(html):
    root = tree(html)
    assert [text(one) for one in root.iter(f"{SPACE}h2")] == ORDER
    assert text(next(root.iter(f"{SPACE}h1"))).startswith("srrl helps: ")
    assert "Not shown" not in html
    assert len(html.encode()) < 3e6


def test_the_page_asks_for_nothing(html):
    asked = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')]*)""", html)
    assert len(asked) > 12
    assert all(one.startswith(("data:", "#")) for one in asked)
    assert not {one.tag for one in tree(html).iter()} & {f"{SPACE}{tag}" for tag in ("script", "object", "iframe")}
    assert "@import" not in html


def test_every_figure_has_a_caption_a_text_alternative_and_its_numbers(html):
    figures = list(tree(html).iter(f"{SPACE}figure"))
    assert len(figures) == 9
    for figure in figures:
        images = [one for one in figure.iter() if one.get("role") == "img"]
        assert images
        assert all(len(one.get("aria-label")) > 20 for one in images)
        assert len(text(figure.find(f"{SPACE}figcaption"))) > 40
        assert len(list(figure.find(f"{SPACE}details").iter(f"{SPACE}tr"))) > 2


def test_the_numbers_of_the_page_are_those_of_the_result(html, whole):
    result = comparisons.read(whole)
    shown = rows(section(html, "differences"))
    table = section(html, "arms")
    first, costs = list(table.iter(f"{SPACE}table"))
    for arm in result.arms:
        mean, deviation = 100 * arm.headline.mean, 100 * arm.headline.deviation
        epochs, accuracy, against, difference, interval, _, verdict = rows(first)[arm.arm]
        assert (epochs, accuracy) == (str(arm.epochs), f"{mean:.2f} ± {deviation:.2f}")
        assert rows(costs)[arm.arm][0] == "78,000"
        if arm.alone is not None:
            found = arm.alone.judged.paired
            signed = [f"{100 * value:+.2f}".replace("-", MINUS) for value in arm.alone.differences]
            assert shown[arm.arm][1:7] == signed
            assert against == arm.alone.arm == ("alone@2x" if arm.arm == "fitnets" else "alone")
            assert difference == f"{100 * found.mean:+.2f}".replace("-", MINUS)
            assert interval == f"{100 * found.interval.low:+.2f} to {100 * found.interval.high:+.2f}".replace(
                "-", MINUS
            )
            assert verdict == arm.alone.judged.verdict
    known = {one.arm: one for one in result.learned.networks}
    changes = rows(section(html, "classes"))
    signed = [f"{100 * known[arm].class_change[7]:+.1f}".replace("-", MINUS) for arm in ("teacher", "kd")]
    assert [changes["7"][1], changes["7"][2]] == signed
    calibration = rows(list(section(html, "calibration").iter(f"{SPACE}table"))[-1])
    assert calibration["srrl"][0] == f"{100 * known['srrl'].calibration.before.ece:.2f}"
    deferral = rows(list(section(html, "deferral").iter(f"{SPACE}table"))[-1])
    assert deferral["srrl"][2] == f"{100 * known['srrl'].deferral.test.accuracy:.2f}"


def test_every_method_is_shown_with_the_student_alone_that_it_is_compared_with(html):
    said = {text(one) for one in section(html, "differences").iter(f"{SPACE}text")}
    assert {"fitnets", "vs alone@2x", "vs alone"} <= said
    panels = [one for one in section(html, "curves").iter(f"{SPACE}svg") if one.get("role") == "img"]
    titles = [[text(one) for one in panel.iter(f"{SPACE}text")][-1] for panel in panels]
    assert titles == ["kd vs alone", "fitnets vs alone@2x", "srrl vs alone"]
    assert panels[1].get("aria-label").startswith("alone@2x: accuracy, % from ")


def test_a_network_has_one_colour_on_the_whole_page(html):
    colour = "var(--c3)"  # srrl's, as the third method
    assert next(section(html, "pictures").iter(f"{SPACE}ol")).get("style") == f"--student: {colour}"
    for name in ("differences", "costs", "curves", "calibration", "features", "deferral"):
        assert colour in "".join(one.get("style", "") for one in section(html, name).iter())
    colours = {part for one in section(html, "classes").iter() for part in re.findall(r"--c\d", one.get("style", ""))}
    assert not colours


def test_the_images_are_those_with_the_greatest_difference(html):
    data = example.load(**example.DATA)
    taught, learned = (
        example.torch.from_numpy(example.outputs(arm, 0, data.test)).double().softmax(1) for arm in ("teacher", "srrl")
    )
    middle = (taught + learned) / 2
    apart = sum((one * (one / middle).log()).sum(1) for one in (taught, learned))
    first = int(apart.argmax())
    images = list(section(html, "pictures").iter(f"{SPACE}img"))
    assert len(images) == 12
    assert images[0].get("alt") == f"test image {first}, of class {int(data.test.targets[first])}"
    row = rows(next(section(html, "pictures").iter(f"{SPACE}li")))[f"{int(taught[first].argmax())} ✓"]
    assert row == [f"{100 * one[first, taught[first].argmax()]:.1f}" for one in (taught, learned)]


def test_the_same_folder_gives_the_same_page_and_the_settings_of_matplotlib_stay(whole, html):
    with matplotlib.rc_context({"font.size": 40, "axes.grid": False}):
        before = dict(matplotlib.rcParams)
        assert page(read(whole)) == html
        assert dict(matplotlib.rcParams) == before


def test_names_are_text(compared):
    for file in compared.glob("*/environment.json"):
        write_sealed(file, {"cpu": "half a pair: \ud800"})
    result = comparisons.read(compared)
    name = "<script>alert(1)</script> $x^2$ \x07 &amp;"
    classes = (name, "$x^2$ <b>", *result.learned.classes[2:])
    write_sealed(
        compared / "comparison.json",
        plain(replace(result, name=name, learned=replace(result.learned, classes=classes))),
    )
    html = page(read(compared))
    root = tree(html)
    assert not list(root.iter(f"{SPACE}script"))
    assert "<script" not in html
    assert "half a pair: \\ud800" in html
    assert "<script>alert(1)</script> $x^2$ \\x07 &amp;" in text(next(root.iter(f"{SPACE}header")))
    drawn = {text(one) for one in section(html, "classes").iter(f"{SPACE}text")}
    assert {"<script>ale… &amp;", "$x^2$ <b>"} <= drawn


def test_the_recipe_of_the_page_makes_the_comparison_again(html, tmp_path):
    made = section(html, "again")
    command, recipe = (
        text for text in ("".join(one.itertext()) for one in made.iter(f"{SPACE}code")) if "\n" in text or " " in text
    )
    assert command.startswith("limbeck compare recipe.yaml --out ")
    (tmp_path / "recipe.yaml").write_text(recipe)
    again = read_recipe(tmp_path / "recipe.yaml")
    assert [block["name"] for block in again.methods] == ["kd", "fitnets", "srrl"]
    assert (again.seeds, again.baseline, again.data.source) == (tuple(range(6)), True, "digits")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def without_test(path):
    outputs = load_file(path)
    save_file({"validation": outputs["validation"]}, path)
    result = path.parent / "result.json"
    values = read_sealed(result)
    write_sealed(result, values | {"files": values["files"] | {path.name: file_record(path)}})


def edit(path):
    path.write_text(path.read_text().replace("epochs: ", "epochs: 1"))


DAMAGE = {  # a file of the folder, how it is damaged, and the section that says so
    "changed outputs": ("srrl-seed0/srrl/seed0/outputs.safetensors", flip, "pictures"),
    "no test outputs": ("srrl-seed0/srrl/seed0/outputs.safetensors", without_test, "pictures"),
    "no teacher": ("teacher-seed0/teacher/seed0/result.json", Path.unlink, "pictures"),
    "changed log": ("kd-seed1/metrics.jsonl", flip, "curves"),
    "no log": ("kd-seed1/metrics.jsonl", Path.unlink, "curves"),
    "changed weights": ("kd-seed1/kd/seed1/student.safetensors", flip, "curves"),
    "changed maps": ("maps.safetensors", flip, "features"),
    "no maps": ("maps.safetensors", Path.unlink, "features"),
    "changed recipe": ("alone-seed0/recipe.yaml", edit, "again"),
    "no environment": ("srrl-seed1/environment.json", Path.unlink, "again"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_not_shown_and_the_page_says_why(compared, undrawn, name):
    file, damage, part = DAMAGE[name]
    damage(compared / file)
    html = page(read(compared))
    assert "ot shown: " in text(section(html, part)) or "is not shown" in text(section(html, part))
    assert str(compared) in text(section(html, part))
    if part == "pictures":
        assert not list(section(html, part).iter(f"{SPACE}img"))


def test_the_images_of_a_teacher_that_was_given(compared, undrawn):
    """Its outputs are in the folder of the comparison, because it has no folder of its own."""
    path = compared / "outputs.safetensors"
    before = section(page(read(compared)), "pictures")
    shutil.move(compared / "teacher-seed0" / "teacher" / "seed0" / "outputs.safetensors", path)
    shutil.rmtree(compared / "teacher-seed0")
    learned = read_sealed(compared / "comparison.json")["learned"]
    change(compared, learned=learned | {"teacher_outputs_sha256": file_record(path)["sha256"]})
    assert text(section(page(read(compared)), "pictures")) == text(before)
    flip(path)
    assert f"{path} is damaged or of another comparison" in text_of_pictures(compared)


def test_a_network_that_was_trained_again_is_not_shown_with_the_old_result(compared, undrawn, monkeypatch):
    shutil.rmtree(compared / "srrl-seed0")
    monkeypatch.setitem(example.SKILL, "srrl", 9.0)
    data = example.load(**example.DATA)
    recipe = (compared / "kd-seed0" / "recipe.yaml").read_text()
    example.written(compared / "srrl-seed0", example.network("srrl", 0, data, 0), data, recipe, None)
    html = page(read(compared))
    assert "trained again" in text(section(html, "pictures"))
    assert "trained again" in text(section(html, "curves"))


def test_other_data_gives_no_images(whole, undrawn):
    data = example.load("digits", validation=0.25, limit=100)
    assert "the test split has changed" in text(section(page(read(whole), data), "pictures"))


@pytest.mark.parametrize("block", ["{}", "folder\n  path: .\n  transform: {}"])
def test_a_report_runs_no_code_of_a_recipe(compared, undrawn, tmp_path, block):
    ran = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"open({str(ran)!r}, 'w')\ndef data(): ...\n")
    for recipe in compared.glob("*/recipe.yaml"):
        recipe.write_text(
            recipe.read_text().replace("source: digits", "source: " + block.format(f"{tmp_path}/mine.py:data"))
        )
    seal_again(compared)
    html = page(read(compared))
    assert "a report runs no code" in text(section(html, "pictures"))
    assert not ran.exists()


def seal_again(folder):
    """Write hashes of the changed recipes."""
    for file in folder.glob("*/*/*/result.json"):
        recipe = (file.parents[2] / "recipe.yaml").read_bytes()
        write_sealed(file, read_sealed(file) | {"recipe": sha256(recipe).hexdigest()})


def test_a_damaged_or_absurd_result_gives_an_error_and_no_page(compared, tmp_path):
    with pytest.raises(LimbeckError, match=r"neither comparison\.json nor result\.json"):
        write_report(tmp_path)
    with pytest.raises(LimbeckError, match="there is no folder"):
        write_report(tmp_path / "none")
    values = json.loads((compared / "comparison.json").read_text())
    values["arms"][0]["headline"]["mean"] = float("nan")
    change(compared, arms=values["arms"])
    with pytest.raises(LimbeckError, match=r"result\.arms\.0\.headline\.mean is nan"):
        write_report(compared)
    flip(compared / "comparison.json")
    with pytest.raises(LimbeckError, match=r"comparison\.json is damaged"):
        write_report(compared)
    assert not (compared / "report.html").exists()


def test_maps_of_other_classes_and_texts_without_end_are_not_shown(compared, undrawn):
    maps = read_maps(compared, read_sealed(compared / "comparison.json")["learned"]["maps_sha256"])
    known = write_maps(compared, replace(maps, labels=maps.labels + 5))
    learned = read_sealed(compared / "comparison.json")["learned"]
    nested = {"cpu": "x" * 10_000, "deep": json.loads("[" * 400 + "]" * 400)}
    write_sealed(compared / "alone-seed0" / "environment.json", nested)
    change(compared, learned=learned | {"maps_sha256": known})
    html = page(read(compared))
    assert "other classes or samples" in text(section(html, "features"))
    assert "x" * 500 + "…" in html
    assert "x" * 501 not in html
    change(compared, name="x" * 10_001)
    with pytest.raises(LimbeckError, match=r"result\.name has 10,001 characters"):
        write_report(compared)


def test_figures_that_are_not_those_of_the_networks_are_refused(compared):
    values = read_sealed(compared / "comparison.json")
    values["arms"][0]["headline"]["mean"] += 0.01
    change(compared, arms=values["arms"])
    with pytest.raises(LimbeckError, match="the mean of alone is not that of its networks"):
        write_report(compared)
    values = read_sealed(compared / "comparison.json")
    values["arms"][0]["headline"]["mean"] -= 0.01
    values["arms"][1]["alone"]["differences"][0] = 0.5
    change(compared, arms=values["arms"])
    with pytest.raises(LimbeckError, match="the differences of kd to alone are not those"):
        write_report(compared)
    change(
        compared, arms=read_sealed(compared / "comparison.json")["arms"], teachers={**values["teachers"], "mean": 0.5}
    )
    with pytest.raises(LimbeckError, match="the mean of the teacher is not that of its network"):
        write_report(compared)


def test_figures_of_classes_that_do_not_fit_are_refused(compared):
    learned = read_sealed(compared / "comparison.json")["learned"]
    change(compared, learned=learned | {"classes": learned["classes"][:9]})
    with pytest.raises(LimbeckError, match="does not fit"):
        write_report(compared)


def test_accuracies_of_corrupted_images_without_that_of_the_clean_ones_are_refused(compared):
    learned = read_sealed(compared / "comparison.json")["learned"]
    networks = [one | {"clean_accuracy": None} for one in learned["networks"]]
    change(compared, learned=learned | {"networks": networks})
    with pytest.raises(LimbeckError, match=r"what .* learned does not fit the other figures"):
        write_report(compared)


def test_arms_that_are_no_names_of_folders_and_too_many_arms_are_refused(compared):
    values = read_sealed(compared / "comparison.json")
    runs = [run | {"arm": "../kd"} if run["arm"] == "kd" else run for run in values["runs"]]
    change(compared, runs=runs)
    with pytest.raises(LimbeckError, match=r"the arm '\.\./kd'"):
        write_report(compared)
    change(compared, arms=[values["arms"][0]] * 101)
    with pytest.raises(LimbeckError, match="101 arms"):
        write_report(compared)


def test_data_that_is_not_there_is_not_downloaded(compared, undrawn, monkeypatch):
    for recipe in compared.glob("*/recipe.yaml"):
        text = recipe.read_text().replace("source: digits", "source: mnist\n  download: true")
        recipe.write_text(text.replace("root: null", f"root: {compared}"))
    seal_again(compared)
    monkeypatch.setattr("torchvision.datasets.MNIST", lambda *_, **__: pytest.fail("downloads"))
    assert "Not shown: " in text_of_pictures(compared)


def text_of_pictures(folder):
    return text(section(page(read(folder)), "pictures"))


def test_a_comparison_without_what_was_learned_says_so(compared, undrawn):
    change(compared, learned=None)
    html = page(read(compared))
    assert "Not shown" in text(section(html, "learned"))
    assert len(list(section(html, "pictures").iter(f"{SPACE}img"))) == 12


def test_a_run_has_the_same_page_with_what_it_has(tmp_path):
    result = example.write_run(tmp_path / "run")
    html = page(read(tmp_path / "run"))
    assert [text(one) for one in tree(html).iter(f"{SPACE}h2")] == [*ORDER[:4], ORDER[-1]]
    assert text(next(tree(html).iter(f"{SPACE}h1"))).startswith("No verdict, because 3 seeds cannot show")
    gain = result.summary["kd"].better_than_alone
    assert rows(section(html, "arms"))["kd"][0] == "78,000"
    first = rows(next(section(html, "arms").iter(f"{SPACE}table")))
    assert first["kd"][:4] == ["6", first["kd"][1], "alone", f"{100 * gain.mean:+.2f}"]
    assert f"limbeck run {tmp_path / 'run' / 'recipe.yaml'}" in text(section(html, "again"))


def test_a_figure_is_written_as_an_svg_of_its_own(compared):
    path = compared / "cost-parameters.svg"
    found = CliRunner().invoke(app, ["report", str(compared), "--figure", "cost-parameters"])
    assert found.output.split() == ["written:", str(path)]
    svg = path.read_text()
    root = ET.fromstring(svg)
    assert (root.tag, root.get("width"), root.get("height")) == ("{http://www.w3.org/2000/svg}svg", "400", "300")
    assert "srrl" in text(root)
    assert "var(" not in svg
    assert "@media (prefers-color-scheme: dark)" in svg
    failed = CliRunner().invoke(app, ["report", str(compared), "--figure", "difference"])
    assert failed.exit_code == 2
    assert "did you mean 'differences'?" in failed.output


def test_the_command_writes_the_page_into_the_folder(compared, undrawn):
    found = CliRunner().invoke(app, ["report", str(compared)])
    assert found.exit_code == 0, found.output
    assert found.output.split() == ["written:", str(compared / "report.html")]
    assert (compared / "report.html").read_text() == page(read(compared))
    failed = CliRunner().invoke(app, ["report", str(compared / "kd-seed0")])
    assert failed.exit_code == 2
