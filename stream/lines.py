"""What the services beside a run (sinks, hub) print. An output that accepts nothing, such as a stopped terminal or a
full pipe, is never waited for: it costs its own lines and nothing else."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import TextIO

_MOST = 10_000  # lines that may wait
_LAST_S = 0.5  # for the last lines at the end


class LineWriter:
    """Writes lines to ``output`` in a thread of its own, past Python's buffer, whose lock would block the end of the
    process. ``lost``: lines that could not be written; ``tell`` is called, from that thread, when that begins and when
    it is over."""

    def __init__(self, output: TextIO | None, tell: Callable[[str], None]) -> None:
        self.lost = 0
        self._told = 0  # of the lost ones
        self._tell = tell
        self._gone = output is None  # nobody will ever read it
        self._descriptor = -1 if output is None else output.fileno()
        self._encoding = "utf-8" if output is None else output.encoding
        self._lines: queue.Queue[str | None] = queue.Queue(_MOST)
        self._thread = threading.Thread(target=self._work, name=f"write {self._descriptor}", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Write a line as soon as the output takes it."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Wait shortly until the last lines are written."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
            self._thread.join(_LAST_S)

    def _work(self) -> None:
        failing = False
        while (line := self._lines.get()) is not None:
            try:
                if self._gone:
                    self.lost += 1
                    continue
                self._write(line)
            except OSError as error:
                self.lost += 1
                self._gone = error.errno in (errno.EPIPE, errno.EIO)  # a closed pipe or terminal; a full disk may pass
                if not failing:
                    self._tell(f"lines cannot be written ({error.strerror})")
                failing = True
                continue
            failing = False
            if self.lost > self._told and self._lines.qsize() < _MOST // 2:
                count, self._told = self.lost - self._told, self.lost
                self._tell(f"{count} lines could not be written, since nothing took them")

    def _write(self, line: str) -> None:
        data = f"{line}\n".encode(self._encoding, errors="replace")
        while data:
            data = data[os.write(self._descriptor, data) :]


class _Handler(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._writer = LineWriter(sys.stderr, self._note)
        self.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._writer.put(self.format(record))

    def flush(self) -> None:
        """Called by ``logging`` at the end of the process."""

    def close(self) -> None:
        self._writer.close()
        super().close()

    def _note(self, text: str) -> None:
        self._writer.put(f"WARNING: of the log, {text}")


def log_to_stderr() -> None:
    """From now on, send log lines from INFO on to stderr, without ever waiting for it."""
    logging.basicConfig(level="INFO", handlers=[_Handler()], force=True)
