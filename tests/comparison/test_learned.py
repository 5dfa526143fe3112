"""What the networks of the first seed learned, on tiny networks and in a comparison."""

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from limbeck.comparison import learned as learned_module
from limbeck.comparison import results
from limbeck.comparison.learned import analyse
from limbeck.comparison.maps import read_maps
from limbeck.comparison.sweep import Sweep
from limbeck.core import Batch
from limbeck.data import Data, Split
from limbeck.data.images import Images
from limbeck.data.trees import Reader
from limbeck.errors import LimbeckError
from limbeck.evaluate.calibration import calibration
from limbeck.evaluate.corruptions import CORRUPTIONS, corrupt
from limbeck.evaluate.deferral import Answers, deferral
from limbeck.evaluate.features import cluster_nmi, linear_cka, projection
from limbeck.experiment.workspace import example_batch
from limbeck.models import build
from limbeck.models.functions import FunctionNetwork
from limbeck.outline import outline
from limbeck.recipe.read import read
from limbeck.taps import dry_run
from limbeck.train.engine import make_engine

CPU = make_engine(device="cpu", precision="32")
CLASSES = ("cat", "dog", "owl")

RECIPE = """\
name: tiny
data: {source: digits, limit: 96}
teacher:
  model: {name: mlp, hidden: [16]}
  train: {epochs: 2, batch_size: 32}
student:
  model: {name: mlp, hidden: [8]}
method: kd
train: {epochs: 2, batch_size: 32}
seeds: [1, 0]
evaluate: {latency_runs: 1}
precision: 32
"""


def split(samples, shape=(1, 6, 6), dtype=torch.uint8, missing=None, seed=0):
    """Drawn samples, without the class ``missing``."""
    generator = torch.Generator().manual_seed(seed)
    kept = [number for number in range(len(CLASSES)) if number != missing]
    targets = torch.tensor(kept)[torch.arange(samples) % len(kept)]
    inputs = 60 * targets.view(-1, *[1] * len(shape)) + torch.randint(0, 99, (samples, *shape), generator=generator)
    return Split(inputs.to(dtype), targets)


def data(test=None, *, validation=24, shape=(1, 6, 6), dtype=torch.uint8):
    parts = (split(count, shape, dtype, seed=count) for count in (12, validation))
    channels = shape[0] if len(shape) > 1 else 1
    return Data(*parts, test or split(30, shape, dtype), CLASSES, (0.4,) * channels, (0.3,) * channels)


def networks(*arms, hidden=5, shape=(1, 6, 6)):
    torch.manual_seed(0)
    return {arm: build("mlp", classes=3, shape=shape, hidden=(hidden,)) for arm in arms}


def analysed(given, its_data, outputs=(), macs=1):
    return analyse(given, {}, dict(outputs), its_data, CPU, seed=0, macs=macs)


def of(learned):
    return {one.arm: one for one in learned.networks}


def normalised(samples, its_data):
    return (samples.float() / 255 - its_data.mean[0]) / its_data.std[0]


def outputs(network, samples, its_data):
    return network.eval()(normalised(samples, its_data)).detach()


def features(network, samples, its_data):
    *below, _ = network.eval()
    return nn.Sequential(*below)(normalised(samples, its_data)).detach()


def accuracy(logits, targets):
    return (logits.argmax(1) == targets).sum().item() / len(targets)


def test_every_figure_is_that_of_the_networks_outputs_and_features():
    given, its_data = networks("alone", "kd", "teacher"), data()
    found, _ = analysed(given, its_data)
    assert [one.arm for one in found.networks] == ["teacher", "alone", "kd"]
    assert (found.classes, found.feature_samples, found.corruption_samples) == (CLASSES, 30, 30)
    test, validation = its_data.test, its_data.validation
    teacher = given["teacher"]
    for name, one in of(found).items():
        logits, before = outputs(given[name], test.inputs, its_data), outputs(given[name], validation.inputs, its_data)
        known = calibration(logits, test.targets, (before, validation.targets))
        assert one.calibration.before.ece == pytest.approx(known.before.ece, abs=1e-6)
        assert one.calibration.temperature == pytest.approx(known.temperature, rel=1e-4)
        assert one.calibration.after.ece == pytest.approx(known.after.ece, abs=1e-4)
        for number, right in enumerate(one.class_accuracy):
            own = test.targets == number
            assert right == accuracy(logits[own], test.targets[own])
        read = features(given[name], test.inputs, its_data)
        assert one.nmi == pytest.approx(cluster_nmi(read, test.targets, 3))
        assert one.clean_accuracy == accuracy(logits, test.targets)
        assert list(one.corrupted_accuracy) == list(CORRUPTIONS)
        for kind, values in one.corrupted_accuracy.items():
            for strength, value in enumerate(values, 1):
                corrupted = 255 * corrupt(test.inputs, kind, strength)
                assert value == accuracy(outputs(given[name], corrupted, its_data), test.targets)
        if name == "teacher":
            assert one.cka is one.deferral is None
            continue
        assert one.cka == pytest.approx(linear_cka(read, features(teacher, test.inputs, its_data)), abs=1e-5)
        both = [
            Answers(outputs(given[name], part.inputs, its_data), outputs(teacher, part.inputs, its_data), part.targets)
            for part in (test, validation)
        ]
        assert one.deferral.test.share == deferral(*both).test.share
        assert one.deferral.test.accuracy == deferral(*both).test.accuracy


def test_the_change_of_a_class_is_relative_to_alone():
    found = of(analysed(networks("alone", "kd", "teacher"), data())[0])
    assert found["alone"].class_change is None
    for name in ("kd", "teacher"):
        pairs = zip(found[name].class_accuracy, found["alone"].class_accuracy, strict=True)
        assert found[name].class_change == tuple(own - other for own, other in pairs)
    assert of(analysed(networks("kd"), data())[0])["kd"].class_change is None


def test_the_maps_are_projections_of_each_networks_own_features():
    given, its_data = networks("alone", "teacher"), data()
    _, maps = analysed(given, its_data)
    assert maps.index.tolist() == list(range(30))
    assert maps.labels.tolist() == its_data.test.targets.tolist()
    for name, points in maps.points.items():
        expected = projection(features(given[name], its_data.test.inputs, its_data))
        assert torch.allclose(torch.from_numpy(points).abs(), torch.from_numpy(expected).abs(), atol=1e-4)


def test_a_rotated_feature_has_the_cka_1_with_the_teachers():
    given = networks("teacher", "kd")
    teacher = given["teacher"]
    linear = nn.Linear(5, 5)
    linear.weight = nn.Parameter(torch.linalg.qr(torch.randn(5, 5)).Q)
    student = nn.Sequential(*teacher[:-1], linear, nn.Linear(5, 3))
    assert of(analysed({"teacher": teacher, "kd": student}, data())[0])["kd"].cka == pytest.approx(1, abs=1e-5)


def test_known_outputs_are_not_computed_again(monkeypatch):
    given, its_data = networks("alone", "teacher"), data()
    expected, _ = analysed(given, its_data)
    known = {
        name: {
            "test": outputs(network, its_data.test.inputs, its_data),
            "validation": outputs(network, its_data.validation.inputs, its_data),
        }
        for name, network in given.items()
    }
    monkeypatch.delattr(learned_module, "outputs_of")
    found, _ = analysed(given, its_data, known)
    assert of(found)["alone"].class_accuracy == of(expected)["alone"].class_accuracy
    with pytest.raises(NameError):
        analysed(given, its_data, {"alone": known["alone"]})


def test_the_same_networks_give_the_same_to_the_bit_and_stay_as_they_are():
    given, its_data = networks("alone", "kd", "teacher"), data()
    given["kd"].train()
    before = {name: {key: value.clone() for key, value in one.state_dict().items()} for name, one in given.items()}
    state = torch.get_rng_state()
    first, second = (analysed(given, its_data) for _ in range(2))
    assert first[0] == second[0]
    assert all((points == second[1].points[name]).all() for name, points in first[1].points.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert given["kd"].training
    assert not any(module._forward_hooks for network in given.values() for module in network.modules())
    for name, one in given.items():
        assert all(torch.equal(value, before[name][key]) for key, value in one.state_dict().items())


def test_without_a_teacher_nothing_is_compared_with_it():
    one = of(analysed(networks("alone"), data())[0])["alone"]
    assert one.agreement is one.kl_to_teacher is one.cka is one.deferral is None
    assert one.nmi is not None


def test_without_a_validation_split_nothing_is_fitted_or_chosen():
    one = of(analysed(networks("alone", "teacher"), data(validation=0))[0])["alone"]
    assert one.calibration.temperature is one.calibration.after is None
    assert one.deferral.validation is one.deferral.test is None
    assert len(one.deferral.curve) > 2


def test_a_class_without_test_samples_has_no_accuracy():
    found = of(analysed(networks("alone", "kd", "teacher"), data(split(20, missing=1)))[0])
    assert found["kd"].class_accuracy[1] is None
    assert found["kd"].class_change[1] is None
    assert None not in (found["kd"].class_accuracy[2], found["kd"].class_change[2], found["kd"].nmi)


def test_unlabelled_training_samples_change_nothing():
    its_data = data()
    hidden = replace(its_data, train=Split(its_data.train.inputs, torch.full((12,), -1)))
    assert analysed(networks("alone"), hidden)[0] == analysed(networks("alone"), its_data)[0]


def test_constant_features_have_no_cka_and_no_information():
    given = networks("teacher", "kd")
    hidden = next(module for module in given["kd"].modules() if isinstance(module, nn.Linear))
    nn.init.zeros_(hidden.weight)
    nn.init.ones_(hidden.bias)
    found, maps = analysed(given, data())
    assert (of(found)["kd"].cka, of(found)["kd"].nmi) == (None, 0)
    assert not maps.points["kd"].any()


@pytest.mark.parametrize("shape", [(7,), (2, 9)])
def test_inputs_that_are_no_images_are_not_corrupted(shape):
    its_data = data(shape=shape, dtype=torch.float32)
    found, maps = analysed(networks("alone", shape=shape), its_data)
    assert found.corruption_samples == 0
    assert of(found)["alone"].clean_accuracy is of(found)["alone"].corrupted_accuracy is None
    assert list(maps.points) == ["alone"]


def test_a_network_without_a_classifier_has_no_feature():
    given = networks("teacher", "alone") | {"kd": nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.ReLU())}
    found, maps = analysed(given, data())
    assert of(found)["kd"].nmi is of(found)["kd"].cka is None
    assert list(maps.points) == ["teacher", "alone"]
    assert of(found)["kd"].corrupted_accuracy is not None


def test_the_layers_of_a_function_are_not_read_but_its_outputs_are():
    given, its_data = networks("alone"), data()
    function = FunctionNetwork(lambda inputs: inputs.flatten(1)[:, :3])
    found, maps = analysed(given | {"teacher": function}, its_data)
    assert of(found)["teacher"].nmi is of(found)["alone"].cka is None
    logits = normalised(its_data.test.inputs, its_data).flatten(1)[:, :3]
    assert of(found)["alone"].deferral.curve[-1].accuracy == accuracy(logits, its_data.test.targets)
    assert list(maps.points) == ["alone"]


def test_networks_with_convolutions_and_batch_normalisation_are_read_as_they_are():
    its_data = data(shape=(3, 8, 8))
    network = build("resnet8", classes=3, shape=(3, 8, 8))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
    found, _ = analysed({"teacher": network, "kd": copy.deepcopy(network).train()}, its_data)
    teacher, student = of(found).values()
    assert student.cka == pytest.approx(1)
    assert (student.nmi, student.corrupted_accuracy) == (teacher.nmi, teacher.corrupted_accuracy)
    tap = outline("teacher", network, example_batch(its_data)).feature
    few = Batch(normalised(its_data.test.inputs, its_data), its_data.test.targets, torch.arange(30), 0)
    read = dry_run({"teacher": network}, [tap], few)[tap]
    assert teacher.nmi == pytest.approx(cluster_nmi(read, its_data.test.targets, 3))


def test_images_on_disk_are_read_as_those_in_memory(tmp_path):
    its_data = data(shape=(3, 6, 6))
    names = [f"{number}.png" for number in range(30)]
    for name, pixels in zip(names, its_data.test.inputs, strict=True):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / name)
    on_disk = Split(Images(Reader(tmp_path), tuple(names), (6, 6)), its_data.test.targets)
    given = networks("alone", "teacher", shape=(3, 6, 6))
    assert analysed(given, replace(its_data, test=on_disk))[0] == analysed(given, its_data)[0]


class Overwrites(nn.Module):
    """Its feature is overwritten after the classifier has read it."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(36, 5), nn.Linear(5, 3)

    def forward(self, inputs):
        feature = self.hidden(inputs.flatten(1))
        logits = self.head(feature)
        feature.zero_()
        return logits


def test_a_feature_that_is_overwritten_is_not_read():
    found, maps = analysed({"alone": Overwrites()}, data())
    assert of(found)["alone"].nmi is None
    assert not maps.points


class NotCopied(nn.Sequential):
    def __deepcopy__(self, memo):
        raise RuntimeError("no copy")


def test_a_network_that_cannot_be_copied_is_read_in_eval_mode_and_stays_in_train_mode():
    its_data = data()
    network = NotCopied(nn.Flatten(), nn.Linear(36, 5), nn.Dropout(0.5), nn.Linear(5, 3)).train()
    found, _ = analysed({"alone": network}, its_data)
    assert network[2].training
    for strength, value in enumerate(of(found)["alone"].corrupted_accuracy["gaussian_blur"], 1):
        corrupted = 255 * corrupt(its_data.test.inputs, "gaussian_blur", strength)
        assert value == accuracy(outputs(network, corrupted, its_data), its_data.test.targets)


def test_so_many_test_samples_are_read_and_they_are_spread_evenly(monkeypatch):
    monkeypatch.setattr(learned_module, "SAMPLES", 10)
    found, maps = analysed(networks("alone"), data())
    assert (found.feature_samples, found.corruption_samples) == (10, 10)
    assert maps.index.tolist() == list(range(0, 30, 3))


def test_large_networks_are_tried_on_fewer_corrupted_samples(monkeypatch):
    monkeypatch.setattr(learned_module, "LEAST", 4)
    for macs, samples in ((10**8, 30), (12 * 10**10 // 15 // 6, 6), (0, 4), (10**12, 4)):
        found, _ = analysed(networks("alone"), data(), macs=macs)
        assert (found.feature_samples, found.corruption_samples) == (30, samples)
    one, its_data = of(found)["alone"], data()
    few = torch.tensor([0, 7, 15, 22])
    assert one.clean_accuracy == accuracy(
        outputs(networks("alone")["alone"], its_data.test.inputs[few], its_data), its_data.test.targets[few]
    )


def test_large_samples_are_fewer(monkeypatch):
    monkeypatch.setattr(learned_module, "MEMORY", 4 * 36 * 8)
    found, _ = analysed(networks("alone"), data())
    assert (found.feature_samples, found.corruption_samples) == (8, 8)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison and its folder."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "recipe.yaml").write_text(RECIPE)
    one = Sweep(read(folder / "recipe.yaml", methods=("kd", "srrl")), folder / "compared")
    for _ in one.run():
        pass
    return one.conclude(), folder / "compared"


def test_a_comparison_says_what_the_networks_of_the_first_seed_learned(compared):
    result, folder = compared
    assert result.learned.seed == 1
    assert [one.arm for one in result.learned.networks] == ["teacher", "alone", "kd", "srrl"]
    for one in result.learned.networks[1:]:
        first = next(run for run in result.of(one.arm) if run.seed == 1)
        assert (one.agreement, one.kl_to_teacher) == (first.test.agreement, first.test.kl_to_teacher)
        assert one.calibration.before.ece == first.test.ece
        counts = torch.bincount(torch.tensor(maps_of(result, folder).labels), minlength=10).tolist()
        right = sum(own * count for own, count in zip(one.class_accuracy, counts, strict=True) if own is not None)
        assert right / sum(counts) == pytest.approx(first.test.accuracy)


def maps_of(result, folder):
    return read_maps(folder, result.learned.maps_sha256)


def test_the_file_of_a_comparison_is_read_as_it_was_written(compared):
    result, folder = compared
    assert results.read(folder) == result
    assert list(maps_of(result, folder).points) == ["alone", "kd", "srrl", "teacher"]


def test_two_conclusions_give_the_same_to_the_bit(compared):
    result, folder = compared
    again = Sweep(read(folder.parent / "recipe.yaml", methods=("kd", "srrl")), folder).conclude()
    assert again.learned == result.learned


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("learned",), 1),
        (("learned", "networks", 1, "nmi"), "0.5"),
        (("learned", "networks", 1, "deferral", "curve", 0, "share"), None),
        (("learned", "networks", 1, "calibration", "before", "bins", 0, "samples"), 1.5),
        (("learned", "networks", 1, "more"), 1),
    ],
)
def test_values_of_other_types_are_an_error(compared, path, value):
    values = json.loads(json.dumps(asdict(compared[0])))
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(LimbeckError, match="learned"):
        results.from_json(results.ComparisonResult, values)


def test_a_comparison_without_a_validation_split_has_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    settings = ["data.validation=0", "seeds=[0]", "train.epochs=1"]
    one = Sweep(read(Path("recipe.yaml"), overrides=settings, methods=("kd",)), Path("compared"))
    for _ in one.run():
        pass
    assert of(one.conclude().learned)["kd"].calibration.temperature is None


def test_another_task_has_no_such_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    one = Sweep(read(Path("recipe.yaml"), overrides=["seeds=[0]"], methods=("kd",)), Path("compared"))
    monkeypatch.setattr(type(one.experiment), "keeps_outputs", False)
    for _ in one.run():
        pass
    assert one.conclude().learned is None
    assert not Path("compared/maps.safetensors").exists()
