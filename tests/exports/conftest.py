import pytest

from limbeck.errors import LimbeckError
from limbeck.exports import EXPORTERS
from limbeck.exports.base import missing_of
from limbeck.exports.errors import in_one_line


def installed(name, precision="fp32"):
    """Whether files of a backend can be written here."""
    try:
        EXPORTERS[name].elsewhere()
    except LimbeckError:
        return False
    return not missing_of(EXPORTERS[name].packages(precision))


def metadata_here(backend, file):
    with in_one_line("it cannot be opened"):
        return EXPORTERS[backend].metadata(file)


@pytest.fixture(autouse=True)
def without_processes(monkeypatch):
    """No peak memory, which takes two processes for each export, and metadata without a process."""
    monkeypatch.setattr("limbeck.exports.make.peak_memory", lambda *_: None)
    monkeypatch.setattr("limbeck.exports.bench.peak_memory", lambda *_: None)
    monkeypatch.setattr("limbeck.exports.bench.metadata_of", metadata_here)
