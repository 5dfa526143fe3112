import math
from collections.abc import Sequence
from typing import Literal

import pytest

from limbeck.core import LimbeckError, Schedule
from limbeck.errors import close_names
from limbeck.options import Checked, Problem, as_block, call, complete, fill, keyword_model, nearest, validate
from limbeck.wording import shown


def cook(
    setup,
    *,
    minutes: int,
    heat: float = 180.0,
    lid: bool = False,
    sizes: Sequence[int] = (1, 2),
    pair: tuple[float, float] = (0.0, 1.0),
    salt: float | Schedule = 0.5,
    fan: float | Schedule | None = None,
    place: Literal["oven", "pan"] = "oven",
    note: str | None = None,
    shape: tuple[int, ...] = (),
    classes: int = 0,
):
    return {name: value for name, value in locals().items() if name != "setup"} | {"given": setup}


def wait(*, pace: Schedule):
    return pace


DISHES = {"cook": cook, "wait": wait}
PRESETS = {"cook": {"soup": {"minutes": 40, "salt": {"name": "linear", "start": 2.0}, "sizes": [3, 4]}}}


def one(block, table=DISHES):
    """The block completed, where nothing is wrong."""
    filled, problems = complete(block, table, kind="dish", presets=PRESETS)
    assert problems == []
    return filled


def wrong(block, table=DISHES):
    """What is wrong with the block, as (path, message)."""
    _, problems = complete(block, table, kind="dish", presets=PRESETS)
    assert problems
    return [(problem.path, problem.message) for problem in problems]


def test_a_model_has_the_keyword_only_arguments_but_shape_and_classes():
    fields = keyword_model(cook).model_fields
    assert list(fields) == ["minutes", "heat", "lid", "sizes", "pair", "salt", "fan", "place", "note"]
    assert [name for name, field in fields.items() if field.is_required()] == ["minutes"]


def test_every_default_is_written_out():
    assert one({"name": "cook", "minutes": 3}) == {
        "name": "cook",
        "minutes": 3,
        "heat": 180.0,
        "lid": False,
        "sizes": [1, 2],
        "pair": [0.0, 1.0],
        "salt": 0.5,
        "fan": None,
        "place": "oven",
        "note": None,
    }


def test_a_name_alone_is_a_block():
    assert as_block("cook") == {"name": "cook"}
    assert as_block({"minutes": 3}) == {"minutes": 3}
    assert as_block(3) == 3
    assert wrong("cook") == [((), "the key 'minutes' is missing")]


def test_a_completed_block_completes_to_itself():
    first = one({"name": "cook", "preset": "soup", "fan": "cosine", "lid": True})
    assert one(first) == first


def test_what_was_given_is_left_alone():
    given = {"name": "cook", "preset": "soup", "salt": "cosine"}
    one(given)
    assert given == {"name": "cook", "preset": "soup", "salt": "cosine"}
    assert PRESETS["cook"]["soup"] == {"minutes": 40, "salt": {"name": "linear", "start": 2.0}, "sizes": [3, 4]}


def test_results_share_nothing_that_can_change():
    first, second = (one({"name": "cook", "preset": "soup"}) for _ in range(2))
    first["sizes"].append(99)
    first["pair"].append(99)
    first["salt"]["start"] = 99
    assert second == one({"name": "cook", "preset": "soup"})
    assert PRESETS["cook"]["soup"]["salt"]["start"] == 2.0


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("heat", 200, 200.0),
        ("heat", -1e-3, -1e-3),
        ("minutes", 2**31 - 1, 2**31 - 1),
        ("sizes", [], []),
        ("sizes", (5, 6), [5, 6]),
        ("pair", [1, 2], [1.0, 2.0]),
        ("pair", (1, 2.5), [1.0, 2.5]),
        ("salt", 1, 1.0),
        ("fan", None, None),
        ("note", "", ""),
        ("note", "ümläut 茶", "ümläut 茶"),
        ("place", "pan", "pan"),
    ],
)
def test_a_value_of_the_right_kind_passes(key, value, kept):
    found = one({"name": "cook", "minutes": 3, key: value})[key]
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("minutes", "3", "got '3': it must be a whole number"),
        ("minutes", 10**30, f"got {10**30}: it must be below 2147483648"),
        ("minutes", True, "got true: it must be a whole number"),
        ("minutes", 3.0, "got 3.0: it must be a whole number"),
        ("minutes", None, "got nothing: it must be a whole number"),
        ("heat", "200", "got '200': it must be a number"),
        ("heat", False, "got false: it must be a number"),
        ("heat", math.nan, "got nan: it must be a finite number"),
        ("heat", math.inf, "got inf: it must be a finite number"),
        ("heat", [1.0], "got [1.0]: it must be a number"),
        ("lid", 1, "got 1: it must be true or false"),
        ("lid", "true", "got 'true': it must be true or false"),
        ("sizes", 3, "got 3: it must be a list"),
        ("sizes", "12", "got '12': it must be a list"),
        ("pair", [1, 2, 3], "got [1, 2, 3]: it must be a list of at most 2"),
        ("place", "fire", "got 'fire': allowed are oven, pan"),
        ("place", 3, "got 3: it must be oven or pan"),
        ("note", 3, "got 3: it must be text"),
        ("salt", None, "got nothing: it must be a number"),
        ("salt", True, "got true: it must be a number"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_what_was_got(key, value, message):
    (path, found), *_ = wrong({"name": "cook", "minutes": 3, key: value})
    assert path == (key,)
    assert found.startswith(message)


def test_a_wrong_item_is_named_by_its_place():
    assert wrong({"name": "cook", "minutes": 3, "sizes": [1, 2.5]}) == [
        (("sizes", 1), "got 2.5: it must be a whole number")
    ]
    assert wrong({"name": "cook", "minutes": 3, "pair": [1]}) == [(("pair",), "got [1]: it must be a list of 2 values")]


def test_all_that_is_wrong_is_told_at_once():
    found = wrong({"name": "cook", "heat": "hot", "lidd": True})
    assert found == [
        ((), "the key 'minutes' is missing"),
        (("heat",), "got 'hot': it must be a number"),
        (
            ("lidd",),
            "unknown key 'lidd': did you mean 'lid'? "
            "allowed are fan, heat, lid, minutes, note, pair, place, salt, sizes",
        ),
    ]


@pytest.mark.parametrize("key", ["int", "str", "float", "bool", "sizes[0]", "shape", "classes", "setup", "name_", "3"])
def test_an_unknown_key_is_refused_whatever_it_is_called(key):
    ((path, message),) = wrong({"name": "cook", "minutes": 3, key: 3})
    assert path == (key,)
    assert message.startswith(f"unknown key {key!r}: ")


def test_an_unknown_name_gets_the_nearest():
    assert wrong({"name": "cok"}) == [
        (("name",), "there is no dish 'cok': did you mean 'cook'? allowed are cook, wait")
    ]
    assert wrong("Cook")[0][1].startswith("there is no dish 'Cook': did you mean 'cook'?")


@pytest.mark.parametrize("block", [None, 3, ["cook"], {}, {"minutes": 3}, {"name": 3}, {"name": None}, ("cook",)])
def test_what_is_no_block_is_refused(block):
    assert wrong(block) == [
        ((), f"got {shown(block)}, a dish is a name or a block with a name: allowed are cook, wait")
    ]


def test_a_preset_fills_in_and_a_key_beside_it_wins():
    filled = one({"name": "cook", "preset": "soup", "minutes": 5})
    assert (filled["minutes"], filled["sizes"]) == (5, [3, 4])
    assert filled["salt"] == {"name": "linear", "start": 2.0, "end": 0.0, "until": 1.0}
    assert "preset" not in filled


@pytest.mark.parametrize("preset", ["soop", 3, None, ["soup"], {"name": "soup"}])
def test_an_unknown_preset_is_refused(preset):
    ((path, message),) = wrong({"name": "cook", "preset": preset})
    assert path == ("preset",)
    assert message.startswith(f"cook has no preset {shown(preset)}: ")
    assert message.endswith("allowed are soup")


def test_a_dish_without_presets_says_so():
    assert wrong({"name": "wait", "preset": "soup"}) == [
        (("preset",), "wait has no preset 'soup': nothing is allowed here")
    ]


def test_where_there_are_no_presets_the_key_is_unknown():
    _, problems = complete({"name": "cook", "minutes": 3, "preset": "soup"}, DISHES, kind="dish")
    assert [problem.path for problem in problems] == [("preset",)]
    assert problems[0].message.startswith("unknown key 'preset'")


def test_a_schedule_is_a_name_or_a_block():
    by_name = one({"name": "cook", "minutes": 3, "salt": "linear"})["salt"]
    by_block = one({"name": "cook", "minutes": 3, "salt": {"name": "linear"}})["salt"]
    assert by_name == by_block == {"name": "linear", "start": 1.0, "end": 0.0, "until": 1.0}


@pytest.mark.parametrize(
    ("schedule", "path", "message"),
    [
        ("linaer", ("name",), "there is no schedule 'linaer': did you mean 'linear'?"),
        ({"start": 2}, (), "got {start: 2}, a schedule is a name or a block with a name"),
        ({"name": "linear", "untill": 1}, ("untill",), "unknown key 'untill': did you mean 'until'?"),
        ({"name": "linear", "until": "late"}, ("until",), "got 'late': it must be a number"),
        ({"name": "steps"}, (), "the key 'at' is missing"),
        ({"name": "steps", "at": [0.5, "x"]}, ("at", 1), "got 'x': it must be a number"),
    ],
)
@pytest.mark.parametrize("key", ["salt", "fan"])
def test_what_is_wrong_in_a_schedule_is_found_in_its_place(key, schedule, path, message):
    ((found, said),) = wrong({"name": "cook", "minutes": 3, key: schedule})
    assert found == (key, *path)
    assert said.startswith(message)


class Inner(Checked):
    epochs: int = 1


class Outer(Checked):
    train: Inner | None = None
    test: Inner = Inner()


@pytest.mark.parametrize("key", ["train", "test"])
def test_an_unknown_key_of_an_inner_block_gets_the_nearest_of_that_block(key):
    values, problems = validate(Outer, {key: {"epoch": 3}})
    assert values is None
    assert problems == [Problem((key, "epoch"), "unknown key 'epoch': did you mean 'epochs'? allowed are epochs")]


def test_the_call_gets_schedules_as_functions_and_all_else_as_it_is():
    block = one({"name": "cook", "minutes": 3, "salt": {"name": "linear", "start": 2.0}, "fan": "cosine"})
    made = call(DISHES, block, "the setup")
    assert made["given"] == "the setup"
    assert (made["minutes"], made["heat"], made["place"], made["note"]) == (3, 180.0, "oven", None)
    assert made["salt"](0.0) == 2.0
    assert made["salt"](0.5) == 1.0
    assert made["fan"](0.5) == pytest.approx(0.5)
    assert block["salt"]["name"] == "linear"


def test_a_number_for_a_schedule_stays_a_number():
    assert call(DISHES, one({"name": "cook", "minutes": 3, "salt": 2}), None)["salt"] == 2.0


def test_a_parameter_that_is_a_schedule_and_nothing_else_gets_one():
    block = one({"name": "wait", "pace": {"name": "steps", "at": [0.5]}})
    assert block == {"name": "wait", "pace": {"name": "steps", "at": [0.5], "factor": 0.1}}
    assert [call(DISHES, block)(progress) for progress in (0.4, 0.6)] == [1.0, 0.1]
    assert wrong({"name": "wait", "pace": 3})[0][0] == ("pace",)
    assert wrong("wait") == [((), "the key 'pace' is missing")]


def test_a_schedule_with_a_value_out_of_range_is_refused():
    (problem,) = wrong({"name": "cook", "minutes": 3, "salt": {"name": "linear", "until": 0.0}})
    assert problem == (("salt",), "got until 0.0, allowed are fractions of the stage, 0 < until <= 1")


def test_filling_raises_all_that_is_wrong_in_one_error():
    with pytest.raises(LimbeckError) as caught:
        fill(DISHES, {"name": "cook", "salt": {"name": "linear", "until": "x"}, "minutes": "3"}, kind="dish")
    assert str(caught.value) == "dish.minutes: got '3': it must be a whole number"
    with pytest.raises(LimbeckError) as caught:
        fill(DISHES, {"name": "cook", "salt": {"name": "linear", "until": "x", "og": 1}, "minutes": 3}, kind="dish")
    first, second = str(caught.value).splitlines()
    assert first == "dish.salt.until: got 'x': it must be a number"
    assert second.startswith("dish.salt.og: unknown key 'og'")


def test_filling_gives_the_completed_block():
    assert fill(DISHES, {"name": "cook", "preset": "soup"}, kind="dish", presets=PRESETS)["minutes"] == 40


def test_validating_gives_the_values_or_the_problems():
    model = keyword_model(cook)
    values, problems = validate(model, {"minutes": 3})
    assert problems == []
    assert values.pair == (0.0, 1.0)
    assert validate(model, {}) == (None, [Problem((), "the key 'minutes' is missing")])


@pytest.mark.parametrize(
    ("name", "allowed", "said"),
    [
        ("resnet2O", ["resnet32", "resnet20"], "did you mean 'resnet20'? allowed are resnet20, resnet32"),
        ("temprature", ["temperature", "hard"], "did you mean 'temperature'? allowed are hard, temperature"),
        ("KD", ["kd", "logits"], "did you mean 'kd'? allowed are kd, logits"),
        ("zzz", ["kd", "logits"], "allowed are kd, logits"),
        ("", ["kd"], "allowed are kd"),
        (3, ["kd"], "allowed are kd"),
        ("kd", [], "nothing is allowed here"),
    ],
)
def test_the_nearest_name_is_suggested(name, allowed, said):
    assert nearest(name, allowed) == said


def test_the_names_that_are_most_alike_come_first_and_no_others():
    names = ["layer1.0", "layer3.1", "LAYER3.0", "head", "stem"]
    assert close_names("layer3.0", names) == ["LAYER3.0", "layer3.1", "layer1.0"]
    assert close_names("layer3.0", names, most=1) == ["LAYER3.0"]
    assert close_names("zzz", names) == []
    assert close_names("layer3.x", ["layer1.x", "layer3.y"]) == ["layer3.y", "layer1.x"]
