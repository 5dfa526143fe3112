import pytest


@pytest.fixture(autouse=True)
def without_processes(monkeypatch):
    """No peak memory, which takes two processes for each export."""
    monkeypatch.setattr("limbeck.exports.make.peak_memory", lambda *_: None)
    monkeypatch.setattr("limbeck.exports.bench.peak_memory", lambda *_: None)
