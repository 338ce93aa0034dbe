"""stream/nodes/fuse.py: the networks are loaded while the node shows signs of life. The rest is in test_pipeline."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from engines.backend import BackendError
from stream.config import Config
from stream.nodes import fuse
from stream.nodes.shell import Stopped


class FakeShell:
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
def shell(monkeypatch) -> FakeShell:
    """Whose classifier takes as long to load as three ticks."""
    shell = FakeShell()

    def slow(bundle, backend, threads):
        assert shell.enough.wait(30)
        return SimpleNamespace(warm_up=lambda: None, backend=backend)

    monkeypatch.setattr(fuse, "Classifier", slow)
    return shell


def test_the_node_ticks_while_an_engine_is_built(shell):
    assert fuse._load(shell).backend == "auto"
    assert shell.ticks >= 3


def test_what_fails_to_load_is_raised(shell, monkeypatch):
    def fail(*_):
        raise BackendError("no such GPU")

    monkeypatch.setattr(fuse, "Classifier", fail)
    with pytest.raises(BackendError, match="no such GPU"):
        fuse._load(shell)


def test_a_node_that_is_told_to_stop_does_not_wait(shell):
    shell.stopping = True
    begun = time.monotonic()
    with pytest.raises(Stopped):
        fuse._load(shell)
    shell.enough.set()
    assert time.monotonic() - begun < 10
