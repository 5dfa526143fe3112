import pytest
import torch
from safetensors.torch import save_file

from limbeck.core import LimbeckError
from limbeck.experiment import kept_outputs
from limbeck.experiment.kept_outputs import read_outputs, write_outputs


def test_what_is_written_is_read_again(tmp_path):
    outputs = {"test": torch.randn(3, 2).T, "validation": torch.randn(4, 3)}
    record = write_outputs(tmp_path / "outputs.safetensors", outputs)
    assert record["bytes"] == (tmp_path / "outputs.safetensors").stat().st_size
    found = read_outputs(tmp_path / "outputs.safetensors", {"test": (2, 3)})
    assert found.keys() == {"test"}
    assert torch.equal(found["test"], outputs["test"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"validation": torch.zeros(2, 3)}, "has no outputs of the test split, but of validation"),
        ({"test": torch.zeros(2, 4)}, r"has torch.float32 of shape \(2, 4\) for the test split"),
        ({"test": torch.zeros(2, 3, dtype=torch.bfloat16)}, "has torch.bfloat16 of shape"),
    ],
)
def test_other_tensors_are_an_error(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "outputs.safetensors")
    with pytest.raises(LimbeckError, match=message):
        read_outputs(tmp_path / "outputs.safetensors", {"test": (2, 3)})


def test_a_file_that_is_missing_damaged_or_too_large_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "outputs.safetensors"
    with pytest.raises(LimbeckError, match="there is no file"):
        read_outputs(path, {"test": (2, 3)})
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(LimbeckError, match="cannot be read"):
        read_outputs(path, {"test": (2, 3)})
    monkeypatch.setattr(kept_outputs, "MOST_BYTES", 0)
    with pytest.raises(LimbeckError, match="has 100 bytes, allowed are at most 0"):
        read_outputs(path, {"test": (2, 3)})
