"""Page process: a web server on this machine, beside the run. Where it dies, labels go on."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

from emostream.errors import ModelError, RunError
from emostream.stream.bus import Inbox
from emostream.stream.control import Control, Request, control_path
from emostream.stream.messages import Face, Label, Pcm
from emostream.stream.nodes.runtime import NodeRuntime, NodeSpec, ipc_of
from emostream.stream.topics import LABEL, parse_node, stream_topic

log = logging.getLogger(__name__)

_IDLE_MS = 100
_LOOKING_MS = 20
_LOCAL = ("127.0.0.1", "localhost", "[::1]")


def main(runtime: NodeRuntime) -> None:
    """Serve the page until ``stop`` comes. Raises ModelError if packages for it are missing, and RunError if its port
    cannot be bound."""
    try:
        from emostream.stream.page.server import make_app
        from emostream.stream.page.state import PageState
    except ImportError as error:
        raise ModelError(f"the page needs packages ({error.name}): pip install 'emostream[page]'") from error
    config = runtime.spec.config
    state = PageState()
    labels = runtime.open_inbox({"fusion": [LABEL]})
    runtime.on_status = state.set_status
    token = config.page.token
    path = control_path(config.bus.control, config.bus.emotion)

    def steer(request: Request) -> str:
        with Control(config.bus.emotion, path=path) as control:
            return control.ask(request)

    hosts = frozenset(f"{host}:{config.page.port}" for host in (*_LOCAL, config.page.host))
    app = make_app(state, token, hosts, None if path is None else steer)
    with _served(app, config.page.host, config.page.port):
        log.warning("http://%s:%d/%s/", config.page.host, config.page.port, token)
        runtime.wait_for_go()
        with contextlib.closing(_Senses(runtime)) as senses:
            while not runtime.stopping:
                runtime.tick()
                senses.take(state, looking := state.viewers > 0)
                while (message := labels.receive(0)) is not None:
                    if isinstance(message, Label):
                        state.add(message.payload)
                labels.wait(_LOOKING_MS if looking else _IDLE_MS)


class _Senses:
    """The sound and faces of all streams, while somebody looks."""

    def __init__(self, runtime: NodeRuntime) -> None:
        self._runtime = runtime
        self._inbox: Inbox | None = None

    def take(self, state: object, looking: bool) -> None:
        if looking and self._inbox is None:
            spec = self._runtime.spec
            self._inbox = Inbox(self._runtime.context, spec.config.bus.queue, lossless=False)
            for node, topics in _sensed(spec):
                self._inbox.connect(ipc_of(spec, node), topics)
        elif not looking and self._inbox is not None:
            self.close()
            state.forget_senses()  # type: ignore[attr-defined]
        while self._inbox is not None and (message := self._inbox.receive(0)) is not None:
            if isinstance(message, Pcm):
                state.hear(message)  # type: ignore[attr-defined]
            elif isinstance(message, Face):
                state.see(message)  # type: ignore[attr-defined]

    def close(self) -> None:
        if self._inbox is not None:
            self._inbox.close()
            self._inbox = None


def _sensed(spec: NodeSpec) -> Iterator[tuple[str, list[str]]]:
    """The capture nodes, and what the page takes of them."""
    for node in spec.inputs:
        kind, stream = parse_node(node)
        if kind in ("audio", "video", "capture"):
            yield node, [stream_topic("pcm", stream), stream_topic("face", stream)]


@contextlib.contextmanager
def _served(app: Any, host: str, port: int) -> Iterator[None]:
    """Run the server in a thread. Raises RunError if the port is not free."""
    import uvicorn

    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
    except OSError as error:
        listening.close()
        raise RunError(f"the page cannot have {host}:{port} ({error.strerror}); see page.port") from error
    settings = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="websockets-sansio", ws_max_size=65_536,
        limit_concurrency=64, timeout_graceful_shutdown=1, server_header=False,
    )  # fmt: skip
    server = uvicorn.Server(settings)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="page", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(1.5)
        listening.close()
