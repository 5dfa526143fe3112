"""Recipes as nobody should write them: each is refused with a message, in bounded time and memory."""

import string
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import recipes
from limbeck.recipe.read import RecipeError, check, dump, read
from limbeck.recipe.text import DEPTH, NODES, plain

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
GOOD = {
    "name": "tiny",
    "data": {"source": "digits"},
    "teacher": {"model": {"name": "mlp", "hidden": [32]}, "train": {"epochs": 3}},
    "student": {"model": {"name": "mlp", "hidden": [8]}},
    "method": "kd",
    "train": {"epochs": 4},
}


def test_mutated_recipes_are_refused_in_good_order_or_accepted():
    found = recipes.run(200, seed=0)
    assert {name: found[name] for name in recipes.FAULTS} == dict.fromkeys(recipes.FAULTS, 0)
    assert found["accepted"] + found["refused"] == 200
    assert found["accepted"] > 0


def test_the_fuzzer_sees_what_it_is_there_to_see(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("limbeck.cli.run._run", lambda *arguments, **options: [][0])
    kind, said = recipes._outcome(
        b"name: a\ndata: {source: digits}\nstudent: {model: resnet8}\nmethod: alone\ntrain: {epochs: 1}\n", []
    )
    assert kind == "traceback"
    assert "IndexError" in said


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.text(max_size=80) | st.text(string.printable, max_size=80) | st.text("[]{}:,-?&*!|>'\"#%@ \n\tab1", max_size=60)
)
def test_any_text_is_a_value_or_a_recipe_error(text):
    with suppress(RecipeError):
        plain(text, "recipe.yaml")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(["data", "teacher", "student", "method", "train", "networks", "seeds", "cache", "allow"]), VALUES
)
def test_any_value_of_a_key_is_checked_without_an_exception(key, value):
    recipe, problems = check({**GOOD, key: value})
    assert (recipe is None) == bool(problems)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(TEXT, TEXT)
def test_any_text_is_the_same_after_it_was_written_and_read(tmp_path_factory, path, layer):
    raw = {**GOOD, "method": {"name": "kd", "student_layer": layer}, "data": {"source": "folder", "path": path}}
    recipe, problems = check(raw)
    if recipe is None:
        assert problems
        return
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_text(dump(recipe), encoding="utf-8")
    assert read(file) == recipe


@pytest.mark.parametrize("wide", [1, 2, 9, 200])
def test_aliases_of_aliases_unfold_to_a_bounded_size(wide):
    lines = [f"a0: &a0 [{', '.join('x' * wide)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * wide)}]" for n in range(1, 100)]
    with pytest.raises(RecipeError, match=f"{NODES:,} keys and values|more than {DEPTH} nested blocks"):
        plain("\n".join(lines), "recipe.yaml")
