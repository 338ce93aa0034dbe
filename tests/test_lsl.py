"""stream-lsl: real outlets, read by real inlets on the same machine."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from emostream.errors import ConfigError
from emostream.stream.bus import Context
from emostream.stream.emotion import Emotion
from emostream.stream.listen import listen_run
from emostream.stream.lsl import Outlets
from emostream.stream.public import EmotionPublisher
from emostream.stream.sink import run_sink
from emostream.stream.status import Status, StreamStatus, encode_status
from tests.emotions import emotion_message
from tests.processes import BIN, Pipeline, command, environment, free_port, patience

try:
    import pylsl
except (ImportError, RuntimeError) as error:  # RuntimeError: no liblsl
    pytest.skip(f"pylsl: {error}", allow_module_level=True)

pytestmark = pytest.mark.process

LABELS = ["joy", "anger"]
# Only this machine and only these tests' streams; nothing is printed
CONFIG = f"""
[multicast]
ResolveScope = machine
MachineAddresses = {{127.0.0.1, 224.0.0.183}}
[lab]
KnownPeers = {{127.0.0.1}}
SessionID = emostream-tests-{os.getpid()}
[log]
level = -3
"""
pylsl.set_config_content(CONFIG)


@pytest.fixture
def endpoint() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture
def lsl_environment(tmp_path) -> dict[str, str]:
    (tmp_path / "lsl_api.cfg").write_text(CONFIG)
    return {**environment(), "LSLAPICFG": str(tmp_path / "lsl_api.cfg")}


@pytest.fixture
def publisher(endpoint) -> Iterator[EmotionPublisher]:
    """A status of a run in which nobody has spoken yet."""
    context = Context()
    publisher = EmotionPublisher(context, endpoint)
    yield publisher
    publisher.close()
    context.term()


@contextlib.contextmanager
def stream_lsl(endpoint: str, env: dict[str, str], *words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [BIN / "stream-lsl", endpoint, *words], env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def status(labels: list[str] = LABELS, *names: str) -> bytes:
    return encode_status(
        Status(state="running", labels=labels, streams={name: StreamStatus(state="running") for name in names})
    )


def inlets(publisher: EmotionPublisher | None, *kinds: str, stream: str = "desk") -> list[Any]:
    """Open inlets for a stream's outlets; meanwhile the run regularly publishes which streams it has."""
    found = {}
    until = time.monotonic() + patience(20)
    while len(found) < len(kinds):
        assert time.monotonic() < until, f"of {kinds}, only {list(found)}"
        if publisher is not None:
            publisher.tick()
            publisher.forward("status", status(LABELS, stream))
        for kind in set(kinds) - set(found):
            for info in pylsl.resolve_byprop("name", f"emostream-{stream}-{kind}", timeout=1):
                found[kind] = pylsl.StreamInlet(info, recover=False)
                found[kind].open_stream(timeout=5)
    return [found[kind] for kind in kinds]


def both_clocks() -> tuple[float, int]:
    """LSL's seconds and Unix nanoseconds of the same moment, however busy the machine is."""
    readings = [(time.time_ns(), pylsl.local_clock(), time.time_ns()) for _ in range(20)]
    before_ns, lsl_s, after_ns = min(readings, key=lambda reading: reading[2] - reading[0])
    return lsl_s, (before_ns + after_ns) // 2


def live(kind: str, unix_ns: int, **changes: Any) -> Emotion:
    """A message about 2.5 s of sound whose last sample was captured at ``unix_ns``."""
    return emotion_message(stream="desk", kind=kind, captured_ns=unix_ns, published_ns=time.time_ns(), **changes)


def test_streams_their_descriptions_values_and_the_times_of_what_they_are_about(endpoint, publisher, lsl_environment):
    with stream_lsl(endpoint, lsl_environment):
        labels, messages, estimates = inlets(publisher, "labels", "messages", "estimates")
        infos = [inlet.info(5) for inlet in (labels, messages, estimates)]
        lsl_s, unix_ns = both_clocks()
        spoken_ns, spoken_s = unix_ns - 500_000_000, lsl_s - 0.5
        publisher.send(live("window", spoken_ns, valence=0.25, probabilities={"joy": 0.625, "anger": 0.375}))
        publisher.send(live("utterance", spoken_ns))
        (values, at_s), (label, label_s), (message, message_s) = (
            inlet.pull_sample(timeout=5) for inlet in (estimates, labels, messages)
        )
        assert abs(labels.time_correction(timeout=5)) < 0.005  # one machine has one LSL clock
    assert values[:3] == [0.625, 0.375, 0.25] and math.isnan(values[3])  # a bundle without arousal
    assert label == ["joy"]  # an event as XDF tools expect it
    content = json.loads(message[0])
    assert (content["label"], content["text"], content["words"]) == ("joy", "", [])  # words only if asked for
    assert content["faces"] == [] and content["confidence"] == 0.75
    assert at_s == pytest.approx(spoken_s, abs=0.005) and message_s == pytest.approx(spoken_s, abs=0.005)
    assert label_s == pytest.approx(spoken_s - 2.5, abs=0.005)  # the first sound
    assert [info.type() for info in infos] == ["Markers", "JSON", "Emotion"]
    assert {info.nominal_srate() for info in infos} == {pylsl.IRREGULAR_RATE}
    assert [info.channel_format() for info in infos] == [pylsl.cf_string, pylsl.cf_string, pylsl.cf_float32]
    assert infos[2].get_channel_labels() == [*LABELS, "valence", "arousal"]
    assert infos[2].get_channel_units() == ["0..1", "0..1", "-1..1", "-1..1"]
    assert infos[0].desc().child_value("manufacturer") == "emostream"
    assert len({info.source_id() for info in infos}) == 3
    assert endpoint in infos[0].source_id()  # a second run's streams have another id


def test_words_streams_not_announced_no_live_capture_and_another_clock(endpoint, publisher, lsl_environment):
    with stream_lsl(endpoint, lsl_environment, "--words") as process:
        inlets(publisher, "labels")
        publisher.send(emotion_message(stream="hall", captured_ns=0, published_ns=time.time_ns()))
        labels, messages = inlets(None, "labels", "messages", stream="hall")
        lsl_s, unix_ns = both_clocks()
        publisher.send(emotion_message(stream="hall", captured_ns=0, published_ns=unix_ns))
        (message,), message_s = messages.pull_sample(timeout=5)
        assert json.loads(message)["text"] == "so happy"
        for at_s in (message_s, labels.pull_sample(timeout=5)[1]):
            assert at_s == pytest.approx(lsl_s, abs=0.005)  # when it was published
        for _ in range(3):
            ahead_ns = time.time_ns() + 3_000_000_000
            publisher.send(emotion_message(stream="hall", captured_ns=ahead_ns, published_ns=ahead_ns))
            assert labels.pull_sample(timeout=5)[0] == ["joy"]
        process.terminate()
        assert process.stderr is not None
        warnings = [line for line in process.stderr.read().splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 2 and "hall: not captured live" in warnings[0], warnings
    assert re.search(r"by this machine's clock, messages arrive -[23]\.\d s after", warnings[1])


@pytest.mark.long
def test_a_reader_that_stalls_costs_nobody_else_anything():
    outlets = Outlets("here", words=False)
    outlets.set_status(Status(labels=LABELS, streams={"desk": StreamStatus()}))
    stalled, reader = (inlets(None, "messages")[0] for _ in range(2))
    got: list[list[str]] = []
    taken_s, until = 0.0, time.monotonic() + patience(10)
    for number in range(1500):
        message = live("utterance", time.time_ns(), utterance=number)
        begun = time.monotonic()
        outlets.send(message)
        taken_s += time.monotonic() - begun
        while number % 100 == 99 and len(got) <= number and time.monotonic() < until:
            got += reader.pull_chunk(timeout=0.2, max_samples=number + 1 - len(got))[0]
    assert [json.loads(message)["utterance"] for (message,) in got] == list(range(1500))
    assert taken_s < 1.5
    assert stalled.samples_available() > 0
    outlets.close()
    assert pylsl.resolve_byprop("name", "emostream-desk-messages", timeout=0.5) == []


def test_another_bundle_has_other_channels():
    outlets = Outlets("here", words=False)
    for labels in (LABELS, ["calm", "angry", "sad"]):
        outlets.set_status(Status(labels=labels, streams={"desk": StreamStatus()}))
        (estimates,) = inlets(None, "estimates")
        assert estimates.info(5).get_channel_labels() == [*labels, "valence", "arousal"]
    outlets.set_status(None)  # the run is away: its streams stay
    assert len(pylsl.resolve_byprop("name", "emostream-desk-estimates", timeout=1)) == 1
    outlets.close()


@pytest.mark.long
@pytest.mark.realtime
def test_a_real_run(endpoint, lsl_environment):
    """The demo: estimates and labels have the LSL times of their sound, to within some milliseconds."""
    with stream_lsl(endpoint, lsl_environment), Pipeline("--config", "config.toml", endpoint=endpoint) as run:
        labels, estimates = inlets(None, "labels", "estimates", stream="demo")
        first = [estimates.pull_sample(timeout=patience(20)) for _ in range(2)]
        (label,), label_s = labels.pull_sample(timeout=patience(20))
        published = next(m for m in run.subscriber.of("utterance"))
        run.interrupt()
    lsl_s, unix_ns = both_clocks()
    unix_minus_lsl_s = unix_ns / 1e9 - lsl_s
    started_s = published["captured_ns"] / 1e9 - (published["end_s"] - published["start_s"]) - unix_minus_lsl_s
    assert label == published["label"] and label_s == pytest.approx(started_s, abs=0.005)
    zero_s = label_s - published["start_s"]  # zero of the stream's timeline
    windows = [m["end_s"] for m in run.subscriber.of("window")]
    for values, at_s in first:
        assert min(abs(at_s - zero_s - end_s) for end_s in windows) < 0.005  # hops are 250 ms apart
        assert sum(values[:-2]) == pytest.approx(1, abs=1e-5)


def test_sinks_get_no_label_that_may_be_taken_back(monkeypatch):
    early, last = (emotion_message(final=final) for final in (False, True))

    class Collected:
        def __init__(self) -> None:
            self.sent: list[object] = []
            self.send = self.set_status = self.sent.append

        def close(self) -> None:
            self.sent.append("closed")

    sink = Collected()
    monkeypatch.setattr("emostream.stream.sink.listen_run", lambda *_, **__: iter([None, early, last]))
    run_sink(sink, "tcp://127.0.0.1:1", None, estimates=False)
    assert sink.sent == [None, last, "closed"]


def test_a_run_s_messages_come_in_one_subscription(endpoint, publisher):
    """Labels, statuses, and None if nothing comes; messages that are not emostream's are skipped."""
    received = listen_run(endpoint, key=None, estimates=False, silent_s=0.3)
    assert next(received) is None
    publisher.forward("status", b"{")
    publisher.forward("status", status(LABELS, "desk"))
    publisher.send(live("window", 1))
    publisher.send(live("utterance", 1))
    first, second = next(received), next(received)
    assert isinstance(first, Status) and first.labels == LABELS
    assert isinstance(second, Emotion) and second.kind == "utterance"
    assert next(received) is None


@pytest.mark.parametrize(
    ("raises", "said"),
    [("ImportError", r"pip install 'emostream\[lsl\]'"), ("RuntimeError('no binary library')", "PYLSL_LIB")],
)
def test_what_is_missing_is_said(monkeypatch, tmp_path, raises, said):
    (tmp_path / "pylsl.py").write_text(f"raise {raises}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pylsl")
    with pytest.raises(ConfigError, match=said):
        Outlets("here", words=False)


def test_a_wrong_endpoint_is_one_line_and_a_code():
    done = command("stream-lsl", "localhost:5556")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert errors == ["error: localhost:5556: not a valid endpoint (it is tcp://HOST:PORT or ipc://PATH)"]
    assert command("stream-lsl", "--version").stdout.startswith("stream-lsl ")
