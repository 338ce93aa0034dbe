"""Steers a run from another process of the same user: requests and replies over a private ipc socket.

A request is one frame of JSON (``Request``), and so is its reply (``Reply``). The socket has mode 0600 and is in a
folder that belongs to the user, so that nobody else can reach it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import zmq

from emostream.errors import BusError, ConfigError, ControlError, EmostreamError
from emostream.files import user_path
from emostream.stream.bus import bind, is_listened_at
from emostream.stream.config import Config
from emostream.stream.listen import DEFAULT_ENDPOINT
from emostream.stream.status import Status, decode_status

_LONGEST = 65_536  # bytes of a request
_AT_ONCE = 32  # requests read per round, so that a flood does not hold up anything else
_LONGEST_PATH = 100
_FOLDER, _NAME = "emostream", "control-"
_OLDEST_NS = 5_000_000_000  # a request's time counts if it is at most this old

Command = Literal["status", "mute", "unmute", "pause", "resume", "add", "remove", "set"]


class Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``streams``: which ones, all if empty; ``for_s``: how long to mute; ``value``: what to add or set; ``sent_ns``:
    by this machine's monotonic clock, so that sound is muted from the time of the request."""

    command: Command
    streams: list[str] = []
    for_s: float | None = None
    value: str = ""
    sent_ns: int = 0


def decode_request(frames: Sequence[bytes]) -> Request:
    """The request in a message. Raises msgspec.DecodeError if it is none."""
    if len(frames) != 1:
        raise msgspec.DecodeError(f"{len(frames)} frames in place of one")
    try:
        return msgspec.json.decode(frames[0], type=Request)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


class Reply(msgspec.Struct, kw_only=True):
    """``text``: one line for the user, an error unless ``ok``; ``status``: the run's status as JSON."""

    ok: bool
    text: str = ""
    status: str = ""


def control_path(configured: str, emotion: str) -> Path | None:
    """The socket of the run whose public endpoint is ``emotion``; None if ``configured`` (bus.control) is "off".

    Raises BusError if the folder for it is not this user's own.
    """
    if configured == "off":
        return None
    if configured != "auto":
        return _short(user_path(configured))
    name = f"{_NAME}{hashlib.sha256(emotion.encode()).hexdigest()[:12]}"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.access(runtime, os.W_OK):
        return _short(Path(runtime) / _FOLDER / name)
    return _short(Path(tempfile.gettempdir()) / f"{_FOLDER}-control-{os.getuid()}" / name)


def _short(path: Path) -> Path:
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise BusError(f"{path}: too long for a socket; set bus.control to a shorter path")
    return path


def own_folder(path: Path) -> None:
    """Make a socket's folder, or check that it is this user's own. Raises BusError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise BusError(f"{path}: no folder for the control socket ({error.strerror}); see bus.control") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise BusError(f"{path}: is not a folder that you alone can write to; remove it, or see bus.control")


def _sweep(folder: Path) -> None:
    """Remove the sockets of killed runs, but only in a folder that was made for such sockets."""
    if folder.name.startswith(_FOLDER):
        for path in folder.glob(f"{_NAME}*"):
            if not is_listened_at(path):
                with contextlib.suppress(OSError):
                    path.unlink()


class ControlServer:
    """The run's side. Raises BusError if the socket cannot be bound, for instance because another run has it."""

    def __init__(self, context: zmq.Context[Any], path: Path) -> None:
        own_folder(path.parent)
        _sweep(path.parent)
        self.path = path
        self.socket = context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.maxmsgsize = _LONGEST
        self.socket.rcvhwm = self.socket.sndhwm = 100
        before = os.umask(0o177)
        try:
            bind(self.socket, f"ipc://{path}", setting="bus.control=…")
        except BusError:
            self.socket.close()
            raise
        finally:
            os.umask(before)

    def requests(self) -> list[tuple[bytes, Request]]:
        """The requests that have come, each with the peer to answer. Invalid ones are answered at once with an
        error."""
        out: list[tuple[bytes, Request]] = []
        for _ in range(_AT_ONCE):
            try:
                who, *frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                out.append((who, decode_request(frames)))
            except msgspec.DecodeError as error:
                self.reply(who, Reply(ok=False, text=f"no request: {error}"))
        return out

    def reply(self, who: bytes, reply: Reply) -> None:
        """Answer; the reply is dropped if the peer does not read or has gone."""
        with contextlib.suppress(zmq.ZMQError):
            self.socket.send_multipart([who, msgspec.json.encode(reply)], zmq.NOBLOCK)

    def close(self) -> None:
        self.socket.close()
        with contextlib.suppress(OSError):
            self.path.unlink()
        if self.path.parent.name.startswith(_FOLDER):  # remove the folder made for it, unless another run uses it
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()


def open_server(context: zmq.Context[Any], config: Config, warn: Callable[[str], None]) -> ControlServer | None:
    """The socket at which a run is steered; None at fast pace, if there is to be none, or, after a warning, if there is
    no place for it. Raises BusError if bus.control names the place."""
    if config.pace == "fast":
        return None
    try:
        path = control_path(config.bus.control, config.bus.emotion)
        return None if path is None else ControlServer(context, path)
    except EmostreamError as error:
        if config.bus.control != "auto":
            raise
        warn(f"cannot be steered: {error}")
        return None


class Waiting:
    """Handles requests one after another: the next begins when all nodes have carried out the last.

    ``begin(request)`` returns a line of text and the serial number of the orders that it made, 0 for none; it may raise
    ConfigError. ``follow(serial)`` returns the nodes that have not carried them out yet.
    """

    def __init__(
        self,
        server: ControlServer,
        begin: Callable[[Request], tuple[str, int]],
        follow: Callable[[int], list[str]],
        status: Callable[[], str],
        patience_ns: int = 5_000_000_000,
    ) -> None:
        self._server, self._begin, self._follow, self._status = server, begin, follow, status
        self._patience_ns = patience_ns
        self._queue: deque[tuple[bytes, Request]] = deque()
        self._open: tuple[bytes, str, int, int] | None = None  # peer, reply, serial number, deadline

    def tick(self, now_ns: int) -> None:
        """Take requests and answer those that are done."""
        self._queue.extend(self._server.requests())
        while True:
            if self._open is not None:
                who, text, serial, until_ns = self._open
                late = self._follow(serial)
                if late and now_ns < until_ns:
                    return
                self._open = None
                if late:
                    text = f"{text}, but {', '.join(late)} has not answered yet"
                self._server.reply(who, Reply(ok=not late, text=text, status=self._status()))
            if not self._queue:
                return
            who, request = self._queue.popleft()
            try:
                text, serial = self._begin(request)
            except ConfigError as error:
                self._server.reply(who, Reply(ok=False, text=str(error), status=self._status()))
            else:
                self._open = (who, text, serial, now_ns + self._patience_ns)

    def close(self) -> None:
        """The run is over: answer everybody who still waits."""
        for who in [*([self._open[0]] if self._open else []), *(who for who, _ in self._queue)]:
            self._server.reply(who, Reply(ok=False, text="the run has ended"))


class Control:
    """Steers a run of ``stream-run`` or ``emostream.run`` by the same user on this machine. A context manager.

    ``endpoint``: where that run publishes its labels; ``path``: its control socket, if bus.control names one. Each
    method returns once the run has done what was asked, and raises ControlError if it cannot, or does not answer within
    ``timeout_s``. ``streams``: names of streams; none means all.
    """

    def __init__(
        self, endpoint: str = DEFAULT_ENDPOINT, *, path: str | Path | None = None, timeout_s: float = 10
    ) -> None:
        found = control_path("auto" if path is None else str(path), endpoint)
        if found is None:
            raise ControlError('a path is needed, not "off"')
        self._where, self._timeout_s = found, timeout_s
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._context.destroy(0)

    def status(self) -> Status:
        """The state of the run."""
        return decode_status(self._ask("status").status.encode())

    def mute(self, *streams: str, for_s: float | None = None) -> str:
        """Ignore sound from now on, until ``unmute`` or for ``for_s`` seconds, for instance while a robot itself
        speaks. What was said before is still labelled."""
        return self._ask("mute", streams, for_s=for_s).text

    def unmute(self, *streams: str) -> str:
        """Hear again."""
        return self._ask("unmute", streams).text

    def pause(self, *streams: str) -> str:
        """Hear and see nothing until ``resume``. Devices stay open."""
        return self._ask("pause", streams).text

    def resume(self, *streams: str) -> str:
        """Go on after ``pause``."""
        return self._ask("resume", streams).text

    def add(self, stream: str) -> str:
        """Begin another stream, [NAME=]SOURCE as in --stream; a file starts when its processes are ready."""
        return self._ask("add", value=stream).text

    def remove(self, stream: str) -> str:
        """End a stream, after its last label."""
        return self._ask("remove", [stream]).text

    def set(self, change: str) -> str:
        """Change a setting, SECTION.KEY=VALUE, until the run ends."""
        return self._ask("set", value=change).text

    def ask(self, request: Request) -> str:
        """Send a request, stamped with the present time. Returns the reply's text."""
        return self._send(request).text

    def _ask(
        self, command: Command, streams: Sequence[str] = (), *, for_s: float | None = None, value: str = ""
    ) -> Reply:
        return self._send(Request(command=command, streams=list(streams), for_s=for_s, value=value))

    def _send(self, request: Request) -> Reply:
        request.sent_ns = time.monotonic_ns()
        # os.path.exists is also False in another user's folder, where Path.exists would raise
        if not os.path.exists(self._where) or (self._socket is None and not is_listened_at(self._where)):
            raise ControlError(f"{self._where}: no run listens there; is stream-run running, as this user?")
        own_folder(self._where.parent)
        if self._socket is None:
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.linger = 0
            self._socket.connect(f"ipc://{self._where}")
        self._socket.send(msgspec.json.encode(request))
        if not self._socket.poll(int(self._timeout_s * 1000)):
            self._socket.close()  # a late reply would be mistaken for the reply to the next request
            self._socket = None
            raise ControlError(f"{self._where}: no answer came in {self._timeout_s:g} s")
        reply = msgspec.json.decode(self._socket.recv(), type=Reply)
        if not reply.ok:
            raise ControlError(reply.text)
        return reply


def sent_at(request: Request, now_ns: int) -> int:
    """When a request was sent, by a clock that now shows ``now_ns``; ``now_ns`` if its time is implausible."""
    age_ns = time.monotonic_ns() - request.sent_ns
    return now_ns - age_ns if 0 <= age_ns < _OLDEST_NS else now_ns
