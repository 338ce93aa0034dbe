"""Recording process: writes what was heard, seen and said into files, beside the run. If it dies, labels go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain

from emostream import __version__
from emostream.errors import ModelError, RunError
from emostream.stream.emotion import decode_emotion
from emostream.stream.messages import Face, Label, Pcm, Picture, SpeechEvent
from emostream.stream.nodes.runtime import NodeRuntime
from emostream.stream.nodes.spec import ipc_of
from emostream.stream.source_spec import masked
from emostream.stream.topics import FUSION, LABEL, Content, parse_node, stream_topic

log = logging.getLogger(__name__)

_IDLE_MS = 100
_LAST_NS, _GIVE_UP_S = 500_000_000, 1.5  # after ``stop``, for the last labels


def main(runtime: NodeRuntime) -> None:
    """Record until ``stop`` comes. Raises ModelError if packages are missing, and RunError if nothing can be written at
    the beginning; if the disk fills up later, only this process ends."""
    try:
        from emostream.stream.recording import FORMAT, Recorder
    except ImportError as error:
        raise ModelError(f"recording needs packages ({error.name}): pip install 'emostream[record]'") from error
    config = runtime.spec.config
    keep_text = config.privacy.text == "keep"
    facts = {
        "format": FORMAT, "run": runtime.spec.run, "version": __version__,
        "config": masked(json.dumps(config.model_dump(mode="json"))), "bundle": config.fusion.bundle,
    }  # fmt: skip
    recorder = Recorder(config.record, facts, runtime.clock.wall_ns)
    contents: list[Content] = ["pcm", "face", "speech"]
    if config.record.video:
        contents.append("picture")
    what = "sound, faces and pictures" if config.record.video else "sound and faces"
    log.info("recording %s%s: %s", what, ", encrypted" if config.record.public_key else "", recorder.path)
    runtime.on_log = recorder.log
    runtime.on_status = lambda payload: recorder.status(payload, runtime.clock.wall_ns(runtime.clock.now_ns()))
    runtime.counters = lambda: {"messages": recorder.messages}
    connected: set[str] = set()
    inbox = runtime.open_inbox({FUSION: [LABEL]})
    with closing(recorder), _deaf(runtime):
        try:
            runtime.wait_for_go()
            heard_ns = runtime.clock.now_ns()
            while True:
                runtime.tick()
                for node in _nodes(runtime) - connected:
                    connected.add(node)
                    _, stream = parse_node(node)
                    topics = [stream_topic(content, stream) for content in contents]
                    inbox.connect(ipc_of(runtime.spec, node), topics)
                message = inbox.receive(_IDLE_MS)
                heard_ns = runtime.clock.now_ns() if message is not None else heard_ns
                idle = runtime.clock.now_ns() - heard_ns > _LAST_NS
                if runtime.stopping and (idle or runtime.stopping_for(_GIVE_UP_S)):
                    break
                if isinstance(message, Pcm):
                    recorder.hear(message)
                elif isinstance(message, Face):
                    recorder.see(message)
                elif isinstance(message, Picture):
                    recorder.look(message)
                elif isinstance(message, SpeechEvent):
                    recorder.note(message, keep_text)
                elif isinstance(message, Label):
                    recorder.label(decode_emotion(message.payload.encode()))
                recorder.tick()
        except OSError as error:
            with suppress(OSError):
                recorder.close()
            raise RunError(f"{recorder.path}: cannot be written ({error.strerror}); recording ends") from error


@contextmanager
def _deaf(runtime: NodeRuntime) -> Iterator[None]:
    """Afterwards, ignore status and log messages, some of which arrive while the process ends."""
    try:
        yield
    finally:
        runtime.on_status, runtime.on_log = lambda payload: None, lambda line: None


def _nodes(runtime: NodeRuntime) -> set[str]:
    """All nodes that capture or hear, including those of streams added later."""
    added = runtime.orders.added.values()
    return {*runtime.spec.inputs, *chain.from_iterable(stream.inputs for stream in added)}
