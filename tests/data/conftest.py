import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data, where there is one; read before any test changes the environment."""
    repository = Path(__file__).resolve().parents[2]
    return Path(os.environ.get("LIMBECK_DATA") or repository / "../shared/data")


@pytest.fixture
def real_mnist(shared_data):
    if not (shared_data / "mnist").is_dir():
        pytest.skip(f"no real MNIST in {shared_data}: set LIMBECK_DATA")
    return shared_data


@pytest.fixture
def real_cifar10(shared_data):
    if not (shared_data / "cifar10.zip").is_file():
        pytest.skip(f"no cifar10.zip in {shared_data}: set LIMBECK_DATA")
    return shared_data / "cifar10.zip"
