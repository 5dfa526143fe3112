import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from limbeck.core import LimbeckError
from limbeck.data import arrays, load, normalise
from limbeck.experiment.networks import NetworkFactory, file_digests, find_weights, fresh
from limbeck.experiment.networks import restored as teacher_from
from limbeck.experiment.run import Experiment
from limbeck.models import NetworkSpec, build, load_network, save_network
from limbeck.recipe.blocks import MemberBlock, TeacherBlock
from limbeck.recipe.bundled import bundled
from limbeck.recipe.read import read

MLP = {"name": "mlp", "hidden": [4]}


def data(classes=("cat", "dog", "owl"), width=6):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(30) % len(classes)
    return arrays(torch.randn(30, width, generator=generator), targets, classes=classes)


def restored(path, model, data, **options):
    """A teacher's network from a file."""
    return teacher_from(path, TeacherBlock(model=model, **options), data)[0]


def saved(path, *, given=None, block=MLP):
    """A network of the block, trained on nothing, in a file."""
    network, spec = fresh(block, given or data())
    save_network(network, path, spec=spec)
    return network


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_fresh_network_fits_the_data_and_says_how_to_build_it_again():
    network, spec = fresh(MLP, data())
    assert network(torch.zeros(2, 6)).shape == (2, 3)
    assert spec == NetworkSpec("mlp", {"hidden": [4]}, 3, (6,), ("cat", "dog", "owl"), mean=data().mean, std=data().std)


def test_a_fresh_network_is_drawn_from_the_generator():
    first, second = fresh(MLP, data())[0], fresh(MLP, data())[0]
    assert not same(first, second)
    torch.manual_seed(7)
    first = fresh(MLP, data())[0]
    torch.manual_seed(7)
    assert same(first, fresh(MLP, data())[0])


def test_weights_that_do_not_fit_are_refused(tmp_path):
    saved(tmp_path / "student.safetensors", block={"name": "mlp", "hidden": [5]})
    with pytest.raises(LimbeckError, match="does not fit the network"):
        restored(str(tmp_path / "student.safetensors"), MLP, data())


@pytest.mark.parametrize(
    ("block", "message"),
    [({"name": "mpl", "hidden": [4]}, "did you mean 'mlp'"), ({"name": "mlp", "hiden": [4]}, "unknown key 'hiden'")],
)
def test_an_unknown_model_or_option_is_refused(block, message):
    with pytest.raises(LimbeckError, match=message):
        fresh(block, data())


def test_a_file_of_limbecks_restores_itself(tmp_path):
    trained = saved(tmp_path / "net.safetensors")
    assert same(restored(str(tmp_path / "net.safetensors"), None, data()), trained)


def test_a_file_of_limbecks_restores_into_the_model_that_is_named(tmp_path):
    trained = saved(tmp_path / "net.safetensors")
    assert same(restored(str(tmp_path / "net.safetensors"), MLP, data()), trained)
    with pytest.raises(LimbeckError, match="does not fit the network"):
        restored(str(tmp_path / "net.safetensors"), {"name": "mlp", "hidden": [5]}, data())


@pytest.mark.parametrize("names", [["student"], ["teacher"], ["student", "teacher"]])
def test_a_run_folder_restores_its_student_or_else_its_teacher(tmp_path, names):
    networks = {name: saved(tmp_path / f"{name}.safetensors") for name in names}
    assert same(restored(str(tmp_path), None, data()), networks[names[0]])


@pytest.mark.parametrize("block", [None, MLP])
def test_another_number_of_classes_without_names_is_refused(tmp_path, block):
    saved(tmp_path / "net.safetensors", given=data(("0", "1", "2")))
    with pytest.raises(LimbeckError, match="has 3 classes, but the data has 2"):
        restored(str(tmp_path / "net.safetensors"), block, data(("0", "1")))


@pytest.mark.parametrize("model", [None, MLP])
def test_a_list_of_too_few_classes_is_refused(tmp_path, model):
    saved(tmp_path / "net.safetensors")
    with pytest.raises(LimbeckError, match="has 3 classes, but classes: lists 2: list all classes of the file in the"):
        teacher_from(str(tmp_path / "net.safetensors"), TeacherBlock(model=model, classes=("cat", "dog")), data())


def test_a_file_says_the_order_of_its_classes(tmp_path):
    saved(tmp_path / "net.safetensors")
    _, labels, _ = teacher_from(str(tmp_path / "net.safetensors"), TeacherBlock(), data(("cat", "owl", "dog")))
    assert labels == ("cat", "dog", "owl")


def test_the_block_says_the_order_of_the_classes_by_name_or_number(tmp_path):
    saved(tmp_path / "net.safetensors")
    for classes in (("owl", "cat", "dog"), (2, 0, 1), (2, "cat", 1)):
        block = TeacherBlock(classes=classes)
        assert teacher_from(str(tmp_path / "net.safetensors"), block, data())[1] == ("owl", "cat", "dog")
    with pytest.raises(LimbeckError, match="there is no class 3: allowed are 0 to 2, or cat, dog, owl"):
        restored(str(tmp_path / "net.safetensors"), None, data(), classes=(0, 1, 3))


def test_a_student_does_not_start_from_classes_in_another_order(tmp_path):
    saved(tmp_path / "net.safetensors")
    (tmp_path / "recipe.yaml").write_text(STUDENT.format(weights=tmp_path / "net.safetensors", input="null"))
    factory = NetworkFactory(read(tmp_path / "recipe.yaml"), data(("cat", "owl", "dog")))
    with pytest.raises(LimbeckError, match="in another order than the data: 'dog' where the data has 'owl'"):
        factory.student(0, "alone")


STUDENT = """\
name: n
data: {{source: digits}}
student: {{model: {{name: mlp, hidden: [4]}}, weights: {weights}, input: {input}}}
train: {{epochs: 1}}
method: alone
"""


def test_a_file_that_does_not_know_its_labels_passes(tmp_path):
    network, _ = fresh(MLP, data())
    save_network(network, tmp_path / "net.safetensors", spec=NetworkSpec("mlp", {"hidden": [4]}, 3, (6,)))
    assert same(restored(str(tmp_path / "net.safetensors"), None, data()), network)


def test_other_inputs_than_the_networks_are_told_apart_when_a_model_is_named(tmp_path):
    saved(tmp_path / "net.safetensors")
    wider = replace(data(width=7), mean=data().mean, std=data().std)
    with pytest.raises(LimbeckError, match="does not fit the network"):
        restored(str(tmp_path / "net.safetensors"), MLP, wider)


@pytest.mark.parametrize("block", [MLP, None])
def test_a_network_for_inputs_on_another_scale_gets_them_on_its_own(tmp_path, block):
    own = data()
    network = saved(tmp_path / "net.safetensors").eval()
    other = replace(own, mean=(0.5,), std=(0.2,))
    found = restored(str(tmp_path / "net.safetensors"), block, other).eval()
    alone = network(normalise(own.train.inputs, own.mean, own.std))
    bridged = found(normalise(own.train.inputs, other.mean, other.std))
    torch.testing.assert_close(bridged, alone, rtol=1e-5, atol=1e-5)
    assert restored(str(tmp_path / "net.safetensors"), block, own)._forward_pre_hooks == {}


def test_a_student_does_not_start_from_weights_for_another_scale_unless_it_reads_it(tmp_path):
    saved(tmp_path / "net.safetensors")
    other = replace(data(), mean=(0.5,), std=(0.2,))

    def student(**reads):
        (tmp_path / "recipe.yaml").write_text(
            STUDENT.format(weights=tmp_path / "net.safetensors", input=json.dumps(reads or None))
        )
        return NetworkFactory(read(tmp_path / "recipe.yaml"), other).student(0, "alone")

    with pytest.raises(LimbeckError, match=r"normalised by mean .* give it input: \{mean: \["):
        student()
    network, spec, _ = student(mean=data().mean, std=data().std)
    assert (spec.mean, spec.std) == (data().mean, data().std)
    assert len(network._forward_pre_hooks) == 1


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_foreign_file_needs_its_model_named(tmp_path, wrapper, prefix):
    trained, _ = fresh(MLP, data())
    state = {prefix + name: tensor for name, tensor in trained.state_dict().items()}
    torch.save({wrapper: state} if wrapper else state, tmp_path / "theirs.pt")
    assert same(restored(str(tmp_path / "theirs.pt"), MLP, data()), trained)
    with pytest.raises(LimbeckError, match="does not say which model it holds: name it under model:"):
        restored(str(tmp_path / "theirs.pt"), None, data())


def test_foreign_safetensors_need_their_model_named(tmp_path):
    trained, _ = fresh(MLP, data())
    save_file(trained.state_dict(), tmp_path / "theirs.safetensors")
    assert same(restored(str(tmp_path / "theirs.safetensors"), MLP, data()), trained)
    with pytest.raises(LimbeckError, match="name it under model:"):
        restored(str(tmp_path / "theirs.safetensors"), None, data())


@pytest.mark.parametrize("block", [None, MLP])
@pytest.mark.parametrize("name", ["net.safetensors", "net.pt"])
def test_a_damaged_file_is_refused(tmp_path, block, name):
    saved(tmp_path / "net.safetensors")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "net.pt")
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-40])
    with pytest.raises(LimbeckError, match=r"truncated or damaged|name it under model:"):
        restored(str(tmp_path / name), block, data())


@pytest.mark.parametrize("block", [None, MLP])
def test_a_missing_file_gets_the_nearest(tmp_path, block):
    saved(tmp_path / "net.safetensors")
    with pytest.raises(LimbeckError, match=r"there is no file .*nte\.safetensors: did you mean 'net\.safetensors'"):
        restored(str(tmp_path / "nte.safetensors"), block, data())


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(LimbeckError, match=r"contains none of student\.safetensors, teacher\.safetensors, model\.safe"):
        find_weights(str(tmp_path))


def test_a_path_may_start_at_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "teacher.safetensors").write_bytes(b"")
    assert find_weights("~/run") == tmp_path / "run" / "teacher.safetensors"
    assert find_weights("~/net.pt") == tmp_path / "net.pt"


RECIPE = """\
name: tiny
data: {source: digits, limit: 64}
teacher: {model: {name: mlp, hidden: [4]}, weights: theirs.pt}
student: {model: {name: mlp, hidden: [3]}}
method: kd
train: {epochs: 1, batch_size: 16}
evaluate: {latency_runs: 1}
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A teacher's weights for 5 classes, as a training script saves them, and what reads the recipe beside them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    network = build("mlp", classes=5, shape=(1, 8, 8), hidden=[4])
    content = {"state_dict": {f"model.{name}": tensor for name, tensor in network.state_dict().items()}, "epoch": 3}
    torch.save(content, "theirs.pt")

    def made(*settings):
        Path("recipe.yaml").write_text(RECIPE)
        recipe = read(Path("recipe.yaml"), overrides=settings)
        return recipe, NetworkFactory(recipe, load(**recipe.data.model_dump()))

    return network, made


def test_a_teacher_of_other_classes_says_how_to_begin_from_it(theirs):
    recipe, cast = theirs[1]()
    with pytest.raises(LimbeckError, match=r"has 5 classes, the network 10 .* init: fine_tune .* also needs train:"):
        cast.restored(recipe.teacher)


def test_a_teacher_may_begin_from_weights_of_other_classes(theirs):
    network, made = theirs
    recipe, cast = made("teacher.init=fine_tune", "teacher.train={epochs: 1}")
    assert cast.restored(recipe.teacher) == []
    teacher, spec = cast.teacher(recipe.teacher)
    assert spec.classes == 10
    assert teacher.head.out_features == 10
    assert torch.equal(teacher.stage1.linear.weight, network.stage1.linear.weight)
    assert cast.notes == ("teacher: of theirs.pt takes the weights under 'state_dict', without the prefix 'model.'",)


def test_a_teacher_that_begins_from_weights_is_trained_in_the_run(theirs):
    network, made = theirs
    recipe, _ = made("teacher.init=fine_tune", "teacher.train={epochs: 1, batch_size: 16}")
    list(Experiment(recipe, Path("run")).run())
    trained = load_network("run/teacher/seed0/teacher.safetensors")[0]
    assert trained.head.out_features == 10
    assert not torch.equal(trained.stage1.linear.weight, network.stage1.linear.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((), r"fine_tune trains a model from the weights: write train: \{epochs: N\}"),
        (("teacher.weights=null", "teacher.train={epochs: 1}"), "got 'fine_tune' without the weights: to start from"),
        (
            ("teacher.model=null", "teacher.train={epochs: 1}"),
            "fine_tune trains a model from the weights: write model:",
        ),
    ],
)
def test_a_teacher_that_cannot_begin_from_weights_is_told_in_the_recipe(theirs, settings, message):
    with pytest.raises(LimbeckError, match=message):
        theirs[1]("teacher.init=fine_tune", *settings)


def test_the_weights_of_a_student_that_were_taken_are_noted(theirs):
    network = build("mlp", classes=10, shape=(1, 8, 8), hidden=[3])
    torch.save({"net": network.state_dict(), "ema": network.state_dict()}, "student.pt")
    _, cast = theirs[1]("student.weights=student.pt")
    cast.student(0, "kd")
    cast.student(1, "kd")
    (note,) = cast.notes
    assert note == "student: of student.pt takes the weights under 'net', one of 2 state dicts that fit (also ema)"


def test_a_teacher_of_code_needs_its_model_named_or_trust(theirs):
    Path("net.py").write_text(
        "from torch import nn\ndef make(classes):\n  return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    network = build("net.py:make", classes=10, shape=(1, 8, 8))
    save_network(network, Path("t.safetensors"), spec=NetworkSpec("net.py:make", {}, 10, (1, 8, 8)))
    recipe, cast = theirs[1]("teacher={weights: t.safetensors}")
    with pytest.raises(
        LimbeckError, match=r"names code as its network, 'net\.py:make'.*in a recipe model: next to weights:"
    ):
        cast.restored(recipe.teacher)
    trusting = NetworkFactory(recipe, load(**recipe.data.model_dump()), trust_code=True)
    named, other = theirs[1]("teacher={weights: t.safetensors, model: net.py:make}")
    for members in (trusting.restored(recipe.teacher), other.restored(named.teacher)):
        assert same(members[0][0], network)


def test_a_run_whose_student_is_code_is_resumed(theirs, tmp_path):
    Path("net.py").write_text(
        "from torch import nn\ndef make(classes):\n  return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    recipe, _ = theirs[1]("teacher=null", "method=alone", "student={model: net.py:make}")
    first = list(Experiment(recipe, Path("run")).run())
    again = list(Experiment(recipe, Path("run"), resume=True).run())
    assert [event.reused for event in again if hasattr(event, "reused")] == [True]
    assert len(first) > len(again)
    assert str(tmp_path).encode() not in Path("run/student.safetensors").read_bytes()
    with pytest.raises(LimbeckError, match=r"names code as its network, 'net\.py:make'"):
        load_network("run/student.safetensors")


@pytest.mark.parametrize("names", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_a_folder_of_hugging_face_is_a_network(tmp_path, names):
    trained, _ = fresh(MLP, data())
    (tmp_path / "config.json").write_text("{}")
    if names == "pytorch_model.bin":
        torch.save(trained.state_dict(), tmp_path / names)
    else:
        save_file(
            trained.state_dict(),
            tmp_path / "model.safetensors" if "index" not in names else tmp_path / "part.safetensors",
        )
    if "index" in names:
        (tmp_path / names).write_text(
            json.dumps({"weight_map": dict.fromkeys(trained.state_dict(), "part.safetensors")})
        )
    assert same(restored(str(tmp_path), MLP, data()), trained)


def test_a_home_folder_that_is_not_there_is_told():
    with pytest.raises(LimbeckError, match="~nobody_of_this_name"):
        find_weights("~nobody_of_this_name/net.pt")


def test_every_file_that_a_recipe_names_has_a_digest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index = ["model.safetensors.index.json", "model-1.safetensors"]
    files = ["student.pt", "peer.pt", *index, "teacher.onnx", "table.csv", "net.py"]
    for name in files:
        Path(name).write_text(json.dumps({"weight_map": {"layer": index[1]}}))
    recipe = read(bundled("digits_kd"))
    members = (MemberBlock(model={"name": "net.py:make"}, weights=(".",)), MemberBlock(onnx="teacher.onnx"))
    update = {
        "student": recipe.student.model_copy(update={"weights": "student.pt"}),
        "networks": {"peer": recipe.student.model_copy(update={"weights": "peer.pt"})},
        "teacher": TeacherBlock(members=members, table="table.csv"),
    }
    recipe = recipe.model_copy(update=update)
    before = file_digests(recipe)
    assert [line.partition(":")[0].removeprefix("# ") for line in before] == [
        *("student.weights", "networks.peer.weights", "teacher.members.0.weights.0", "teacher.members.0.weights.0"),
        *("teacher.members.1.onnx", "teacher.table", "net.py"),
    ]
    for number, name in enumerate(files):
        with Path(name).open("a") as file:
            file.write(" ")
        after = file_digests(recipe)
        assert [place for place, line in enumerate(after) if line != before[place]] == [number]
        before = after
