import os
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
LONGEST = "tests/test_conformance.py"
UNCOUNTED = (
    f"{LONGEST}::test_finds_its_layers",
    f"{LONGEST}::test_reads_frozen_networks",
    f"{LONGEST}::test_resumes",
    f"{LONGEST}::test_runs_from_a_recipe",
    f"{LONGEST}::test_same_seed",
    f"{LONGEST}::test_trains_with_single_samples",
    f"{LONGEST}::test_works_in_bf16",
    "tests/exports/test_export.py",
    "tests/fuzz/",
    "tests/how_to/",
    "tests/models/test_zoo.py",
    "tests/speed/",
    "tests/tasks/test_demonstrations.py",
    "tests/tasks/test_task_conformance.py",
    "tests/test_any_network.py",
    "tests/test_docs.py",
)
"""Tests in which coverage is not measured: that takes up to 40 % of their time, and others run the same lines."""


def pytest_collection_modifyitems(items):
    """The longest file comes first: of two processes, one would otherwise wait for it at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Run some tests without the tracer of coverage, which pytest-cov's marker `no_cover` does not stop under xdist."""
    tracer = sys.gettrace()
    if item.nodeid.startswith(UNCOUNTED):
        sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)


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
