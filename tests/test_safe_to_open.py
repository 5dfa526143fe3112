"""What somebody received is read without running it, in bounded time and memory: a sound file loads, else LimbeckError.

By kind: weights of safetensors, weights of torch.save, tables of soft labels; then damages of sound ones at random.
"""

import functools
import hashlib
import io
import itertools
import json
import os
import pathlib
import pickle
import random
import resource
import runpy
import shutil
import struct
import subprocess
import sys
import time
import zipfile

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import limbeck
from limbeck import user_code
from limbeck.cache import folder as store
from limbeck.cache import manifest
from limbeck.cache.table import read_table
from limbeck.core import LimbeckError
from limbeck.data import arrays
from limbeck.experiment.networks import restored
from limbeck.files import checkpoint, columns, pickled
from limbeck.files import paths as opening
from limbeck.models import (
    NetworkSpec,
    build,
    files,
    load_network,
    load_weights,
    read_spec,
    rebuilding,
    save_network,
)
from limbeck.models import spec as spec_of

pytestmark = pytest.mark.timeout(60)

SECONDS, MEGABYTES = 5, 400
SPEC = NetworkSpec("mlp", {"hidden": [5]}, 3, (4,))


@pytest.fixture(autouse=True)
def in_a_folder_and_bounded(tmp_path, monkeypatch):
    """Every test here is in an empty folder, and takes little processor time and memory; what waits is ended."""
    monkeypatch.chdir(tmp_path)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    assert used < MEGABYTES
    assert time.process_time() - start < SECONDS


def small():
    return build("mlp", classes=3, shape=(4,), hidden=[5])


def described(metadata, file="weights.safetensors", tensors=None):
    """A file of sound tensors whose metadata says this of its network."""
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file(tensors or small().state_dict(), file, {"limbeck": text})
    return file


def spec(**changes):
    return {"name": "mlp", "options": {"hidden": [5]}, "classes": 3, "shape": [4], **changes}


CODE = """
from pathlib import Path
Path("it_ran").touch()

def make(*_, **__):
    raise RuntimeError
"""


@pytest.fixture
def code(tmp_path):
    """A file whose code leaves a trace, and what looks for the trace."""
    file = tmp_path / "theirs.py"
    file.write_text(CODE)
    yield file
    assert not pathlib.Path("it_ran").exists()


# --- what weights say of their network ---


@pytest.mark.parametrize("open_it", [load_network, limbeck.load_network, read_spec, lambda p: load_weights(small(), p)])
def test_a_file_that_names_code_is_read_without_running_it(code, open_it):
    file = pathlib.Path(described(spec(name=f"{code}:make")))
    try:
        open_it(file)
    except LimbeckError as error:
        message = str(error)
        for way_out in (
            "network=...",
            "model='path/to/file.py:function'",
            "trust_code=True",
            "--trust-code",
            "theirs.py:make",
        ):
            assert way_out in message
    else:
        assert open_it not in (load_network, limbeck.load_network)


@pytest.mark.parametrize("ways", [{"network": small()}, {"model": "mlp"}])
def test_a_file_that_names_code_loads_into_what_the_caller_names(code, ways):
    network = load_network(described(spec(name=f"{code}:make")), **ways)[0]
    assert not network.training


def test_a_function_of_the_system_with_a_command_is_not_called():
    place = os.__file__
    with pytest.raises(LimbeckError, match=r"os\.py:system.*loading weights does not run code"):
        load_network(described(spec(name=f"{place}:system", options={"command": "touch it_ran"})))
    assert not pathlib.Path("it_ran").exists()


def test_a_teacher_whose_file_names_code_is_refused_unless_its_model_is_named(code):
    data = arrays(torch.randn(30, 4), torch.arange(30) % 3, classes=("a", "b", "c"))
    file = described(spec(name=f"{code}:make"))
    with pytest.raises(LimbeckError, match="loading weights does not run code"):
        restored(file, None, data)
    assert restored(file, {"name": "mlp", "hidden": [5]}, data)


def test_code_that_is_trusted_is_run(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef make(width, classes):\n  return nn.Linear(width, classes)\n"
    )
    saved = NetworkSpec(f"{tmp_path}/mine.py:make", {"width": 4}, 3, (4,))
    save_network(nn.Linear(4, 3), tmp_path / "a.safetensors", spec=saved)
    with pytest.raises(LimbeckError, match="loading weights does not run code"):
        load_network("a.safetensors")
    assert load_network("a.safetensors", trust_code=True)[0].in_features == 4


def test_a_student_of_code_loads_elsewhere_after_its_file_has_gone(tmp_path, monkeypatch):
    code = tmp_path / "here" / "net.py"
    code.parent.mkdir()
    code.write_text("from torch import nn\ndef make(width, classes):\n    return nn.Linear(width, classes)\n")
    options = {"width": 4}
    network = build(f"{code}:make", classes=3, shape=(4,), **options)
    save_network(network, code.parent / "student.safetensors", spec=NetworkSpec(f"{code}:make", options, 3, (4,)))
    there = tmp_path / "there"
    there.mkdir()
    shutil.move(code.parent / "student.safetensors", there)
    code.rename(there / "other.py")
    shutil.rmtree(code.parent)
    monkeypatch.chdir(there)
    assert torch.equal(load_network("student.safetensors", network=nn.Linear(4, 3))[0].weight, network.weight)
    assert torch.equal(load_network("student.safetensors", model="other.py:make")[0].weight, network.weight)
    assert load_network("student.safetensors", network=nn.Linear(4, 3))[1].name == "net.py:make"


@pytest.mark.parametrize("home", ["/home/somebody", "~", "~somebody", "C:\\Users\\somebody", "\\\\server\\share"])
def test_a_saved_network_holds_no_path_of_the_machine(home):
    sign = "\\" if "\\" in home else "/"
    options = {"start": f"{home}{sign}secret{sign}w.pth", "all": [f"{home}{sign}secret{sign}a.txt", 3], "kept": "a/b"}
    name = f"{home}{sign}secret{sign}net.py:make"
    save_network(nn.Linear(4, 3), pathlib.Path("a.safetensors"), spec=NetworkSpec(name, options, 3, (4,)))
    content = pathlib.Path("a.safetensors").read_bytes()
    assert b"secret" not in content
    assert b"somebody" not in content
    known = read_spec(pathlib.Path("a.safetensors"))
    assert known.name == "net.py:make"
    assert known.options == {"start": "w.pth", "all": ["a.txt", 3], "kept": "a/b"}


def test_a_foreign_file_loads_into_the_network_that_is_passed():
    save_file(small().state_dict(), "theirs.safetensors")
    assert load_network("theirs.safetensors", network=small())[1] is None
    with pytest.raises(
        LimbeckError, match="does not say which network it holds: build the network and pass it as network="
    ):
        load_network("theirs.safetensors", model="mlp")
    with pytest.raises(LimbeckError, match="a network= or a model=, not both"):
        load_network("theirs.safetensors", network=small(), model="mlp")


IMAGES = {"shape": [3, 32, 32]}

LIES = {
    "a layer of a billion": spec(options={"hidden": [10**9]}),
    "a layer of 60,000 by 60,000": spec(options={"hidden": [60_000, 60_000]}),
    "ten thousand layers": spec(options={"hidden": [1] * 9_999}),
    "a million layers": spec(options={"hidden": [1] * 10**6}),
    "a billion classes": spec(classes=2**30),
    "a large sample": spec(shape=[2**31, 2**31, 2**31]),
    "no classes": spec(classes=-1),
    "no sample": spec(shape=[]),
    "another network": spec(name="resnet8", options={}, **IMAGES),
    "a large network of torchvision": spec(name="torchvision:vit_h_14", options={}, **IMAGES),
    "one that cannot be looked at": spec(name="torchvision:regnet_y_128gf", options={}, **IMAGES),
    "many blocks": spec(name="timm:vit_tiny_patch16_224", options={"depth": 60_000}, **IMAGES),
    "a large image": spec(name="timm:vit_tiny_patch16_224", options={"img_size": 65_000}, **IMAGES),
    "pairs of places": spec(name="timm:swin_tiny_patch4_window7_224", options={"window_size": 30_000}, **IMAGES),
    "a number of many digits": json.dumps(spec()).replace("[5]", f"[{'9' * 5_000}]"),
    "nesting": '{"name":' * 100_000,
    "nested options": json.dumps(spec()).replace("[5]", "[" * 50_000 + "]" * 50_000),
    "a long text": json.dumps(spec(labels=["x" * 2**23])),
    "no number": json.dumps(spec()).replace("[5]", "[NaN]"),
    "text for numbers": spec(classes="3"),
    "a network of the web": spec(name="timm:hf-hub:somebody/network", options={}, **IMAGES),
    "a name that is none": spec(name=""),
    "a file without a function": spec(name="net.py"),
    "no options": spec(options=[1]),
    "a projector of a billion": spec(
        reuse={"layer": "stage1", "side": "output", "channels": 5, "outside": 2**20, "classifier": "head", "classes": 3}
    ),
    "a projector without a size": spec(reuse={"layer": "stage1"}),
    "a projector of no size": spec(
        reuse={
            "layer": "stage1",
            "side": "output",
            "channels": 5,
            "outside": 5,
            "classifier": "head",
            "classes": 3,
            "factor": 0,
        }
    ),
    "a place that is none": spec(
        reuse={"layer": "nowhere", "side": "output", "channels": 5, "outside": 5, "classifier": "head", "classes": 3}
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_metadata_that_lies_is_refused_before_memory_is_taken(lie):
    with pytest.raises(LimbeckError, match=r"weights\.safetensors "):
        load_network(described(LIES[lie]))


def test_options_that_lie_are_refused_for_a_model_that_is_named_too():
    with pytest.raises(LimbeckError, match="it needs more memory or operations than its file justifies"):
        load_network(described(LIES["a layer of 60,000 by 60,000"]), model="mlp")


def test_every_bound_stands_in_the_documentation():
    text = (pathlib.Path(__file__).parents[1] / "docs" / "security.md").read_text()
    bounds = [
        *(user_code.LARGEST, files.LEAST, files.TIMES, files.HEADER, rebuilding.LARGEST, rebuilding.NUMBER),
        *(rebuilding.VALUES, spec_of.LONGEST, pickled.PICKLE, pickled.NESTED, pickled.HANDLED, opening.DIRECTORY),
        *(pickled.STEPS, pickled.HASHED, pickled.LARGE),
        *(
            columns.LARGEST,
            columns.NUMBERS,
            columns.ROWS,
            columns.LINE,
            store.HEADER,
            manifest.MOST_BYTES,
            manifest.MOST_FILES,
        ),
    ]
    assert [bound for bound in bounds if f"{bound:,}" not in text] == []


@pytest.mark.parametrize("lie", ["a projector of a billion", "a projector without a size", "a place that is none"])
def test_a_projector_that_lies_is_refused_for_a_network_that_is_passed_too(lie):
    with pytest.raises(LimbeckError):
        load_network(described(LIES[lie]), network=small())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm:test_resnet", {"pretrained": True}),
        (
            "timm:test_resnet",
            {"pretrained_cfg": {"file": "theirs.pt"}, "pretrained_cfg_overlay": {"url": "http://a.b"}},
        ),
        ("timm:test_resnet", {"checkpoint_path": "theirs.pt", "cache_dir": "."}),
        ("torchvision:squeezenet1_1", {"weights": "DEFAULT"}),
    ],
)
def test_options_that_fetch_weights_have_no_effect_in_a_file(monkeypatch, name, options):
    def refused(*_, **__):
        raise AssertionError("something was fetched")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refused)
    monkeypatch.setattr("timm.models._builder.load_pretrained", refused)
    monkeypatch.setattr("timm.models._factory.load_checkpoint", refused)
    pathlib.Path("theirs.pt").write_bytes(pickle.dumps(Harm(pathlib.Path.touch, pathlib.Path("it_ran"))))
    network = build(name, classes=3, shape=(3, 64, 64))
    save_network(network, pathlib.Path("a.safetensors"), spec=NetworkSpec(name, options, 3, (3, 64, 64)))
    assert load_network("a.safetensors")[1].name == name
    assert not pathlib.Path("it_ran").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"features_only": True},
        {"pretrained_strict": False},
        {"feature_cfg": {"a": 1}},
        {"act_layer": "/etc/passwd"},
        {"act_layer": "https://a.b"},
        {"act_layer": {"name": "relu"}},
        {"act_layer": "x" * 101},
        {"drop_rate": 1e9},
    ],
)
def test_options_of_the_libraries_in_a_file_are_plain(options):
    with pytest.raises(LimbeckError, match=r"sets the option .* of timm:test_resnet"):
        load_network(described(spec(name="timm:test_resnet", options=options, **IMAGES)))


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit", "torchvision:regnet_y_400mf", "resnet8", "mlp"])
def test_networks_of_the_zoo_and_the_libraries_still_load_from_the_file_alone(name):
    options = {"hidden": [5]} if name == "mlp" else {"drop_rate": 0.1} if name.startswith("timm") else {}
    shape = (3, 160, 160) if name == "timm:test_vit" else (3, 32, 32)
    network = build(name, classes=3, shape=shape, **options)
    save_network(network, pathlib.Path("a.safetensors"), spec=NetworkSpec(name, options, 3, shape))
    found, want = load_network("a.safetensors")[0].state_dict(), network.state_dict()
    assert all(torch.equal(found[key], want[key]) for key in want)


# --- headers of safetensors ---


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**12) + b"{}",
        struct.pack("<Q", 2**24 + 1) + b"{" + b" " * 2**25,
        struct.pack("<Q", 30_000) + b'{"a":' * 6_000,
        struct.pack("<Q", 2) + b"{}" + b"too many bytes",
        struct.pack("<Q", 64) + b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4]}}  ' + b"four",
        struct.pack("<Q", 68) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4000000000000]}}  ' + b"four",
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}      ' + b"four",
        struct.pack("<Q", 5) + b"\xff\xff\xff\xff\xff",
        b"\0" * 8,
        b"",
        b"abc",
    ],
)
@pytest.mark.parametrize(
    "open_it", [load_network, lambda p: load_weights(small(), p), lambda p: read_spec(pathlib.Path(p))]
)
def test_a_header_that_lies_is_refused(content, open_it):
    pathlib.Path("weights.safetensors").write_bytes(content)
    with pytest.raises(LimbeckError, match=r"weights\.safetensors (is truncated or damaged|has a header of)"):
        open_it("weights.safetensors")


# --- what torch.save wrote ---


class Harm:
    """Pickled, it is the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touch():
    pathlib.Path("it_ran").touch()


HARM = [
    Harm(os.system, "touch it_ran"),
    Harm(subprocess.Popen, ["touch", "it_ran"]),
    Harm(eval, "__import__('pathlib').Path('it_ran').touch()"),
    Harm(exec, "__import__('pathlib').Path('it_ran').touch()"),
    Harm(runpy.run_path, "theirs.py"),
    Harm(shutil.copy, "theirs.py", "it_ran"),
    Harm(open, "it_ran", "w"),
    Harm(bytearray, 10**11),
]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.call[0].__name__)
@pytest.mark.parametrize("wrap", [lambda harm: harm, lambda harm: {"model": small().state_dict(), "log": [harm]}])
def test_a_file_that_asks_for_harm_is_refused_and_nothing_runs(code, harm, wrap, legacy):
    torch.save(wrap(harm), "a.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(LimbeckError, match=r"a\.pt names \w+\.\w+, which weights never need and which can do harm"):
        load_weights(small(), "a.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "harm", [Harm(touch), Harm(torch.load, "b.pt"), Harm(functools.partial, touch), Harm(getattr, os, "x")]
)
def test_weights_beside_any_other_call_load_and_nothing_runs(code, harm, legacy):
    network = small()
    if harm.call[0] is getattr:
        harm = Harm(getattr, pathlib.Path, "touch")
    torch.save({"model": network.state_dict(), "x": harm}, "a.pt", _use_new_zipfile_serialization=not legacy)
    other = small()
    load_weights(other, "a.pt")
    assert torch.equal(network.head.weight, other.head.weight)


def test_a_whole_network_that_was_pickled_is_refused_with_the_way_out():
    torch.save(small(), "a.pt")
    with pytest.raises(
        LimbeckError, match=r"loading that would run its code: save only the weights, with torch\.save\("
    ):
        load_weights(small(), "a.pt")


def test_nothing_is_imported_that_a_file_names(tmp_path, monkeypatch):
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "their_training.py").write_text("class Log:\n    def __reduce__(self):\n        return Log, ()\n")
    monkeypatch.syspath_prepend(folder)
    import their_training

    torch.save({"state_dict": small().state_dict(), "log": their_training.Log()}, "a.pt")
    del sys.modules["their_training"]
    (folder / "their_training.py").write_text("from pathlib import Path\nPath('it_ran').touch()\n")
    load_weights(small(), "a.pt")
    assert "their_training" not in sys.modules
    assert not pathlib.Path("it_ran").exists()


def test_what_is_allowed_to_other_readers_stays_as_it_was():
    before = set(torch.serialization.get_safe_globals())
    torch.save({"model": small().state_dict(), "args": Harm(touch)}, "a.pt")
    load_weights(small(), "a.pt")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda network: torch.jit.trace(network, torch.zeros(2, 4))])
def test_a_torchscript_archive_says_how_to_load_it(make):
    make(small()).save("a.pt")
    with pytest.raises(
        LimbeckError, match=r"TorchScript archive.*torch\.jit\.load, and pass the module to limbeck\.distill"
    ):
        load_weights(small(), "a.pt")


def rewritten(change, compression=zipfile.ZIP_STORED):
    """A file of sound weights whose entries are changed."""
    held = io.BytesIO()
    torch.save(small().state_dict(), held)
    with zipfile.ZipFile(held) as old, zipfile.ZipFile("a.pt", "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return "a.pt"


def test_an_archive_that_was_packed_anew_loads():
    load_weights(small(), rewritten(lambda _, content: content))


def test_a_bomb_in_an_archive_is_refused():
    with pytest.raises(LimbeckError, match=r"a\.pt is truncated or damaged .*compressed or overlap"):
        load_weights(
            small(), rewritten(lambda name, c: b"\0" * 10**8 if name.endswith("/0") else c, zipfile.ZIP_DEFLATED)
        )


@pytest.mark.parametrize("count", [b"J\xff\xff\xff\x7f", b"\x8a\x05\x00\x00\x00\x00\x7f", b"J\xff\xff\xff\xff"])
def test_a_tensor_that_says_it_is_larger_than_its_numbers_takes_no_memory(count):
    def lie(name, content):
        return content.replace(b"K\x14", count) if name.endswith("data.pkl") else content

    network = small()
    before = network.head.bias.clone()
    try:
        load_weights(network, rewritten(lie))  # what it has of numbers may do
    except LimbeckError:
        assert torch.equal(network.head.bias, before)


def test_a_tensor_of_one_number_that_says_it_has_a_trillion_is_refused():
    torch.save(small().state_dict() | {"head.weight": torch.zeros(1).expand(10**6, 10**6)}, "a.pt")
    with pytest.raises(
        LimbeckError, match=r"1 of another shape \(head\.weight \(1000000, 1000000\) instead of \(3, 5\)\)"
    ):
        load_weights(small(), "a.pt")


def test_tuples_that_hold_each_other_twice_are_refused():
    nested = (1,)
    for _ in range(60):
        nested = (nested, nested)
    torch.save({"model": small().state_dict(), "x": [nested]}, "a.pt")
    with pytest.raises(LimbeckError, match=r"a\.pt nests its values too deeply"):
        load_weights(small(), "a.pt")


def archive(description, name="archive/data.pkl", path="a.pt"):
    """A file of torch.save with this description, which names no tensors."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, description)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    return pathlib.Path(path)


NESTED = b"K\1" + b"".join(b"q%ch%c\x86" % (place, place) for place in range(60))
"""A tuple that takes years to compare."""


def test_a_description_is_looked_at_by_any_name_that_torch_finds_it_by():
    with pytest.raises(LimbeckError, match=r"a\.pt nests its values too deeply"):
        load_weights(small(), archive(b"\x80\2}" + NESTED + b"Ns.", "archive/DATA.pkl"))


def test_a_checkpoint_is_looked_at_as_weights_are():
    path = archive(b"\x80\2}" + NESTED + b"Ns.", path="last.pt")
    before = path.read_bytes()[:-2]
    seal = b"limbeck " + hashlib.sha256(before).hexdigest().encode()
    path.write_bytes(before + len(seal).to_bytes(2, "little") + seal)
    with pytest.raises(LimbeckError, match="not a complete checkpoint"):
        checkpoint.load(path)


def alike(kind):
    """Some thousand keys that a dictionary cannot tell apart by their hashes."""
    if kind == "numbers":  # the hash of a number is what is left by 2**61 - 1
        return b"".join(b"\x8a\x0b" + (place * (2**61 - 1)).to_bytes(11, "little") + b"N" for place in range(1, 20_000))
    sides = b"J\xff\xff\xff\xffq\0NJ\xfe\xff\xff\xffq\1N"  # -1 and -2 have the same
    chosen = itertools.product((b"h\0", b"h\1"), repeat=12)
    return sides + b"".join(b"(" + b"".join(sequence) + b"tN" for sequence in chosen)


@pytest.mark.parametrize("kind", ["numbers", "tuples"])
def test_keys_that_are_made_to_be_alike_are_refused(kind):
    with pytest.raises(LimbeckError, match=r"a\.pt has too many tuples or large integers"):
        load_weights(small(), archive(b"\x80\2}(" + alike(kind) + b"u."))


def test_tuples_in_a_list_that_are_made_to_be_alike_are_refused_before_a_set_is_made():
    tuples = alike("tuples").replace(b"tN", b"t").replace(b"\0N", b"\0").replace(b"\1N", b"\1")
    with pytest.raises(LimbeckError, match=r"a\.pt has too many tuples or large integers"):
        load_weights(small(), archive(b"\x80\2cbuiltins\nset\n](" + tuples + b"e\x85R."))


def test_a_description_of_too_many_steps_is_refused(monkeypatch):
    monkeypatch.setattr(pickled, "STEPS", 1000)
    with pytest.raises(LimbeckError, match=r"a\.pt has a pickle of more than .* or 1,000 opcodes"):
        load_weights(small(), archive(b"\x80\2](" + b"N" * 1000 + b"e."))


def two_directories():
    """An archive in which Python finds one directory, and readers that follow the pointer of a zip64 file another."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\x80\2}X\0\0\1\0" + b"a" * 2**16 + b"Ns.")
    hidden = held.getvalue()
    end = hidden.rfind(b"PK\5\6")
    size, start = struct.unpack_from("<LL", hidden, end + 12)
    content = hidden[:end] + b"PK\6\6" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 1, 1, size, start)
    pathlib.Path("a.pt").write_bytes(content)
    with zipfile.ZipFile("a.pt", "a") as file:
        file.writestr("archive/data.pkl", b"\x80\2}.")
    seen = pathlib.Path("a.pt").read_bytes()
    last = seen.rfind(b"PK\5\6")
    size, start = struct.unpack_from("<LL", seen, last + 12)
    record = b"PK\6\6" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 1, 1, size, start)
    pointer = b"PK\6\7" + struct.pack("<LQL", 0, end, 1)
    pathlib.Path("a.pt").write_bytes(seen[:last] + record + pointer + seen[last:])


def test_an_archive_of_two_directories_is_refused():
    two_directories()
    with pytest.raises(LimbeckError, match=r"a\.pt is ambiguous"):
        load_weights(small(), "a.pt")


def test_a_directory_that_is_not_where_it_says_is_refused():
    content = pathlib.Path(rewritten(lambda _, content: content)).read_bytes()
    pathlib.Path("a.pt").write_bytes(b"before it" + content)
    with pytest.raises(LimbeckError, match=r"a\.pt is ambiguous"):
        load_weights(small(), "a.pt")


def sharded(first, name="pytorch_model-1.bin"):
    """An index of two files, the first of which holds this beside its share of the weights."""
    state = small().state_dict()
    head = {key: state.pop(key) for key in list(state)[:1]}
    torch.save(head | first, "pytorch_model-1.bin")
    torch.save(state, "pytorch_model-2.bin")
    named = dict.fromkeys(state, "pytorch_model-2.bin") | dict.fromkeys(head, name)
    pathlib.Path("pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": named}))
    return "pytorch_model.bin.index.json"


def test_what_is_no_tensor_in_a_shard_is_left_out():
    load_weights(small(), sharded({"epoch": 3}))


def test_a_shard_without_a_name_is_refused():
    with pytest.raises(LimbeckError, match="names the shard ''"):
        load_weights(small(), sharded({}, name=""))


def test_long_plain_values_load():
    log = {"steps": tuple(range(pickled.NESTED - 10)), "losses": [0.5] * 100_000}
    torch.save({"model": small().state_dict(), "log": log}, "a.pt")
    load_weights(small(), "a.pt")


def test_values_that_hold_themselves_load():
    content = {"model": small().state_dict(), "log": []}
    content["log"].append(content["log"])
    content["again"] = content
    torch.save(content, "a.pt")
    load_weights(small(), "a.pt")


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\3\4" + b"\0" * 100, b"\x80\x02}.", b"no weights", b"\x80\x04N."])
def test_a_file_of_something_else_is_refused(content):
    pathlib.Path("a.pt").write_bytes(content)
    with pytest.raises(LimbeckError, match=r"a\.pt is truncated or damaged"):
        load_weights(small(), "a.pt")


def directory_of(size, large):
    """The end of a zip file that says its directory has so many bytes."""
    if not large:
        return b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 9, 9, size, 0, 0)
    record = b"PK\6\6" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 9, 9, size, 0)
    return record + b"PK\6\7" + struct.pack("<LQL", 0, 0, 1) + directory_of(0xFFFFFFFF, False)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("name", "open_it"),
    [("a.pt", lambda: load_weights(small(), "a.pt")), ("a.npz", lambda: read_table(pathlib.Path("a.npz")))],
)
def test_an_archive_of_too_many_entries_is_refused(large, name, open_it):
    pathlib.Path(name).write_bytes(b"\0" * 100 + directory_of(opening.DIRECTORY + 1, large))
    with pytest.raises(LimbeckError, match="has a directory of 16,777,217 bytes"):
        open_it()


def test_a_file_far_larger_than_its_network_is_refused():
    with open("a.pt", "wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(LimbeckError, match=r"has 1,099,511,627,776 bytes, allowed are at most 1,073,741,824"):
        load_weights(small(), "a.pt")


# --- what is no regular file ---


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".csv", ".npz", ".parquet"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "proc", "memory", "nothing"])
def test_only_regular_files_are_opened(ending, kind):
    file = pathlib.Path(f"it{ending}")
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind != "nothing":
        targets = {"device": "/dev/zero", "loop": file.name, "proc": "/proc/self/maps", "memory": "/proc/self/mem"}
        file.symlink_to(targets[kind])
    tables = ending in (".csv", ".npz", ".parquet")
    for open_it in [read_table] if tables else [load_network, read_spec, lambda path: load_weights(small(), path)]:
        with pytest.raises(LimbeckError, match=rf"it\{ending}"):
            open_it(file)


# --- tables of soft labels ---


def npz(**entries):
    with zipfile.ZipFile("table.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(f"{name}.npy", content)
    return pathlib.Path("table.npz")


def array(value):
    held = io.BytesIO()
    numpy.save(held, numpy.asarray(value))
    return held.getvalue()


def header(text, content=b""):
    padded = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(padded)) + padded + content


def shaped(shape, descr="'<f8'", content=b"\0" * 8):
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}", content)


FILES = array(["a.png", "b.png"])
VALUES = array([[0.5, 0.5], [0.25, 0.75]])

TABLES = {
    "a shape of a trillion": {"files": FILES, "values": shaped("(1000000000000, 1000)")},
    "a shape that overflows": {"files": FILES, "values": shaped("(4611686018427387904, 4)")},
    "a negative shape": {"files": FILES, "values": shaped("(-1, 2)")},
    "a shape that is none": {"files": FILES, "values": shaped("'many'")},
    "too many numbers": {"files": FILES, "values": shaped("(140000000, 1)", "'|b1'", b"\0" * 140_000_000)},
    "long names": {"files": shaped("(2,)", "'<U250000000'", b"\0" * 8), "values": VALUES},
    "objects": {"files": FILES, "values": shaped("(2, 2)", "'|O'", pickle.dumps([Harm(touch)]))},
    "an object inside": {"files": shaped("(2,)", "[('a', '|O')]", pickle.dumps(Harm(touch))), "values": VALUES},
    "nesting in the header": {"files": FILES, "values": header("(" * 9_000)},
    "no header": {"files": FILES, "values": b"nonsense"},
    "another version": {"files": FILES, "values": b"\x93NUMPY\3\0" + VALUES[8:]},
    "a pickle": {"files": FILES, "values": pickle.dumps(Harm(touch))},
    "one name": {"files": array("a.png"), "values": VALUES},
    "one class's name": {"files": FILES, "values": VALUES, "classes": array("cat")},
    "names of names": {"files": array([["a.png"], ["b.png"]]), "values": VALUES},
}


@pytest.mark.parametrize("lie", TABLES)
def test_a_table_of_arrays_that_lies_is_refused(lie):
    file = npz(**TABLES[lie])
    with pytest.raises(LimbeckError, match=r"table\.npz "):
        read_table(file)
    assert not pathlib.Path("it_ran").exists()


def test_a_table_of_arrays_that_is_compressed_is_read():
    assert read_table(npz(files=FILES, values=VALUES, classes=array(["cat", "dog"]))).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,cat\n" + "a" * 5_000_000 + ",1\n", "line 2: it is longer than 4,194,304 characters"),
        ("file," + "," * 5_000_000, "line 1: it is longer than 4,194,304 characters"),
        ("file,cat\n" + '"a\n' * 1_000_000, "line 2: unexpected end of data"),
        ("file,cat\n" + "a" * 200_000 + ",1\n", r"line 2: field larger than field limit"),
        ("file,cat\na,1\n\0\n", "line 3: "),
        ("file,cat\na," + "9" * 5_000 + "\n", "NaN or infinite"),
        ("\ud800".encode("utf-16", "surrogatepass").decode("latin1") * 9, "columns"),
    ],
)
def test_a_table_of_text_that_lies_is_refused(content, message):
    pathlib.Path("table.csv").write_text(content, encoding="utf-8")
    with pytest.raises(LimbeckError, match=message):
        read_table(pathlib.Path("table.csv"))


def parquet(columns, **how):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table(columns), "table.parquet", **how)
    return pathlib.Path("table.parquet")


def test_a_small_parquet_file_of_too_many_numbers_is_refused():
    arrow = pytest.importorskip("pyarrow")
    rows = 1_400_000
    zeros = arrow.array(numpy.zeros(rows, dtype="float32"))
    file = parquet({"file": arrow.array(["a"] * rows), **{str(n): zeros for n in range(100)}})
    with pytest.raises(LimbeckError, match="has 140,000,000 numbers or more, allowed are at most 134,217,728"):
        read_table(file)


def test_a_small_parquet_file_of_long_names_is_refused():
    arrow = pytest.importorskip("pyarrow")
    names = arrow.DictionaryArray.from_arrays(arrow.array([0] * 3_000), arrow.array(["x" * 500_000]))
    file = parquet({"file": names, "cat": [0.5] * 3_000})
    assert file.stat().st_size < 2**22
    with pytest.raises(LimbeckError, match="bytes in the column 'file'"):
        read_table(file)


@pytest.mark.parametrize("column", [[[1.0], [2.0]], ["1.0", "2.0"], [{"a": 1.0}, {"a": 2.0}], [b"1", b"2"]])
def test_a_parquet_file_of_anything_but_numbers_is_refused(column):
    with pytest.raises(LimbeckError, match="needed are texts of file, else numbers"):
        read_table(parquet({"file": ["a", "b"], "cat": column}))


# --- damages at random: what is read is what was written, or it is refused ---


def damaged(content, generator):
    """A few bytes changed, a part missing, doubled or moved, or a beginning of noise."""
    kind = generator.randrange(5)
    place = generator.randrange(len(content))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + content[place + generator.randrange(1, 64) :]
    if kind == 2:
        return content[:place] + content[place : place + 64] + content[place:]
    if kind == 3:
        return generator.randbytes(min(place, 200)) + content[min(place, 200) :]
    changed = bytearray(content)
    for _ in range(generator.randrange(1, 5)):
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def weights(kind):
    network = small()
    if kind == "safetensors":
        save_network(network, pathlib.Path("a.safetensors"), spec=SPEC)
    else:
        torch.save({"model": network.state_dict(), "epoch": 3}, "a.pt", _use_new_zipfile_serialization=kind == "zip")
    return network, pathlib.Path("a.safetensors" if kind == "safetensors" else "a.pt")


@pytest.mark.parametrize("kind", ["zip", "safetensors", "legacy"])
@pytest.mark.parametrize("start", range(4))
def test_damaged_weights_are_refused_or_load(kind, start):
    network, file = weights(kind)
    content, generator = file.read_bytes(), random.Random(start)
    for _ in range(60):
        changed = damaged(content, generator)
        file.write_bytes(changed)
        other = small()
        try:
            load_weights(other, file)
        except LimbeckError as error:
            assert file.name in str(error)  # noqa: PT017
        else:  # of the three kinds only zip files have a checksum of their own
            assert kind != "zip" or all(
                torch.equal(one, two)
                for one, two in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
            )


@seed(0)
@settings(max_examples=80, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    ),
    st.sampled_from(["name", "options", "classes", "shape", "labels", "mean", "std", "reuse", "more"]),
)
def test_any_metadata_is_refused_or_loads(value, key):
    file = described(spec(**{key: value}))
    try:
        load_network(file)
    except LimbeckError as error:
        assert str(error)  # noqa: PT017


@pytest.mark.parametrize("ending", ["csv", "npz", "parquet"])
def test_damaged_tables_are_refused_or_read(ending):
    values = numpy.array([[0.5, 0.5], [0.25, 0.75]])
    if ending == "npz":
        numpy.savez("table.npz", files=numpy.array(["a", "b"]), values=values)
    elif ending == "csv":
        pathlib.Path("table.csv").write_text("file,cat,dog\na,0.5,0.5\nb,0.25,0.75\n")
    else:
        parquet({"file": ["a", "b"], "cat": values[:, 0], "dog": values[:, 1]})
    file = pathlib.Path(f"table.{ending}")
    content, generator = file.read_bytes(), random.Random(0)
    for _ in range(150):
        file.write_bytes(damaged(content, generator))
        try:
            read_table(file)
        except LimbeckError as error:
            assert file.name in str(error)  # noqa: PT017
