import pytest

from limbeck.files import bundled
from limbeck.recipe import Recipe, RecipeError, dump, placed, read, smoke

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
            "recipe.yaml:3: teacher: it is not clear what this teacher is: write weights: FILE",
        ),
        ("train: {epochs: 3}", "weights: x\n  train: {epochs: 3}", "a teacher with weights: is not trained"),
        ("train: {epochs: 3}", "train: {epoch: 3}", "teacher.train.epoch: unknown key 'epoch': did you mean 'epochs'?"),
    ],
)
def test_an_error_says_what_was_got_and_what_is_allowed(tmp_path, old, new, message):
    assert old in GOOD
    assert message in fail(tmp_path, GOOD.replace(old, new, 1))


def test_a_method_that_needs_a_teacher_says_so(tmp_path):
    text = GOOD[: GOOD.index("teacher:")] + GOOD[GOOD.index("student:") :]
    assert "the method kd needs a teacher: block" in fail(tmp_path, text)
    assert read(write(tmp_path, text.replace("method: kd", "method: alone"))).teacher is None


def test_a_seed_given_twice_is_refused(tmp_path):
    assert "each seed once" in fail(tmp_path, GOOD + "seeds: [1, 1]\n")


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
        ("name: a\nname: b\n", "recipe.yaml:2: the key 'name' is here a second time, line 1 has it too"),
        ("name: a\x00b\n", "recipe.yaml: "),
        ("- 1\n", "a recipe is a block of keys, got [1]"),
        ("", "a recipe is a block of keys, got nothing"),
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
    *("digits_kd", "hinton_mnist", "hinton_mnist_without_3"),
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
    recipe = placed(read(write(tmp_path, text.replace("{name: mlp, hidden: [8]}", "{name: net.py:make, width: 3}"))))
    assert recipe.data.root == str(tmp_path / "lake")
    assert recipe.data.path == str(tmp_path / "photos")
    assert recipe.teacher.weights == (str(tmp_path / "t.pt"),)
    assert recipe.teacher.model["name"] == "mlp"
    assert recipe.student.model == {"name": f"{tmp_path}/net.py:make", "width": 3}
    assert placed(recipe) == recipe


def test_a_path_inside_the_data_root_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = placed(read(write(tmp_path, GOOD.replace("{source: digits}", "{source: folder, path: photos}"))))
    assert recipe.data.path == "photos"


def test_an_unknown_key_in_set_is_not_blamed_on_the_file(tmp_path):
    assert fail(tmp_path, GOOD, overrides=["a.b=c"]).startswith("--set a.b=c: a: unknown key 'a'")
