"""The rules that every method keeps: a method is tested because it is listed in `limbeck.methods`.

A method is given the networks that its `ABOUT` names. No method is excused from a rule.
"""

import copy
import inspect
import json
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from limbeck import arrays
from limbeck.cli import catalogue
from limbeck.core import LimbeckError
from limbeck.data import load
from limbeck.experiment import plan as planning
from limbeck.experiment.events import Finished
from limbeck.experiment.measuring import outputs_of
from limbeck.experiment.networks import fresh
from limbeck.experiment.plan import plan
from limbeck.experiment.run import Experiment
from limbeck.experiment.workspace import Training, example_batch, training_batches
from limbeck.methods import ABOUT, METHODS
from limbeck.models import build, load_network, save_network
from limbeck.optimizers import adam
from limbeck.outline import outline
from limbeck.recipe.read import read, smoke
from limbeck.schedules import constant
from limbeck.taps import Taps, shapes
from limbeck.train.engine import make_engine
from limbeck.train.loop import Diverged, TrainingSweep, run
from limbeck.train.readers import network_reader
from tests.unchecked import unchecked

ENGINE = make_engine(device="cpu", precision="32")


@cache
def data(count=32):
    """Images of 4 classes that can be told apart."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(count + 24) % 4
    inputs = torch.randn(count + 24, 3, 16, 16, generator=generator)
    inputs += torch.randn(4, 3, 16, 16, generator=generator)[targets]
    return arrays(inputs, targets, test=12, validation=12)


def training(*, epochs=2, batch_size=16):
    return Training(epochs, batch_size, adam(lr=2e-3), constant())


def networks(name, seed=3):
    """A method's networks, and a teacher that is the same whatever the seed."""
    made = {}
    for number, (role, model) in enumerate(ABOUT[name].networks.items()):
        torch.manual_seed(1000 if role == "teacher" else seed + 10 * number)
        made[role] = build(model, classes=4, shape=(3, 16, 16))
    return made


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def differences(one, other):
    """The names at which two states differ; also those that one of them alone has."""
    names = one.keys() ^ other.keys()
    return names | {name for name in one.keys() & other.keys() if not torch.equal(one[name], other[name])}


def losses(stages):
    return {
        f"{stage.name}.{name}": term.loss
        for stage in stages
        for name, term in stage.terms.items()
        if isinstance(term.loss, nn.Module)
    }


class Trial(NamedTuple):
    """A method's training on the tiny data."""

    stages: Any
    networks: Any
    epochs: list
    before: list  # of each stage, the networks' states
    after: list
    states: list  # of each epoch, what resume needs
    final: dict  # the networks' and losses' states when all is over


def train(name, *, epochs, seed=3, state_of=None, engine=ENGINE, keep=False):
    """Plan and train; with ``state_of`` from there on."""
    nets, setting = networks(name, seed), training(epochs=epochs)
    torch.manual_seed(seed)  # so that what a method draws when it is planned differs with the seed
    stages = plan(METHODS[name], nets, data(), setting)
    before, after, taken, seen = {}, {}, [], []

    def watched(position, stage):
        def prepare(sweep):
            if sweep.epoch == 0:
                before[position] = {net: state(module) for net, module in nets.items()}
            if stage.prepare is not None:
                stage.prepare(sweep)

        return replace(stage, prepare=prepare)

    batches = training_batches(data(), setting, seed=0, engine=engine)
    followed = [watched(position, stage) for position, stage in enumerate(stages)]
    torch.manual_seed(17)
    with unchecked():
        for epoch in run(followed, nets, batches, engine, state=state_of):
            after[epoch.position] = {net: state(module) for net, module in nets.items()}
            seen.append(epoch)
            if keep:
                taken.append(copy.deepcopy(epoch.state()))
    final = {label: state(module) for label, module in {**nets, **losses(stages)}.items()}
    return Trial(stages, nets, seen, list(before.values()), list(after.values()), taken, final)


@cache
def whole(name):
    """The training that several tests look at: a few epochs in each stage."""
    return train(name, epochs=3)


@cache
def short(name):
    return train(name, epochs=2, keep=True)


every_method = pytest.mark.parametrize("name", METHODS)


# --- training


@every_method
def test_trains_only_what_each_stage_names(name):
    trial = whole(name)
    for stage, before, after in zip(trial.stages, trial.before, trial.after, strict=True):
        for network in trial.networks:
            named = [learner.partition(".")[2] for learner in stage.learns if learner.partition(".")[0] == network]
            changed = differences(before[network], after[network])
            outside = {key for key in changed if not any(key.startswith(f"{part}." if part else "") for part in named)}
            assert outside == set(), f"stage {stage.name} changed the {network}"
            assert bool(changed) == bool(named), f"stage {stage.name} left the {network} as it was"


@every_method
def test_lowers_its_own_loss_in_each_stage(name):
    trial = whole(name)
    for position, stage in enumerate(trial.stages):
        weights = [
            term.weight if isinstance(term.weight, float | int) else term.weight(0.5) for term in stage.terms.values()
        ]
        means = [
            sum(weight * value for weight, value in zip(weights, epoch.terms.values(), strict=True))
            for epoch in trial.epochs
            if epoch.position == position
        ]
        assert sum(means[-2:]) / 2 < means[0], f"stage {stage.name}: {means}"


@every_method
def test_each_term_moves_what_it_reads_first_and_never_its_target(name):
    nets, setting = networks(name), training()
    stages = plan(METHODS[name], nets, data(), setting)
    batches = training_batches(data(), setting, seed=0, engine=ENGINE)
    for stage in stages:
        if stage.prepare is not None:
            stage.prepare(TrainingSweep(0, nets, batches, ENGINE))
        learning = {learner.partition(".")[0] for learner in stage.learns}
        taps = {tap for term in stage.terms.values() for tap in term.reads}
        with Taps(nets, taps, learns=learning) as tapped, torch.no_grad():
            read = tapped.read(next(iter(batches(0))))
        for label, term in stage.terms.items():
            leaves = [read[tap].clone().requires_grad_(read[tap].is_floating_point()) for tap in term.reads]
            value = term.loss(*leaves)
            own = [p for p in term.loss.parameters() if p.requires_grad] if isinstance(term.loss, nn.Module) else []
            moved = [leaf for leaf in leaves if leaf.requires_grad]
            found = torch.autograd.grad(value, [*moved, *own], allow_unused=True)
            by_tap = dict(
                zip(
                    [tap for tap, leaf in zip(term.reads, leaves, strict=True) if leaf.requires_grad],
                    found,
                    strict=False,
                )
            )
            first = term.reads[0]
            wanted = [by_tap[first]] if first.source in learning else list(found[len(moved) :])
            given = [gradient for gradient in wanted if gradient is not None]
            assert given, f"{stage.name}.{label}: no gradient for {first}"
            assert all(gradient.isfinite().all() for gradient in given)
            assert any(gradient.any() for gradient in given), f"{stage.name}.{label}: the gradient for {first} is 0"
            for tap, gradient in by_tap.items():
                if tap.source not in learning:
                    assert gradient is None or not gradient.any(), f"{stage.name}.{label}: a gradient for {tap}"


@every_method
def test_leaves_no_hooks(name):
    trial = whole(name)
    for module in (*trial.networks.values(), *losses(trial.stages).values()):
        for part in module.modules():
            assert not part._forward_hooks
            assert not part._forward_pre_hooks
            assert not part._backward_hooks


@every_method
def test_same_seed_same_bits(name):
    again = train(name, epochs=2)
    assert {label: differences(short(name).final[label], again.final[label]) for label in again.final} == {
        label: set() for label in short(name).final
    }


@every_method
def test_resumes_to_the_same_bits_after_each_epoch_of_each_stage(name):
    trial = short(name)
    assert len(trial.states) == sum(stage.epochs for stage in trial.stages)
    for taken in trial.states:
        again = train(name, epochs=2, seed=77, state_of=taken)
        where = f"stage {taken['stage']}, epoch {taken['epoch']}"
        assert again.final.keys() == trial.final.keys()
        for label, values in trial.final.items():
            assert differences(values, again.final[label]) == set(), f"{label}, resumed at {where}"


@every_method
def test_works_in_bf16(name):
    trial = train(name, epochs=1, engine=make_engine(device="cpu", precision="bf16"))
    for values in trial.final.values():
        assert all(tensor.isfinite().all() for tensor in values.values() if tensor.is_floating_point())


@every_method
def test_trains_with_single_samples_or_says_why_not(name):
    nets, setting, few = networks(name), training(epochs=1, batch_size=1), data(6)
    refusal, epochs = None, []
    try:
        stages = plan(METHODS[name], nets, few, setting)
        with unchecked():
            epochs = list(run(stages, nets, training_batches(few, setting, seed=0, engine=ENGINE), ENGINE))
    except Diverged:
        raise
    except LimbeckError as error:
        refusal = error
    assert [epoch.images for epoch in epochs] == [6] * len(epochs)
    if refusal is not None:
        assert refusal.__cause__ is None, refusal
        assert "batch_size is 1" in str(refusal)


@cache
def compare_with_hooks(model, taps, precision):
    """Compare what the reader of a frozen network gives with plain hooks; once for methods that read the same taps."""
    torch.manual_seed(1000)
    network, off = build(model, classes=4, shape=(3, 16, 16)).eval(), {"32": 1e-5, "bf16": 2e-2}[precision]
    for norm in (part for part in network.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)  # a norm as it is initialised hardly changes what it normalises,
        nn.init.normal_(norm.bias, std=0.3)  # so a wrong fold would not show
        nn.init.normal_(norm.running_mean, std=0.3)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    engine, batch = make_engine(device="cpu", precision=precision), example_batch(data())
    reader, note = network_reader(network, tuple(taps), batch.inputs, engine)
    found = reader(batch)
    with Taps({tap.source: network for tap in taps}, taps) as hooks, torch.no_grad(), engine.autocast():
        expected = hooks.read(batch)
    assert note == ""
    for tap in taps:
        assert found[tap].dtype == expected[tap].dtype
        assert (found[tap].float() - expected[tap].float()).norm() <= off * expected[tap].float().norm(), tap


@pytest.mark.parametrize("precision", ["32", "bf16"])
@every_method
def test_reads_frozen_networks_as_hooks_do(name, precision):
    nets = networks(name)
    for stage in plan(METHODS[name], nets, data(), training()):
        for source in nets.keys() - set(stage.networks):
            if taps := frozenset(tap for tap in stage.reads if tap.source == source):
                compare_with_hooks(ABOUT[name].networks[source], taps, precision)


# --- recipes


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    @cache
    def written(model):
        torch.manual_seed(1000)
        network, spec = fresh({"name": model}, load("digits"))
        file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
        save_network(network, file, spec=spec)
        return file

    return written


@every_method
def test_runs_from_a_recipe(name, tmp_path, teacher_file):
    roles = dict(ABOUT[name].networks)
    student, teacher = roles.pop("student"), roles.pop("teacher", None)
    recipe = {
        "name": "tiny",
        "data": {"source": "digits", "limit": 96},
        "student": {"model": student},
        "networks": {role: {"model": model} for role, model in roles.items()},
        "method": {"name": name},
        "train": {"epochs": 1},
        "baseline": False,
        "precision": "32",
        "compile": False,
        "allow": ["chance"],
    }
    if teacher is not None:
        recipe["teacher"] = {"weights": str(teacher_file(teacher))}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))  # all JSON is YAML
    trial = Experiment(smoke(read(tmp_path / "recipe.yaml")), tmp_path / "run")
    (last,) = [event for event in trial.run() if isinstance(event, Finished) and event.job.arm == name]
    written = load_network(tmp_path / "run" / "student.safetensors")[0]
    outputs = outputs_of(written, trial.data.test, trial.data, trial.engine)
    targets = trial.data.test.targets
    assert last.result.test.errors == int((outputs.argmax(1) != targets).sum())
    assert last.result.test.cross_entropy == pytest.approx(float(cross_entropy(outputs, targets)), rel=1e-5)


# --- documentation


@every_method
def test_every_option_is_documented_and_none_that_is_not_there(name):
    parameters = inspect.signature(METHODS[name]).parameters
    options = [key for key, one in parameters.items() if one.kind is one.KEYWORD_ONLY]
    assert list(parameters) == ["setup", *options]
    documented = catalogue.meanings(METHODS[name])
    assert set(documented) == set(parameters)
    assert all(documented.values())


@every_method
def test_the_file_says_what_its_method_is_and_where_it_was_published(name):
    about, function = ABOUT[name], METHODS[name]
    assert function is about.function
    assert function.__name__ == name
    assert sys.modules[function.__module__].ABOUT is about
    assert "student" in about.networks
    if about.paper is not None:
        assert len(about.paper.authors) > 3
        assert len(about.paper.title) > 5
        assert 1989 <= about.paper.year <= 2026
        assert bool(about.paper.venue) != bool(re.fullmatch(r"\d{4}\.\d{4,5}", about.paper.arxiv))


@every_method
def test_a_page_is_written(name):
    page = Path(__file__).parents[1] / "docs" / "methods" / f"{name}.md"
    assert page.is_file(), "there is no page: run `limbeck methods --write docs/methods`"
    assert page.read_text().startswith(f"# {name}\n")


def test_whoever_writes_a_method_reads_at_most_450_lines_first():
    root = Path(__file__).parents[1]
    section = (root / "CONTRIBUTING.md").read_text().partition("## Add a method")[2].partition("\n## ")[0]
    files = [(root / "src" / "limbeck" / file).read_text() for file in ("core.py", "methods/kd.py")]
    assert sum(text.count("\n") for text in (section, *files)) <= 450


# --- other networks


NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [12, 12]},
    "resnet8": {},
    "wrn_16_1": {},
    "convnet_small": {},
    "timm:resnet18": {},
    "timm:mobilenetv3_small_050": {},
    "timm:vit_tiny_patch16_224": {"img_size": 48},
    "torchvision:resnet18": {},
}
"""Networks by name, and their options: a transformer of 224 pixels reads smaller images when it is told so."""

PAIRS = [
    *((one, one) for one in NETWORKS),
    ("resnet8", "timm:resnet18"),
    ("wrn_16_1", "convnet_small"),
    ("mlp", "timm:resnet18"),
    ("timm:mobilenetv3_small_050", "torchvision:resnet18"),
    ("resnet8", "timm:vit_tiny_patch16_224"),
    ("timm:vit_tiny_patch16_224", "timm:resnet18"),
]


@cache
def built(name, seed):
    torch.manual_seed(seed)
    return build(name, classes=4, shape=(3, 48, 48), **NETWORKS[name])


@cache
def larger():
    return arrays(torch.randn(24, 3, 48, 48, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 4)


@cache
def outline_of(name, network):
    return outline(name, network, example_batch(larger()))


@cache
def shape_of(tap, network):
    return shapes({} if network is None else {tap.source: network}, [tap], example_batch(larger()))[tap]


@pytest.fixture
def looked_at_once(monkeypatch, student, teacher):
    """The outlines of the networks, and the shapes of single taps, are the same for all methods.

    A method's taps are then not read together in one dry run, so one pair of networks is looked at for every method.
    """
    if student == teacher == "resnet8":
        return
    monkeypatch.setattr(planning, "outline", lambda name, network, batch: outline_of(name, network))
    monkeypatch.setattr(
        planning, "shapes", lambda nets, taps, batch: {tap: shape_of(tap, nets.get(tap.source)) for tap in taps}
    )


MUST = ("resnet8", "wrn_16_1", "timm:resnet18", "torchvision:resnet18")
"""Networks with sections, a pooled feature and BatchNorm: here no method has a reason not to work."""


@every_method
@pytest.mark.usefixtures("looked_at_once")
@pytest.mark.parametrize(("student", "teacher"), PAIRS, ids=[f"{one}-{other}" for one, other in PAIRS])
def test_finds_its_layers_in_a_network_or_says_why_not(name, student, teacher):
    kinds = {role: teacher if role == "teacher" else student for role in ABOUT[name].networks}
    nets = {role: built(kind, seed) for seed, (role, kind) in enumerate(kinds.items())}
    refusal, stages = None, ()
    try:
        stages = plan(METHODS[name], nets, larger(), training())
    except LimbeckError as error:
        refusal = error
    assert stages or student != teacher or student not in MUST, refusal
    if refusal is not None:  # in its own words, at the time of the call: not an error of torch in the dry run
        assert refusal.__cause__ is None, refusal
        assert re.search(r"student|teacher|layer", str(refusal)), refusal
    hooked = [part for net in nets.values() for part in net.modules() if part._forward_hooks or part._forward_pre_hooks]
    if hooked:
        built.cache_clear()  # the next tests' networks are new
    assert hooked == []
