"""Fusion process: the runtime around the fusion core. One process serves all streams."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Self

from emostream.engines.bundle import open_bundle
from emostream.files import user_path
from emostream.stream.bus import Inbox
from emostream.stream.config import changed
from emostream.stream.cores.classifier import Classifier, Head
from emostream.stream.cores.fusion import FusionCore
from emostream.stream.emotion import Emotion
from emostream.stream.keys import Keys, read_client
from emostream.stream.messages import End, Label, Message, Orders
from emostream.stream.nodes.runtime import NodeRuntime, Stopped
from emostream.stream.nodes.spec import ipc_of
from emostream.stream.profile import Profile
from emostream.stream.public import EmotionPublisher
from emostream.stream.topics import LABEL, fused_contents, fused_topics, parse_node

if TYPE_CHECKING:
    from emostream.stream.remote.link import Link

log = logging.getLogger(__name__)

_SAVE_S = 5.0
_IDLE_MS = 100
_REST_MS = 250  # where nobody speaks: as often as speech reports progress
_TICK_S = 0.05
_GIVE_UP_S = 1.3  # longer than the speech node's, so that its last words still arrive
_JOIN_S = 15.0  # for the remote networks, at the start
_STEP_NS = 20_000_000  # take queued messages before running jobs, but for no longer than this
_AHEAD_NS = 20_000_000_000  # at fast pace, video waits while it is further ahead of speech than this


def main(runtime: NodeRuntime) -> None:
    """Load the networks, then take the messages of all producers and publish labels until all streams have ended.

    Raises BundleError or BackendError if the networks cannot be loaded, BusError if the endpoint cannot be bound at the
    start of the run. If another program takes the endpoint while this node restarts, the run goes on.
    """
    spec = runtime.spec
    config = spec.config
    with ExitStack() as stack:
        remote = config.fusion.remote if spec.realtime else ""
        if remote and config.fusion.without == "late":
            classifier = Head(open_bundle(config.fusion.bundle), config.fusion.prior)
        else:
            classifier = stack.enter_context(closing(_load(runtime)))
        first_start = spec.t0_ns is None
        keys = Keys(config.bus.keys) if config.bus.needs_keys else None
        public = EmotionPublisher(runtime.context, config.bus.emotion, runtime.observer, first_start, keys)
        stack.enter_context(closing(public))
        inbox = runtime.open_inbox({node: fused_topics(node) for node in spec.inputs})
        link = None
        if remote:
            link = stack.enter_context(closing(_link(runtime, remote, classifier, inbox)))
        core = FusionCore(
            dict(spec.streams),
            classifier,
            config,
            runtime.clock,
            spec.realtime,
            run=spec.run,
            first=spec.first,
            elsewhere=link,
        )
        runtime.counters = lambda: core.counters + public.counters + (link.counters if link is not None else Counter())
        runtime.by_stream = core.by_stream
        stack.callback(setattr, runtime, "on_status", runtime.on_status)  # a status may come after the socket is closed
        runtime.on_status = lambda payload: public.send_status(payload.encode())
        keeper = None
        if config.fusion.profile:
            profile = Profile(user_path(config.fusion.profile), open_bundle(config.fusion.bundle))
            keeper = stack.enter_context(_Keeper(profile, core))
        _serve(runtime, core, public, keeper, inbox, link)


class _Keeper:
    """Saves what is learnt about the persons every few seconds and at the end. A file that cannot be written causes a
    warning; labels go on."""

    def __init__(self, profile: Profile, core: FusionCore) -> None:
        self._profile, self._core = profile, core
        self._next_s = 0.0
        self._warned = False
        profile.restore(core.baselines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._save()

    def tick(self) -> None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _SAVE_S
            self._save()

    def _save(self) -> None:
        try:
            self._profile.save(self._core.baselines)
        except OSError as error:
            if not self._warned:
                log.warning("%s: the profile cannot be written (%s)", error.filename, error.strerror)
            self._warned = True
        else:
            self._warned = False


def _serve(
    runtime: NodeRuntime,
    core: FusionCore,
    public: EmotionPublisher,
    keeper: _Keeper | None,
    inbox: Inbox,
    link: Link | None,
) -> None:
    spec = runtime.spec
    inputs = [(*parse_node(node), ipc_of(spec, node)) for node in spec.inputs]
    video_nodes = {stream: endpoint for kind, stream, endpoint in inputs if kind == "video"}
    speech_nodes = [endpoint for kind, _, endpoint in inputs if kind == "speech"]
    serials = {name: stream.serial for name, stream in spec.orders.added.items()}  # streams already in ``inputs``
    ended: set[str] = set()  # nodes whose own End messages are no longer needed
    ends: list[End] = []  # used instead of them once everything that these nodes sent has been taken

    def follow(orders: Orders) -> None:
        core.follow(changed(spec.config, orders.settings))
        for name, stream in orders.added.items():
            if serials.get(name) == stream.serial or name in orders.removed:
                continue
            serials[name] = stream.serial
            for node in stream.inputs:
                inbox.connect(ipc_of(spec, node), fused_topics(node))
                if parse_node(node)[0] == "speech" and ipc_of(spec, node) not in speech_nodes:
                    speech_nodes.append(ipc_of(spec, node))
            core.add_stream(name, stream.modalities, stream.first)
            if link is not None:
                link.add([name])
            ended.difference_update(stream.inputs)
        if link is not None:
            for name in orders.removed:
                link.leave(name)
        for node in orders.ended:
            if node not in ended:
                ended.add(node)
                ends.extend(_ends(node))

    follow(runtime.orders)
    runtime.on_orders = follow
    runtime.wait_for_subscribers([LABEL])
    runtime.wait_for_go()
    step_by_ns = 0

    def publish(emotion: Emotion, send: Callable[[Message], None]) -> None:
        payload = public.send(emotion)
        if emotion.final:  # provisional labels are for subscribers only
            send(Label(stream=emotion.stream, payload=payload.decode()))

    while not core.done:
        runtime.tick()
        public.tick()
        if keeper is not None:
            keeper.tick()
        if link is not None:
            link.tick()
        if not spec.realtime:
            for stream, endpoint in video_nodes.items():
                inbox.hold(endpoint, core.ahead_ns(stream) > _AHEAD_NS)
        patience_ms = min(_IDLE_MS, core.patience_ms())
        if spec.realtime and core.at_rest and len(inbox) == 0:  # features can wait until somebody speaks
            inbox.wait_for(speech_nodes, _REST_MS if link is None else _IDLE_MS)
            patience_ms = 0
        message = inbox.receive(patience_ms if link is None else link.patience_ms(patience_ms))
        if link is not None:
            link.tick()
        if message is not None:
            core.push(message)
        elif ends:
            for end in ends:
                core.push(end)
            ends.clear()
        now_ns = runtime.clock.now_ns()
        if message is None or len(inbox) == 0 or not spec.realtime or now_ns >= step_by_ns:
            step_by_ns = now_ns + _STEP_NS
            for emotion in core.step():
                publish(emotion, runtime.send)
        if runtime.stopping_for(_GIVE_UP_S):
            break
    for emotion in core.step(flush=True):
        publish(emotion, runtime.send_last)


def _ends(node: str) -> list[End]:
    _, stream = parse_node(node)
    return [End(stream=stream, content=content, reason="ended") for content in fused_contents(node)]


def _link(runtime: NodeRuntime, remote: str, head: Head, inbox: Inbox) -> Link:
    """The link to the remote networks. Raises ConfigError without keys, and ClusterError if they do not accept this
    run's streams at its start although there are no local networks."""
    from emostream.stream.remote.link import Link

    spec = runtime.spec
    pair = read_client(Keys(spec.config.bus.keys).client_file)
    link = Link(runtime.context, remote, pair, head, inbox.wake_on, inbox.forget)
    link.add(name for name, _ in spec.streams)
    if spec.config.fusion.without == "late" and spec.t0_ns is None:
        try:
            link.wait(runtime.tick, _JOIN_S)
        except BaseException:
            link.close()
            raise
    return link


def _load(runtime: NodeRuntime) -> Classifier:
    """Load in a thread, since building an engine may take longer than a node may be silent. Raises Stopped."""
    config = runtime.spec.config.fusion

    def load() -> Classifier:
        classifier = Classifier(open_bundle(config.bundle), config.backend, config.threads, config.prior)
        classifier.warm_up()
        return classifier

    pool = ThreadPoolExecutor(1, "load")
    loading = pool.submit(load)
    pool.shutdown(wait=False)  # a node that has to stop does not wait for the thread
    while not wait([loading], _TICK_S).done:
        runtime.tick()
        if runtime.stopping:
            raise Stopped
    return loading.result()
