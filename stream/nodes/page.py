"""Page process: a web server beside the run, for this machine only or with TLS. If it dies, labels go on."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from emostream.errors import ModelError, RunError
from emostream.stream.bus import Inbox
from emostream.stream.config import LOOPBACK, Config, changed
from emostream.stream.config import Page as PageConfig
from emostream.stream.control import Control, Request, control_path
from emostream.stream.messages import Face, Label, Orders, Pcm, Picture
from emostream.stream.nodes.runtime import NodeRuntime
from emostream.stream.nodes.spec import ipc_of
from emostream.stream.page.tls import Certificate
from emostream.stream.source_spec import described
from emostream.stream.steering import SETTABLE
from emostream.stream.topics import LABEL, Content, parse_node, stream_topic

if TYPE_CHECKING:
    from emostream.stream.page.state import PageState

log = logging.getLogger(__name__)

_IDLE_MS = 100
_LOOKING_MS = 20
_PING_S = 10.0  # a browser that neither reads nor answers for so long is let go
_ANY = ("0.0.0.0", "[::]")


def main(runtime: NodeRuntime) -> None:
    """Serve the page until ``stop`` comes. Raises ModelError if packages for it are missing, ConfigError if its
    certificate cannot be used, and RunError if its port cannot be bound."""
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

    page = config.page
    certificate = Certificate(page.certificate, page.key) if page.certificate else None
    names = certificate.names if certificate is not None else []
    app = make_app(
        state, token, _hosts(page, names), None if path is None else steer,
        secure=certificate is not None, count_labels=page.count_labels,
    )  # fmt: skip
    with _served(app, page, None if certificate is None else certificate.context):
        log.info("%s/%s/", address(page, names), token)

        def show(orders: Orders) -> None:
            state.set_settings(settings_of(config, orders))
            state.set_sources(sources_of(config, orders))

        runtime.on_orders = show
        show(runtime.orders)
        runtime.wait_for_go()
        with contextlib.closing(_Senses(runtime, state)) as senses:
            while not runtime.stopping:
                runtime.tick()
                if certificate is not None:
                    certificate.tick()
                senses.take(looking := state.is_watched)
                while (message := labels.receive(0)) is not None:
                    if isinstance(message, Label):
                        state.add(message.payload)
                labels.wait(_LOOKING_MS if looking else _IDLE_MS)


def settings_of(config: Config, orders: Orders) -> dict[str, object]:
    """Current values of the settings that can be changed during a run, by SECTION.KEY."""
    now = changed(config, orders.settings)
    values = {name: attrgetter(name)(now) for name in SETTABLE}
    prior = values["fusion.prior"]
    if isinstance(prior, dict):  # as a user would type it
        values["fusion.prior"] = "{" + ", ".join(f"{label} = {share:g}" for label, share in prior.items()) + "}"
    return values


def sources_of(config: Config, orders: Orders) -> dict[str, str]:
    """The sources of each stream, of those added too, as they were named, without secrets."""
    streams = {stream.name: described(source for _, source in stream.sources) for stream in config.streams}
    return streams | {name: expected.sources for name, expected in orders.added.items()}


def address(page: PageConfig, names: Sequence[str]) -> str:
    """The page's address, without the token. ``names``: the hosts of its certificate; browsers need one of them."""
    scheme = "https" if page.certificate else "http"
    plain = [name for name in names if not name.startswith("*")]
    host = page.host if page.host in names or not plain else plain[0]
    return f"{scheme}://{host}:{page.port}"


def _hosts(page: PageConfig, names: Sequence[str]) -> frozenset[str]:
    """Accepted values of a request's Host header; browsers omit the default port."""
    hosts = {*LOOPBACK, *names, page.host.lower()} - {*_ANY}
    usual = page.port == (443 if page.certificate else 80)
    return frozenset({f"{host}:{page.port}" for host in hosts} | (hosts if usual else set()))


class _Senses:
    """Takes the sound and faces of all streams, and their pictures if configured, while somebody looks."""

    def __init__(self, runtime: NodeRuntime, state: PageState) -> None:
        self._runtime, self._state = runtime, state
        self._inbox: Inbox | None = None
        self._connected: set[str] = set()
        self._contents: list[Content] = ["pcm", "face"]
        if runtime.spec.config.page.picture:
            self._contents.append("picture")

    def take(self, looking: bool) -> None:
        spec = self._runtime.spec
        if looking and self._inbox is None:
            self._inbox = Inbox(self._runtime.context, spec.config.bus.queue, lossless=False)
        elif not looking and self._inbox is not None:
            self.close()
            self._state.forget_senses()
        if self._inbox is None:
            return
        for node in self._nodes() - self._connected:
            self._connected.add(node)
            _, stream = parse_node(node)
            self._inbox.connect(ipc_of(spec, node), [stream_topic(content, stream) for content in self._contents])
        while (message := self._inbox.receive(0)) is not None:
            if isinstance(message, Pcm):
                self._state.hear(message)
            elif isinstance(message, Face):
                self._state.see(message)
            elif isinstance(message, Picture):
                self._state.show(message)

    def _nodes(self) -> set[str]:
        """All capturing nodes, including those of streams added later. A stream added again has the same endpoint."""
        added = self._runtime.orders.added.values()
        nodes = chain(self._runtime.spec.inputs, *(stream.inputs for stream in added))
        return {node for node in nodes if parse_node(node)[0] in ("audio", "video", "capture")}

    def close(self) -> None:
        if self._inbox is not None:
            self._inbox.close()
            self._inbox = None
            self._connected.clear()


@contextlib.contextmanager
def _served(app: Any, page: PageConfig, tls: ssl.SSLContext | None) -> Iterator[None]:
    """Run the server in a thread. Raises RunError if the port is not free."""
    import uvicorn

    host, port = page.host, page.port
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
        listening.listen()  # before the address is announced, since the server's thread may start a little later
    except OSError as error:
        listening.close()
        raise RunError(f"the page cannot have {host}:{port} ({error.strerror}); see page.port") from error
    settings = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="websockets-sansio", ws_max_size=65_536,
        ws_ping_interval=_PING_S, ws_ping_timeout=_PING_S, ws_per_message_deflate=tls is not None,
        limit_concurrency=64, timeout_graceful_shutdown=1, server_header=False,
    )  # fmt: skip
    settings.load()
    settings.ssl = tls  # our own context, since uvicorn's accepts older ciphers
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
