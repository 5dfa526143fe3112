"""Where the figures of a run are shown: csv, and the others with a fake of their package."""

import csv
import sys
import tomllib
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from limbeck.core import LimbeckError
from limbeck.experiment.events import Finished, Job, Started, Trained
from limbeck.experiment.loggers import LOGGERS, _of_events, check_loggers, logged
from limbeck.experiment.run import Experiment
from limbeck.recipe.read import read

RECIPE = """\
name: tiny
data: {source: digits, limit: 64}
teacher: {model: {name: mlp, hidden: [8]}, train: {epochs: 2, batch_size: 32}}
student: {model: {name: mlp, hidden: [8]}}
method: kd
train: {epochs: 3, batch_size: 32}
baseline: false
evaluate: {latency_runs: 1}
precision: 32
"""
KD = Job("kd", 0)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)


def recipe():
    return read(Path("recipe.yaml"))


def events(done=0):
    """Two epochs of a resumed training, in two stages, and its end."""
    yield Started(KD, done, 4)
    for number, validation in ((2, 0.5), (1, None)):
        epoch = SimpleNamespace(
            stage="kd", position=0, number=number, loss=0.5 * number, terms={"hard": 0.25}, images=10, seconds=2.0
        )
        yield Trained(KD, epoch, validation)
    yield Finished(KD, SimpleNamespace(test=SimpleNamespace(accuracy=0.75)), reused=False)
    yield Finished(Job("teacher", 0), SimpleNamespace(test=SimpleNamespace(accuracy=0.5)), reused=True)


def shown(name):
    with logged([name], Path("run"), recipe()) as consume:
        for event in events(done=1):
            consume(event)


def table():
    return list(csv.DictReader(Path("run/metrics.csv").read_text().splitlines()))


def recorded(trial):
    """What is added for the events of a run."""
    added = []
    consume = _of_events(Path("run"), lambda *one: added.append(one))
    for event in trial.run():
        consume(event)
    return added


def fake(monkeypatch, name, **content):
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


EXPECTED = [
    (2, {"loss": 1.0, "images_per_second": 5.0, "terms/hard": 0.25, "validation_accuracy": 0.5}),
    (3, {"loss": 0.5, "images_per_second": 5.0, "terms/hard": 0.25}),
    (3, {"test_accuracy": 0.75}),
]


def test_the_table_has_every_line_of_the_log_and_is_whole_after_an_interruption():
    trial = Experiment(recipe(), Path("run"))

    def interrupted(stop):
        with logged(["csv"], Path("run"), trial.recipe) as consume:
            for event in trial.run():
                consume(event)
                if stop and isinstance(event, Trained) and event.job == KD:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(stop=True)
    rows = table()
    assert [(row["job"], row["epoch"]) for row in rows] == [
        ("teacher/seed0", "1"),
        ("teacher/seed0", "2"),
        ("kd/seed0", "1"),
    ]
    assert (rows[0]["terms.soft"], float(rows[2]["terms.soft"]) > 0) == ("", True)
    trial = Experiment(recipe(), Path("run"), resume=True)
    interrupted(stop=False)
    rows = table()
    assert [row["epoch"] for row in rows] == ["1", "2", "1", "2", "3"]
    Experiment(recipe(), Path("run"), overwrite=True)
    assert not Path("run/metrics.csv").exists()


def test_a_network_that_is_reused_is_logged_with_the_epochs_of_its_training():
    added = recorded(Experiment(recipe(), Path("run")))
    again = recorded(Experiment(recipe(), Path("run"), resume=True))
    assert again == added
    assert [(str(job), number) for job, number, _ in added] == [
        *(("teacher/seed0", number) for number in (1, 2, 2)),
        *(("kd/seed0", number) for number in (1, 2, 3, 3)),
    ]


def test_tensorboard_has_one_run_for_each_network_and_hides_what_is_trained_again(monkeypatch):
    made, closed = {}, []

    class SummaryWriter:
        def __init__(self, folder, *, purge_step):
            made[folder] = self
            self.purged, self.values = purge_step, []

        def __enter__(self):
            return self

        def __exit__(self, *_):
            closed.append(self)

        def add_scalar(self, name, value, step):
            self.values.append((step, name, value))

    fake(monkeypatch, "tensorboard")
    fake(monkeypatch, "torch.utils.tensorboard", SummaryWriter=SummaryWriter)
    shown("tensorboard")
    (writer,) = made.values()
    assert list(made) == [str(Path("run/tensorboard/kd/seed0"))]
    assert (writer.purged, closed) == (2, [writer])
    assert writer.values == [(step, name, value) for step, values in EXPECTED for name, value in values.items()]


def test_wandb_gets_the_recipe_and_names_with_the_network(monkeypatch):
    told = []

    @contextmanager
    def init(**options):
        told.append(options)
        yield SimpleNamespace(
            define_metric=lambda name, step_metric: told.append((name, step_metric)),
            log=lambda values: told.append(values),
        )
        told.append("finished")

    fake(monkeypatch, "wandb", init=init)
    shown("wandb")
    options, metric, *logged_values, end = told
    assert (options["project"], options["name"], options["config"]["train"]["epochs"]) == ("limbeck", "tiny", 3)
    assert metric == ("kd/seed0/*", "kd/seed0/epoch")
    assert logged_values == [
        {f"kd/seed0/{name}": value for name, value in {"epoch": step, **values}.items()} for step, values in EXPECTED
    ]
    assert end == "finished"


def test_mlflow_gets_the_recipe_and_names_that_it_allows(monkeypatch):
    told = []

    @contextmanager
    def start_run(run_name):
        told.append(run_name)
        yield
        told.append("finished")

    fake(
        monkeypatch,
        "mlflow",
        start_run=start_run,
        log_dict=lambda values, file: told.append((values["name"], file)),
        log_metrics=lambda values, step: told.append((step, values)),
    )
    monkeypatch.setattr(sys.modules[__name__], "KD", Job("kd+at", 0))
    shown("mlflow")
    assert told[:2] == ["tiny", ("tiny", "recipe.yaml")]
    assert told[2:-1] == [
        (step, {f"kd-at/seed0/{name}": value for name, value in values.items()}) for step, values in EXPECTED
    ]
    assert told[-1] == "finished"


@pytest.mark.parametrize("found", [None, ModuleSpec("wandb", None)])  # a folder wandb in the working folder
@pytest.mark.parametrize("name", [name for name in LOGGERS if name != "csv"])
def test_a_package_that_is_missing_is_told_with_its_extra(monkeypatch, name, found):
    monkeypatch.setattr("limbeck.experiment.loggers.find_spec", lambda package: found)
    with pytest.raises(LimbeckError, match=rf"--log {name} needs the package {name}: pip install 'limbeck\[{name}\]'"):
        check_loggers([name])
    check_loggers(["csv"])


def test_an_unknown_logger_has_a_nearest_name():
    with pytest.raises(LimbeckError, match=r"--log is 'tensorbord': did you mean 'tensorboard'\? allowed are csv, ml"):
        check_loggers(["tensorbord"])


def test_every_logger_is_an_extra_of_the_package():
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())["project"]
    assert set(LOGGERS) - {"csv"} <= set(project["optional-dependencies"])
