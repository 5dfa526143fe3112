"""Images in tar files, as webdataset writes them."""

import gc
import gzip
import io
import pickle
import re
import tarfile

import numpy
import pytest
import torch
from PIL import Image

from limbeck.core import LimbeckError
from limbeck.data import Batches, load
from limbeck.data.tars import Folder, Tars, samples


def png(value):
    made = io.BytesIO()
    Image.fromarray(numpy.full((8, 8, 3), value, numpy.uint8)).save(made, "png")
    return made.getvalue()


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def shards(folder, count=4, each=5, kind="train"):
    for shard in range(count):
        files = {}
        for sample in range(each):
            number = shard * each + sample
            files |= {f"{number:06d}.png": png(number), f"{number:06d}.cls": str(number % 3).encode()}
        write_tar(folder / f"{kind}-{shard:02d}.tar", files)


@pytest.fixture
def data(tmp_path):
    shards(tmp_path)
    return load("webdataset", path=tmp_path / "train-{00..03}.tar", validation=0.2, workers=0)


def test_each_sample_has_its_image_and_label(tmp_path):
    shards(tmp_path)
    shards(tmp_path, count=1, kind="test")
    data = load(
        "webdataset", path=tmp_path / "train-{00..03}.tar", test_path=tmp_path / "test-00.tar", validation=0, workers=0
    )
    assert (len(data.train), len(data.test), data.classes) == (20, 5, ("0", "1", "2"))
    assert data.train.targets.tolist() == [number % 3 for number in range(20)]
    images = data.train.inputs[torch.arange(20)]
    assert images[:, 0, 0, 0].tolist() == list(range(20))
    assert data.train.inputs.names[7].endswith(":000007.png")


def test_the_reader_can_be_sent_to_another_process_and_opens_few_files_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.data.tars._OPEN", 2)
    shards(tmp_path)
    folder = Folder(tmp_path)
    names = [one.name for shard in range(4) for one in samples(folder, f"train-{shard:02d}.tar", "cls")]
    reader = Tars(folder)
    assert [reader(name) for name in names] == [png(number) for number in range(20)]
    assert len(folder._open) == 2
    held = [one for one in gc.get_objects() if type(one) is io.BufferedReader]
    assert sum(str(one.name).startswith(str(tmp_path)) for one in held) == 2  # closed files are not kept
    assert pickle.loads(pickle.dumps(reader))(names[3]) == png(3)
    assert reader.head(names[3], 4) == (len(png(3)), png(3)[:4])


def order(data, epoch, **options):
    given = {"batch_size": 4, "seed": 1, "mean": data.mean, "std": data.std}
    return torch.cat([batch.index for batch in Batches(data.train, **given | options)(epoch)])


def test_a_few_shards_are_shuffled_at_a_time(tmp_path):
    shards(tmp_path)
    data = load("webdataset", path=tmp_path / "train-{00..03}.tar", validation=0, workers=0, together=2)
    shard_of = data.train.inputs.shards()
    first, second = order(data, 0), order(data, 1)
    assert sorted(first.tolist()) == list(range(len(data.train)))
    assert first.tolist() == order(data, 0).tolist()
    assert first.tolist() != second.tolist()
    for one in (first, second):
        numbers = shard_of[one].tolist()
        changes = [place for place in range(1, 16) if not set(numbers[:place]) & set(numbers[place:])]
        assert len(changes) == 1  # two blocks of two tar files
        assert len(set(numbers[: changes[0]])) == 2
    parts = [order(data, 0, part=(number, 2)) for number in range(2)]
    assert sorted(torch.cat(parts).tolist()) == sorted(first.tolist())


def test_all_samples_are_shuffled_by_default(data):
    assert len(set(data.train.inputs.shards()[order(data, 0)][:8].tolist())) > 2


def test_a_sample_without_a_label_is_used_for_training_only(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.png": png(1), "1.cls": b"0", "2.png": png(2), "3.png": png(3), "3.cls": b"1\n"})
    write_tar(tmp_path / "b.tar", {"1.png": png(1), "1.cls": b"0", "3.png": png(3), "3.cls": b"1"})
    data = load(
        "webdataset", path=tmp_path / "a.tar", test_path=tmp_path / "b.tar", validation=0, workers=0, classes=("x", "y")
    )
    assert data.train.targets.tolist() == [0, -1, 1]


def cut(path, by):
    path.write_bytes(path.read_bytes()[:-by])


def broken(folder, kind):
    path = folder / "train-00.tar"
    if kind == "cut in the last image":
        cut(path, 10240)
    elif kind == "cut in a header":
        path.write_bytes(path.read_bytes()[: 512 * 5 + 100])
    elif kind == "without an end":
        with tarfile.open(path) as archive:
            last = max(one.offset_data + 512 * -(-one.size // 512) for one in archive)
        path.write_bytes(path.read_bytes()[:last])
    elif kind == "compressed":
        path.write_bytes(gzip.compress(path.read_bytes()))
    elif kind == "no tar file":
        path.write_bytes(b"nothing" * 1000)
    elif kind == "two images":
        write_tar(path, {"1.png": png(1), "1.jpg": png(2), "1.cls": b"0"})
    elif kind == "the same key":
        write_tar(path, {"1.png": png(1), "2.png": png(2), "1.cls": b"0"})
    elif kind == "a long label":
        write_tar(path, {"1.png": png(1), "1.cls": b"0" * 100_000})
    elif kind == "no number":
        write_tar(path, {"1.png": png(1), "1.cls": b"cat"})
    elif kind == "a huge number":
        write_tar(path, {"1.png": png(1), "1.cls": b"123456789"})
    elif kind == "a misnamed label":
        write_tar(path, {"1.png": png(1), "1.cls": b"0", "2.png": png(2), "2.clss": b"0"})
    elif kind == "a link":
        write_tar(path, {"1.png": png(1), "1.cls": b"0", "2.png": png(2)})
        with tarfile.open(path, "a") as archive:
            link = tarfile.TarInfo("2.cls")
            link.type, link.linkname = tarfile.LNKTYPE, "1.cls"
            archive.addfile(link)
    elif kind == "a size that is none":
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            info = tarfile.TarInfo("1.png")
            info.pax_headers = {"GNU.sparse.size": "abc"}
            archive.addfile(info)
    elif kind == "a chain of headers":
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2
        path.write_bytes((info.tobuf() + b"a\0".ljust(512, b"\0")) * 2000 + path.read_bytes())
    elif kind == "no image":
        write_tar(path, {"1.png": png(1), "1.cls": b"0", "2.cls": b"0"})
    elif kind == "no label":
        write_tar(path, {"1.png": png(1), "2.png": png(2)})
    elif kind == "a huge header":
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.XHDTYPE, 2**33
        path.write_bytes(info.tobuf() + path.read_bytes())
    elif kind == "empty":
        write_tar(path, {"1.txt": b"text"})
    elif kind == "missing":
        path.unlink()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cut in the last image", "cut short|damaged"),
        ("cut in a header", "cut short|damaged"),
        ("without an end", "is cut short: it has no end"),
        ("compressed", "no uncompressed tar file"),
        ("no tar file", "no uncompressed tar file"),
        ("two images", "two images with the key '1'"),
        ("the same key", "train-00.tar has files with the key '1' in two places: .* must follow each other"),
        ("a long label", "100,000 bytes, allowed are 65,536"),
        ("no number", r"the label of 1.png in .*/train-00.tar is b'cat': allowed are numbers from 0"),
        ("a huge number", "b'123456789': allowed are numbers from 0 to 999,999"),
        ("a misnamed label", "train-00.tar has 2.clss, but no label 2.cls: rename it, or change label"),
        ("a link", "train-00.tar has the link 2.cls, and links are not read"),
        ("a size that is none", "train-00.tar is damaged"),
        ("a chain of headers", "train-00.tar is damaged"),
        ("no image", "train-00.tar has the label 2.cls, but no image"),
        ("no label", "no sample of .* has a label, a file that ends in .cls: set label"),
        ("a huge header", "damaged"),
        ("empty", "train-00.tar holds no image"),
        ("missing", "there is no file"),
    ],
)
def test_a_damaged_file_is_refused_when_the_data_is_loaded(kind, said, tmp_path):
    shards(tmp_path, count=1)
    broken(tmp_path, kind)
    with pytest.raises(LimbeckError, match=said):
        load("webdataset", path=tmp_path / "train-{00..00}.tar", workers=0)


def test_a_file_that_is_cut_later_is_told_when_its_image_is_read(tmp_path, data):
    cut(tmp_path / "train-03.tar", 20_000)
    with pytest.raises(LimbeckError, match=r"train-03.tar is cut short|cannot be read"):
        data.train.inputs[torch.arange(len(data.train))]


def test_an_image_of_the_test_split_without_a_label_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.png": png(1), "1.cls": b"0", "2.png": png(2)})
    shards(tmp_path, count=1)
    with pytest.raises(LimbeckError, match=r"2\.png in .*/a\.tar has no label, .* in \.cls: test needs one"):
        load("webdataset", path=tmp_path / "train-00.tar", test_path=tmp_path / "a.tar", workers=0)


def test_the_splits_may_be_in_different_folders(tmp_path):
    for part, count in (("train", 2), ("val", 1)):
        (tmp_path / part).mkdir()
        shards(tmp_path / part, count, kind="x")
    path, test = tmp_path / "train" / "x-{00..01}.tar", tmp_path / "val" / "x-00.tar"
    data = load("webdataset", path=path, test_path=test, validation=0, workers=0)
    assert (data.origins["train"], data.origins["test"]) == ("2 tar files, train/x-00.tar ...", "val/x-00.tar")
    assert data.train.inputs[torch.arange(10)][:, 0, 0, 0].tolist() == list(range(10))
    assert data.test.inputs[torch.arange(5)][:, 0, 0, 0].tolist() == list(range(5))


def test_the_digest_does_not_depend_on_where_the_other_splits_are(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        shards(tmp_path / part, count=1)
    path, test = (tmp_path / part / "train-00.tar" for part in ("train", "val"))
    alone, both = (load("webdataset", path=path, validation=0.2, workers=0, test_path=one) for one in (path, test))
    assert alone.train.digest() == both.train.digest()
    assert alone.train.names != both.train.names


def test_other_files_of_a_sample_are_left_out(tmp_path):
    files = {"index.csv": b"x", "1.png": png(1), "1.csv": b"x", "1.cls2": b"x", "2.png": png(2), "2.cls": b"1"}
    write_tar(tmp_path / "a.tar", files | {"2.cls2": b"x"})
    assert [one.label for one in samples(Folder(tmp_path), "a.tar", "cls")] == [None, b"1"]


def test_a_folder_whose_name_cannot_be_part_of_a_name_is_refused(tmp_path):
    for part in ("a:b", "val"):
        (tmp_path / part).mkdir()
        shards(tmp_path / part, count=1)
    path, test = (tmp_path / part / "train-00.tar" for part in ("a:b", "val"))
    with pytest.raises(LimbeckError, match=r"a:b/train-00.tar in .*: allowed are names without :"):
        load("webdataset", path=path, test_path=test, workers=0)
    assert len(load("webdataset", path=path, workers=0).train) > 0


def test_hidden_files_are_left_out(tmp_path):
    write_tar(tmp_path / "a.tar", {"._1.png": b"of a system", "1.png": png(1), "._1.cls": b"of it", "1.cls": b"0"})
    assert [one.label for one in samples(Folder(tmp_path), "a.tar", "cls")] == [b"0"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train-{05..02}.tar", "is no range"),
        ("train-{0..999999}.tar", "is no range"),
        ("*.tar", "write the numbers of the files, such as train-{0000..1023}.tar, not *"),
        ("", "is a folder: give its tar files, such as "),
        ("simplecache::s3://bucket/train-00.tar", "a URL with :: is not read"),
    ],
)
def test_a_path_that_names_no_tar_files_is_refused(name, said, tmp_path):
    with pytest.raises(LimbeckError, match=re.escape(said)):
        load("webdataset", path=name if "::" in name else tmp_path / name)


@pytest.mark.parametrize("name", ["secret", "../secret:0+6~0123456789abcdef:x"])
def test_a_name_that_is_not_of_a_sample_reads_no_file(name, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "inside").mkdir()
    with pytest.raises(LimbeckError, match="not the name of a sample"):
        Tars(Folder(tmp_path / "inside"))(name)
