import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def no_waiting():
    """No test waits for an idle machine or for the disk: those of latency and of checkpoints set this back."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("limbeck.evaluate.cost.ATTEMPTS", 1)
        patched.setattr("limbeck.evaluate.cost.WATCHED", 0.0)
        patched.setattr("os.fsync", lambda file: None)
        yield


@pytest.fixture
def shared_data() -> Path:
    """The folder with MNIST and CIFAR-10; tests that need it are skipped where there is none."""
    folder = Path(os.environ.get("LIMBECK_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder {folder}: set LIMBECK_DATA")
    return folder
