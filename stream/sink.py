"""What the sinks share: programs beside a run that hand its labels on to other tools (``stream-mqtt``, ``stream-lsl``).

A sink is a process of its own and listens as anybody does, so what is slow, full or dead behind it costs the run, and
the other sinks, nothing.
"""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import closing
from pathlib import Path
from typing import Protocol

import msgspec

from emostream.commands import stop_by_signals
from emostream.stream.emotion import Emotion, encode_emotion
from emostream.stream.listen import DEFAULT_ENDPOINT, listen_run
from emostream.stream.status import Status

_SILENT_S = 5.0  # a run publishes its status each second


class Sink(Protocol):
    """Where labels go. No method waits for whoever is behind it, and none raises because nobody is."""

    def send(self, emotion: Emotion) -> None:
        """Hand on a label or a running estimate."""
        ...

    def set_status(self, status: Status | None) -> None:
        """The state of the run, about once a second; None: it is not there."""
        ...

    def close(self) -> None:
        """Say goodbye."""
        ...


def sink_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line of a sink: its own arguments, which ``parser`` has, and those that all sinks have. From
    then on log lines go to stderr."""
    parser.add_argument(
        "endpoint", nargs="?", default=DEFAULT_ENDPOINT, help=f"of the run (default: {DEFAULT_ENDPOINT})"
    )
    parser.add_argument("--words", action="store_true", help="send what was said, too; without this, labels alone")
    parser.add_argument("--key", type=Path, metavar="FILE", help="of stream-keys new client, for another machine's run")
    options = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(levelname)s: %(message)s", stream=sys.stderr)
    return options


def run_sink(sink: Sink, endpoint: str, key: Path | None, estimates: bool) -> None:
    """Hand on what the run publishes until Ctrl-C or SIGTERM, then close the sink. Raises ConfigError as ``listen``."""
    with closing(sink):
        try:
            stop_by_signals()
            for message in listen_run(endpoint, key=key, estimates=estimates, silent_s=_SILENT_S):
                if isinstance(message, Emotion):
                    if message.final:  # a recorder or a home cannot take a label back
                        sink.send(message)
                else:
                    sink.set_status(message)
        except KeyboardInterrupt:
            pass


def message_json(emotion: Emotion, words: bool) -> str:
    """A message as JSON; unless ``words``, without what was said."""
    return encode_emotion(emotion if words else msgspec.structs.replace(emotion, text="", words=[])).decode()
