"""The worker on a cluster's machines: one process per core, which labels one file at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

import msgspec

from emostream.errors import EmostreamError
from emostream.stream.cluster.ledger import Outcome
from emostream.stream.config import Config
from emostream.stream.emotion import encode_emotion
from emostream.stream.label import Labeller, error_line


class Started(msgspec.Struct):
    """A worker has loaded, or failed to (``error``). ``facts``: what labels depend on, see ``Labeller.facts``."""

    node: str
    host: str
    facts: dict[str, str] = {}
    error: str = ""


class Worker:
    """``config``: sections of a configuration, from ``model_dump``. ``folder``: base of relative paths; a machine where
    it is missing does not see such files."""

    def __init__(self, config: dict[str, Any], folder: str, tracks: str) -> None:
        self._config, self._tracks = Config(**config), tracks
        self._records = _Records()
        with contextlib.suppress(OSError):
            os.chdir(folder)
        root = logging.getLogger()
        root.handlers, root.level = [self._records], logging.getLevelNamesMapping()[self._config.log.level.upper()]

    def start(self, node: str | None = None) -> Started:
        """Load the models. ``node``: used instead of Ray's id of this machine."""
        if node is None:
            import ray

            node = ray.get_runtime_context().get_node_id()
        started = Started(node, socket.gethostname())
        try:
            self._labeller = Labeller(self._config)
            started.facts = self._labeller.facts
        except EmostreamError as error:
            started.error = str(error)
        return started

    def label(self, path: Path) -> Outcome | None:
        """Label a file; None if it is not there."""
        if not os.path.exists(path):
            return None
        outcome = Outcome()
        self._records.taken, before_s = outcome.records, time.process_time()
        try:
            for emotion in self._labeller.label(path, tracks=self._tracks):
                outcome.labels.append(encode_emotion(emotion))
        except Exception as error:
            outcome.error = error_line(path, error)
        outcome.media_s, outcome.cpu_s = self._labeller.media_s, time.process_time() - before_s
        return outcome


class _Records(logging.Handler):
    """Collects log lines for the machine where the command runs."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.taken.append((record.name, record.levelno, self.format(record)))
