"""The text of a recipe: what is read, and what is refused with its line before it costs anything."""

import os

import pytest

from limbeck.recipe.text import BYTES, DEPTH, LETTERS, NODES, RecipeError, line_of, plain, read_text


def fail(text):
    with pytest.raises(RecipeError) as caught:
        plain(text, "r.yaml")
    assert len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("1_000", 1000),
        ("012", 12),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("3.", 3.0),
        ("-.inf", -float("inf")),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("2020-01-01", "2020-01-01"),
        ("12:30", "12:30"),
        ("0x10", "0x10"),
        ("1__0", "1__0"),
        ("'3'", "3"),
        ("'~'", "~"),
        ("a b", "a b"),
    ],
)
def test_a_scalar_is_text_a_number_true_false_or_null(text, value):
    found = plain(f"key: {text}", "r.yaml")["key"]
    assert found == value
    assert type(found) is type(value)


def test_keys_are_text_whatever_they_look_like():
    assert plain("{2020-01-01: 1, null: 2, 3: 4, true: 5}", "r") == {"2020-01-01": 1, "null": 2, "3": 4, "true": 5}


def test_an_alias_is_a_copy():
    found = plain("a: &x {hidden: [8]}\nb: *x\n", "r.yaml")
    found["a"]["hidden"].append(9)
    assert found["b"] == {"hidden": [8]}


def test_merge_keys_fill_in_and_the_blocks_own_keys_win():
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {y: 0, <<: [*a, *b]}\n'<<': 5\n"
    assert plain(text, "r.yaml")["c"] == {"x": 1, "y": 0, "z": 4}
    assert plain(text, "r.yaml")["<<"] == 5


def test_every_key_and_item_knows_its_line():
    value = plain("a:\n  b:\n    - 1\n    - c: 2\nd: 3\n", "r.yaml")
    assert line_of(value, ("a", "b", 1, "c")) == 4
    assert line_of(value, ("a", "b", 0)) == 3
    assert line_of(value, ("d",)) == 5
    assert line_of(value, ("a", "missing")) == 1
    assert line_of(value, ()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "r.yaml:2: duplicate key 'a': it is also in line 1"),
        ("a: &x [*x]", "r.yaml:1: the alias *x refers to a value that contains it"),
        ("a:\n  *x", "r.yaml:2: undefined alias *x: there is no &x above"),
        ("? [1]\n: 2", "r.yaml:1: a key must be text: a list"),
        ("a: !!int abc", "r.yaml:1: the tag !!int is not allowed in a recipe: quote it if it is text"),
        ("a: !!python/object:os.system x", "r.yaml:1: the tag !!python/object:os.system"),
        ("a: !!binary aGk=", "r.yaml:1: the tag !!binary"),
        ("a: !x b", "r.yaml:1: the tag !x"),
        ("!!int a: b", "r.yaml:1: a key must be text"),
        ("a: 1\n---\nb: 2", "r.yaml:2: a second document begins here: a recipe is one"),
        ("a: {<<: 3}", "r.yaml:1: <<: must be followed by a block"),
        (f"a: {'9' * 4000}", "r.yaml:1: a number of 4,000 digits"),
        (f"a: {'x' * 5000}", f"r.yaml:1: a text of 5,000 characters: at most {LETTERS:,}"),
        ('a: "\\ud800"', "r.yaml:1: the character U+D800 in '\\ud800' is not allowed"),
        ('a: "\\0"', "r.yaml:1: the character U+0000"),
        ('a: "\\e[31m"', "r.yaml:1: the character U+001B"),
        ("a: x\x00y", "r.yaml: this is not YAML"),
        ("a:\n\t- 1", "r.yaml:2: found character '\\t'"),
        ("[" * 5000, f"r.yaml:1: more than {DEPTH} nested blocks or lists"),
        ("{a: " * 100, f"r.yaml:1: more than {DEPTH} nested blocks or lists"),
        ("[" + "1," * (NODES + 9) + "]", f"r.yaml:1: more than {NODES:,} keys and values"),
        ("a: [1", "r.yaml:1: "),
    ],
)
def test_what_a_recipe_does_not_need_is_refused_with_its_line(text, message):
    assert message in fail(text)


def test_deep_aliases_of_deep_lists_are_refused():
    lines = [f"a0: &a0 {'[' * 15}{']' * 15}"]
    lines += [f"a{n}: &a{n} {'[' * 15}*a{n - 1}{']' * 15}" for n in range(1, 50)]
    assert f"more than {DEPTH} nested blocks or lists after *a0 is expanded" in fail("\n".join(lines))


def test_a_file_with_a_byte_order_mark_or_other_line_ends_is_read(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert plain(read_text(tmp_path / "r.yaml"), "r") == {"a": 1, "b": 2}


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_in_another_encoding_is_refused(tmp_path, encoding):
    (tmp_path / "r.yaml").write_bytes("a: ä\n".encode(encoding))
    with pytest.raises(RecipeError, match=r"it is not UTF-8 text \(byte"):
        read_text(tmp_path / "r.yaml")


def test_a_file_that_is_too_long_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_text("#" * (BYTES + 1))
    with pytest.raises(RecipeError, match=f"it has more than {BYTES:,} bytes"):
        read_text(tmp_path / "r.yaml")


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for place in (tmp_path, tmp_path / "fifo", tmp_path / "zero"):
        with pytest.raises(RecipeError, match="it is not a regular file"):
            read_text(place)
