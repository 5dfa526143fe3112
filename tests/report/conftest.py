import shutil
from pathlib import Path

import example
import pytest
from markupsafe import Markup

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


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The same with fewer methods and seeds."""
    folder = tmp_path_factory.mktemp("report") / "small"
    example.write_comparison(folder, methods=("kd", "srrl"), seeds=2)
    return folder


@pytest.fixture
def compared(small, tmp_path) -> Path:
    """A copy of the folder of a small comparison."""
    return Path(shutil.copytree(small, tmp_path / "compared"))


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the pictures empty, which take most of the time."""
    for module in ("calibration", "classes", "costs", "curves", "deferral", "differences", "drawing", "features"):
        monkeypatch.setattr(f"limbeck.report.{module}.drawn", lambda *_, **__: Markup("<svg/>"))
