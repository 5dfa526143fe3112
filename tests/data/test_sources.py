import gzip
import pickle
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy
import pytest
import torch
from image_files import encoded, picture, tree, two_classes
from PIL import Image

from limbeck.core import LimbeckError
from limbeck.data import load, split_off
from limbeck.data.decoding import picture as decoded
from limbeck.data.sources import SOURCES, images
from limbeck.data.sources.base import data_root
from limbeck.data.sources.idx import read_idx
from limbeck.data.trees import Reader


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch):
    monkeypatch.delenv("LIMBECK_DATA", raising=False)


# load


def test_an_unknown_source_is_refused_with_the_nearest_name():
    with pytest.raises(
        LimbeckError, match=r"no source 'cifar1O': did you mean 'cifar10'\? allowed are cifar10, .*py:f"
    ):
        load("cifar1O")


def test_a_source_like_no_other_gets_no_guess():
    with pytest.raises(LimbeckError, match=r"'zzz': allowed are cifar10, .*, and path/to/file.py:function$"):
        load("zzz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": Path("here")}, "data.path of digits: unknown key 'path': allowed are .*; it is a key of folder"),
        ({"streaming": True}, "data.streaming of digits: unknown key 'streaming': .*; it is a key of folder"),
        ({"size": (0, 8)}, r"size is \(0, 8\)"),
        ({"limit": 0}, "limit is 0"),
        ({"validation": 1.0}, "cannot split off 1.0"),
    ],
)
def test_load_refuses_values_out_of_range(options, message):
    with pytest.raises(LimbeckError, match=message):
        load("digits", **options)


def test_sources_cannot_be_changed():
    with pytest.raises(TypeError):
        SOURCES["mine"] = SOURCES["digits"]


def test_importing_the_data_package_imports_neither_torchvision_nor_scikit_learn():
    code = "import sys, limbeck.data; assert not {'torchvision', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# digits


def test_digits_are_scaled_to_bytes_and_split_evenly():
    data = load("digits")
    assert data.shape == (1, 8, 8)
    assert (len(data.train), len(data.validation), len(data.test)) == (1294, 144, 359)
    assert data.classes == tuple("0123456789")
    assert data.train.inputs.dtype == torch.uint8
    assert int(data.train.inputs.max()) == 255
    assert set(data.train.inputs.unique().tolist()) == {round(value * 255 / 16) for value in range(17)}
    assert torch.bincount(data.test.targets).min() >= 34


def test_digits_have_the_same_test_split_whatever_the_seed():
    one, other = load("digits", seed=1), load("digits", seed=2)
    assert torch.equal(one.test.inputs, other.test.inputs)
    assert not torch.equal(one.validation.inputs, other.validation.inputs)


def test_a_limit_keeps_an_even_part_of_each_split():
    data, whole = load("digits", limit=50, seed=3), load("digits", seed=3)
    assert (len(data.train), len(data.validation), len(data.test)) == (50, 50, 50)
    assert torch.bincount(data.train.targets).tolist() == [5] * 10
    assert torch.equal(data.train.inputs, split_off(50, whole.train, 3)[1].inputs)
    assert len(load("digits", limit=200).validation) == 144


def test_without_normalise_mean_and_deviation_are_0_and_1():
    data = load("digits", normalise=False)
    assert (data.mean, data.std) == ((0.0,), (1.0,))


def test_any_source_can_be_resized():
    data = load("digits", size=(4, 6), validation=0, limit=20)
    assert data.shape == (1, 4, 6)
    assert data.train.inputs.dtype == torch.uint8
    assert 0 < float(data.train.inputs.float().mean()) < 255


# the data root


def test_the_data_root_is_the_argument_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    assert data_root(None) == Path.home() / ".cache" / "limbeck"
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    assert data_root(None) == tmp_path
    (tmp_path / "other").mkdir()
    assert data_root(tmp_path / "other") == tmp_path / "other"


@pytest.mark.parametrize("source", ["mnist", "cifar10", "cifar100"])
def test_a_data_root_that_does_not_exist_is_refused_before_any_download(source, tmp_path, monkeypatch):
    (tmp_path / "datasets").mkdir()
    with pytest.raises(LimbeckError, match=r"dataset is not a folder: did you mean 'datasets'\?"):
        load(source, root=tmp_path / "dataset")
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "dataset"))
    with pytest.raises(LimbeckError, match=r"dataset \(from LIMBECK_DATA\) is not a folder"):
        load(source)
    assert not (tmp_path / "dataset").exists()


def test_a_data_root_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    assert data_root(Path("~/data")) == tmp_path / "data"


def test_a_data_root_in_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(LimbeckError, match=r"is not a folder$"):
        data_root(tmp_path / "missing" / "deep")


# mnist


def idx(values):
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def mnist_files(suffix="", train=30, test=10):
    rng = numpy.random.default_rng(0)
    files = {}
    for part, count in (("train", train), ("t10k", test)):
        files[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 28, 28), dtype=numpy.uint8))
        files[f"{part}-labels-idx1-ubyte"] = idx((numpy.arange(count) % 10).astype(numpy.uint8))
    return {name + suffix: gzip.compress(data, mtime=0) if suffix else data for name, data in files.items()}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw", ""])
def test_mnist_is_found_plain_or_gzipped_in_each_of_its_places(folder, suffix, tmp_path):
    files = mnist_files(suffix)
    tree(tmp_path / folder, files)
    data = load("mnist", root=tmp_path, validation=10, download=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 10)
    assert data.shape == (1, 28, 28)
    content = files["t10k-images-idx3-ubyte" + suffix]
    assert data.test.inputs.numpy().tobytes() == (gzip.decompress(content) if suffix else content)[16:]
    assert data.test.targets.tolist() == list(range(10))
    assert data.origins == {
        "train": "the MNIST training files, without the samples of validation",
        "validation": "10 samples of train, evenly over the classes, seed 0",
        "test": "the MNIST test files",
    }
    assert data.notes == ()


def test_mnist_that_is_missing_in_part_is_not_found(tmp_path):
    files = mnist_files()
    del files["t10k-labels-idx1-ubyte"]
    tree(tmp_path / "mnist", files)
    with pytest.raises(
        LimbeckError, match=r"MNIST not found: looked for .* in .*mnist, .*raw, .*--data-root.*LIMBECK_DATA"
    ):
        load("mnist", root=tmp_path, download=False)


def test_mnist_is_downloaded_when_it_is_not_there(tmp_path, monkeypatch):
    asked = []

    def download(root, *, download):
        asked.append(download)
        tree(Path(root) / "MNIST" / "raw", mnist_files())

    monkeypatch.setattr("torchvision.datasets.MNIST", download)
    assert len(load("mnist", root=tmp_path).test) == 10
    assert len(load("mnist", root=tmp_path).test) == 10
    assert asked == [True]


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_a_failed_download_of_mnist_says_where_it_was_looked_for(error, tmp_path, monkeypatch):
    def download(root, *, download):
        raise error("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST", download)
    with pytest.raises(LimbeckError, match=r"not found: .* and the download failed \(no network\); give .*--data-root"):
        load("mnist", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x", b"", "is not an IDX file of bytes: it begins with nothing"),
        ("x", b"\x89PNG1234", "is not an IDX file of bytes: it begins with 89 50 4e 47"),
        ("x", struct.pack(">HBBI", 0, 13, 1, 1) + b"abcd", "is not an IDX file of bytes"),
        ("x", struct.pack(">HBBI", 0, 8, 3, 1), "is not an IDX file of bytes"),
        ("x", struct.pack(">HBBI", 0, 8, 1, 4) + b"abc", "has 3 values, but its header says 4"),
        ("x", struct.pack(">HBBI", 0, 8, 1, 4) + b"abcde", "has more values, but its header says 4"),
        ("x.gz", b"plain", "cannot be read: Not a gzipped file"),
        ("x.gz", gzip.compress(random.Random(0).randbytes(100), mtime=0)[:60], "cannot be read: Compressed file ended"),
        ("x.gz", gzip.compress(bytes(9), mtime=0)[:10] + b"\xff" * 20, "cannot be read: Error -3"),
    ],
)
def test_a_damaged_idx_file_is_refused_by_name(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LimbeckError, match=f"{name} {message}"):
        read_idx(tmp_path / name, 1)


def test_the_real_mnist_is_what_it_is_known_to_be(real_mnist):
    data = load("mnist", root=real_mnist, validation=0, download=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (60_000, 0, 10_000)
    assert data.mean == pytest.approx((0.1307,), abs=5e-5)
    assert data.std == pytest.approx((0.3081,), abs=5e-5)
    assert torch.bincount(data.test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


# cifar


def cifar_files(names, labels, meta, key, classes):
    pixels = numpy.arange(4 * 3072, dtype=numpy.int64).reshape(4, 3072).astype(numpy.uint8)
    files = {name: pickle.dumps({"data": pixels, labels: [0, 1, 0, 1]}) for name in names}
    return files | {meta: pickle.dumps({key: classes})}


CIFAR10 = cifar_files(
    [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], "labels", "batches.meta", "label_names", ["ant", "bee"]
)
CIFAR100 = cifar_files(["train", "test"], "fine_labels", "meta", "fine_label_names", ["ant", "bee"])


@pytest.fixture
def any_checksum(monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())


@pytest.mark.usefixtures("any_checksum")
@pytest.mark.parametrize(
    ("source", "folder", "files", "train"),
    [("cifar10", "cifar-10-batches-py", CIFAR10, 20), ("cifar100", "cifar-100-python", CIFAR100, 4)],
)
def test_cifar_is_read_in_torchvisions_layout(source, folder, files, train, tmp_path):
    tree(tmp_path / folder, files)
    tree(tmp_path / f"{source}.zip", {})
    data = load(source, root=tmp_path, validation=0)
    assert (len(data.train), len(data.test)) == (train, 4)
    assert data.shape == (3, 32, 32)
    assert data.classes == ("ant", "bee")
    assert data.test.targets.tolist() == [0, 1, 0, 1]
    assert data.origins["test"] == f"the {source.upper()} test batch"
    assert data.test.inputs[0, 1, 0, :3].tolist() == [0, 1, 2]
    assert data.test.inputs[0, 0, 1, :3].tolist() == [32, 33, 34]


def test_damaged_cifar_batches_are_refused_and_not_downloaded_again(tmp_path):
    tree(tmp_path / "cifar-10-batches-py", CIFAR10)
    with pytest.raises(LimbeckError, match=r"CIFAR10 cannot be read from .* \(Dataset not found or corrupted"):
        load("cifar10", root=tmp_path)


@pytest.mark.parametrize("place", ["cifar100", "cifar100.zip"])
def test_cifar_is_read_from_a_folder_or_zip_file_of_images(place, tmp_path):
    tree(tmp_path / place, two_classes("train/") | two_classes("test/", count=2))
    data = load("cifar100", root=tmp_path, validation=4, download=False)
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 4, 4)
    assert data.classes == ("ant", "cat")


def test_cifar_that_is_not_there_is_not_downloaded_unless_allowed(tmp_path):
    with pytest.raises(
        LimbeckError, match=r"CIFAR10 not found: looked for .*batches-py, .*cifar10, .*cifar10.zip; give"
    ):
        load("cifar10", root=tmp_path, download=False)


def test_a_failed_download_of_cifar_says_how_to_give_it(tmp_path, monkeypatch):
    def download(root, *, train, download):
        assert download
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", download)
    with pytest.raises(LimbeckError, match=r"could not be downloaded to .* \(no network\); give .*LIMBECK_DATA"):
        load("cifar10", root=tmp_path)


def test_a_part_of_the_real_cifar10_zip_is_read(real_cifar10, tmp_path):
    with zipfile.ZipFile(real_cifar10) as archive:
        names = archive.namelist()
        tree(tmp_path / "cifar10.zip", {name: archive.read(name) for name in names[::200]})
    data = load("cifar10", root=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (225, 25, 50)
    assert data.shape == (3, 32, 32)
    assert data.classes[:5] == ("airplane", "automobile", "bird", "cat", "deer")
    assert data.classes[5:] == ("dog", "frog", "horse", "ship", "truck")
    assert data.mean == pytest.approx((0.491, 0.482, 0.447), abs=0.03)


# folder


@pytest.mark.parametrize("place", ["set", "set.zip"])
def test_a_folder_or_zip_file_of_class_folders_is_split(place, tmp_path):
    data = load("folder", path=tree(tmp_path / place, two_classes()))
    assert data.classes == ("ant", "cat")
    assert data.shape == (1, 4, 4)
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 2, 4)
    assert torch.bincount(data.test.targets).tolist() == [2, 2]
    values = torch.cat([data.train.inputs, data.validation.inputs, data.test.inputs])[:, 0, 0, 0].tolist()
    assert sorted(values) == sorted([20 * i for i in range(10)] * 2)


def test_a_folder_has_the_same_test_split_whatever_the_seed(tmp_path):
    path = tree(tmp_path / "set.zip", two_classes())
    one, other = (load("folder", path=path, seed=seed) for seed in (1, 2))
    assert torch.equal(one.test.inputs, other.test.inputs)


@pytest.mark.parametrize("validation", ["val", "validation", "valid"])
@pytest.mark.parametrize("top", ["", "wrapped/"])
def test_train_test_and_validation_folders_are_used(top, validation, tmp_path):
    files = two_classes(f"{top}train/", 5) | two_classes(f"{top}test/", 3) | two_classes(f"{top}{validation}/", 2)
    data = load("folder", path=tree(tmp_path / "set.zip", files | {f"{top}README.txt": b"", f"{top}.notes/x.png": b""}))
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 4, 6)
    assert data.train.targets.tolist() == [0] * 5 + [1] * 5
    assert data.train.inputs[:, 0, 0, 0].tolist() == [0, 20, 40, 60, 80] * 2
    assert data.validation.inputs[:, 0, 0, 0].tolist() == [0, 20] * 2


def test_a_train_folder_without_a_test_folder_is_split(tmp_path):
    data = load("folder", path=tree(tmp_path / "set", two_classes("train/")))
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 2, 4)


@pytest.mark.parametrize("place", ["set", "set.zip"])
def test_a_sample_is_named_by_its_path_in_the_folder_or_zip_file(place, tmp_path):
    files = two_classes("animals/train/", 3) | two_classes("animals/test/", 2)
    data = load("folder", path=tree(tmp_path / place, files), validation=0, size=(2, 2))
    expected = tuple(f"animals/train/{name}/{i:02}.png" for name in ("ant", "cat") for i in range(3))
    assert data.train.names == expected
    assert data.test.names is not None
    assert data.test.names[-1] == "animals/test/cat/01.png"
    part = load("folder", path=tmp_path / place, validation=2, size=(2, 2))
    assert set(part.train.names) | set(part.validation.names) == set(expected)
    values = {name: int(name[-6:-4]) * 20 for name in expected}
    for split in (part.train, part.validation):
        assert split.inputs[:, 0, 0, 0].tolist() == [values[name] for name in split.names]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("place", "top"), [("set", ""), ("set", "train/"), ("set.zip", "train/")])
def test_images_of_the_unlabelled_folder_are_used_for_training_only(place, top, streaming, tmp_path):
    extra = {f"more/{name}.png": picture(200) for name in ("a", "b", "deep/c")} | {"more/notes.txt": b""}
    path = tree(tmp_path / place, two_classes(top) | extra)
    data = load("folder", path=path, unlabelled="more", streaming=streaming, **{"workers": 0} if streaming else {})
    assert data.classes == ("ant", "cat")
    assert data.train.targets.tolist() == [0] * 7 + [1] * 7 + [-1] * 3
    assert data.train.names[-3:] == ("more/a.png", "more/b.png", "more/deep/c.png")
    assert (data.train.inputs[torch.tensor([14, 15, 16])] == 200).all()
    assert (len(data.validation), len(data.test)) == (2, 4)
    assert "with the images of more" in data.origins["train"]
    assert "3 of 17 training samples are unlabelled" in data.notes


def test_a_limit_keeps_an_even_part_of_the_unlabelled_samples_too(tmp_path):
    path = tree(tmp_path / "set", two_classes() | {f"more/{n}.png": picture() for n in range(14)})
    data = load("folder", path=path, unlabelled="more", validation=2, limit=4)
    assert sorted(data.train.targets.tolist()) == [-1, -1, 0, 1]


def test_an_unlabelled_folder_without_images_is_refused_with_the_nearest_name(tmp_path):
    path = tree(tmp_path / "set", two_classes("train/") | {"unlabelled/a.png": picture()})
    with pytest.raises(LimbeckError, match="no folder 'unlabeled' with images for unlabelled: did you mean"):
        load("folder", path=path, unlabelled="unlabeled")


def test_other_sources_have_no_names():
    assert load("digits").train.names is None


def test_one_wrapping_folder_is_looked_through(tmp_path):
    data = load("folder", path=tree(tmp_path / "set.zip", {"LICENSE": b""} | two_classes("animals/")))
    assert data.classes == ("ant", "cat")


def test_classes_are_sorted_by_name_and_not_by_path(tmp_path):
    files = {f"{name}/{i}.png": picture() for name in ("ant-2", "ant") for i in range(5)}
    assert load("folder", path=tree(tmp_path / "set.zip", files)).classes == ("ant", "ant-2")


def test_a_class_may_be_called_train(tmp_path):
    files = {f"{name}/{i}.png": picture() for name in ("bus", "train") for i in range(5)}
    assert load("folder", path=tree(tmp_path / "set", files)).classes == ("bus", "train")


def test_a_single_class_folder_is_no_wrapping(tmp_path):
    files = {f"cat/{name}{i}.png": picture() for name in ("", "deep/") for i in range(5)}
    data = load("folder", path=tree(tmp_path / "set", files))
    assert data.classes == ("cat",)
    assert len(data.train) + len(data.validation) + len(data.test) == 10


def test_hidden_files_and_files_that_are_no_images_are_left_out(tmp_path):
    extra = {
        "__MACOSX/cat/._00.png": b"",
        ".git/cat/00.png": b"",
        "cat/.hidden.png": b"",
        "cat/Thumbs.db": b"",
        "ant/UPPER.PNG": picture(),
    }
    data = load("folder", path=tree(tmp_path / "set.zip", two_classes() | extra), validation=0)
    assert data.classes == ("ant", "cat")
    assert len(data.train) + len(data.test) == 21


def test_a_relative_path_is_of_here_or_else_of_the_data_root(tmp_path, monkeypatch):
    tree(tmp_path / "root" / "set", two_classes())
    monkeypatch.chdir(tmp_path)
    assert len(load("folder", path=Path("root/set")).test) == 4
    assert len(load("folder", path="set", root=str(tmp_path / "root")).test) == 4
    with pytest.raises(LimbeckError, match=r"^sett does not exist$"):
        load("folder", path=Path("sett"), root=tmp_path / "root")


def test_a_folder_needs_a_path():
    with pytest.raises(LimbeckError, match="data of folder: the key 'path' is missing"):
        load("folder")


def test_a_missing_path_is_refused_with_the_nearest_name_and_not_for_the_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", "nowhere")
    (tmp_path / "animals").mkdir()
    with pytest.raises(LimbeckError, match=r"animal does not exist: did you mean 'animals'\?"):
        load("folder", path=tmp_path / "animal")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no class folders"),
        ({"loose.png": picture()}, "has no class folders"),
        (two_classes() | {"dog/": b""}, "class folder 'dog' of train has no images"),
        (two_classes() | {"dog/notes.txt": b""}, "class folder 'dog' of train has no images"),
        (
            two_classes("train/") | two_classes("test/") | {"test/bee/1.png": picture()},
            "train/ and test/ must .*; only test/ has bee",
        ),
        (two_classes("train/") | {"val/ant/1.png": picture()}, "train/ and val/ .*; only train/ has cat"),
        (two_classes() | {"cat/z.png": b"nonsense"}, "cat/z.png in .* cannot be read as an image"),
        (two_classes() | {"cat/z.png": encoded(picture(size=(99, 99)))[:-30]}, "cat/z.png in .* cannot be read as an"),
        (
            two_classes() | {"cat/z.tif": encoded(Image.new("F", (4, 4), 1.5), "tiff")},
            "cat/z.tif in .* it has values from 1.5 to 1.5; allowed are 0 to 1",
        ),
    ],
)
@pytest.mark.parametrize("place", ["set", "set.zip"])
def test_a_folder_that_is_not_right_is_refused_by_name(place, files, message, tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(LimbeckError, match=message):
        load("folder", path=tree(tmp_path / place, files))


def test_a_file_that_is_no_zip_file_is_refused(tmp_path):
    (tmp_path / "set.zip").write_bytes(b"nonsense")
    with pytest.raises(LimbeckError, match=r"set.zip is neither a folder nor a valid zip file: File is not a zip file"):
        load("folder", path=tmp_path / "set.zip")


def test_a_damaged_file_in_a_zip_file_is_named(tmp_path):
    path = tree(tmp_path / "set.zip", two_classes())
    content = bytearray(path.read_bytes())
    content[content.find(b"IDAT") + 5] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(LimbeckError, match=r"cat/00.png in .*set.zip cannot be read: Bad CRC"):
        load("folder", path=path)


def test_images_of_different_sizes_are_resized_when_asked(tmp_path):
    files = two_classes() | {"cat/z.png": picture(200, size=(40, 20)), "cat/gradient.png": Image.linear_gradient("L")}
    data = load("folder", path=tree(tmp_path / "set", files), size=(6, 8))
    assert data.shape == (1, 6, 8)


def test_height_comes_before_width_when_resizing(tmp_path):
    gradient = Image.linear_gradient("L").resize((16, 4))  # from black on top to white
    data = load("folder", path=tree(tmp_path / "set", {f"a/{i}.png": gradient for i in range(5)}), size=(2, 8))
    expected = numpy.asarray(gradient.resize((8, 2), Image.Resampling.BILINEAR))
    assert data.train.inputs[0, 0].tolist() == expected.tolist()


def test_resizing_down_is_antialiased(tmp_path):
    stripes = Image.fromarray(numpy.tile(numpy.array([[0, 200]], dtype=numpy.uint8), (16, 8)))
    data = load("folder", path=tree(tmp_path / "set", {f"a/{i}.png": stripes for i in range(5)}), size=(4, 4))
    assert 90 <= int(data.train.inputs.min()) <= int(data.train.inputs.max()) <= 110


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("png", "png"),
        ("jpeg", "jpg"),
        ("jpeg", "jpeg"),
        ("bmp", "bmp"),
        ("gif", "gif"),
        ("webp", "webp"),
        ("tiff", "tif"),
        ("tiff", "tiff"),
        ("ppm", "ppm"),
        ("ppm", "pgm"),
    ],
)
def test_grey_images_of_every_kind_have_one_channel(kind, name, tmp_path):
    files = {f"a/{i}.{name}": encoded(picture(100), kind) for i in range(5)}
    data = load("folder", path=tree(tmp_path / "set", files), validation=0)
    assert data.shape == (1, 4, 4)
    assert ((data.train.inputs.int() - 100).abs() <= 1).all()


@pytest.mark.parametrize("mode", ["1", "LA"])
def test_other_grey_modes_have_one_channel_too(mode, tmp_path):
    files = {f"a/{i}.png": picture(100).convert(mode) for i in range(5)}
    assert load("folder", path=tree(tmp_path / "set", files)).shape == (1, 4, 4)


def test_a_single_colour_image_gives_all_three_channels(tmp_path):
    files = {"a/0.webp": encoded(picture(200, mode="RGB"), "webp", lossless=True)}
    files |= {f"a/{i}.png": picture(10 * i) for i in range(1, 5)}
    data = load("folder", path=tree(tmp_path / "set", files), validation=0)
    pixels = torch.cat([data.train.inputs, data.test.inputs])[:, :, 0, 0].tolist()
    assert sorted(pixels) == [[10, 10, 10], [20, 20, 20], [30, 30, 30], [40, 40, 40], [200, 0, 55]]


def test_transparency_is_dropped(tmp_path):
    see_through = picture(200, mode="RGB")
    see_through.putalpha(0)
    files = {f"a/{i}.png": see_through for i in range(5)}
    data = load("folder", path=tree(tmp_path / "set", files), validation=0)
    assert {tuple(pixel) for pixel in data.train.inputs[:, :, 0, 0].tolist()} == {(200, 0, 55)}


def test_a_palette_with_transparency_gives_its_colours(tmp_path):
    striped = numpy.zeros((4, 4, 3), dtype=numpy.uint8)
    striped[0], striped[1], striped[2] = (200, 0, 0), (0, 100, 0), (0, 0, 50)
    palette = encoded(Image.fromarray(striped).quantize(4), "png", transparency=bytes([0, 128, 255, 9]))
    data = load("folder", path=tree(tmp_path / "set", {f"a/{i}.png": palette for i in range(5)}))
    assert numpy.array_equal(data.train.inputs[0].permute(1, 2, 0).numpy(), striped)


def test_threads_decode_the_same_images_in_the_same_order(tmp_path, monkeypatch):
    path = tree(tmp_path / "set.zip", two_classes(count=10))
    alone = load("folder", path=path)
    monkeypatch.setattr(images, "_SMALL", 0)
    monkeypatch.setattr(images, "_CHUNK", 3)
    assert torch.equal(load("folder", path=path).train.inputs, alone.train.inputs)


def test_an_error_in_a_thread_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_SMALL", 0)
    with pytest.raises(LimbeckError, match=r"cat/z.png in .* cannot be read as an image"):
        load("folder", path=tree(tmp_path / "set.zip", two_classes() | {"cat/z.png": b"nonsense"}))


def png_of_16_bits(kind):
    """A PNG of this colour type whose every sample is 0x1234."""
    samples = {2: 3, 4: 2, 6: 4}[kind]
    rows = zlib.compress((b"\0" + b"\x12\x34" * samples * 4) * 4)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data)) for tag, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff_of_16_bits():
    """A TIFF of one red, green and blue pixel of 16 bits each, uncompressed."""
    tags = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 128)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 6)]
    listed = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return (
        b"II*\0"
        + struct.pack("<IH", 8, len(tags))
        + listed
        + bytes(4)
        + struct.pack("<HHH", 16, 16, 16)
        + b"\x12\x34" * 3
    )


@pytest.mark.parametrize(
    "data",
    [
        png_of_16_bits(2),
        png_of_16_bits(4),
        png_of_16_bits(6),
        tiff_of_16_bits(),
        b"P6 1 1 65535\n" + bytes(6),
        b"P3 1 1 256\n1 2 3\n",
    ],
)
def test_colours_of_16_bits_are_refused(data):
    with pytest.raises(LimbeckError, match=r"^x .*: it has more than 8 bits in each of several .*\(mode RGBA?\)"):
        decoded("x", data)


def test_colours_of_8_bits_and_fewer_are_not_refused():
    bitmap = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 58, 0, 0, 54, 40, 1, 1, 1, 16, 0, 4, 0, 0, 0, 0) + bytes(4)
    files = [bitmap, b"P6 1 1 100\n" + bytes(3), b"P3 1 1 255\n0 0 0\n", encoded(picture(0, mode="RGB"), "tiff")]
    assert [decoded("x", data).image.mode for data in files] == ["RGB"] * 4


def test_a_link_to_a_folder_that_it_is_in_is_not_followed(tmp_path):
    place = tree(tmp_path / "set", two_classes(count=5) | {"cat/deep/00.png": picture()})
    expected = Reader(place).listing().names
    (place / "cat" / "deep" / "up").symlink_to("..")
    (place / "ant" / "top").symlink_to(place)
    (place / "self").symlink_to(".")
    assert Reader(place).listing().names == expected


def test_links_to_other_folders_are_followed(tmp_path):
    place = tree(tmp_path / "set", two_classes("train/", 3) | two_classes("test/", 2))
    (place / "validation").symlink_to("test")
    elsewhere = tree(tmp_path / "more", {"deep/x.png": picture()})
    (place / "train" / "cat" / "link").symlink_to(elsewhere)
    (place / "train" / "cat" / "beside").symlink_to("../ant")
    data = load("folder", path=place)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [10, 4, 4]
    assert {"train/cat/link/deep/x.png", "train/cat/beside/00.png"} < set(data.train.names)


@pytest.mark.parametrize("names", [("test", "val"), ("Test", "dev"), ("TESTING", "cat")])
def test_parts_without_a_train_folder_are_not_taken_for_classes(tmp_path, names):
    files = two_classes(f"{names[0]}/", 3) | two_classes(f"{names[1]}/", 3)
    with pytest.raises(LimbeckError, match=r"no train/ beside .*; allowed are train/, test/ and"):
        load("folder", path=tree(tmp_path / "images", files))


# progress


@pytest.mark.parametrize("place", ["cifar10", "cifar10.zip"])
def test_progress_counts_the_files_that_are_read(place, tmp_path):
    tree(tmp_path / place, two_classes("train/", 3) | two_classes("test/", 2))
    counts = []
    load("cifar10", root=tmp_path, progress=lambda done, total: counts.append((done, total)))
    assert counts == [(done, 10) for done in range(1, 11)]


def test_progress_counts_images_of_different_sizes_once_more_for_their_sizes(tmp_path):
    path = tree(tmp_path / "set", two_classes(count=3) | {"cat/x.png": picture(size=(5, 6))})
    counts = []
    load("folder", path=path, progress=lambda done, total: counts.append(done))
    assert counts[-14:] == [*range(1, 8), *range(1, 8)]
