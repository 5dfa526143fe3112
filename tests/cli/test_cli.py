"""The command line as a user meets it."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import replace
from email.message import Message
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from urllib.error import HTTPError

import pytest
import torch
from safetensors.torch import load_file
from typer import Exit
from typer.testing import CliRunner

import limbeck
from limbeck.cli import app, catalogue, run
from limbeck.cli.recipe_options import Asked
from limbeck.cli.reporting import reporting
from limbeck.errors import LimbeckError
from limbeck.evaluate import parameters
from limbeck.experiment import results
from limbeck.experiment.run import Experiment
from limbeck.files.alone import alone
from limbeck.files.atomic import NoSpace, read_sealed, write_sealed
from limbeck.methods import ABOUT, METHODS
from limbeck.methods.about import About
from limbeck.models import Ensemble, load_network
from limbeck.train.processes import ONE

RECIPE = """\
name: tiny
precision: 32
data: {source: digits, limit: 64}
teacher:
  model: {name: mlp, hidden: [16]}
  train: {epochs: 1, batch_size: 32}
student:
  model: {name: mlp, hidden: [8]}
method: kd
train: {epochs: 1, batch_size: 32}
evaluate: {latency_runs: 1}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    Path("recipe.yaml").write_text(RECIPE)


def limbeck_does(*arguments, code=0):
    """What a command prints, both streams together."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def runs(*arguments, recipe="recipe.yaml", code=0):
    return limbeck_does("run", recipe, *arguments, code=code)


def changed(*settings):
    return [argument for setting in settings for argument in ("--set", setting)]


def result_of(folder):
    return results.read(Path(folder))


def same_weights(one, other):
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ("demo", "plan", "run", "report", "compress", "runs", "methods", "models", "taps", "doctor", "--version")),
        ([], ("export", "bench-export")),
        (["demo"], ("--out", "runs/demo")),
        (
            ["run"],
            (
                "RECIPE",
                "--set",
                "--seed",
                "--smoke",
                "--resume",
                "--overwrite",
                "--out",
                "--data-root",
                "--allow",
                "--trust-code",
                "--log",
            ),
        ),
        (["tune"], ("RECIPE", "--method", "--trials", "--search", "--seed", "--jobs")),
        (["runs"], ("FOLDER", "--json")),
        (
            ["compress"],
            ("FOLDER", "--network", "--quality", "--keep", "--bits", "--epochs", "--centroid-epochs", "--alone"),
        ),
        (
            ["export"],
            ("FOLDER", "--to", "--fp16", "--int8", "--batch", "--layout", "--probabilities", "--defer-share", "--size"),
        ),
        (["bench-export"], ("EXPORTS", "size", "latency", "peak memory")),
        (
            ["plan"],
            ("RECIPE", "--set", "--seed", "--smoke", "--json", "--out", "--data-root", "--allow", "--trust-code"),
        ),
        (["reproduce"], ("CLAIMS", "--scale", "--out", "--write", "--data-root")),
        (["methods"], ("NAME",)),
        (["models"], ("PATTERN",)),
        (["taps"], ("MODEL", "--shape", "--classes", "--set")),
        (["doctor"], ("precision",)),
    ],
)
def test_every_command_has_help(command, words):
    shown = limbeck_does(*command, "--help")
    assert all(word.lower() in shown.lower() for word in ("Usage:", *words))


def test_without_a_command_the_help_is_shown():
    assert "Usage:" in limbeck_does(code=2)


def test_the_version_is_told():
    assert limbeck_does("--version") == f"limbeck {limbeck.__version__}\n"


HELP = ("--help", "run --help", "--version")
MISTAKES = (
    "run recipe.yaml --set train.epoch=3",
    "run recipe.yaml --set train.epochs",
    "run recipe.yaml --allow chanc",
    "run recipe.yaml --set teacher.weights=none.pt --set teacher.train=null",
    "run recipe.yaml --set student.model=timn:resnet18",
    "run recipe.yaml --resume --overwrite",
    "run recpe.yaml",
    "tune recipe.yaml --method srr",
    "plan recipe.yaml --set train.epoch=3",
    "run digit_kd",
    "cache build recipe.yaml --set method=dk",
    "cache verify recipe.yaml --set method=dk",
    "cache info recipe.yaml --set method=dk",
)
WITHOUT_TORCH = """
import contextlib, io, json, sys
from limbeck.cli import app
for command in sys.argv[1:]:
    code = None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            app(command.split())
        except SystemExit as end:
            code = end.code
    slow = sorted({"torch", "numpy", "sklearn", "timm", "PIL"} & set(sys.modules))
    print(json.dumps([command, code, errors.getvalue(), slow]))
"""


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """Exit code, errors and slow imports of each command so far: one process runs all of them."""
    folder = tmp_path_factory.mktemp("without_torch")
    (folder / "recipe.yaml").write_text(RECIPE)
    command = [sys.executable, "-c", WITHOUT_TORCH, *HELP, *MISTAKES]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    return {command: rest for command, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("command", HELP)
def test_help_does_not_wait_for_torch(command, without_torch):
    code, _, slow = without_torch[command]
    assert (code, slow) == (0, [])


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_in_a_recipe_is_told_before_torch_is_imported(command, without_torch):
    code, errors, slow = without_torch[command]
    assert (code, slow) == (2, [])
    assert errors.startswith("error: ")


def test_a_terminal_shows_that_pytorch_is_loaded_to_look_up_a_network(monkeypatch):
    shown = []

    @contextmanager
    def loading():
        shown.append("loading")
        yield
        shown.append("loaded")

    monkeypatch.setattr("limbeck.cli.terminal.loading", loading)
    monkeypatch.setattr("limbeck.models.foreign.check_name", shown.append)
    Asked(Path("recipe.yaml"), ["student.model=timm:resnet18"]).checked()
    assert shown == ["loading", "timm:resnet18", "loaded"]


def test_python_runs_limbeck_as_a_module():
    done = subprocess.run([sys.executable, "-m", "limbeck", "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"limbeck {limbeck.__version__}\n"


def test_an_unknown_command_is_refused():
    assert "No such command" in limbeck_does("rnu", code=2)


@pytest.fixture
def quick_demo(monkeypatch, tmp_path):
    """The demo's recipe, small enough for a test."""
    file = tmp_path / "digits_kd.yaml"
    file.write_text(RECIPE.replace("name: tiny", "name: digits_kd"))
    monkeypatch.setattr("limbeck.recipe.bundled.bundled", lambda name, asked=None: file)


@pytest.mark.usefixtures("quick_demo")
def test_the_demo_shows_teacher_alone_and_student():
    shown = limbeck_does("demo")
    assert "demo: 64 training" in shown
    assert "written: runs/demo/result.json and runs/demo/student.safetensors" in shown
    assert shown.endswith("written: runs/demo/report.html\n")
    assert Path("runs/demo/report.html").is_file()
    assert result_of("runs/demo").name == "demo"


@pytest.mark.usefixtures("quick_demo")
def test_a_second_demo_replaces_the_first_and_nothing_else():
    limbeck_does("demo", "--out", "here")
    first = (Path("here") / "metrics.jsonl").read_text()
    (Path("here") / "notes.txt").write_text("mine")
    (Path("here") / "alone" / "seed7").mkdir()
    (Path("here") / "result.json").write_text("old")
    limbeck_does("demo", "--out", "here")
    assert result_of("here").name == "demo"
    assert len((Path("here") / "metrics.jsonl").read_text().splitlines()) == len(first.splitlines())
    assert not (Path("here") / "alone" / "seed7").exists()
    assert (Path("here") / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("quick_demo")
@pytest.mark.parametrize("name", ["mine", "digits_kd", "my_demo"])
def test_the_demo_never_deletes_the_run_of_another_recipe(name):
    runs("--out", "runs/demo", *changed(f"name={name}", "teacher.seed=0"))
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    assert "runs/demo already holds a run" in limbeck_does("demo", code=2)
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before


def test_the_demos_recipe_is_there():
    shown = limbeck_does("run", "digits_kd", "--smoke")
    assert "digits_kd-smoke: 256 training" in shown
    assert result_of("runs/digits_kd-smoke").seeds == (0,)


def test_one_of_our_recipes_is_found_by_the_path_it_has_in_the_repository():
    shown = limbeck_does("run", "recipes/digits_kd.yaml", "--smoke")
    assert "digits_kd-smoke" in shown


def test_a_recipe_beside_the_user_wins_over_ours_of_the_same_name():
    Path("digits_kd.yaml").write_text(RECIPE)
    assert "tiny: 64 training" in runs(recipe="digits_kd.yaml")


def test_a_run_writes_what_it_says():
    shown = runs()
    assert "tiny: 64 training, 64 validation and 64 test samples of 10 classes; on cpu in" in shown
    for job in ("teacher/seed0", "alone/seed0", "kd/seed0"):
        assert f"{job}: test accuracy" in shown
    assert "written: runs/tiny/result.json and runs/tiny/student.safetensors" in shown
    names = {path.relative_to("runs/tiny").as_posix() for path in Path("runs/tiny").rglob("*") if path.is_file()}
    assert names == {
        ".lock",
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoint/last.pt",
        "teacher/seed0/teacher.safetensors",
        "teacher/seed0/result.json",
        "alone/seed0/student.safetensors",
        "alone/seed0/result.json",
        "kd/seed0/student.safetensors",
        "kd/seed0/result.json",
        "student.safetensors",
        "result.json",
    }


def test_set_and_seed_change_the_recipe_and_out_the_folder():
    runs("--seed", 7, "--out", "elsewhere/x", *changed("train.epochs=3", "method.temperature=2", "baseline=false"))
    assert not Path("runs").exists()
    result = result_of("elsewhere/x")
    assert (result.student.seed, result.seeds, result.alone) == (7, (7,), None)
    lines = [json.loads(line) for line in Path("elsewhere/x/metrics.jsonl").read_text().splitlines()]
    assert [(line["job"], line["epoch"]) for line in lines] == [("teacher/seed7", 1)] + [
        ("kd/seed7", epoch) for epoch in (1, 2, 3)
    ]
    assert "temperature: 2.0" in Path("elsewhere/x/recipe.yaml").read_text()


def test_smoke_is_a_run_of_its_own_beside_the_whole_one():
    runs()
    shown = runs("--smoke", *changed("seeds=[3,4]", "train.epochs=9"))
    assert "tiny-smoke: " in shown
    assert result_of("runs/tiny-smoke").seeds == (3,)
    assert result_of("runs/tiny").seeds == (0,)


def test_a_smoke_test_replaces_the_one_before_and_no_other_run():
    runs("--smoke")
    runs("--smoke", *changed("method.temperature=2"))
    assert "temperature: 2.0" in Path("runs/tiny-smoke/recipe.yaml").read_text()
    assert "already holds a run" in runs("--smoke", "--out", "runs/tiny-smoke", *changed("name=other"), code=2)
    assert "cannot be resumed" in runs("--smoke", "--resume", code=2)
    runs("--smoke", *changed("train.epochs=2"))
    runs("--smoke")  # of fewer epochs
    runs("--overwrite", *changed("name=tiny-smoke", "data.limit=300"))  # not a smoke test
    assert "already holds a run" in runs("--smoke", code=2)


def test_a_resumed_run_says_that_its_precision_was_decided_before():
    runs(*changed("precision=auto"))
    assert "(as decided when the run began)" in runs("--resume", *changed("precision=auto"))


def test_a_finished_run_that_is_resumed_trains_nothing_and_says_the_same():
    runs(*changed("seeds=[0,1]"))
    before = result_of("runs/tiny")
    files = [path for path in Path("runs/tiny").rglob("*") if path.suffix in (".safetensors", ".jsonl")]
    kept = {path: path.read_bytes() for path in files}
    shown = runs("--resume", *changed("seeds=[0,1]"))
    assert shown.count("(not trained in this run): test accuracy") == 6
    assert "going on" not in shown
    assert result_of("runs/tiny") == before
    assert {path: path.read_bytes() for path in files} == kept


def test_resume_in_a_new_folder_begins_a_run():
    assert "written: fresh/result.json" in runs("--resume", "--out", "fresh")


def test_a_path_that_the_system_refuses_is_told_without_its_error_number():
    shown = runs("--out", "x" * 300, code=2)
    assert shown == f"error: {'x' * 300}: File name too long\n"


def test_a_failed_download_is_told_with_its_reason(capsys):
    with pytest.raises(Exit), reporting():
        raise HTTPError("https://example.org/data", 404, "Not Found", Message(), None)
    assert capsys.readouterr().err == "error: HTTP Error 404: Not Found\n"


def test_a_folder_with_brackets_in_its_name_is_fine():
    assert "written: runs[/x]/[red]/result.json" in runs("--out", "runs[/x]/[red]")


def test_the_data_root_is_taken_as_it_is_written():
    for name in ("2024", "a # b", "x: y"):
        Path(name).mkdir()
        runs("--data-root", name, "--out", f"out {name}")
        assert Experiment(limbeck_recipe(f"out {name}/recipe.yaml"), Path("no")).recipe.data.root == str(
            Path(name).absolute()
        )


def limbeck_recipe(path):
    from limbeck.recipe.read import read

    return read(Path(path))


def test_ctrl_c_says_how_to_go_on(monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_run", interrupted)
    arguments = (*changed("name=it's"), "--seed", 3, "--smoke", "--out", "a b", "--data-root", ".")
    Path("my recipe.yaml").write_text(RECIPE)
    assert "To resume: limbeck run digits_kd --set name=demo --out runs/demo" in limbeck_does("demo", code=130)
    shown = limbeck_does("run", "my recipe.yaml", *changed("train.epochs=2"), *arguments[2:], code=130)
    assert shown.strip().endswith(
        "To resume: limbeck run 'my recipe.yaml' --set train.epochs=2 --seed 3 --smoke --out 'a b' --data-root . "
        "--resume"
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_message_and_code_3_with_how_to_go_on(monkeypatch, number):
    def full(*arguments, **options):
        raise OSError(number, "No space left on device", "runs/tiny/metrics.jsonl")

    monkeypatch.setattr(run, "_run", full)
    shown = limbeck_does("run", "recipe.yaml", "--allow", "chance", "--trust-code", "--log", "csv", code=3)
    assert shown.startswith("error: the disk is full: ")
    assert "runs/tiny/metrics.jsonl" in shown
    assert "To resume: limbeck run recipe.yaml --allow chance --trust-code --log csv --resume" in shown


def test_a_run_also_logs_where_it_is_asked_to():
    runs("--log", "csv", "--set", "train.keep=best", "--set", "data.validation=0.5")
    jobs = [line.partition(",")[0] for line in Path("runs/tiny/metrics.csv").read_text().splitlines()]
    assert jobs == ["job", "teacher/seed0", "alone/seed0", "kd/seed0"]
    assert "did you mean 'csv'?" in runs("--log", "cvs", code=2)


def test_an_error_ends_the_command_with_its_own_code(monkeypatch):
    def full(*arguments, **options):
        raise NoSpace("no room for the checkpoint")

    monkeypatch.setattr(run, "_run", full)
    shown = limbeck_does("run", "recipe.yaml", code=3)
    assert "error: no room for the checkpoint" in shown
    assert "Free some disk space first. To resume: limbeck run recipe.yaml --resume" in shown


def test_an_error_that_nobody_foresaw_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(run, "_run", lambda *arguments, **options: [][0])
    with pytest.raises(IndexError):
        limbeck_does("run", "recipe.yaml")


def test_the_options_reach_the_experiment(monkeypatch):
    asked = []

    def made(recipe, out, **options):
        assert options.pop("progress") is not None
        assert options.pop("processes", ONE) == ONE
        asked.append((recipe.allow, out, options))
        raise LimbeckError("enough")

    monkeypatch.setattr("limbeck.experiment.run.Experiment", made)
    runs("--overwrite", "--trust-code", "--allow", "chance", "--allow", "random", code=2)
    assert asked.pop() == (
        ("chance", "random"),
        Path("runs/tiny"),
        {"resume": False, "overwrite": True, "trust_code": True},
    )
    for command in ("build", "verify"):
        limbeck_does("cache", command, "recipe.yaml", "--trust-code", "--allow", "shared", code=2)
        assert asked.pop() == (("shared",), Path("runs/tiny"), {"resume": True, "trust_code": True})


def test_overwrite_deletes_the_run_that_the_folder_holds_and_nothing_else():
    runs()
    Path("runs/tiny/notes.txt").write_text("mine")
    before = result_of("runs/tiny")
    changes = changed("train.epochs=2")
    assert "already holds a run" in runs(*changes, code=2)
    runs("--overwrite", *changed("method.temperature=-1"), code=2)
    assert result_of("runs/tiny") == before
    runs("--overwrite", *changes)
    assert Path("runs/tiny/notes.txt").read_text() == "mine"
    lines = [json.loads(line) for line in Path("runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert [line["job"] for line in lines].count("kd/seed0") == 2


def test_a_run_in_whose_folder_another_process_trains_is_refused_and_deletes_nothing(monkeypatch):
    runs()
    before = result_of("runs/tiny")
    monkeypatch.setattr("limbeck.files.alone.PATIENCE", 0.1)
    with alone(Path("runs/tiny")):
        for option in ("--overwrite", "--resume"):
            assert "a training is running in runs/tiny" in runs(option, code=2)
    assert result_of("runs/tiny") == before


def test_overwrite_and_resume_are_not_asked_for_together():
    assert "--resume needs the run that --overwrite deletes" in runs("--overwrite", "--resume", code=2)


def test_a_run_that_diverges_ends_with_code_3():
    shown = limbeck_does("run", "recipe.yaml", *changed("train.optimizer={name: sgd, lr: 1e30}"), code=3)
    assert "error: stage 'alone', epoch" in shown
    assert "lower the learning rate" in shown


def test_a_student_learns_without_a_teacher():
    Path("recipe.yaml").write_text(
        "name: lone\ndata: {source: digits, limit: 64}\nstudent: {model: {name: mlp, hidden: [8]}}\n"
        "method: alone\ntrain: {epochs: 1}\nevaluate: {latency_runs: 1}\n"
    )
    shown = runs()
    assert "fewer errors" not in shown
    result = result_of("runs/lone")
    assert result.teacher is None
    assert result.student.arm == result.alone.arm == "alone"
    assert result.student.test.agreement is None


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
@pytest.mark.parametrize("method", ["kd", "logits"])
def test_an_ensemble_teaches(mean, method):
    runs(*changed("teacher.members=2", f"teacher.mean={mean}", f"method={method}", "seeds=[0,1]"))
    result = result_of("runs/tiny")
    members = [f"runs/tiny/member/seed0-{number}/teacher.safetensors" for number in (0, 1)]
    networks = [load_network(Path(member))[0].eval() for member in members]
    assert not same_weights(*members)
    assert result.teacher.parameters == parameters(Ensemble(networks, mean))
    data = limbeck.load("digits", limit=64)
    inputs = limbeck.data.normalise(data.test.inputs, data.mean, data.std)
    with torch.no_grad():
        predicted = Ensemble(networks, mean)(inputs).argmax(dim=1)
    assert result.teacher.test.errors == int((predicted != data.test.targets).sum())
    assert [run.arm for run in result.runs] == 2 * ["member", "member", "teacher", "alone", method]
    assert set(result.summary) == {"teacher", "alone", method}


def test_an_ensemble_is_resumed():
    settings = changed("teacher.members=2")
    runs(*settings)
    before = result_of("runs/tiny")
    shown = runs("--resume", *settings)
    assert shown.count("(not trained in this run)") == 4
    assert result_of("runs/tiny") == before


def test_a_teacher_comes_from_a_file_or_a_run_folder():
    runs("--out", "first", *changed("teacher.train.epochs=4"))
    trained = result_of("first").teacher.test
    file = "first/teacher/seed0/teacher.safetensors"
    for number, (weights, model) in enumerate([(file, True), (file, False), ("first/teacher/seed0", False)]):
        gone = ["teacher.train=null", "allow=[chance]", *([] if model else ["teacher.model=null"])]
        shown = runs("--out", f"again{number}", *changed(f"teacher.weights={weights}", *gone))
        assert "teacher/seed0 (not trained in this run): test accuracy" in shown
        assert result_of(f"again{number}").teacher.test == trained
        assert same_weights(f"again{number}/student.safetensors", "again0/student.safetensors")
    assert not Path("again0/teacher").exists()


def test_a_student_becomes_the_next_teacher():
    runs("--out", "first")
    runs("--out", "second", *changed("teacher={weights: first}", "allow=[chance]"))
    student = result_of("first").student.test
    assert result_of("second").teacher.test == replace(student, agreement=None, kl_to_teacher=None)


def test_a_list_of_files_is_an_ensemble():
    runs("--out", "first", *changed("seeds=[0,1]"))
    files = [f"first/teacher/seed{seed}/teacher.safetensors" for seed in (0, 1)]
    runs("--out", "second", *changed(f"teacher={{weights: [{', '.join(files)}], mean: geometric}}", "allow=[chance]"))
    one = result_of("first").teacher
    assert result_of("second").teacher.parameters == 2 * one.parameters
    runs("--out", "third", *changed(f"teacher={{weights: ['{files[0]}']}}", "allow=[chance]"))
    assert result_of("third").teacher.test == one.test


def test_the_student_starts_from_a_file():
    runs("--out", "first")
    start = "first/alone/seed0/student.safetensors"
    runs(
        "--out",
        "second",
        *changed(f"student.weights={start}", "train.optimizer={name: sgd, lr: 1e-30}", "baseline=false"),
    )
    assert same_weights("second/student.safetensors", start)


def test_the_student_is_the_users_own_network(tmp_path):
    Path("net.py").write_text(
        "from torch import nn\n"
        "def make(classes, shape, width=8):\n"
        "    size = shape[0] * shape[1] * shape[2]\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU(), nn.Linear(width, classes))\n"
    )
    runs(*changed("student.model='net.py:make'", "method.student_layer='3'"))
    assert result_of("runs/tiny").student.parameters == 64 * 8 + 8 + 8 * 10 + 10
    runs("--out", "wide", *changed("student.model={name: 'net.py:make', width: 5}"))
    assert result_of("wide").student.parameters == 64 * 5 + 5 + 5 * 10 + 10
    network, spec = load_network(Path("wide/student.safetensors"), model="net.py:make")
    assert spec.options == {"width": 5}
    assert network[1].out_features == 5
    runs("--out", "next", *changed("teacher={weights: wide, model: {name: 'net.py:make', width: 5}}", "allow=[chance]"))


def test_methods_are_listed_and_shown_in_full():
    listed = limbeck_does("methods")
    assert all(name in listed for name in METHODS)
    assert max(map(len, listed.splitlines())) <= 100
    page = limbeck_does("methods", "kd")
    for words in (
        "arXiv:1503.02531",
        "temperature: float = 4.0",
        "soft: float | schedule = 0.9",
        "## Presets",
        "- `hinton_mnist`: temperature 20.0",
    ):
        assert words in page
    assert page == catalogue.method_page("kd")


def test_a_methods_page_keeps_its_brackets(monkeypatch):
    def odd(setup, *, layers: tuple[int, ...] = (), share: float = 0.5):
        """Odd: share lies in [a, b]."""
        return METHODS["kd"](setup)

    monkeypatch.setattr(catalogue, "ABOUT", {"odd": About(odd, paper=None)})
    page = limbeck_does("methods", "odd")
    assert "layers: tuple[int, ...] = ()" in page
    assert "share lies in [a, b]" in page
    assert "share lies in [a, b]" in " ".join(limbeck_does("methods").split())


def test_the_pages_and_the_signatures_of_the_methods_are_written(monkeypatch):
    signatures = Path("signatures.json")
    signatures.write_text("those before")
    monkeypatch.setattr("limbeck.recipe.signatures.FILE", signatures)  # not the file of the source tree
    monkeypatch.setattr(catalogue, "ABOUT", {name: ABOUT[name] for name in ("kd", "alone")})
    assert limbeck_does("methods", "--write", "pages") == ""
    assert {file.name: file.read_text() for file in Path("pages").iterdir()} == catalogue.method_pages()
    assert signatures.read_text() == catalogue.signatures()


def test_an_unknown_method_is_refused_with_the_nearest():
    assert "error: there is no method 'fitnet': did you mean 'fitnets'? allowed are ab, alone, " in limbeck_does(
        "methods", "fitnet", code=2
    )


def test_models_are_listed_with_their_parameters():
    everything = limbeck_does("models")
    assert all(name in everything for name in ("mlp", "resnet20", "wrn_16_2", "convnet_small", "convnet_big"))
    some = limbeck_does("models", "resnet*")
    assert "resnet20" in some
    assert "272,474" in some  # of ResNet-20 for CIFAR-10, with projections in none of its shortcuts
    assert "mlp" not in some


def test_a_pattern_that_matches_no_model_is_refused():
    assert "error: no model matches 'nothing': " in limbeck_does("models", "nothing", code=2)
    assert "did you mean 'resnet110'?" in limbeck_does("models", "resnet1100", code=2)


def test_taps_lists_layers_with_their_shapes():
    shown = limbeck_does("taps", "resnet8")
    head = next(line for line in shown.splitlines() if "Linear" in line)
    assert "650" in head.split()[-2:] or "650" in head  # 64 features to 10 classes
    small = limbeck_does("taps", "mlp", *changed("hidden=[8]"), "--shape", "1,8,8", "--classes", 4)
    line = next(line for line in small.splitlines() if line.split()[1:2] == ["head"])
    assert [word for word in line.split() if word.isalnum()] == ["head", "Linear", "4", "36"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mlp"], "the key 'hidden' is missing"),
        (["resnet8", "--shape", "x"], "write --shape C,H,W"),
        (["resnet8", "--shape", ""], "write --shape C,H,W"),
        (["resnet8", "--shape", "0,1"], "got samples of shape (0, 1)"),
        (["resnet8", "--shape", "64"], "a convolutional network needs (C, H, W)"),
        (["convnet_small", "--shape", "3,2,2"], "this network needs at least 8x8"),
        (["resnet88"], "did you mean 'resnet8'?"),
        (["mlp", "--set", "hidden"], "mlp.hidden: got nothing"),
        (["mlp", "--set", "hidden=[8"], "--set option=value"),
        (["net.py:coloured", "--shape", "1,8,8"], "does not run on samples of shape (1, 8, 8)"),
    ],
)
def test_taps_refuses_what_cannot_be_built(arguments, message):
    Path("net.py").write_text("from torch import nn\ndef coloured(): return nn.Conv2d(3, 4, 3)\n")
    shown = limbeck_does("taps", *arguments, code=2)
    assert shown.startswith("error: ")
    assert message in shown


def test_doctor_tells_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    shown = limbeck_does("doctor")
    assert f"{tmp_path} (exists)" in shown
    for words in (version("torch"), "threads", "precision", "device"):
        assert words in shown


def test_doctor_tells_of_a_data_folder_that_is_not_there_yet(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{tmp_path}/.cache/limbeck (does not exist)" in limbeck_does("doctor")


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "30000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_waiting_threads_leave_the_processor_to_others_unless_the_user_says_otherwise(given, found):
    kept = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    code = (
        "import os, sys, limbeck.cli as cli\ncli.main(version=False)\n"
        "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], env=kept | given, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [found, "False"]


def test_a_pattern_without_wildcards_finds_what_contains_it():
    assert "wrn_16_2" in limbeck_does("models", "wrn")


@pytest.mark.parametrize("command", ["build", "verify"])
def test_the_commands_of_the_store_say_which_code_they_run(command):
    Path("net.py").write_text("def make():\n    raise ValueError('it ran')\n")
    printed = limbeck_does("cache", command, "recipe.yaml", *changed("student.model=net.py:make"), code=2)
    assert printed.index("runs the code of net.py (function make)") < printed.index("it ran")


def test_a_run_on_a_users_source_says_and_records_its_code():
    code = """
        import torch
        from limbeck.data import Parts, Split

        def load(*, count: int):
            return Parts(Split(torch.randn(count, 4), torch.arange(count) % 2), classes=("a", "b"))
    """
    Path("mine.py").write_text(textwrap.dedent(code))
    printed = runs(*changed("data={source: 'mine.py:load', count: 40}"))
    assert "runs the code of mine.py (function load)" in printed
    written = Path("runs/tiny/recipe.yaml").read_text()
    assert f" {Path.cwd()}/mine.py:load" in written
    assert "count: 40" in written
    assert f"# mine.py: {sha256(Path('mine.py').read_bytes()).hexdigest()}" in written
    assert "data.cuont of mine.py:load: unknown key 'cuont': did you mean 'count'?" in runs(
        *changed("data={source: 'mine.py:load', cuont: 40}"), "--overwrite", code=2
    )


@pytest.mark.parametrize(
    ("file", "place", "code", "said"),
    [
        ("kd/seed0/result.json", ("parameters",), 2, "contains no results of a network (parameters: "),
        ("kd/seed0/result.json", ("test", "agreement"), 2, "contains no results of a network (test.agreement: "),
        ("result.json", ("teacher", "latency", "median_ms"), 0, "it is written again"),
    ],
)
def test_figures_that_are_no_numbers_give_no_traceback(file, place, code, said):
    runs()
    path = Path("runs/tiny") / file
    values = read_sealed(path)
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = [[1]]
    write_sealed(path, values)
    assert said in runs("--resume", code=code)
