"""Speech process: the runtime around the speech core."""

from __future__ import annotations

import logging

from emostream.stream.bus import Inbox
from emostream.stream.config import changed
from emostream.stream.cores.speech import SpeechCore
from emostream.stream.messages import End, Orders, Pcm, Words
from emostream.stream.nodes.runtime import NodeRuntime
from emostream.stream.nodes.spec import NodeSpec
from emostream.stream.source_spec import masked
from emostream.stream.speech.apart import Apart
from emostream.stream.speech.overlap import load_overlap
from emostream.stream.speech.recognizer import make_recognizer
from emostream.stream.speech.speaker import load_speaker
from emostream.stream.speech.vad import load_vad
from emostream.stream.topics import HEARD, stream_topic

log = logging.getLogger(__name__)

_SILENT_DBFS = -90.0
_IDLE_MS = 100
_GIVE_UP_S = 0.8  # so that what was heard by then can still be labelled
_AT_ONCE = 8  # blocks whose voice activity is computed in one run, where so many wait


class _Hint:
    """Says once, ten seconds after the start, that nobody has spoken yet and how loud the sound is: most often it is
    the wrong microphone, or it is muted."""

    AFTER_NS = 10_000_000_000

    def __init__(self, spec: NodeSpec, now_ns: int) -> None:
        names = {stream.name: stream.audio or stream.source for stream in spec.config.streams}
        self._stream, self._source = spec.stream, names.get(spec.stream)
        self._due_ns: int | None = now_ns + self.AFTER_NS

    def is_due(self, utterances: int, now_ns: int) -> bool:
        if self._due_ns is None or (now_ns < self._due_ns and not utterances):
            return False
        self._due_ns = None
        return not utterances

    def tell(self, peak_dbfs: float) -> None:
        """``peak_dbfs``: the loudest sample so far."""
        where = masked(f" of {self._source}") if self._source else ""
        if peak_dbfs <= _SILENT_DBFS:
            text = "the sound%s is all silence: is it muted, or another device? (stream-doctor)"
            log.warning("%s: " + text, self._stream, where)
        else:
            text = "nobody has spoken in the first 10 s; the loudest sound%s had %.0f dBFS"
            log.info("%s: " + text, self._stream, where, peak_dbfs)


def _leave_unheard(blocks: list[Pcm], inbox: Inbox, core: SpeechCore) -> None:
    """The run ends, and this node is too far behind to hear all that waits for it: that is lost. ``blocks``: those that
    it has taken already."""
    rest = [*blocks, *(message for message in iter(lambda: inbox.receive(0), None) if isinstance(message, Pcm))]
    if rest:
        core.sound_lost_ns += sum(block.media_end_ns - block.media_start_ns for block in rest)
        span = f"from {rest[0].media_start_ns / 1e9:.2f} to {rest[-1].media_end_ns / 1e9:.2f} s"
        log.warning("%s: sound %s was not heard before the run ended", rest[0].stream, span)


def main(runtime: NodeRuntime) -> None:
    """Load voice activity detection and recogniser, then turn sound into speech events until it ends or ``stop`` comes.

    Raises ModelError if a model is missing.
    """
    spec = runtime.spec
    config = spec.config.speech
    contents = HEARD if config.recognizer == "external" else HEARD[:1]
    inbox = runtime.open_inbox({node: [stream_topic(each, spec.stream) for each in contents] for node in spec.inputs})
    vad = load_vad(config.vad_model)
    quiet_vad = vad.twin() if spec.config.audio.level == "auto" else None
    speaker = load_speaker(config)
    voice = None if speaker is None else speaker.new_vector()
    network = load_overlap(config)
    overlap = None if network is None else network.new_meter()
    apart = f"recognizer.{spec.stream}" if spec.host else ""
    recognizer = make_recognizer(config, apart, patient=not spec.realtime)
    if isinstance(recognizer, Apart):
        runtime.helpers.append(recognizer.process.pid)
    core = SpeechCore(spec.stream, vad, recognizer, config, runtime.clock, quiet_vad, voice, overlap)
    runtime.counters = lambda: {
        "utterances": core.utterances,
        "utterances_ended": core.utterances_ended,
        "quiet_utterances": core.quiet_utterances,
        "scraps": core.scraps,
        "sound_lost_ms": core.sound_lost_ns // 1_000_000,
    }

    def follow(orders: Orders) -> None:
        core.follow(changed(spec.config, orders.settings).speech)

    runtime.on_orders = follow
    follow(runtime.orders)

    def senses() -> dict[str, float]:
        taken = core.take_senses()
        runtime.peak_dbfs = max(runtime.peak_dbfs, taken["level_dbfs"])
        return taken

    runtime.senses = senses
    runtime.wait_for_subscribers([stream_topic("speech", spec.stream)])
    runtime.wait_for_go()
    reason = ""
    hint = _Hint(spec, runtime.clock.now_ns())
    blocks: list[Pcm] = []
    while not reason:
        runtime.tick()
        if spec.realtime and hint.is_due(core.utterances, runtime.clock.now_ns()):
            hint.tell(runtime.peak_dbfs)
        if spec.realtime:
            runtime.rest(core.at_rest)
        message = inbox.receive(_IDLE_MS)
        if isinstance(message, Pcm) and not (runtime.stopping and not spec.realtime):
            blocks = [message, *inbox.more(Pcm, _AT_ONCE - 1)]
            core.expect(blocks)
            while blocks and not runtime.stopping_for(_GIVE_UP_S):
                for event in core.push(blocks.pop(0)):
                    runtime.send_last(event) if runtime.stopping else runtime.send(event)
                runtime.tick()  # on a busy machine, the recogniser takes long for a block
        elif isinstance(message, Words):
            core.hear(message.words)
        elif isinstance(message, End):
            reason = message.reason
        elif message is None:
            for event in core.stalled() if spec.realtime else ():
                runtime.send_last(event)
        if not reason and runtime.stopping_for(_GIVE_UP_S):
            reason = "stopped"
            _leave_unheard(blocks, inbox, core)
    for event in core.finish():
        runtime.send_last(event)
    runtime.send_ends([End(stream=spec.stream, content="speech", reason=reason)])
