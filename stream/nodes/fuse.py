"""Fusion process: the shell around the fusion core. One for all streams."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait

from engines.bundle import open_bundle
from stream.bus import EmotionPublisher
from stream.classifier import Classifier
from stream.nodes.fusion import FusionCore
from stream.nodes.shell import Shell, Stopped, ipc_of

_IDLE_MS = 100
_TICK_S = 0.05
_GIVE_UP_S = 1.8  # later than the speech node's, whose last words it still takes
_STEP_NS = 20_000_000  # messages that wait are taken first, but jobs wait for them no longer than this
_AHEAD_NS = 20_000_000_000  # at fast pace, video waits when it is further ahead of speech than this


def main(shell: Shell) -> None:
    spec = shell.spec
    config = spec.config
    public = EmotionPublisher(shell.context, config.bus.emotion)
    classifier = _load(shell)
    core = FusionCore(dict(spec.streams), classifier, config, shell.clock, spec.realtime)
    shell.counters = lambda: dict(core.counters)
    inbox = shell.open_inbox({node: _topics(node) for node in spec.inputs})
    video_nodes = {node.partition(".")[2]: ipc_of(spec, node) for node in spec.inputs if node.startswith("video.")}
    speech_nodes = [ipc_of(spec, node) for node in spec.inputs if node.startswith("speech.")]
    try:
        shell.wait_for_subscribers([])
        while not public.has_subscribers(["emotion."]):
            shell.stop_event.wait(0.01)
            shell.tick()
            if shell.stopping:
                return
        shell.wait_for_go()
        step_by_ns = 0
        while not core.done:
            shell.tick()
            if not spec.realtime:
                for stream, endpoint in video_nodes.items():
                    inbox.hold(endpoint, core.ahead_ns(stream) > _AHEAD_NS)
            if spec.realtime and core.at_rest and not len(inbox):  # features can wait until somebody speaks
                inbox.wait_for(speech_nodes, _IDLE_MS)
            message = inbox.receive(min(_IDLE_MS, core.patience_ms()))
            if message is not None:
                core.push(message)
            now_ns = shell.clock.now_ns()
            if message is None or len(inbox) == 0 or not spec.realtime or now_ns >= step_by_ns:
                step_by_ns = now_ns + _STEP_NS
                for emotion in core.step():
                    public.send(emotion)
            if message is None and shell.stopping_for(_GIVE_UP_S):
                break
        for emotion in core.step(flush=True):
            public.send(emotion)
    finally:
        classifier.close()
        public.close()


def _load(shell: Shell) -> Classifier:
    """In a thread, since an engine that must be built first takes longer than a node may be silent. Raises Stopped."""
    config = shell.spec.config.fusion

    def load() -> Classifier:
        classifier = Classifier(open_bundle(config.bundle), config.backend, config.threads)
        classifier.warm_up()
        return classifier

    pool = ThreadPoolExecutor(1, "load")
    loading = pool.submit(load)
    pool.shutdown(wait=False)  # nothing else is to be done there; a node that is told to stop does not wait for it
    while not wait([loading], _TICK_S).done:
        shell.tick()
        if shell.stopping:
            raise Stopped
    return loading.result()


def _topics(node: str) -> list[str]:
    """What fusion takes from a node, which is named KIND.STREAM."""
    kind, _, stream = node.partition(".")
    topics = {"audio": ["mfcc"], "video": ["face"], "capture": ["mfcc", "face"], "speech": ["speech"]}[kind]
    return [f"{topic}.{stream}" for topic in topics]
