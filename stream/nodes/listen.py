"""Speech process: the shell around the speech core."""

from __future__ import annotations

from stream import models
from stream.messages import End, Pcm
from stream.nodes.shell import Shell
from stream.nodes.speech import SpeechCore
from stream.speech.recognizer import make_recognizer
from stream.speech.vad import SileroVad

_IDLE_MS = 100
_REST_S = 0.1  # less than min_hangover_ms: whoever speaks for a moment only does not get a label later for it
_GIVE_UP_S = 1.0


def load_vad(configured: str = "") -> SileroVad:
    """Silero VAD from where it is found. Raises ModelError."""
    return SileroVad(models.need("silero-vad", configured))


def main(shell: Shell) -> None:
    spec = shell.spec
    config = spec.config.speech
    inbox = shell.open_inbox({node: [f"pcm.{spec.stream}"] for node in spec.inputs})
    core = SpeechCore(spec.stream, load_vad(config.vad_model), make_recognizer(config), config, shell.clock)
    shell.counters = lambda: {"utterances": core.utterances}
    shell.wait_for_subscribers([f"speech.{spec.stream}"])
    shell.wait_for_go()
    reason = ""
    while not reason:
        shell.tick()
        if spec.realtime and core.at_rest and not len(inbox):  # several blocks at a time cost less than one by one
            shell.stop_event.wait(_REST_S)
        message = inbox.receive(_IDLE_MS)
        if isinstance(message, Pcm) and not (shell.stopping and not spec.realtime):
            for event in core.push(message):
                shell.send_last(event) if shell.stopping else shell.send(event)
        elif isinstance(message, End):
            reason = message.reason
        elif message is None:
            for event in core.stalled() if spec.realtime else ():
                shell.send_last(event)
            if shell.stopping_for(_GIVE_UP_S):
                reason = "stopped"
    for event in core.finish():
        shell.send_last(event)
    shell.send_ends(
        [End(stream=spec.stream, media_start_ns=0, media_end_ns=0, captured_ns=0, of="speech", reason=reason)]
    )
