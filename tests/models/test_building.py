import inspect
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import limbeck
from limbeck.core import LimbeckError
from limbeck.models import MODELS, build, options
from limbeck.models.foreign import pretrained_input
from limbeck.models.inputs import Bridge
from limbeck.options import keyword_model


@pytest.fixture
def user_file(tmp_path):
    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


USER = """
from dataclasses import dataclass
from torch import nn

@dataclass
class Settings:
    units: "int" = 4

def wants_all(*, units, classes, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0], units), nn.Linear(units, classes))

def wants_nothing():
    return nn.Linear(2, 2)

def wants_anything(**options):
    return nn.Linear(options["width"], Settings().units)

class Own(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.classes = classes

def fails(classes):
    raise ZeroDivisionError("by hand")

def gives_text():
    return "network"
"""


def test_lists_of_a_recipe_stand_for_tuples():
    network = build("mlp", classes=3, shape=(4,), hidden=[5, 6], max_norm=2)
    assert (network.stage2.linear.in_features, network.stage2.linear.max_norm) == (5, 2.0)


def test_options_reach_the_network():
    assert build("wrn_16_1", classes=3, shape=(3, 8, 8), dropout=0.25).stage1[0].dropout.p == 0.25


def test_every_network_of_the_zoo_has_options_that_recipes_can_check():
    assert all(keyword_model(factory) for factory in MODELS.values())
    assert all(factory.__doc__ for factory in MODELS.values())


def test_options_are_those_of_the_signature_without_what_the_data_gives():
    found = options("mlp")
    assert list(found) == ["hidden", "dropout", "input_dropout", "max_norm"]
    assert found["hidden"].default is inspect.Parameter.empty
    assert found["dropout"].default == 0.0
    assert found["dropout"].annotation is float
    assert options("resnet20") == {}


@pytest.mark.parametrize("ask", [options, lambda name: build(name, classes=2, shape=(3, 8, 8))])
def test_unknown_name_is_answered_with_the_nearest(ask):
    with pytest.raises(LimbeckError, match="no model 'resnet8x5': did you mean 'resnet8x4'"):
        ask("resnet8x5")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden": [5], "droput": 0.1}, r"mlp\.droput: unknown key 'droput': did you mean 'dropout'"),
        ({"hidden": [5], "dropout": "much"}, r"mlp\.dropout: got 'much'"),
        ({"hidden": [5, "x"]}, r"mlp\.hidden\.1: got 'x'"),
        ({}, r"mlp: the key 'hidden' is missing \(mlp takes hidden: tuple\[int, \.\.\.\], dropout: float = 0.0"),
    ],
)
def test_wrong_options_are_named_with_what_is_allowed(given, message):
    with pytest.raises(LimbeckError, match=message):
        build("mlp", classes=3, shape=(4,), **given)


def test_network_without_options_says_so():
    with pytest.raises(LimbeckError, match=r"unknown key 'dropout'.*resnet20 takes no options"):
        build("resnet20", classes=3, shape=(3, 8, 8), dropout=0.1)


@pytest.mark.parametrize(
    ("classes", "shape", "message"),
    [
        (0, (3, 8, 8), "got 0 classes, allowed are 1 and more"),
        (2, (3, 0, 8), r"got samples of shape \(3, 0, 8\)"),
        (2, (), r"got samples of shape \(\)"),
    ],
)
def test_refuses_impossible_sizes(classes, shape, message):
    with pytest.raises(LimbeckError, match=message):
        build("mlp", classes=classes, shape=shape, hidden=[3])


def test_unknown_source_is_answered_with_the_forms_of_a_name():
    with pytest.raises(
        LimbeckError, match="unknown source of models 'tim': a model is the name of a zoo network, timm:NAME"
    ):
        build("tim:resnet18", classes=2, shape=(3, 8, 8))


def test_timm_gets_classes_channels_and_options():
    network = build("timm:test_resnet", classes=7, shape=(1, 32, 32), drop_rate=0.25)
    assert network.drop_rate == 0.25
    assert network.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(("given", "expected"), [({}, False), ({"pretrained": True}, True)])
def test_timm_downloads_weights_only_when_told_to(monkeypatch, given, expected):
    calls = []
    monkeypatch.setattr("timm.create_model", lambda name, **options: calls.append(options) or nn.Identity())
    build("timm:test_resnet", classes=7, shape=(3, 32, 32), **given)
    assert calls == [{"pretrained": expected, "num_classes": 7, "in_chans": 3}]


def test_timm_answers_an_unknown_name_with_the_nearest():
    with pytest.raises(LimbeckError, match=r"timm has no model 'resnet18x': did you mean .*resnet18"):
        build("timm:resnet18x", classes=2, shape=(3, 32, 32))


@pytest.mark.parametrize("name", ["timm:hf-hub:timm/resnet18", "timm:local-dir:/anywhere"])
def test_timm_names_that_would_fetch_a_configuration_do_not_pass(name):
    with pytest.raises(LimbeckError, match="timm has no model"):
        build(name, classes=2, shape=(3, 32, 32))


def test_timm_failure_keeps_its_cause():
    with pytest.raises(LimbeckError, match=r"timm:test_resnet could not be built: TypeError.*bogus") as caught:
        build("timm:test_resnet", classes=2, shape=(3, 32, 32), bogus=1)
    assert isinstance(caught.value.__cause__, TypeError)


def test_options_that_the_data_decides_are_refused():
    with pytest.raises(LimbeckError, match="num_classes is set from the data"):
        build("timm:test_resnet", classes=2, shape=(3, 32, 32), num_classes=10)


def test_torchvision_gets_classes_and_options():
    network = build("torchvision:shufflenet_v2_x0_5", classes=7, shape=(3, 32, 32))
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    with torch.device("meta"):
        assert build("torchvision:vgg11", classes=7, shape=(3, 32, 32), dropout=0.25).classifier[2].p == 0.25


IMAGENET = limbeck.Input((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), channels="rgb")


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("torchvision:resnet18", {"weights": "DEFAULT"}, IMAGENET),
        ("torchvision:resnet18", {"weights": "ResNet18_Weights.IMAGENET1K_V1"}, IMAGENET),
        ("torchvision:resnet18", {"weights": "IMAGENET"}, None),
        ("torchvision:resnet18", {}, None),
        ("timm:resnet18", {"pretrained": True}, IMAGENET),
        ("timm:resnet18", {}, None),
        ("timm:deit_tiny_patch16_224", {"pretrained": True}, replace(IMAGENET, size=(224, 224))),
        ("timm:deit_tiny_patch16_224", {"pretrained": True, "img_size": 96}, replace(IMAGENET, size=96)),
        ("timm:deit_tiny_patch16_224", {"pretrained": True, "dynamic_img_size": True}, IMAGENET),
    ],
)
def test_pretrained_weights_say_what_they_read(name, given, expected):
    assert pretrained_input(name, given) == expected


def test_pretrained_weights_of_colour_images_read_grey_ones_repeated():
    assert Bridge(IMAGENET, (1, 8, 8), (0.5,), (0.5,)).own == (3, 8, 8)


def test_weights_of_torchvision_have_a_name():
    with pytest.raises(LimbeckError, match="weights is True; allowed are names such as DEFAULT"):
        build("torchvision:resnet18", classes=1000, shape=(3, 32, 32), weights=True)


@pytest.mark.parametrize(("given", "expected"), [({}, None), ({"weights": "DEFAULT"}, "DEFAULT")])
def test_torchvision_downloads_weights_only_when_told_to(monkeypatch, given, expected):
    calls = []
    monkeypatch.setattr("torchvision.models.get_model", lambda name, **options: calls.append(options) or nn.Identity())
    build("torchvision:resnet18", classes=7, shape=(3, 32, 32), **given)
    assert calls == [{"weights": expected, "num_classes": 7}]


def test_torchvision_answers_an_unknown_name_with_the_nearest():
    with pytest.raises(LimbeckError, match="torchvision has no classifier 'resnet19': did you mean resnet18"):
        build("torchvision:resnet19", classes=2, shape=(3, 32, 32))


def test_torchvision_offers_only_classifiers():
    with pytest.raises(LimbeckError, match="torchvision has no classifier 'ssd300_vgg16'"):
        build("torchvision:ssd300_vgg16", classes=2, shape=(3, 32, 32))


def test_torchvision_needs_three_channels():
    with pytest.raises(LimbeckError, match="torchvision:resnet18 needs 3 channels, but the data has 1"):
        build("torchvision:resnet18", classes=2, shape=(1, 28, 28))


def test_function_in_a_file_gets_what_its_signature_names(user_file):
    path = user_file(USER)
    network = build(f"{path}:wants_all", classes=3, shape=(6,), units=5)
    assert [(m.in_features, m.out_features) for m in network if isinstance(m, nn.Linear)] == [(6, 5), (5, 3)]
    assert isinstance(build(f"{path}:wants_nothing", classes=3, shape=(6,)), nn.Linear)
    assert build(f"{path}:wants_anything", classes=3, shape=(6,), width=2).out_features == 4
    assert build(f"{path}:Own", classes=3, shape=(6,)).classes == 3


def test_path_of_a_file_may_be_relative(user_file, monkeypatch):
    monkeypatch.chdir(user_file(USER).parent)
    assert isinstance(build("mine.py:wants_nothing", classes=3, shape=(6,)), nn.Linear)


def test_missing_file_is_answered_with_the_nearest(user_file):
    path = user_file(USER)
    with pytest.raises(LimbeckError, match=r"there is no file .*mine2\.py: did you mean 'mine\.py'"):
        build(f"{path.with_name('mine2.py')}:wants_all", classes=3, shape=(6,))


def test_missing_function_is_answered_with_the_nearest_and_all(user_file):
    path = user_file(USER)
    with pytest.raises(LimbeckError, match=r"no function 'want_all': did you mean 'wants_all'.*gives_text"):
        build(f"{path}:want_all", classes=3, shape=(6,))


def test_imported_names_are_not_offered(user_file):
    path = user_file("from collections import OrderedDict\n", "empty.py")
    with pytest.raises(LimbeckError, match="has no function 'OrderedDic': it has none"):
        build(f"{path}:OrderedDic", classes=3, shape=(6,))


def test_file_that_cannot_be_imported_is_named_with_the_cause(user_file):
    path = user_file("import no_such_package\n", "broken.py")
    with pytest.raises(LimbeckError, match=r"broken\.py could not be imported: ModuleNotFoundError") as caught:
        build(f"{path}:anything", classes=3, shape=(6,))
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert not [name for name in sys.modules if name.endswith("broken_py")]


def test_option_that_a_function_does_not_take_is_named(user_file):
    path = user_file(USER)
    with pytest.raises(LimbeckError, match=r"no option 'unit': did you mean units.*it takes units, classes, shape"):
        build(f"{path}:wants_all", classes=3, shape=(6,), unit=5)
    with pytest.raises(LimbeckError, match="no option 'unit'; it takes nothing"):
        build(f"{path}:wants_nothing", classes=3, shape=(6,), unit=5)


def test_function_that_raises_is_named_with_the_cause(user_file):
    path = user_file(USER)
    with pytest.raises(LimbeckError, match="fails could not be built: ZeroDivisionError: by hand") as caught:
        build(f"{path}:fails", classes=3, shape=(6,))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_function_must_give_a_module(user_file):
    path = user_file(USER)
    with pytest.raises(LimbeckError, match=r"gives_text returned a str, a model must be a torch\.nn\.Module"):
        build(f"{path}:gives_text", classes=3, shape=(6,))


class _Offline(Exception):
    """Raised by a library for downloads."""


_Offline.__module__ = "httpx"


@pytest.mark.parametrize(
    ("name", "options", "place"),
    [
        ("timm:test_resnet", {"pretrained": True}, "timm.models._builder.load_pretrained"),
        ("torchvision:squeezenet1_1", {"weights": "DEFAULT"}, "torchvision.models._api.WeightsEnum.get_state_dict"),
    ],
)
@pytest.mark.parametrize("error", [ConnectionError("no route"), _Offline("no route"), FileNotFoundError("not kept")])
def test_pretrained_weights_without_the_internet_say_what_to_do(monkeypatch, name, options, place, error):
    def fails(*_, **__):
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("in vain") from cause

    monkeypatch.setattr(place, fails)
    with pytest.raises(LimbeckError, match=r"pretrained weights could not be downloaded .*name it under weights:"):
        build(name, classes=1000, shape=(3, 64, 64), **options)


def test_pretrained_weights_of_torchvision_for_other_classes_say_what_to_do():
    with pytest.raises(LimbeckError, match=r"not 3: use timm:NAME with pretrained: true.*init: fine_tune"):
        build("torchvision:squeezenet1_1", classes=3, shape=(3, 64, 64), weights="DEFAULT")


def test_what_else_fails_of_a_pretrained_network_is_said_as_it_is(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("another shape")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fails)
    with pytest.raises(LimbeckError, match="could not be built: RuntimeError: another shape"):
        build("timm:test_resnet", classes=3, shape=(3, 64, 64), pretrained=True)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys\ndef make():\n    sys.exit(3)", "could not be built: SystemExit: 3"),
        ("make = type", "has no readable signature|could not be built|returned a type"),
        ("make = 3", "has no function 'make'"),
    ],
)
def test_code_that_is_no_network_is_told(user_file, code, message):
    with pytest.raises(LimbeckError, match=message):
        build(f"{user_file(code)}:make", classes=3, shape=(4,))


def test_a_file_without_a_function_says_what_to_write(user_file):
    with pytest.raises(LimbeckError, match=r"names a file without a function: write .*\.py:FUNCTION"):
        build(str(user_file("")), classes=3, shape=(4,))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"hidden": [10**9]}),
        ("mlp", {"hidden": [2**31 - 1, 2**31 - 1, 2**31 - 1]}),
        ("resnet10", {"width": 2**31 - 1}),
        ("maxout_mnist", {"last_pieces": 10**8}),
    ],
)
def test_a_network_of_more_parameters_than_a_machine_holds_is_refused_before_it_is_built(name, options):
    with pytest.raises(
        LimbeckError, match=r"parameters, allowed are at most 2,000,000,000|more parameters than 64 bits can count"
    ):
        build(name, classes=10, shape=(3, 32, 32), **options)


def test_counting_the_parameters_leaves_the_random_numbers_as_they_are():
    torch.manual_seed(3)
    counted = build("mlp", classes=10, shape=(4,), hidden=[5]).state_dict()
    torch.manual_seed(3)
    plain = MODELS["mlp"](classes=10, shape=(4,), hidden=(5,)).state_dict()
    assert all(torch.equal(counted[name], value) for name, value in plain.items())
