"""Fusion process: the runtime around the fusion core. One process serves all streams."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing

from emostream.engines.bundle import open_bundle
from emostream.stream.bus import EmotionPublisher
from emostream.stream.cores.classifier import Classifier
from emostream.stream.cores.fusion import FusionCore
from emostream.stream.nodes.runtime import NodeRuntime, Stopped, ipc_of
from emostream.stream.topics import EMOTION, fused_topics, parse_node

_IDLE_MS = 100
_TICK_S = 0.05
_GIVE_UP_S = 1.8  # later than the speech node, whose last words it still takes
_STEP_NS = 20_000_000  # queued messages are taken before jobs run, but no longer than this
_AHEAD_NS = 20_000_000_000  # at fast pace, video waits while it is further ahead of speech than this


def main(runtime: NodeRuntime) -> None:
    """Load the networks, then take the messages of all producers and publish labels until all streams have ended.

    Raises BundleError or BackendError if the networks cannot be loaded, BusError if the endpoint cannot be bound.
    """
    spec = runtime.spec
    config = spec.config
    with ExitStack() as stack:
        classifier = stack.enter_context(closing(_load(runtime)))
        public = stack.enter_context(closing(EmotionPublisher(runtime.context, config.bus.emotion, runtime.observer)))
        core = FusionCore(dict(spec.streams), classifier, config, runtime.clock, spec.realtime)
        runtime.counters = lambda: dict(core.counters)
        _serve(runtime, core, public)


def _serve(runtime: NodeRuntime, core: FusionCore, public: EmotionPublisher) -> None:
    spec = runtime.spec
    inbox = runtime.open_inbox({node: fused_topics(node) for node in spec.inputs})
    inputs = [(*parse_node(node), ipc_of(spec, node)) for node in spec.inputs]
    video_nodes = {stream: endpoint for kind, stream, endpoint in inputs if kind == "video"}
    speech_nodes = [endpoint for kind, _, endpoint in inputs if kind == "speech"]
    runtime.wait_for_subscribers([])
    while not public.has_subscribers([EMOTION]):
        runtime.stop_event.wait(0.01)
        runtime.tick()
        if runtime.stopping:
            return
    runtime.wait_for_go()
    step_by_ns = 0
    while not core.done:
        runtime.tick()
        if not spec.realtime:
            for stream, endpoint in video_nodes.items():
                inbox.hold(endpoint, core.ahead_ns(stream) > _AHEAD_NS)
        if spec.realtime and core.at_rest and len(inbox) == 0:  # features can wait until somebody speaks
            inbox.wait_for(speech_nodes, _IDLE_MS)
        message = inbox.receive(min(_IDLE_MS, core.patience_ms()))
        if message is not None:
            core.push(message)
        now_ns = runtime.clock.now_ns()
        if message is None or len(inbox) == 0 or not spec.realtime or now_ns >= step_by_ns:
            step_by_ns = now_ns + _STEP_NS
            for emotion in core.step():
                public.send(emotion)
        if message is None and runtime.stopping_for(_GIVE_UP_S):
            break
    for emotion in core.step(flush=True):
        public.send(emotion)


def _load(runtime: NodeRuntime) -> Classifier:
    """In a thread, since an engine that must be built first takes longer than a node may be silent. Raises Stopped."""
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
