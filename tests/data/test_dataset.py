"""Data from PyTorch datasets and iterables of batches."""

import numpy
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder

from limbeck.core import LimbeckError
from limbeck.data import dataset
from tests.data.image_files import tree, two_classes

LABELS = torch.arange(40) % 4


class Made(Dataset):
    """Samples of a function of the index."""

    def __init__(self, make, count=40, classes=None):
        self.make, self.count, self.classes, self.reads = make, count, classes, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        return self.make(index), index % 4


def images(index):
    return torch.full((3, 2, 2), index, dtype=torch.uint8)


def whole(data):
    """The first value of every sample, in the order of the values."""
    parts = [part.inputs.flatten(1)[:, 0] for part in (data.train, data.validation, data.test)]
    return torch.cat(parts).sort().values


@pytest.mark.parametrize(
    ("make", "dtype", "shape"),
    [
        (images, torch.uint8, (3, 2, 2)),
        (lambda i: images(i).numpy(), torch.uint8, (3, 2, 2)),
        (lambda i: images(i)[0], torch.uint8, (1, 2, 2)),
        (lambda i: images(i).double(), torch.float32, (3, 2, 2)),
        (lambda i: numpy.full(5, i, dtype=numpy.float16), torch.float32, (5,)),
        (lambda i: torch.full((7, 2, 3), float(i)), torch.float32, (7, 2, 3)),
        (lambda i: Image.new("L", (3, 2), i), torch.uint8, (1, 2, 3)),
        (lambda i: Image.new("RGB", (3, 2), (i, 0, 9)), torch.uint8, (3, 2, 3)),
        (lambda i: Image.new("P", (3, 2), 0).convert("L").point(lambda _: i), torch.uint8, (1, 2, 3)),
    ],
)
def test_samples_of_any_kind_are_read_once_and_divided(make, dtype, shape):
    data = dataset(Made(make))
    assert (data.train.inputs.dtype, data.shape) == (dtype, shape)
    assert whole(data).tolist() == list(range(40))
    assert data.classes == ("0", "1", "2", "3")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [29, 3, 8]
    assert torch.equal(data.train.inputs.flatten(1)[:, 0].long() % 4, data.train.targets)
    assert data.origins["test"] == "20 % of the training samples, evenly over the classes, the same in every run"


def test_an_image_of_16_bits_becomes_float32():
    data = dataset(Made(lambda i: Image.fromarray(numpy.full((2, 2), 65_535, dtype=numpy.uint16))), normalise=False)
    assert data.train.inputs.unique().tolist() == [1.0]
    assert dataset(Made(lambda i: numpy.full((4, 2, 2), 65_535, "uint16"))).train.inputs.unique().tolist() == [1.0]


@pytest.mark.parametrize("again", [list, iter])
def test_batches_give_what_the_dataset_gives(again):
    samples = TensorDataset(torch.arange(80.0).view(40, 2), LABELS)
    expected = dataset(samples)
    loaders = [DataLoader(samples, batch_size=7), again([[part.numpy() for part in samples[:9]], samples[9:]])]
    for loader in loaders:
        data = dataset(loader)
        assert torch.equal(data.train.inputs, expected.train.inputs)
        assert torch.equal(data.train.targets, expected.train.targets)
        assert (data.mean, data.std) == (expected.mean, expected.std)


def test_splits_that_are_given_are_kept_as_they_are(tmp_path):
    train, test = (ImageFolder(tree(tmp_path / part, two_classes())) for part in ("train", "test"))
    data = dataset(train, Subset(test, [0, 12, 3]), test)
    assert data.classes == ("ant", "cat")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 3, 20]
    assert data.validation.targets.tolist() == [0, 1, 0]
    assert data.validation.inputs[1, :, 0, 0].tolist() == [40, 40, 40]
    assert data.origins == dict.fromkeys(("train", "validation", "test"), "given")


def test_classes_are_named_by_the_dataset_or_by_the_caller():
    data = dataset(
        Subset(Made(images, classes=["a", "b", "c", "d"]), range(20)), test=Made(images, classes=list("abcd"))
    )
    assert data.classes == ("a", "b", "c", "d")
    assert len(data.test) == 40
    assert dataset(Made(images, classes="abcd"), classes="wxyz").classes == ("w", "x", "y", "z")
    with pytest.raises(
        LimbeckError, match=r"test has the classes \('b', .*\), and train \('a', .*; allowed are the same"
    ):
        dataset(Made(images, classes=list("abcd")), test=Made(images, classes=list("badc")))


def test_a_limit_reads_no_more_than_it_says():
    samples = Made(images)
    data = dataset(samples, limit=10)
    assert len(whole(data)) == 10
    assert samples.reads == 30  # and ten twice, to compare them
    assert torch.equal(whole(data), whole(dataset(samples, limit=10)))
    assert whole(dataset(DataLoader(samples, batch_size=4), limit=10)).tolist() == list(range(10))


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(4, 2), torch.arange(4)


def test_an_iterable_without_a_length_is_read_up_to_the_limit():
    assert len(whole(dataset(DataLoader(Endless(), batch_size=None), limit=10))) == 10


def test_memory_that_is_not_there_is_refused_at_the_first_sample(monkeypatch):
    monkeypatch.setattr("limbeck.data.bounds._memory", lambda: 40 * 12 - 1)
    samples = Made(images)
    with pytest.raises(LimbeckError, match=r"the inputs of train would take 480 bytes of memory, and this .* 479"):
        dataset(samples)
    assert samples.reads == 2 * 32 + 1
    with pytest.raises(LimbeckError, match=r"would take 480 bytes of memory"):
        dataset(iter(DataLoader(samples, batch_size=10)))
    assert len(whole(dataset(DataLoader(samples, batch_size=10), limit=30))) == 30


def test_progress_counts_the_samples_or_the_batches():
    seen = []
    dataset(Made(images), progress=lambda *given: seen.append(given))
    assert seen == [(done, 40) for done in range(1, 41)]
    seen.clear()
    dataset(DataLoader(Made(images), batch_size=8), limit=20, progress=lambda *given: seen.append(given))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    "samples",
    [
        FakeData(40, (3, 8, 8), 4, transform=lambda image: torch.rand(3, 8, 8)),
        DataLoader(TensorDataset(torch.rand(40, 2), LABELS), batch_size=8, shuffle=True),
    ],
)
def test_samples_that_change_when_they_are_read_again_are_refused(samples):
    with pytest.raises(LimbeckError, match=r"train: .* differs: there are random transforms, or .* pass augment="):
        dataset(samples)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (Made(lambda i: "text"), "train gave inputs of type str; allowed are tensors, arrays and PIL images"),
        (Made(lambda i: torch.zeros(1 + i % 2)), r"sample 1 is torch.float32 of shape \(2,\), and the first .*\(1,\)"),
        (Made(lambda i: torch.zeros(2, dtype=(torch.float, torch.uint8)[i % 2])), "sample 1 is torch.uint8 of shape"),
        (Made(lambda i: torch.zeros(2, dtype=torch.int64)), "inputs are torch.int64; allowed are uint8"),
        (Made(lambda i: numpy.zeros((8, 8, 3))), r"looks like \(N, H, W, C\)"),
        (Made(lambda i: torch.full((2,), torch.nan)), "train: .* values are NaN or infinite"),
        (TensorDataset(torch.zeros(9, 2)), "train gave tuple; allowed are pairs"),
        (TensorDataset(torch.zeros(9, 2), torch.zeros(9)), "targets are torch.float32, the first 0.0"),
        (
            TensorDataset(torch.zeros(9, 2), torch.arange(9) + 2000),
            "targets up to 2008 are 2,009 classes, but",
        ),
        (
            [(torch.zeros(2), 0)],
            r"gave inputs of shape \(2,\) and targets of shape \(\); allowed are samples",
        ),
        ([(torch.zeros(2, 2), ["a", "b"])], "train gave the target .*; allowed are numbers"),
        ([], "train has no samples"),
        (7, "train is a int; allowed are a torch Dataset and a DataLoader"),
    ],
)
def test_what_gives_no_samples_is_refused_and_says_why(samples, message):
    with pytest.raises(LimbeckError, match=message):
        dataset(samples)


class ByNumber:
    """Samples as dicts, of no class of torch, as a `datasets.Dataset` has them."""

    def __init__(self, *keys, features=None):
        self.keys, self.features = keys, features

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return dict(zip(self.keys, (images(index), index % 4, index), strict=True))


@pytest.mark.parametrize("keys", [("image", "label"), ("img", "labels"), ("pixel_values", "target")])
def test_the_columns_of_dicts_are_found_by_their_names(keys):
    expected = dataset(Made(images))
    assert dataset(ByNumber(*keys, "id")).train.digest() == expected.train.digest()
    assert dataset(ByNumber("a", "b", "image"), columns=("a", "b")).train.digest() == expected.train.digest()
    batches = DataLoader(ByNumber(*keys, "id"), batch_size=7)
    assert dataset(batches).train.digest() == expected.train.digest()


def test_class_names_are_those_of_the_feature():
    class Names:
        names = ("w", "x", "y", "z")

    samples = ByNumber("image", "fine", "label", features={"image": None, "fine": Names(), "label": None})
    assert dataset(samples, columns=("image", "fine")).classes == ("w", "x", "y", "z")
    assert dataset(Subset(samples, range(40)), columns=("image", "fine")).classes == ("w", "x", "y", "z")
    assert dataset(ByNumber("image", "label", "id", features={"label": None})).classes == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("samples", "columns", "message"),
    [
        (
            ByNumber("image", "fine_label", "id"),
            None,
            r"columns image, fine_label, id contain none of label, labels, target; .* with columns=\(input, target\)",
        ),
        (ByNumber("image", "label", "target"), None, "contain label and target; allowed is one of them"),
        (ByNumber("image", "label", "id"), ("imag", "label"), "no column 'imag': did you mean 'image'"),
        (Made(images), ("image", "label"), "train gave tuple; allowed are dicts, because columns is given"),
        ({"train": ByNumber("image", "label", "id")}, None, r'train is a dict; allowed are .*dataset\(d\["train"\]'),
    ],
)
def test_columns_that_are_not_clear_are_refused(samples, columns, message):
    with pytest.raises(LimbeckError, match=message):
        dataset(samples, columns=columns)


def test_a_mask_may_be_an_image():
    def sample(index):
        pixels = numpy.full((4, 4), index % 2, dtype="uint8")
        return {"image": Image.fromarray(pixels), "mask": Image.fromarray(pixels)}

    samples = [sample(index) for index in range(20)]

    class Masks(ByNumber):
        def __len__(self):
            return len(samples)

        def __getitem__(self, index):
            return samples[index]

    data = dataset(Masks(), columns=("image", "mask"), task="segmentation")
    assert data.classes == ("0", "1")
    assert torch.equal(data.train.inputs[:, 0], data.train.targets)


def test_an_iterable_dataset_with_a_length_gives_batches():
    class Sized(Endless):
        def __len__(self):
            return 5

    assert len(whole(dataset(Sized(), limit=10))) == 10


def test_signals_keep_their_channels():
    samples = Made(lambda i: torch.full((2, 9), float(i)))
    assert dataset(samples).shape == (1, 2, 9)
    data = dataset(samples, signals=True)
    assert data.shape == (2, 9)
    assert len(data.mean) == 2
    assert dataset(DataLoader(samples, batch_size=5), signals=True).train.digest() == data.train.digest()


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(LimbeckError, match="limit is 0; allowed are 1 and greater"):
        dataset(Made(images), limit=0)


def test_samples_without_a_label_are_for_training():
    labels = torch.where(torch.arange(40) < 12, -1, LABELS)
    data = dataset(TensorDataset(torch.rand(40, 2), labels))
    assert (data.train.targets == -1).sum() == 12
    assert data.classes == ("0", "1", "2", "3")
    with pytest.raises(LimbeckError, match=r"test: target -1 of sample 0 is not a class; allowed are 0 to 3"):
        dataset(TensorDataset(torch.rand(40, 2), LABELS), test=TensorDataset(torch.rand(40, 2), labels))


def test_a_loader_is_read_twice_to_compare_and_once_for_its_samples():
    class Counted(DataLoader):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    loader = Counted(TensorDataset(torch.rand(40, 2), LABELS), batch_size=8)
    dataset(loader)
    assert loader.passes == 3
