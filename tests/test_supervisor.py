"""stream/supervisor.py: cases that end-to-end tests meet only by chance."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

import pytest

from emostream.stream.config import Config
from emostream.stream.messages import Health
from emostream.stream.nodes.process import CANNOT_RUN
from emostream.stream.nodes.spec import NodeSpec
from emostream.stream.status import StatusBoard
from emostream.stream.supervisor import Supervisor
from emostream.stream.watched import Watched


def _exit_late() -> None:
    time.sleep(0.3)
    os._exit(CANNOT_RUN)


@pytest.fixture
def supervisor(tmp_path):
    return Supervisor(
        Config.model_validate({"bus": {"run_dir": str(tmp_path)[:60]}}),
        lambda _: None,
        lambda _: None,
        print,
        lambda _: None,
        threading.Event(),
    )


@pytest.mark.process
def test_a_source_that_exits_after_fusion_still_counts_as_not_opened(supervisor):
    process = multiprocessing.get_context("fork").Process(target=_exit_late)
    process.start()
    names = {"audio.a": "capture", "fusion": "fusion"}
    supervisor._nodes = {name: Watched(NodeSpec(kind, name, "a", Config(), "", 0)) for name, kind in names.items()}
    supervisor._board = StatusBoard("", list(names))
    capture, fusion = supervisor._nodes.values()
    capture.process, capture.ready, capture.seen_ns = process, True, supervisor._clock.now_ns()
    fusion.done = True
    supervisor._t0_ns = 1
    assert supervisor._look_after(control=None)
    assert supervisor.unopened


def test_what_waited_for_a_killed_node_counts_as_lost(supervisor, monkeypatch):
    """It heard the last utterance 2.5 s late; nobody has heard the end of that."""
    monkeypatch.setattr("emostream.stream.run_folder.are_there", lambda *_: True)
    names = {"speech.a": "speech", "fusion": "fusion"}
    supervisor._nodes = {name: Watched(NodeSpec(kind, name, "a", Config(), "", 0)) for name, kind in names.items()}
    supervisor._board = StatusBoard("", list(names))
    node = supervisor._nodes["speech.a"]
    node.seen_ns, node.has_run = 20_000_000_000, True
    node.health = Health(stream="a", node="speech.a", state="running", behind_s=2.5)
    supervisor._on_exit(node, -9)
    assert not node.done and node.gone_ns == 17_500_000_000
