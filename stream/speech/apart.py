"""A recogniser in a process of its own: it gets the sound of utterances and gives their words.

PocketSphinx keeps Python's lock while it searches, so in a thread it would hold up whoever reads the sound. In a
process it does not, and at rest that process sleeps. It ends with the process that started it.
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

if TYPE_CHECKING:
    from emostream.stream.speech.recognizer import Recognizer

_START = (
    "import sys; sys.path[:] = sys.argv[2:]; from emostream.stream.speech.apart import serve; serve(int(sys.argv[1]))"
)


class _Order(msgspec.Struct, array_like=True):
    """What the process is asked to do; ``partial`` and ``finish`` have an answer, a list of words."""

    what: Literal["begin", "push", "partial", "finish", "reset"]
    samples: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_words = msgspec.msgpack.Decoder(list[Word])


class Apart:
    """See ``recognizer.Recognizer``. ``name``: pocketsphinx, the only one that needs this; ``label``: its process's
    EMOSTREAM_NODE, for a list of processes.

    Raises ModelError if it cannot be loaded. A recogniser that dies raises RuntimeError at the next call.
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
    """What runs in the process, until the other end is closed. It first says why it cannot run, or nothing."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # whoever asked for it decides
        signal.signal(number, signal.SIG_IGN)
    no_core_dumps()
    with Connection(descriptor) as line, suppress(EOFError, OSError):
        try:
            from emostream.stream.speech.pocketsphinx import PocketSphinxRecognizer

            recognizer: Recognizer = PocketSphinxRecognizer()
        except Exception as error:  # of the library, at a model that is damaged, too
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
