"""The command ``stream-lsl``: labels and running estimates as Lab Streaming Layer (LSL) streams, for experiments."""

from __future__ import annotations

import logging
import math
import socket
from typing import Any

from emostream import __version__
from emostream.commands import make_parser
from emostream.errors import ConfigError
from emostream.stream.clock import take_offset_ns
from emostream.stream.emotion import Emotion
from emostream.stream.sink import message_json, run_sink, sink_options
from emostream.stream.status import Status

log = logging.getLogger(__name__)

_BUFFERED = 10  # hundreds of samples buffered for a slow reader; beyond that it misses the oldest
_EARLY_S, _LATE_S = 0.05, 2.0  # how long before or after its publishing a message may arrive by our clock
_DIMENSIONS = ("valence", "arousal")


def lsl() -> int:
    """stream-lsl: labels and running estimates for LSL."""
    parser = make_parser("stream-lsl", "Offer what stream-run publishes as streams of the Lab Streaming Layer (LSL).")
    options = sink_options(parser)
    run_sink(Outlets(options.endpoint, options.words), options.endpoint, options.key, estimates=True)
    return 0


class Outlets:
    """A sink: LSL outlets, three for each stream of the run, all of irregular rate.

        emostream-STREAM-labels      Markers: each label, as one string, at the start of its utterance
        emostream-STREAM-messages    JSON: each label's message, as one string, at the end of its utterance
        emostream-STREAM-estimates   Emotion: running estimates, float32: the probability of each label, valence and
                                     arousal (NaN if the bundle has none), at the end of the estimate's window

    Time stamps are by ``pylsl.local_clock``. The outlets exist as soon as the run names its streams, so that a recorder
    can be started before anybody speaks. ``endpoint``: the run's, which is part of the streams' ids.

    Raises ConfigError if pylsl, or the library that it needs, is missing."""

    def __init__(self, endpoint: str, words: bool) -> None:
        try:
            import pylsl
        except ImportError as error:
            raise ConfigError("this needs a package: pip install 'emostream[lsl]'") from error
        except RuntimeError as error:  # pylsl finds no liblsl
            raise ConfigError(
                "pylsl finds no liblsl, which its wheel brings for x86-64 alone: install the package of "
                "https://github.com/sccn/liblsl/releases, or name the file in PYLSL_LIB"
            ) from error
        self._lsl: Any = pylsl
        self._endpoint, self._words = endpoint, words
        self._outlets: dict[tuple[str, str], Any] = {}  # by stream and kind
        self._labels: dict[str, tuple[str, ...]] = {}  # by stream: the labels of its estimates, in order
        self._told: set[str] = set()

    def send(self, emotion: Emotion) -> None:
        """A label or a running estimate."""
        self._open(emotion.stream, tuple(emotion.probabilities))
        end_ns = self._captured_ns(emotion)
        if emotion.kind == "window":
            values = (*emotion.probabilities.values(), emotion.valence, emotion.arousal)
            sample = [math.nan if value is None else value for value in values]
            self._push(emotion.stream, "estimates", sample, end_ns)
            return
        length_ns = round((emotion.end_s - emotion.start_s) * 1e9) if emotion.captured_ns else 0
        self._push(emotion.stream, "labels", [emotion.label], end_ns - length_ns)
        self._push(emotion.stream, "messages", [message_json(emotion, self._words)], end_ns)

    def set_status(self, status: Status | None) -> None:
        """The state of the run: its streams get outlets. They stay if the run goes away."""
        if status is not None:
            for name in status.streams:
                self._open(name, tuple(status.labels))

    def close(self) -> None:
        """Take the streams off the network."""
        self._outlets.clear()

    def _captured_ns(self, emotion: Emotion) -> int:
        """When the message's ``end_s`` was captured, by LSL's clock."""
        unix_minus_lsl_ns = take_offset_ns(self._now_ns)
        late_s = (self._now_ns() + unix_minus_lsl_ns - emotion.published_ns) / 1e9
        if not -_EARLY_S <= late_s <= _LATE_S:
            self._warn_once(
                self._endpoint,
                f"by this machine's clock, messages arrive {late_s:.1f} s after they were published; if the run is on "
                "a machine with another time, time stamps are off by that: use stream-lsl there",
            )
        if not emotion.captured_ns:
            self._warn_once(emotion.stream, "not captured live (--pace fast); samples get the time of publishing")
        return (emotion.captured_ns or emotion.published_ns) - unix_minus_lsl_ns

    def _now_ns(self) -> int:
        seconds: float = self._lsl.local_clock()
        return round(seconds * 1e9)

    def _warn_once(self, about: str, text: str) -> None:
        if about not in self._told:
            self._told.add(about)
            log.warning("%s: %s", about, text)

    def _push(self, stream: str, kind: str, sample: list[Any], at_ns: int) -> None:
        self._outlets[stream, kind].push_sample(sample, at_ns / 1e9)

    def _open(self, stream: str, labels: tuple[str, ...]) -> None:
        """Make a stream's missing outlets. ``labels``: empty if not known."""
        if (stream, "labels") not in self._outlets:
            text = self._lsl.cf_string
            self._make(stream, "labels", "Markers", text, [("label", "Marker", "text")])
            self._make(stream, "messages", "JSON", text, [("message", "JSON", "text")])
            log.info("%s: offered to LSL", stream)
        if labels and labels != self._labels.get(stream):
            channels = [(label, "Probability", "0..1") for label in labels]
            channels += [(name, name.capitalize(), "-1..1") for name in _DIMENSIONS]
            self._make(stream, "estimates", "Emotion", self._lsl.cf_float32, channels)
            self._labels[stream] = labels

    def _make(
        self, stream: str, kind: str, content: str, sample_format: int, channels: list[tuple[str, str, str]]
    ) -> None:
        """Make an outlet. ``channels``: label, type and unit of each."""
        # LSL reconnects readers to an outlet that is back by this id, so an outlet with other content needs another id
        names = ",".join(label for label, _, _ in channels)
        source = f"emostream:{socket.gethostname()}:{self._endpoint}:{stream}:{kind}:{names}"
        info = self._lsl.StreamInfo(
            f"emostream-{stream}-{kind}", content, len(channels), self._lsl.IRREGULAR_RATE, sample_format, source
        )
        description = info.desc()
        description.append_child_value("manufacturer", "emostream")
        description.append_child_value("version", __version__)
        listed = description.append_child("channels")
        for label, channel_type, unit in channels:
            channel = listed.append_child("channel")
            channel.append_child_value("label", label)
            channel.append_child_value("type", channel_type)
            channel.append_child_value("unit", unit)
        self._outlets[stream, kind] = self._lsl.StreamOutlet(info, max_buffered=_BUFFERED)
