"""A TCP connection between two programs that is slow, loses packets, breaks down, and counts bytes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
import time
from collections.abc import Coroutine
from typing import Any

_CHUNK = 1400  # about a packet
_AHEAD = 512  # most chunks in transit in one direction


class BadLine:
    """Listens on a free ``port`` of 127.0.0.1 and forwards to another one. Each packet takes ``delay_s``. A share of
    ``loss`` is lost and sent again after ``resend_s``; what comes behind it waits, as in TCP. While ``away`` is set
    nothing passes, and nothing is closed, as with an unplugged cable.

    ``sent`` and ``returned``: bytes from whoever connects, and to it. A context manager, with a thread of its own."""

    def __init__(self, to_port: int, delay_s: float = 0.0, loss: float = 0.0, resend_s: float = 0.4) -> None:
        self._to_port, self._delay_s, self._loss, self._resend_s = to_port, delay_s, loss, resend_s
        self.sent = self.returned = self.lost = 0
        self.away = False
        self._loop = asyncio.new_event_loop()
        self._random = random.Random(5)
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> BadLine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, sock=self._listener))
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(asyncio.sleep(0.05))
        server.close()
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while self.away:
            await asyncio.sleep(0.05)
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.close()
            return
        self._start(self._pass_on(reader, to_writer, there=True))
        self._start(self._pass_on(to_reader, writer, there=False))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, there: bool) -> None:
        on_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_AHEAD)
        self._start(self._arrive(on_way, writer))
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                if there:
                    self.sent += len(chunk)
                else:
                    self.returned += len(chunk)
                is_lost = self._random.random() < self._loss
                self.lost += is_lost
                await on_way.put((time.monotonic() + self._delay_s + is_lost * self._resend_s, chunk))
        await on_way.put((0.0, b""))

    async def _arrive(self, on_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                due_s, chunk = await on_way.get()
                while self.away or time.monotonic() < due_s:
                    await asyncio.sleep(0.02 if self.away else max(0.0, due_s - time.monotonic()))
                if not chunk:
                    break
                writer.write(chunk)
                await writer.drain()
        writer.close()
