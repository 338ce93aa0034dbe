"""What the sinks share: programs beside a run that pass its labels on to other tools (``stream-mqtt``, ``stream-lsl``).

A sink is a separate process that subscribes like any other program, so a slow, full or dead tool behind it does not
affect the run or other sinks.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import Protocol

import msgspec

from emostream.commands import stop_by_signals
from emostream.stream.emotion import Emotion, encode_emotion
from emostream.stream.lines import log_to_stderr
from emostream.stream.listen import DEFAULT_ENDPOINT, listen_run
from emostream.stream.status import Status

_SILENT_S = 5.0  # a run publishes its status each second


class Sink(Protocol):
    """Where labels go. No method waits for the tool behind it, and none raises if that is missing."""

    def send(self, emotion: Emotion) -> None:
        """Pass on a label or a running estimate."""
        ...

    def set_status(self, status: Status | None) -> None:
        """The state of the run, about once a second; None if there is no run."""
        ...

    def close(self) -> None:
        """Disconnect in an orderly way."""
        ...


def sink_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse a sink's command line: the arguments that ``parser`` already has, and those that all sinks share. Also
    sends log lines to stderr from then on, without waiting for it."""
    parser.add_argument(
        "endpoint", nargs="?", default=DEFAULT_ENDPOINT, help=f"endpoint of the run (default: {DEFAULT_ENDPOINT})"
    )
    parser.add_argument("--words", action="store_true", help="also send what was said; by default, only labels")
    parser.add_argument("--key", type=Path, metavar="FILE", help="made by stream-keys new client; for a remote run")
    options = parser.parse_args()
    log_to_stderr()
    return options


def run_sink(sink: Sink, endpoint: str, key: Path | None, estimates: bool) -> None:
    """Hand on what the run publishes until Ctrl-C or SIGTERM, then close the sink. Raises ConfigError as ``listen``."""
    with closing(sink):
        try:
            stop_by_signals()
            for message in listen_run(endpoint, key=key, estimates=estimates, silent_s=_SILENT_S):
                if isinstance(message, Emotion):
                    if message.final:  # a recorder or a smart home cannot undo a provisional label
                        sink.send(message)
                else:
                    sink.set_status(message)
        except KeyboardInterrupt:
            pass


def message_json(emotion: Emotion, words: bool) -> str:
    """A message as JSON; unless ``words``, without what was said."""
    return encode_emotion(emotion if words else msgspec.structs.replace(emotion, text="", words=[])).decode()
