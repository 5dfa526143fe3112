import os
import re
from pathlib import Path

import pytest

from limbeck.core import LimbeckError
from limbeck.recipe.bundled import bundled
from limbeck.recipe.read import Recipe, RecipeError, dump, read, reread, smoke, with_absolute_paths
from limbeck.recipe.text import WHOLE_BYTES

GOOD = """\
name: tiny
data: {source: digits}
teacher:
  model: {name: mlp, hidden: [32]}
  train: {epochs: 3}
student:
  model: {name: mlp, hidden: [8]}
method: kd
train:
  epochs: 4
  optimizer: {name: sgd, lr: 0.1}
"""


def write(folder, text):
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def fail(folder, text, **options):
    with pytest.raises(RecipeError) as caught:
        read(write(folder, text), **options)
    return str(caught.value)


def test_a_recipe_gets_every_default_written_out(tmp_path):
    recipe = read(write(tmp_path, GOOD))
    assert recipe.method["temperature"] == 4.0
    assert recipe.train.optimizer == {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "nesterov": False}
    assert recipe.train.schedule == {"name": "cosine", "end": 0.0, "warmup": 0.0}
    assert recipe.student.model["hidden"] == [8]
    assert recipe.seeds == (0,)
    assert recipe.baseline


@pytest.mark.parametrize(
    ("said", "use"),
    [("auto", "auto"), ("false", False), ("{}", "auto"), ("{views: 2}", True), ("{use: auto, folder: kept}", "auto")],
)
def test_who_says_how_outputs_are_kept_says_that_they_are(tmp_path, said, use):
    assert read(write(tmp_path, f"{GOOD}cache: {said}\n")).cache.use == use


def test_a_dumped_recipe_reads_as_itself(tmp_path):
    recipe = read(write(tmp_path, GOOD.replace("method: kd", "method: {name: kd, preset: fitnet_eq2}")))
    assert recipe.method["soft"] == {"name": "linear", "start": 4.0, "end": 1.0, "until": 1.0}
    assert read(write(tmp_path, dump(recipe))) == recipe


def test_a_preset_fills_in_and_a_key_beside_it_wins(tmp_path):
    recipe = read(write(tmp_path, GOOD.replace("method: kd", "method: {name: kd, preset: hinton_mnist, hard: 0.2}")))
    assert (recipe.method["temperature"], recipe.method["hard"], recipe.method["soft"]) == (20.0, 0.2, 1.0)


def test_every_error_is_told_at_once_with_its_line(tmp_path):
    text = GOOD.replace("epochs: 4", "epochs: four").replace("lr: 0.1", "lr: 0.1, momentun: 0.9")
    text = text.replace("source: digits", "source: digitz").replace("method: kd", "method: {name: kd, temprature: 3}")
    message = fail(tmp_path, text + "sede: 1\n")
    assert len(message.splitlines()) == 5
    assert "recipe.yaml:10: train.epochs: got 'four': it must be a whole number" in message
    assert "recipe.yaml:11: train.optimizer.momentun: unknown key 'momentun': did you mean 'momentum'?" in message
    assert "recipe.yaml:2: data.source: there is no source 'digitz': did you mean 'digits'?" in message
    assert "recipe.yaml:8: method.temprature: unknown key 'temprature': did you mean 'temperature'?" in message
    assert "recipe.yaml:12: sede: unknown key 'sede': did you mean 'seeds'?" in message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("method: kd", "method: dk", "recipe.yaml:8: method.name: there is no method 'dk': did you mean 'dkd'?"),
        ("name: mlp, hidden: [8]", "name: resnet2O", "there is no model 'resnet2O': did you mean 'resnet20'?"),
        ("hidden: [8]", "hidden: 8", "recipe.yaml:7: student.model.hidden: got 8: it must be a list"),
        ("hidden: [8]", "", "student.model: the key 'hidden' is missing"),
        ("name: sgd, lr: 0.1", "name: sgd", "recipe.yaml:11: train.optimizer: the key 'lr' is missing"),
        ("name: sgd, lr: 0.1", "name: sgd, lr: fast", "train.optimizer.lr: got 'fast': it must be a number"),
        ("epochs: 4", "epochs: 0", "train.epochs: got 0: it must be at least 1"),
        ("epochs: 4", "epochs: true", "train.epochs: got true: it must be a whole number"),
        ("epochs: 4", "epochs: 4\n  schedule: cosin", "there is no schedule 'cosin': did you mean 'cosine'?"),
        ("method: kd", "method: 3", "recipe.yaml:8: method: got 3"),
        ("method: kd", "method: {temperature: 3}", "a method is a name or a block with a name"),
        ("method: kd", "method: {name: kd, preset: hinton}", "kd has no preset 'hinton': did you mean 'hinton_mnist'?"),
        ("method: kd", "method: {name: logits, preset: x}", "logits has no preset 'x': nothing is allowed here"),
        ("method: kd", "method: {name: kd, soft: {name: linaer}}", "method.soft.name: there is no schedule 'linaer'"),
        ("method: kd", "method: {name: kd, average: sum}", "method.average: got 'sum': allowed are batch, elements"),
        ("name: tiny", "name: a b", "recipe.yaml:1: name: got 'a b'"),
        (
            "train: {epochs: 3}",
            "members: 2",
            "recipe.yaml:3: teacher: this block does not define one teacher: write weights: FILE",
        ),
        ("train: {epochs: 3}", "weights: x\n  train: {epochs: 3}", "a teacher with weights: is not trained"),
        ("name: sgd, lr: 0.1", "name: sgd, lr: 0", "recipe.yaml:11: train.optimizer.lr: got 0: it must be above 0"),
        ("lr: 0.1", "lr: 0.1, momentum: 1", "train.optimizer.momentum: got 1: it must be below 1"),
        ("lr: 0.1", "lr: 0.1, weight_decay: -1", "train.optimizer.weight_decay: got -1: it must be at least 0"),
        ("method: kd", "method: {name: kd, temperature: -1}", "method.temperature: got -1: it must be above 0"),
        (
            "epochs: 4",
            "epochs: 4\n  schedule: {name: cosine, warmup: 2}",
            "recipe.yaml:11: train.schedule: got warmup 2.0, allowed are fractions of the stage",
        ),
        ("{name: mlp, hidden: [8]}", "timn:x:y", "student.model.name: unknown source of models 'timn'"),
        ("name: tiny", "name: tiny\nseeds: 0", "seeds: got 0: it must be a list, such as [0]"),
        ("train: {epochs: 3}", "train: {epoch: 3}", "teacher.train.epoch: unknown key 'epoch': did you mean 'epochs'?"),
    ],
)
def test_an_error_says_what_was_got_and_what_is_allowed(tmp_path, old, new, message):
    assert old in GOOD
    assert message in fail(tmp_path, GOOD.replace(old, new, 1), check_paths=True)


@pytest.mark.parametrize(
    ("key", "block"),
    [
        ("epochs", "train"),
        ("lr", "train.optimizer"),
        ("temperature", "method"),
        ("limit", "data"),
        ("seed", "data, teacher and cache"),
    ],
)
def test_a_key_that_belongs_to_a_block_is_told_with_the_block(tmp_path, key, block):
    assert fail(tmp_path, GOOD, overrides=[f"{key}=1"]).endswith(f"; it is a key of {block}")


def test_unknown_models_and_missing_files_are_told_at_once_with_their_lines(tmp_path):
    text = GOOD.replace("{name: mlp, hidden: [32]}", "timm:resnet18x").replace(
        "{name: mlp, hidden: [8]}", "torchvision:resnet1\n  weights: no.pt"
    )
    first, second, third = fail(tmp_path, text, check_paths=True).splitlines()
    assert "recipe.yaml:4: teacher.model.name: timm has no model 'resnet18x': did you mean" in first
    assert "recipe.yaml:7: student.model.name: torchvision has no classifier 'resnet1'" in second
    assert "recipe.yaml:8: student.weights: there is no file" in third


def test_a_method_that_needs_a_teacher_says_so(tmp_path):
    text = GOOD[: GOOD.index("teacher:")] + GOOD[GOOD.index("student:") :]
    assert "the method kd needs a teacher: block" in fail(tmp_path, text)
    assert read(write(tmp_path, text.replace("method: kd", "method: alone"))).teacher is None


def test_a_seed_given_twice_is_refused(tmp_path):
    assert "write each seed only once" in fail(tmp_path, GOOD + "seeds: [1, 1]\n")


def test_no_seed_is_refused(tmp_path):
    assert "seeds: got []" in fail(tmp_path, GOOD + "seeds: []\n")


def test_set_replaces_and_adds_keys(tmp_path):
    changes = ["train.epochs=9", "method.temperature=2", "data.limit=50", "train.schedule.warmup=0.1", "precision=32"]
    recipe = read(write(tmp_path, GOOD + "  schedule: cosine\n"), overrides=changes)
    assert recipe.train.epochs == 9
    assert recipe.method["temperature"] == 2.0
    assert recipe.data.limit == 50
    assert recipe.train.schedule["warmup"] == 0.1
    assert recipe.precision == "32"


def test_an_error_in_set_names_the_option(tmp_path):
    message = fail(tmp_path, GOOD, overrides=["train.epochs=many"])
    assert message.startswith("--set train.epochs=many: train.epochs: got 'many'")


@pytest.mark.parametrize("override", ["train.epochs", "=3", "a..b=1"])
def test_a_set_without_a_value_is_refused(tmp_path, override):
    assert "write it as key.key=value" in fail(tmp_path, GOOD, overrides=[override])


def test_a_set_of_too_many_blocks_inside_each_other_is_refused(tmp_path):
    assert "the key has more than 20 parts" in fail(tmp_path, GOOD, overrides=[".".join(["a"] * 5000) + "=1"])


def test_a_set_that_is_not_yaml_is_refused(tmp_path):
    assert "the value is not YAML" in fail(tmp_path, GOOD, overrides=["seeds=[1"])


def test_a_seed_replaces_the_recipes_seeds(tmp_path):
    assert read(write(tmp_path, GOOD + "seeds: [1, 2]\n"), seed=7).seeds == (7,)


def test_a_missing_file_names_the_nearest(tmp_path):
    write(tmp_path, GOOD)
    with pytest.raises(RecipeError, match=r"did you mean 'recipe\.yaml'"):
        read(tmp_path / "recepe.yaml")


def test_a_missing_folder_is_told_too(tmp_path):
    with pytest.raises(RecipeError, match="there is no recipe"):
        read(tmp_path / "nowhere" / "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [1\n", "recipe.yaml:2: "),
        ("name: a\nname: b\n", "recipe.yaml:2: duplicate key 'name': it is also in line 1"),
        ("name: a\x00b\n", "recipe.yaml: "),
        ("- 1\n", "a recipe must be a block of keys, got [1]"),
        ("", "a recipe must be a block of keys, got nothing"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, message):
    assert message in fail(tmp_path, text)


def test_an_exponent_without_a_dot_is_a_number(tmp_path):
    assert read(write(tmp_path, GOOD.replace("lr: 0.1", "lr: 1e-3"))).train.optimizer["lr"] == 1e-3


def test_a_model_from_elsewhere_is_left_for_building(tmp_path):
    recipe = read(write(tmp_path, GOOD.replace("{name: mlp, hidden: [8]}", "timm:resnet18")))
    assert recipe.student.model == {"name": "timm:resnet18"}


def test_smoke_is_short_and_small(tmp_path):
    small = smoke(read(write(tmp_path, GOOD + "seeds: [4, 5]\n")))
    assert isinstance(small, Recipe)
    assert (small.name, small.seeds, small.data.limit) == ("tiny-smoke", (4,), 256)
    assert small.train.epochs == small.teacher.train.epochs == 2


BUNDLED = [
    *("digits_kd", "hinton_mnist", "hinton_mnist_without_3", "compare_mnist", "compare_cifar10"),
    *("lenet_mnist", "pruned_cifar10", "vanilla_kd_cifar10"),
    *(
        f"{system}_{data}"
        for system in ("hinton", "fitnets", "fsp", "class_distance", "srrl")
        for data in ("digits", "cifar10")
    ),
]


@pytest.mark.parametrize("name", BUNDLED)
def test_the_recipes_that_limbeck_brings_are_right(name):
    recipe = read(bundled(name))
    assert recipe.name == name
    assert read(bundled(f"{name}.yaml")) == recipe


def test_every_recipe_that_limbeck_brings_is_tested():
    assert {path.stem for path in bundled("digits_kd").parent.glob("*.yaml")} == set(BUNDLED)


def test_placing_a_recipe_makes_its_paths_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMBECK_DATA", "lake")
    (tmp_path / "photos").mkdir()
    text = GOOD.replace("{source: digits}", "{source: folder, path: photos}").replace(
        "train: {epochs: 3}", "weights: t.pt"
    )
    recipe = with_absolute_paths(
        read(write(tmp_path, text.replace("{name: mlp, hidden: [8]}", "{name: net.py:make, width: 3}")))
    )
    assert recipe.data.root == str(tmp_path / "lake")
    assert recipe.data.options["path"] == str(tmp_path / "photos")
    assert recipe.teacher.weights == (str(tmp_path / "t.pt"),)
    assert recipe.teacher.model["name"] == "mlp"
    assert recipe.student.model == {"name": f"{tmp_path}/net.py:make", "width": 3}
    assert with_absolute_paths(recipe) == recipe


def test_the_paths_of_a_table_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "b.csv"):
        Path(name).touch()
    source = "{source: table, path: a.csv, test_path: b.csv, images: ., features: [x, y]}"
    recipe = with_absolute_paths(read(write(tmp_path, GOOD.replace("{source: digits}", source))))
    found = recipe.data.options
    assert (found["path"], found["test_path"]) == (f"{tmp_path}/a.csv", f"{tmp_path}/b.csv")
    assert (found["images"], list(found["features"])) == (str(tmp_path), ["x", "y"])
    assert read(write(tmp_path, dump(recipe))) == recipe


@pytest.mark.parametrize("source", ["folder", "table"])
def test_only_streamed_images_have_workers(tmp_path, source):
    text = GOOD.replace("{source: digits}", f"{{source: {source}, path: x, workers: 2}}")
    assert "data.workers: only streamed data has workers: write streaming: true" in fail(tmp_path, text)


@pytest.mark.parametrize("source", ["table", "masks"])
def test_a_task_of_segmentation_names_its_source(tmp_path, source):
    text = GOOD.replace("{source: digits}", f"{{source: {source}, path: x, task: segmentation}}")
    told = "recipe.yaml:2: data.task: got 'segmentation', the only task of source: masks: write source: masks without"
    assert told in fail(tmp_path, text)


def test_a_path_inside_the_data_root_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = with_absolute_paths(
        read(write(tmp_path, GOOD.replace("{source: digits}", "{source: folder, path: photos}")))
    )
    assert recipe.data.options["path"] == "photos"


def test_an_unknown_key_in_set_is_not_blamed_on_the_file(tmp_path):
    assert fail(tmp_path, GOOD, overrides=["a.b=c"]).startswith("--set a.b=c: a: unknown key 'a'")


FOLDER = GOOD.replace("{source: digits}", "{source: folder, path: photos, size: 32}")
TRAINED = "train: {epochs: 3}"


@pytest.mark.parametrize(("said", "size"), [("32", (32, 32)), ("[24, 32]", (24, 32))])
def test_a_size_is_one_number_or_height_and_width(tmp_path, said, size):
    recipe = read(write(tmp_path, FOLDER.replace("size: 32", f"size: {said}")))
    assert recipe.data.size == size
    assert read(write(tmp_path, dump(recipe))) == recipe


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "size: 32",
            "size: 32x32",
            "data.size: got '32x32': it must be a number of pixels, or a list of height and width",
        ),
        ("size: 32", "size: [32]", "data.size: got [32]: it must be a list of 2 values"),
        ("size: 32", "size: 100000", "data.size.0: got 100000: it must be at most 10000"),
        ("method: kd", "method: 3", "method: got 3: it must be a name, a block with a name, or a list of these"),
        ("method: kd", "method: kd\ncache: 3", "cache: got 3: it must be true, false, auto or a block of options"),
        (
            "method: kd",
            "method: kd\nallow: [chanc]",
            "allow.0: got 'chanc': did you mean 'chance'? allowed are chance, input",
        ),
        ("method: kd", "method: kd\nallow: chance", "allow: got 'chance': it must be a list"),
        ("method: kd", "method: kd\ncompile: 3", "compile: got 3: it must be true or false"),
        (
            "method: kd",
            "method: {name: kd, soft: true}",
            "method.soft: got true: it must be a number or a name or a block",
        ),
        ("epochs: 4", "epochs:", "train.epochs: got nothing: it must be a whole number"),
        (
            "epochs: 4",
            "epochs: 1000000000000000000",
            "train.epochs: got 1000000000000000000: it must be at most 1000000",
        ),
        ("epochs: 4", "epochs: 4\n  batch_size: 9999999", "train.batch_size: got 9999999: it must be at most 1000000"),
        ("epochs: 4", "epochs: 4\n  augment: {crop: 10001}", "train.augment.crop: got 10001: it must be at most 10000"),
        ("epochs: 4", "epochs: 4\n  label_smoothing: 1.0", "train.label_smoothing: got 1.0: it must be below 1"),
        ("epochs: 4", "epochs: 4\n  mixup: -1", "train.mixup: got -1: it must be at least 0"),
        ("epochs: 4", "epochs: 4\n  augment: true", "train.augment: got true: it must be a block of keys"),
        ("hidden: [8]", "hidden: [1000000000000]", "student.model.hidden.0: got 1000000000000: it must be below"),
        (TRAINED, "train: {epochs: 3}\n  members: 101", "teacher.members: got 101: it must be at most 100"),
        (
            "{name: mlp, hidden: [8]}",
            "{name: {a: b}}",
            "student.model: got {name: {a: 'b'}}, a model is a name or a block",
        ),
        (TRAINED, "weights: 3", "teacher.weights: got 3: it must be a path or a list of paths"),
        (TRAINED, "weights: ~nobody_of_this_name/x", "there is no user 'nobody_of_this_name'"),
        ("name: tiny", "name: [tiny]", "recipe.yaml:1: name: got ['tiny']: it must be text"),
        ("name: tiny", "name: ../x", "it must be a name for a folder: letters, digits, . _ and -"),
        ("name: tiny", "name: tiny\nnetworks: {Big: {model: mlp}}", "it must be a name of lower-case letters"),
    ],
)
def test_messages_speak_the_recipes_language(tmp_path, old, new, message):
    assert old in FOLDER
    found = fail(tmp_path, FOLDER.replace(old, new, 1))
    assert message in found
    assert not {"array", "tuple", "NoneType", "integer", "boolean", "None", "True", "dict"} & set(found.split())


def test_many_errors_stay_on_a_screen_and_long_values_are_shortened(tmp_path):
    assert len(fail(tmp_path, FOLDER + "".join(f"key{n}: 1\n" for n in range(300))).splitlines()) == 11
    assert "and 290 more" in fail(tmp_path, FOLDER + "".join(f"key{n}: 1\n" for n in range(300)))
    assert len(fail(tmp_path, FOLDER.replace("epochs: 4", f"epochs: [{'1, ' * 2000}]"))) < 300


def test_seeds_are_at_most_a_thousand(tmp_path):
    assert "seeds: got [0, 1, 2" in fail(tmp_path, GOOD + f"seeds: {list(range(1001))}\n")


def test_errors_come_in_the_order_of_their_lines(tmp_path):
    text = GOOD.replace("epochs: 4", "epoch: 4").replace("name: tiny", "nam: tiny")
    numbers = [int(line.split(":")[1]) for line in fail(tmp_path, text).splitlines()]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("output", ["logits", "0", "probabilities"])
def test_the_output_is_a_key_or_a_place(tmp_path, output):
    recipe = read(write(tmp_path, GOOD.replace(TRAINED, f"train: {{epochs: 3}}\n  output: {output}")))
    assert recipe.teacher.output == output


def test_a_teacher_is_fine_tuned_from_weights(tmp_path):
    recipe = read(write(tmp_path, GOOD.replace(TRAINED, f"{TRAINED}\n  weights: t.pt\n  init: fine_tune")))
    assert (recipe.teacher.init, recipe.teacher.weights, recipe.teacher.train.epochs) == ("fine_tune", ("t.pt",), 3)
    assert smoke(recipe).teacher.init == "fine_tune"
    assert with_absolute_paths(recipe).teacher.init == "fine_tune"


def test_a_pretrained_teacher_is_trained_here(tmp_path):
    text = GOOD.replace("{name: mlp, hidden: [32]}", "{name: 'timm:resnet18', pretrained: true}")
    assert read(write(tmp_path, text)).teacher.model["pretrained"]
    assert "write train: {epochs: N} to train it in this run" in fail(
        tmp_path, text.replace("  train: {epochs: 3}\n", "")
    )


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            "model: mlp\n  train: {epochs: 1}\n  weights: t.pt",
            "remove train:, or write init: fine_tune to train it",
        ),
        ("model: {name: mlp, hidden: [8]}\n  weights: t.pt\n  init: fine_tune", "write train: {epochs: N}"),
        ("train: {epochs: 1}\n  weights: t.pt\n  init: fine_tune", "write model: NAME"),
        ("model: resnet8\n  train: {epochs: 1}\n  weights: [a, b]\n  init: fine_tune", "starts from one file"),
        (
            "model: resnet8\n  train: {epochs: 1}\n  init: fine_tune",
            "without the weights: to start from: write weights: FILE",
        ),
        ("model: resnet8\n  weights: t.pt\n  members: 2", "list the members' files, weights: [FILE, FILE]"),
        ("model: resnet8\n  weights: t.pt\n  untrained: true", "remove untrained:"),
        ("table: t.csv\n  output: logits", "write values: for what it contains"),
        ("model: resnet8\n  train: {epochs: 1}\n  values: logits", "which is missing: write table: FILE"),
        ("table: t.csv\n  onnx: t.onnx", "a teacher with a table: has no network"),
        ("table: t.csv\n  weights: a\n  init: fine_tune", "a teacher with a table: has no network"),
        ("model: resnet8\n  onnx: t.onnx", "teacher.model: a file of ONNX contains its network: remove model:"),
        ("onnx: t.onnx\n  train: {epochs: 1}", "a teacher with onnx: is already trained: remove train:"),
        ("model: a.py:f\n  trained: true\n  members: 2", "a teacher with trained: true is already trained"),
        ("model: resnet8\n  trained: true", "teacher.trained: the model: must be path/to/file.py:function, which"),
        ("model: a.py:f\n  trained: true\n  weights: t.pt", "got weights: and trained:, allowed is one of them"),
        ("model: mlp\n  members: [{onnx: a}, {onnx: b}]", "teacher.model: with a list of members:, this key belongs"),
        (
            "train: {epochs: 1}\n  members: [{onnx: a}, {onnx: b}]",
            "members: of a list are already trained",
        ),
        ("init: fine_tune\n  members: [{onnx: a}, {onnx: b}]", "members: of a list are already trained"),
        ("members: [{onnx: a}, {model: mlp}]", "teacher.members.1: a member is a trained network: write weights: FILE"),
        ("members: [{onnx: a}, {weights: [b, c]}]", "teacher.members.1.weights: a member has one file"),
        ("members: [{onnx: a}, {model: mlpp, weights: b}]", "there is no model 'mlpp': did you mean 'mlp'"),
        ("members: [{onnx: a}, {weight: b}]", "unknown key 'weight': did you mean 'weights'?"),
        ("members: [{onnx: a}]", "teacher.members: got [{onnx: 'a'}]: it must be"),
    ],
)
def test_a_contradiction_says_the_line_that_would_be_right(tmp_path, teacher, message):
    text = GOOD.replace("model: {name: mlp, hidden: [32]}\n  train: {epochs: 3}", teacher, 1)
    assert message in fail(tmp_path, text)


def test_members_have_blocks_of_their_own_whose_paths_become_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = (
        "members: [{onnx: a.onnx}, {model: {name: mlp, hidden: [8]}, weights: b.pt}, {model: c.py:f, trained: true}]"
    )
    text = GOOD.replace("model: {name: mlp, hidden: [32]}\n  train: {epochs: 3}", teacher, 1)
    recipe = with_absolute_paths(read(write(tmp_path, text)))
    first, second, third = recipe.teacher.members
    assert first.onnx == str(tmp_path / "a.onnx")
    assert second.weights == (str(tmp_path / "b.pt"),)
    assert second.model["dropout"] == 0.0
    assert third.model["name"] == f"{tmp_path}/c.py:f"
    assert read(write(tmp_path, dump(recipe))) == recipe
    assert "teacher.members.0.onnx: there is no file" in fail(tmp_path, text, check_paths=True)


def test_set_changes_one_of_two_blocks_that_an_alias_makes_alike(tmp_path):
    text = GOOD.replace("{name: mlp, hidden: [32]}", "&net {name: mlp, hidden: [32]}")
    text = text.replace("{name: mlp, hidden: [8]}", "*net")
    recipe = read(write(tmp_path, text), overrides=["student.model.hidden=[4]"])
    assert (recipe.teacher.model["hidden"], recipe.student.model["hidden"]) == ([32], [4])


def test_allow_on_the_command_line_adds_to_the_recipes(tmp_path):
    assert read(write(tmp_path, GOOD + "allow: [chance]\n"), allow=["random"]).allow == ("chance", "random")
    assert fail(tmp_path, GOOD, allow=["chanc"]).startswith(
        "--allow chanc: allow.0: got 'chanc': did you mean 'chance'?"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            TRAINED,
            "weights: teacher.pth",
            "recipe.yaml:5: teacher.weights.0: there is no file HERE/teacher.pth: did you mean",
        ),
        (TRAINED, "weights: fifo", "HERE/fifo is not a regular file"),
        (
            "model: {name: mlp, hidden: [32]}\n  train: {epochs: 3}",
            "table: t.csv",
            "teacher.table: there is no table HERE/t.csv",
        ),
        ("student:", "student:\n  weights: no/where.pt", "student.weights: there is no file HERE/no/where.pt"),
        ("{name: mlp, hidden: [8]}", "net.py:make", "student.model.name: there is no file HERE/net.py"),
        (
            "{source: digits}",
            "{source: folder, path: phots}",
            "data.path: phots does not exist: did you mean 'photos'?",
        ),
        ("{source: digits}", "{source: folder, path: fifo}", "data.path: fifo is neither a folder nor a file"),
        ("{source: digits}", "{source: table, path: photo}", "data.path: photo does not exist: did you mean 'photos'?"),
        ("{source: digits}", "{source: table, path: photos, images: x}", "data.images: x does not exist"),
        ("{source: digits}", "{source: table, path: photos, test_path: x.csv}", "data.test_path: x.csv does not exist"),
        (
            "{source: digits}",
            "{source: folder, path: x, root: nowhere}",
            "data.root: the data root nowhere is not a folder",
        ),
        (
            "{source: digits}",
            "{source: folder, path: photos, streaming: true, size: 8, transform: 'cut.py:make'}",
            "data.transform: there is no file HERE/cut.py",
        ),
        (TRAINED, f"weights: {'x' * 3000}", "teacher.weights.0: there is no file /"),
    ],
)
def test_a_path_that_leads_nowhere_is_told_with_the_recipe(tmp_path, monkeypatch, old, new, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    os.mkfifo("fifo")
    Path("photos").mkdir()
    Path("teacher.pt").touch()
    found = fail(tmp_path, GOOD.replace(old, new, 1), check_paths=True)
    assert message.replace("HERE", str(tmp_path)) in found
    assert len(found) < 400


def test_a_path_in_the_data_root_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lake" / "pictures").mkdir(parents=True)
    text = GOOD.replace("{source: digits}", "{source: folder, path: pictures, root: lake}")
    assert read(write(tmp_path, text), check_paths=True).data.options["path"] == "pictures"
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "lake"))
    assert read(write(tmp_path, text.replace(", root: lake", "")), check_paths=True)
    monkeypatch.setenv("LIMBECK_DATA", "~nobody_of_this_name")
    assert "there is no user" in fail(tmp_path, text.replace(", root: lake", ""), check_paths=True)


@pytest.mark.parametrize("name", ["peer", "weights", "model"])
def test_an_unknown_key_of_a_further_network_gets_the_nearest(tmp_path, name):
    text = GOOD + f"networks: {{{name}: {{model: mlp, weigths: x}}}}\n"
    assert f"networks.{name}.weigths: unknown key 'weigths': did you mean 'weights'?" in fail(tmp_path, text)


# the keys of a source


def test_the_keys_of_a_source_are_written_out_and_read_again(tmp_path):
    recipe = read(write(tmp_path, FOLDER))
    assert recipe.data.options == {
        "path": "photos",
        "exif_orientation": True,
        "streaming": False,
        "workers": None,
        "transform": None,
        "unlabelled": None,
    }
    assert read(write(tmp_path, dump(recipe))) == recipe
    assert reread(write(tmp_path, dump(recipe))) == recipe
    assert read(write(tmp_path, GOOD)).data.options == {}
    assert read(write(tmp_path, GOOD.replace("digits", "mnist"))).data.options == {"download": True}


def test_a_recipe_of_a_run_folder_is_read_up_to_a_limit(tmp_path):
    path = write(tmp_path, "# " + "x" * WHOLE_BYTES)
    with pytest.raises(LimbeckError, match=f"has more than {WHOLE_BYTES:,} bytes"):
        reread(path)
    path.write_bytes(b"name: \xff")
    with pytest.raises(RecipeError, match="is damaged: it is not UTF-8 text"):
        reread(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "digits, streaming: true",
            "data.streaming: unknown key 'streaming': allowed are limit, .*; it is a key of folder",
        ),
        ("cifar10, downlod: true", "data.downlod: unknown key 'downlod': did you mean 'download'[?] allowed are "),
        ("cifar10, download: 1", "data.download: got 1: it must be true or false"),
        ("folder", "data: the key 'path' is missing"),
        ("folder, path: 3", "data.path: got 3: it must be text"),
        ("folder, path: ~nobody_of_this_name/x", "data.path: .*there is no user 'nobody_of_this_name'"),
        ("folder, path: x, workers: 2", "data.workers: only streamed data has workers: write streaming: true"),
        ("folder, path: x, transform: crop", "data.transform: only streamed data has transform: write streaming"),
        ("folder, path: x, streaming: true, workers: 300", "data.workers: got 300: it must be from 0 to 256"),
        ("folder, path: x, streaming: true, workers: -1", "data.workers: got -1: it must be from 0 to 256"),
        ("mine.py", "data.source: there is no source 'mine.py': allowed are .*, and path/to/file.py:function"),
        ("'mine.py:f', progress: 1", "data.progress: progress is an argument of load and no key of a recipe"),
        ("'mine.py:f', limit: 0", "data.limit: got 0: it must be at least 1"),
    ],
)
def test_a_key_that_its_source_cannot_take_is_told_with_its_line(tmp_path, data, message):
    found = fail(tmp_path, GOOD.replace("{source: digits}", f"{{source: {data}}}"))
    assert len(found.splitlines()) == 1
    assert re.search(f"recipe.yaml:2: {message}", found), found


def test_a_key_of_a_source_and_one_of_every_source_are_told_at_once(tmp_path):
    found = fail(tmp_path, GOOD.replace("{source: digits}", "{source: mnist, limit: 0, download: 3}"))
    assert [line.split(": ")[1] for line in found.splitlines()] == ["data.download", "data.limit"]


def test_a_users_source_keeps_its_keys_and_becomes_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    (tmp_path / "table.csv").touch()
    text = GOOD.replace("{source: digits}", "{source: 'mine.py:load', path: table.csv, rows: [3, 4], name: x}")
    recipe = read(write(tmp_path, text))
    assert recipe.data.options == {"path": "table.csv", "rows": [3, 4], "name": "x"}
    whole = with_absolute_paths(recipe)
    assert (whole.data.source, whole.data.options["path"]) == (f"{tmp_path}/mine.py:load", f"{tmp_path}/table.csv")
    assert with_absolute_paths(whole) == whole
    assert read(write(tmp_path, dump(whole))) == whole
    assert f"data.source: there is no file {tmp_path}/mine.py" in fail(tmp_path, text, check_paths=True)
    (tmp_path / "mine.py").touch()
    assert read(write(tmp_path, text), check_paths=True) == recipe
