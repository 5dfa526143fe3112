from pathlib import Path

import pytest

from limbeck.core import LimbeckError
from limbeck.recipe.bundled import bundled


@pytest.mark.parametrize("name", ["digits_kd", "digits_kd.yaml"])
def test_a_recipe_is_found_with_and_without_its_ending(name):
    found = bundled(name)
    assert found.name == "digits_kd.yaml"
    assert found.is_file()


@pytest.mark.parametrize("name", ["digit_kd", "digit_kd.yaml"])
def test_an_unknown_recipe_gets_the_nearest(name):
    with pytest.raises(LimbeckError, match=f"there is no recipe {name}: did you mean 'digits_kd'"):
        bundled(name)


def test_the_message_names_the_path_that_was_asked_for():
    with pytest.raises(LimbeckError, match=r"there is no recipe some/where/digit_kd\.yaml: did you mean"):
        bundled("digit_kd.yaml", Path("some/where/digit_kd.yaml"))


@pytest.mark.parametrize("name", ["", ".yaml", "../pyproject.toml", "digits_kd.yml"])
def test_what_is_no_recipe_is_refused(name):
    with pytest.raises(LimbeckError, match="there is no recipe"):
        bundled(name)


def test_an_installed_limbeck_has_its_recipes_in_the_package(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("name: mine\n")
    monkeypatch.setattr("limbeck.recipe.bundled._FOLDERS", (tmp_path / "recipes", tmp_path / "elsewhere"))
    assert bundled("mine") == tmp_path / "recipes" / "mine.yaml"
    monkeypatch.setattr("limbeck.recipe.bundled._FOLDERS", (tmp_path / "elsewhere", tmp_path / "recipes"))
    assert bundled("mine") == tmp_path / "recipes" / "mine.yaml"
