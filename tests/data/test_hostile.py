"""Folders and zip files that would hang, or fill the memory, or lead elsewhere."""

import os
import socket
import struct
import time
import zipfile
import zlib
from contextlib import suppress

import pytest
from image_files import encoded, picture, tree, two_classes

from limbeck.core import LimbeckError
from limbeck.data import bounds, load
from limbeck.data.sources.idx import read_idx
from limbeck.data.trees import Reader
from limbeck.files.paths import near


@pytest.fixture(autouse=True)
def _at_once():
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 10


def refused(path, message, **options):
    with pytest.raises(LimbeckError, match=message):
        load("folder", path=path, **options)


# what is no file


@pytest.fixture
def pictures(tmp_path):
    return tree(tmp_path / "set", two_classes())


def test_a_fifo_is_refused_and_not_waited_for(pictures):
    os.mkfifo(pictures / "cat" / "x.png")
    refused(pictures, r"cat/x.png in .* cannot be read: .*x.png is a FIFO; allowed are regular files")
    refused(pictures, r"cat/x.png in .* is a FIFO", streaming=True, workers=0, size=4)
    refused(pictures / "cat" / "x.png", "x.png is a FIFO; allowed are regular files")


def test_a_socket_is_refused(pictures, monkeypatch):
    monkeypatch.chdir(pictures / "cat")  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("x.png")
        refused(pictures, r"cat/x.png in .* is a socket; allowed are regular files")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/random", "/dev/null"])
def test_a_link_to_a_device_is_refused(device, pictures):
    (pictures / "cat" / "x.png").symlink_to(device)
    refused(pictures, r"cat/x.png in .* is a device; allowed are regular files")
    refused(device, "is a device; allowed are regular files")


@pytest.mark.parametrize("target", ["gone.png", "x.png"])
def test_a_link_that_leads_nowhere_or_to_itself_is_refused(target, pictures):
    (pictures / "cat" / "x.png").symlink_to(target)
    refused(pictures, r"cat/x.png in .* cannot be read")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
@pytest.mark.parametrize("system", ["/proc", "/sys", "/dev"])
def test_a_link_to_the_systems_own_files_is_refused(system, pictures):
    if os.stat(system).st_dev == os.stat("/").st_dev:
        pytest.skip(f"{system} is an ordinary folder here")
    (pictures / "cat" / "link").symlink_to(system)
    refused(pictures, r"cat/link in .* links to files of the operating system")


def test_a_link_to_everything_is_not_followed(pictures):
    (pictures / "cat" / "link").symlink_to("/")
    assert len(Reader(pictures).listing().names) == 22


def test_links_in_a_mesh_come_to_an_end(pictures):
    for level in range(40):  # 2**40 paths
        folder = pictures / "cat" / f"level{level}"
        folder.mkdir()
        for name in "ab":
            (folder / name).symlink_to(f"../level{level + 1}")
    (pictures / "cat" / "level40").mkdir()
    refused(pictures, r"is a folder with too many paths to it through links; allowed are 32")


def test_a_few_links_to_one_folder_are_all_followed(pictures, tmp_path):
    more = tree(tmp_path / "more", {"x.png": picture()})
    for number in range(bounds.VISITS):
        (pictures / "cat" / f"link{number}").symlink_to(more)
    assert sum(name.endswith("x.png") for name in Reader(pictures).listing().names) == bounds.VISITS


def test_folders_nested_too_deep_are_refused(pictures):
    (pictures / "cat" / "/".join("d" * 70)).mkdir(parents=True)
    refused(pictures, r"cat/d/.* is too deep; allowed are 64 nested folders")


def test_a_folder_with_too_many_entries_is_refused(pictures, monkeypatch):
    monkeypatch.setattr(bounds, "ENTRIES", 21)
    refused(pictures, "set has too many entries, links followed; allowed are 21")
    monkeypatch.setattr(bounds, "ENTRIES", 22)
    load("folder", path=pictures)


def test_a_folder_that_cannot_be_listed_is_refused_and_not_skipped(pictures, monkeypatch):
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    refused(pictures, r"the folder .*cat cannot be listed: .*Permission denied")


def test_a_file_that_is_too_large_is_refused_unread(pictures):
    with (pictures / "cat" / "x.png").open("wb") as file:
        file.truncate(10**12)
    refused(pictures, r"cat/x.png in .* has 1,000,000,000,000 bytes; allowed are 268,435,456")


def test_a_name_that_is_not_utf_8_is_refused_where_it_counts(pictures):
    (pictures / "cat" / os.fsdecode(b"na\xefve.txt")).write_bytes(b"")
    load("folder", path=pictures)
    (pictures / "cat" / os.fsdecode(b"na\xefve.png")).write_bytes(encoded(picture()))
    refused(pictures, r"the name cat/na\\udcefve.png is not UTF-8")


@pytest.mark.parametrize("path", ["a" * 5000, "~nobody-of-this-name/x", "nul\0byte"])
def test_a_path_that_cannot_be_is_refused(path):
    refused(path, "cannot be accessed|does not exist|no folder|there is no user")
    refused("x", "cannot be accessed|not a folder|there is no user", root=path)


def test_what_lies_near_a_path_in_a_folder_that_may_not_be_read_is_nothing(tmp_path, monkeypatch):
    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    assert near(tmp_path / "x") == ""


# zip files


def zipped(place, entries, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(place, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return place


@pytest.mark.parametrize("name", ["/etc/x.png", "../x.png", "cat/../../x.png", "..\\x.png", "\\x.png"])
def test_a_name_that_leads_out_of_a_zip_file_is_refused(name, tmp_path):
    path = zipped(tmp_path / "set.zip", [*((n, encoded(p)) for n, p in two_classes().items()), (name, b"")])
    refused(path, "set.zip holds .*; allowed are names that stay inside the zip file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_twice_in_a_zip_file_is_refused(tmp_path):
    path = zipped(tmp_path / "set.zip", [("cat/1.png", b"one"), ("cat/1.png", b"other")])
    refused(path, r"set.zip contains 'cat/1.png' twice")


def changed(place, old, new, **where):
    content = place.read_bytes()
    assert old in content
    place.write_bytes(content.replace(old, new, **where))
    return place


def test_a_name_in_a_zip_file_that_is_said_to_be_utf_8_and_is_not_is_refused(tmp_path):
    path = changed(zipped(tmp_path / "set.zip", [("cat/ä.png", b"")]), "ä".encode(), b"\xff\xfe")
    refused(path, "set.zip is neither a folder nor a valid zip file")


def test_an_encrypted_entry_is_refused(tmp_path):
    path = zipped(tmp_path / "set.zip", [("cat/1.png", encoded(picture()))], zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flags of the file, and of its entry in the table
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    refused(path, r"cat/1.png in .*set.zip cannot be read: .*encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_packing_that_cannot_be_undone_bit_by_bit_is_refused(method, tmp_path):
    path = zipped(tmp_path / "set.zip", [("cat/1.png", bytes(10**6))], method)
    refused(path, r"cat/1.png in .* cannot be read: compressed with method \d+; allowed are stored, deflated")


def declared(place, size):
    """The zip file of one entry with another size declared, in both places."""
    content = bytearray(place.read_bytes())
    struct.pack_into("<I", content, 22, size)
    struct.pack_into("<I", content, content.rindex(b"PK\x01\x02") + 24, size)
    place.write_bytes(content)
    return place


def test_an_entry_that_unpacks_to_too_much_is_refused_unread(tmp_path):
    path = declared(zipped(tmp_path / "set.zip", [("cat/1.png", b"x")]), 2**28 + 1)
    refused(path, r"cat/1.png in .* it has 268,435,457 bytes; allowed are 268,435,456")


def test_no_more_is_unpacked_than_is_declared(tmp_path, monkeypatch):
    unpacked = []
    inflate = zlib.decompressobj

    class Watched:
        def __init__(self, *given):
            self._inner = inflate(*given)

        def decompress(self, *given):
            unpacked.append(self._inner.decompress(*given))
            return unpacked[-1]

        def __getattr__(self, name):
            return getattr(self._inner, name)

    path = declared(zipped(tmp_path / "set.zip", [("cat/1.png", bytes(50_000_000))]), 1000)  # 1000 : 1
    monkeypatch.setattr(zlib, "decompressobj", Watched)
    refused(path, r"cat/1.png in .* cannot be read: Bad CRC")
    assert sum(map(len, unpacked)) <= 8 * 4096


def test_an_entry_with_less_than_is_declared_is_refused(tmp_path):
    path = declared(zipped(tmp_path / "set.zip", [("cat/1.png", encoded(picture()))]), 10**6)
    refused(path, r"cat/1.png in .* cannot be read")


def test_a_zip_file_with_too_many_entries_is_refused_before_they_are_held(tmp_path, monkeypatch):
    path = tree(tmp_path / "set.zip", two_classes())
    monkeypatch.setattr(bounds, "ZIP_ENTRIES", 19)
    refused(path, "valid zip file: too many files and folders; allowed are 19")
    monkeypatch.setattr(bounds, "ZIP_ENTRIES", 20)
    load("folder", path=path)
    monkeypatch.setattr(bounds, "ZIP_TABLE_BYTES", 100)
    refused(path, "valid zip file: a table of .* bytes; allowed are 100")


def test_every_damage_to_a_zip_file_is_refused_or_does_no_harm(tmp_path):
    path = tree(tmp_path / "set.zip", two_classes(count=5))
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with suppress(LimbeckError):
            load("folder", path=path)


# IDX files


def test_an_idx_file_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path):
    packed = zlib.compressobj(9, wbits=31)
    bomb = packed.compress(struct.pack(">HBBI", 0, 8, 1, 10) + bytes(50_000_000)) + packed.flush()
    (tmp_path / "x.gz").write_bytes(bomb)
    with pytest.raises(LimbeckError, match=r"x.gz has more values, but its header says 10"):
        read_idx(tmp_path / "x.gz", 1)


@pytest.mark.parametrize("shape", [(2**32 - 1,), (60_000, 2**20, 2**20), (2**31, 2)])
def test_an_idx_file_that_declares_too_much_is_refused(shape, tmp_path):
    (tmp_path / "x").write_bytes(struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape))
    with pytest.raises(LimbeckError, match=r"x says it has [\d,]+ values; allowed are 1,073,741,824"):
        read_idx(tmp_path / "x", len(shape))


def test_labels_in_the_place_of_images_are_refused(tmp_path):
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    for name in names:
        (tmp_path / f"{name}-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 3) + bytes(3))
    with pytest.raises(LimbeckError, match=r"train-images-idx3-ubyte has values of shape \(3,\); allowed are 3 dim"):
        load("mnist", root=tmp_path, download=False)
