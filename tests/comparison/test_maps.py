from hashlib import sha256

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from limbeck.comparison.maps import MAPS, MOST_BYTES, Maps, read_maps, write_maps
from limbeck.errors import LimbeckError


def maps(arms=("teacher", "alone", "kd+srrl", "index")):
    points = {arm: np.arange(6, dtype=np.float32).reshape(3, 2) + number for number, arm in enumerate(arms)}
    return Maps(np.array([0, 4, 8]), np.array([2, 1, 2]), points)


def written(folder, **arrays):
    """A file of these arrays, and its hash."""
    save_file(arrays, folder / MAPS)
    return sha256((folder / MAPS).read_bytes()).hexdigest()


def test_maps_are_read_as_they_were_written(tmp_path):
    known = write_maps(tmp_path, maps())
    found = read_maps(tmp_path, known)
    assert found.index.tolist() == [0, 4, 8]
    assert found.labels.tolist() == [2, 1, 2]
    assert found.points.keys() == maps().points.keys()
    assert all((found.points[arm] == points).all() for arm, points in maps().points.items())


def test_the_same_maps_give_the_same_file(tmp_path):
    assert write_maps(tmp_path / "one", maps()) == write_maps(tmp_path / "other", maps())


def test_networks_without_a_feature_leave_no_points(tmp_path):
    assert read_maps(tmp_path, write_maps(tmp_path, maps(()))).points == {}


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(LimbeckError, match=r"maps\.safetensors is missing"):
        read_maps(tmp_path, "0" * 64)


def test_a_changed_file_is_an_error(tmp_path):
    known = write_maps(tmp_path, maps())
    file = tmp_path / MAPS
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(LimbeckError, match="is damaged, or of another comparison"):
        read_maps(tmp_path, known)


def test_a_file_that_is_too_large_is_an_error(tmp_path):
    with (tmp_path / MAPS).open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(LimbeckError, match="has more than"):
        read_maps(tmp_path, "0" * 64)


def test_other_bytes_are_an_error_even_with_their_hash(tmp_path):
    (tmp_path / MAPS).write_bytes(b"no tensors")
    with pytest.raises(LimbeckError, match="contains no maps"):
        read_maps(tmp_path, sha256(b"no tensors").hexdigest())


@pytest.mark.parametrize(
    "arrays",
    [
        {"labels": np.arange(3)},
        {"index": np.arange(3)},
        {"index": np.arange(3), "labels": np.arange(2)},
        {"index": np.arange(3), "labels": np.arange(3.0)},
        {"index": np.array(3), "labels": np.array(3)},
        {"index": np.arange(3), "labels": np.arange(3), "points/kd": np.zeros((3, 3), np.float32)},
        {"index": np.arange(3), "labels": np.arange(3), "points/kd": np.zeros((3, 2))},
    ],
)
def test_arrays_that_are_no_maps_are_an_error(tmp_path, arrays):
    with pytest.raises(LimbeckError, match="contains no maps"):
        read_maps(tmp_path, written(tmp_path, **arrays))


def test_a_type_that_numpy_does_not_have_is_an_error(tmp_path):
    data = save({"index": np.arange(3), "labels": np.arange(3)}).replace(b'"I64"', b'"BF8"')
    (tmp_path / MAPS).write_bytes(data)
    with pytest.raises(LimbeckError, match="contains no maps"):
        read_maps(tmp_path, sha256(data).hexdigest())
