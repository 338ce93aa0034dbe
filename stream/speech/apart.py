"""A recogniser in its own process, which receives the sound of utterances and returns their words.

PocketSphinx holds Python's lock while it searches, so in a thread it would delay the thread that reads the sound. The
process sleeps at rest, and ends with the process that started it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from socket import socketpair
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from emostream.errors import ModelError
from emostream.stream.emotion import Word
from emostream.stream.limits import no_core_dumps
from emostream.stream.speech.searching import Searching

if TYPE_CHECKING:
    from emostream.stream.speech.recognizer import Recognizer

_START = (
    "import sys; sys.path[:] = sys.argv[2:]; from emostream.stream.speech.apart import serve; serve(int(sys.argv[1]))"
)


class _Order(msgspec.Struct, array_like=True):
    """A request to the process; ``partial`` and ``finish`` are answered with a list of words."""

    what: Literal["begin", "push", "partial", "finish", "reset"]
    samples: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_words = msgspec.msgpack.Decoder(list[Word])


class Apart(Searching):
    """See ``recognizer.Recognizer``. ``name``: pocketsphinx, the only one that needs this; ``label``: EMOSTREAM_NODE of
    its process, to identify it in a process list.

    Raises ModelError if the recogniser cannot be loaded, and RuntimeError at the next call after its process has died.
    """

    def __init__(self, name: Literal["pocketsphinx"], label: str = "") -> None:
        self.name: str = name
        ours, theirs = socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs.fileno()), *filter(None, sys.path)],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=os.environ | {"EMOSTREAM_NODE": label},
            )  # fmt: skip
        self._line = Connection(ours.detach())
        if said := self._receive():
            raise ModelError(said.decode())

    def begin(self) -> None:
        self._send(_Order("begin"))

    def push(self, samples: np.ndarray) -> None:
        self._send(_Order("push", samples.tobytes()))

    def partial(self) -> list[Word]:
        self._send(_Order("partial"))
        return _words.decode(self._receive())

    def finish(self) -> list[Word]:
        self._send(_Order("finish"))
        return _words.decode(self._receive())

    def reset(self) -> None:
        self._send(_Order("reset"))

    def close(self) -> None:
        """End the process."""
        self._line.close()
        self.process.wait()

    def _send(self, order: _Order) -> None:
        try:
            self._line.send_bytes(_encode(order))
        except OSError as error:
            raise RuntimeError(f"the process of {self.name} has ended") from error

    def _receive(self) -> bytes:
        try:
            return self._line.recv_bytes()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"the process of {self.name} has ended") from error


def serve(descriptor: int) -> None:
    """Runs in the process until the other end is closed. First sends the reason why it cannot run, or nothing."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # the parent process decides when to end
        signal.signal(number, signal.SIG_IGN)
    no_core_dumps()
    with Connection(descriptor) as line, suppress(EOFError, OSError):
        try:
            from emostream.stream.speech.pocketsphinx import PocketSphinxRecognizer

            recognizer: Recognizer = PocketSphinxRecognizer()
        except Exception as error:  # the library's own errors too, as for a damaged model
            line.send_bytes(f"PocketSphinx cannot be loaded ({error})".encode())
            return
        line.send_bytes(b"")
        decoder = msgspec.msgpack.Decoder(_Order)
        while True:
            order = decoder.decode(line.recv_bytes())
            if order.what == "push":
                recognizer.push(np.frombuffer(order.samples, np.int16))
            elif order.what == "partial":
                line.send_bytes(_encode(recognizer.partial()))
            elif order.what == "finish":
                line.send_bytes(_encode(recognizer.finish()))
            else:
                (recognizer.begin if order.what == "begin" else recognizer.reset)()
