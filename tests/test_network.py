"""A network source that goes away and comes back: an MPEG transport stream over loopback, sent at real-time pace."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from emostream.errors import SourceError
from emostream.stream.clock import SystemClock
from emostream.stream.source_spec import SourceSpec
from emostream.stream.sources import DEMO
from emostream.stream.sources.base import AudioChunk, VideoFrame
from emostream.stream.sources.network import LiveSource
from tests import media
from tests.processes import Pipeline, command, patience

pytestmark = [pytest.mark.process, pytest.mark.realtime]


class Sender(threading.Thread):
    """Sends the demo clip as MPEG-TS over UDP, at its own pace, until stopped; starts again at its end."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port, self._ended = port, threading.Event()
        self._begun_s, self._length_s = time.time(), 0.0
        self.start()

    def played_s(self, at_ns: int) -> float:
        """The clip's time that was due at ``at_ns``, a Unix time."""
        at_s = at_ns / 1e9 - self._begun_s
        return at_s % self._length_s if self._length_s else at_s

    def sent(self, at_ns: int) -> bool:
        """Whether it was sending at this Unix time."""
        return self._begun_s < at_ns / 1e9 and (not self._ended.is_set() or at_ns / 1e9 < self._ended_s)

    def run(self) -> None:
        begun, offset_s = time.monotonic(), 0.0
        options = {"flush_packets": "1", "muxdelay": "0"}
        url = f"udp://127.0.0.1:{self._port}?pkt_size=1316"
        with av.open(url, "w", format="mpegts", options=options) as out, av.open(str(DEMO)) as clip:
            tracks = {
                track.index: out.add_stream_from_template(track) for track in (*clip.streams.video, *clip.streams.audio)
            }
            while not self._ended.is_set():
                sound_s = 0.0
                for packet in clip.demux(*clip.streams.video, *clip.streams.audio):
                    if packet.dts is None or self._ended.is_set():
                        continue
                    if packet.stream.type == "audio":
                        sound_s += float(packet.duration * packet.time_base)
                    due_s = begun + offset_s + float(packet.dts * packet.time_base)
                    if self._ended.wait(max(0.0, due_s - time.monotonic())):
                        break
                    shift = round(offset_s / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = tracks[packet.stream.index]
                    out.mux(packet)
                if self._ended.is_set():
                    break
                self._length_s = sound_s  # the clip's sound is longer than its picture, and goes on without a gap
                offset_s += sound_s
                clip.seek(0)

    def stop(self) -> None:
        self._ended_s = time.time()
        self._ended.set()
        self.join()


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_source_that_goes_away_and_comes_back():
    """Labels before and after; the gap is reported and shows on the timeline."""
    port = free_udp_port()
    sender = Sender(port)
    source = f"udp://127.0.0.1:{port}"
    with Pipeline("--stream", f"door={source}", "--set", "video.open_timeout_s=2") as run:
        before = run.subscriber.wait_for("utterance", 1, 30)[0]
        first = sender
        sender.stop()
        time.sleep(5)
        count = len(run.subscriber.of("utterance"))
        sender = Sender(port)
        after = run.subscriber.wait_for("utterance", count + 2, 40)[-1]
        assert run.interrupt() < patience(3)
        sender.stop()
        assert run.process.returncode == 0, run.output
    assert "went away (nothing came for 2 s)" in run.output
    assert "is back" in run.output
    assert "gaps in capture: 1" in run.output
    assert after["start_s"] - before["end_s"] > 5
    assert after["modalities"]["video"]["coverage"] > 0.8
    ends_s = [sentence["end_s"] for sentence in json.loads(DEMO.with_suffix(".json").read_text())["sentences"]]
    labels = run.subscriber.of("utterance")
    for sent in (first, sender):  # capture times are estimates here; sentences that were cut end anywhere
        played_s = [sent.played_s(label["captured_ns"]) for label in labels if sent.sent(label["captured_ns"])]
        assert min(abs(at_s - end_s) for at_s in played_s for end_s in ends_s) < 0.7, played_s
    assert all(label["latency_ms"]["queue"] > -60 for label in labels)


def test_times_are_those_of_capture_and_stale_data_is_dropped():
    sender = Sender(port := free_udp_port())
    clock = SystemClock()
    source = LiveSource(SourceSpec.parse(f"udp://127.0.0.1:{port}"), frozenset({"audio", "video"}), 10, clock, 2)
    source.open()
    late: dict[type, list[float]] = {AudioChunk: [], VideoFrame: []}
    until = clock.now_ns() + 5_000_000_000  # the first second is discarded
    for item in source.items():
        if clock.now_ns() > until:
            break
        if item is not None:
            late[type(item)].append((clock.now_ns() - item.media_end_ns) / 1e9)
    source.close()
    sender.stop()
    assert len(late[AudioChunk]) > 20 and len(late[VideoFrame]) > 10
    for values in late.values():
        assert min(values) > -0.1 and sorted(values)[len(values) // 2] < 0.7


@pytest.mark.parametrize("source", ["http://127.0.0.1:9/nothing", "rtsp://127.0.0.1:9/nothing", "camera:97"])
def test_a_missing_source_is_reported_in_one_line(source: str):
    with pytest.raises(SourceError, match=r"cannot be opened \(.+\); (is its server running|list devices with)"):
        LiveSource(SourceSpec.parse(source), frozenset({"video"}), 10, SystemClock(), 2).open()
    with Pipeline("--stream", source) as run:
        assert run.finish(30) == 1
    assert f"{source} cannot be opened" in run.output
    assert "Traceback" not in run.output


def test_a_missing_camera_leaves_sound(tmp_path: Path):
    """One of two sources cannot be opened: that is reported, and the other one is labelled."""
    sound = media.audio_only(tmp_path / "speech.wav")
    with Pipeline("--stream", f"desk=file:{sound},camera:97") as run:
        assert run.finish(40) == 0, run.output
        labels = run.subscriber.of("utterance")
    assert "camera:97 cannot be opened" in run.output
    assert labels and labels[0]["modalities"]["video"]["coverage"] == 0


def test_an_unexpected_error_of_the_decoder_opens_the_source_again(monkeypatch, caplog):
    """Whatever a reading thread raises, it continues: nobody would notice its end."""
    from emostream.stream.sources import network

    sender = Sender(port := free_udp_port())
    real, calls = network.decode, []

    def decode(*arguments, **options):
        calls.append(len(calls))
        if calls[-1] == 0:
            raise KeyError("s64")
        yield from real(*arguments, **options)

    monkeypatch.setattr(network, "decode", decode)
    source = LiveSource(SourceSpec.parse(f"udp://127.0.0.1:{port}"), frozenset({"audio"}), 10, SystemClock(), 2)
    source.open()
    until = time.monotonic() + 15
    assert any(item is not None or time.monotonic() > until for item in source.items())
    source.close()
    sender.stop()
    assert time.monotonic() < until and len(calls) >= 2
    assert "nothing of it can be decoded (KeyError: 's64')" in caplog.text and "is back" in caplog.text


class Radio:
    """A live HTTP stream: of speech without an end or, if it ``is_broken``, of packets that no decoder takes."""

    def __init__(self, folder: Path) -> None:
        broken = media.undecodable(folder / "broken.mkv").read_bytes()
        speech = media.talking_face(folder / "talk.ts", 4.0).read_bytes()
        radio = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                radio.asked_s.append(time.monotonic())
                self.send_response(200)
                self.end_headers()
                data = broken if radio.is_broken else speech
                try:
                    while data is speech:
                        for start in range(0, len(data), len(data) // 80):  # 50 ms each
                            self.wfile.write(data[start : start + len(data) // 80])
                            time.sleep(0.05)
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True

        self.is_broken, self.asked_s = True, list[float]()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/live"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def radio(tmp_path: Path) -> Iterator[Radio]:
    radio = Radio(tmp_path)
    yield radio
    radio.close()


def test_a_source_of_which_nothing_can_be_decoded_is_not_back_when_it_can_be_opened(radio, monkeypatch, caplog):
    from emostream.stream.sources import network

    monkeypatch.setattr(network, "_UNDECODABLE_S", (0.1, 0.2, 0.4, 0.8, 1.6))
    source = LiveSource(SourceSpec.parse(radio.url), frozenset({"audio"}), 10, SystemClock(), 5)
    source.open()
    items = source.items()
    until = time.monotonic() + patience(15)
    while len(radio.asked_s) < 5:
        assert next(items) is None and time.monotonic() < until
    waits_s = [b - a for a, b in zip(radio.asked_s, radio.asked_s[1:], strict=False)]
    assert waits_s[2] > 0.4 and waits_s[3] > 0.8
    assert "is back" not in caplog.text and caplog.text.count("nothing of it can be decoded") == 1
    radio.is_broken = False
    while next(items) is None:
        assert time.monotonic() < until
    source.close()
    assert caplog.text.count("is back") == 1 and source.counters["reopened"] == 1


@pytest.mark.long
def test_a_run_says_that_its_source_cannot_be_decoded_and_health_is_bad_meanwhile(radio):
    with Pipeline("--stream", f"door={radio.url}", "--set", "speech.recognizer=none") as run:
        until = time.monotonic() + 30
        while len(radio.asked_s) < 4:
            assert time.monotonic() < until, run.output
            time.sleep(0.1)
        health = command("stream-health", run.endpoint)
        assert health.returncode == 1 and "door: away" in health.stdout, health
        assert "is back" not in run.output and run.output.count("nothing of it can be decoded") == 1, run.output
        radio.is_broken = False
        label = run.subscriber.wait_for("utterance", 1, 40)[0]
        assert command("stream-health", run.endpoint).returncode == 0
        run.interrupt()
        assert run.process.returncode == 0, run.output
    assert run.output.count("is back") == 1 and "Traceback" not in run.output
    assert label["modalities"]["audio"]["coverage"] > 0.8


@pytest.mark.long
def test_a_source_that_is_away_when_its_node_is_started_again_is_waited_for():
    sender = Sender(port := free_udp_port())
    with Pipeline("--stream", f"door=udp://127.0.0.1:{port}", "--set", "video.open_timeout_s=2") as run:
        run.subscriber.wait_for("utterance", 1, 30)
        sender.stop()
        os.kill(run.node("capture.door"), signal.SIGKILL)
        time.sleep(8)
        count = len(run.subscriber.of("utterance"))
        sender = Sender(port)
        after = run.subscriber.wait_for("utterance", count + 2, 60)[-1]
        run.interrupt()
        sender.stop()
        assert run.process.returncode == 0, run.output
    assert "its source is away; trying again until it is back" in run.output
    assert after["modalities"]["audio"]["coverage"] > 0.8
