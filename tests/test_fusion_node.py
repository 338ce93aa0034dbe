"""stream/nodes/fusion.py: the node sends heartbeats while the networks load. The rest is in test_pipeline."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from emostream.errors import BackendError
from emostream.stream.config import Config
from emostream.stream.nodes import fusion
from emostream.stream.nodes.runtime import Stopped


class FakeRuntime:
    def __init__(self) -> None:
        self.spec = SimpleNamespace(config=Config())
        self.ticks = 0
        self.enough = threading.Event()
        self.stopping = False

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks >= 3:
            self.enough.set()


@pytest.fixture
def runtime(monkeypatch) -> FakeRuntime:
    """A node's runtime whose classifier takes three ticks to load."""
    runtime = FakeRuntime()

    def slow(bundle, backend, threads, prior):
        assert runtime.enough.wait(30)
        return SimpleNamespace(warm_up=lambda: None, backend=backend)

    monkeypatch.setattr(fusion, "Classifier", slow)
    return runtime


def test_the_node_ticks_while_an_engine_is_built(runtime):
    assert fusion._load(runtime).backend == "auto"
    assert runtime.ticks >= 3


def test_an_error_of_loading_is_raised(runtime, monkeypatch):
    def fail(*_):
        raise BackendError("no such GPU")

    monkeypatch.setattr(fusion, "Classifier", fail)
    with pytest.raises(BackendError, match="no such GPU"):
        fusion._load(runtime)


def test_a_node_that_has_to_stop_does_not_wait(runtime):
    runtime.stopping = True
    begun = time.monotonic()
    with pytest.raises(Stopped):
        fusion._load(runtime)
    runtime.enough.set()
    assert time.monotonic() - begun < 10
