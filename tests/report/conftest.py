import shutil
from pathlib import Path

import example
import pytest

from limbeck.report.found import read
from limbeck.report.page import page


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a comparison; do not change it."""
    folder = tmp_path_factory.mktemp("report") / "compared"
    example.write_comparison(folder)
    return folder


@pytest.fixture(scope="session")
def html(whole):
    return page(read(whole))


@pytest.fixture
def compared(whole, tmp_path) -> Path:
    """A copy of the folder of a comparison."""
    return Path(shutil.copytree(whole, tmp_path / "compared"))
