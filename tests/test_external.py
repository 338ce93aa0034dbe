"""Sources that are programs: what they may send, and what happens to invalid messages."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import av
import numpy as np
import pytest
import zmq

from emostream.errors import ConfigError, SourceError
from emostream.stream.clock import SystemClock
from emostream.stream.config import Config
from emostream.stream.control import Control, control_path
from emostream.stream.source_spec import SourceSpec
from emostream.stream.sources import make_source
from emostream.stream.sources.base import AudioChunk, HeardWords, NoTrack, VideoFrame
from emostream.stream.sources.external import ExternalSource
from tests.processes import ROOT, Pipeline, environment, free_port

BLOCK = np.arange(320, dtype="<i2")


class Robot:
    """A program that sends, and the source that takes it, in one process."""

    def __init__(self, endpoint: str) -> None:
        spec = SourceSpec.parse(f"zmq:{endpoint}")
        source = make_source(spec, frozenset({"audio", "video"}), SystemClock(), Config(streams=[{"source": "demo"}]))
        assert isinstance(source, ExternalSource)
        self.source = source
        source.open()
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PUSH)
        self.socket.linger = 0
        self.socket.connect(endpoint)
        self.items = source.items()

    def send(self, header: dict | bytes, *frames: bytes) -> None:
        self.socket.send_multipart([header if isinstance(header, bytes) else json.dumps(header).encode(), *frames])

    def get(self, seconds: float = 2.0) -> AudioChunk | VideoFrame | HeardWords | NoTrack | None:
        until = time.monotonic() + seconds
        for item in self.items:
            if item is not None or time.monotonic() > until:
                return item
        return None

    def close(self) -> None:
        self.context.destroy(0)
        self.source.close()


@pytest.fixture
def robot(tmp_path) -> Iterator[Robot]:
    robot = Robot(f"ipc://{tmp_path}/robot")
    yield robot
    robot.close()


def sound(**fields) -> dict:
    return {"type": "audio", "rate": 16_000, "channels": 1, "format": "s16le", **fields}


def test_sound_with_its_time(robot):
    before = time.time()
    robot.send(sound(time=before - 0.5, channels=2), np.repeat(BLOCK, 2).tobytes())
    chunk = robot.get()
    assert isinstance(chunk, AudioChunk) and chunk.samples.shape == (320, 2) and chunk.rate_hz == 16_000
    assert np.array_equal(chunk.samples[:, 0], BLOCK / np.float32(32768))
    assert abs(chunk.media_ns / 1e9 - (before - 0.5)) < 0.2
    robot.send(sound(time=before - 0.48 + 0.01, format="f32le"), BLOCK.astype("<f4").tobytes())
    late = robot.get()
    assert late.media_ns == chunk.media_end_ns  # stamped 10 ms late
    assert late.samples.max() == 1 and late.samples.shape == (320, 1)


def test_sound_without_times_is_continuous_though_it_comes_unevenly(robot):
    chunks = []
    for pause_s in (0, 0.05, 0, 0, 0.03):
        time.sleep(pause_s)
        robot.send(sound(), BLOCK.tobytes())
        chunks.append(robot.get())
    assert abs(chunks[0].media_end_ns / 1e9 - time.time()) < 0.5
    assert all(b.media_ns == a.media_end_ns for a, b in itertools.pairwise(chunks))


def test_a_pause_in_sending_is_a_gap(robot):
    robot.send(sound(), BLOCK.tobytes())
    first = robot.get()
    time.sleep(0.5)
    robot.send(sound(), BLOCK.tobytes())
    assert robot.get().media_ns - first.media_end_ns > 300_000_000


def test_pictures(robot):
    gray = np.full((40, 60), 7, np.uint8)
    robot.send({"type": "video", "format": "gray8", "width": 60, "height": 40, "time": time.time()}, gray.tobytes())
    assert np.array_equal(robot.get().image, gray)
    white = np.full((40, 60, 3), 255, np.uint8)
    for form in ("rgb24", "bgr24"):
        time.sleep(0.11)
        robot.send({"type": "video", "format": form, "width": 60, "height": 40}, white.tobytes())
        assert robot.get().image.shape == (40, 60)
    time.sleep(0.11)
    robot.send({"type": "video", "format": "jpeg"}, jpeg(60, 40))
    picture = robot.get()
    assert isinstance(picture, VideoFrame) and picture.image.shape == (40, 60) and picture.image.mean() > 200


def jpeg(width: int, height: int) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 250, np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])
    return out.getvalue()


def test_no_more_pictures_than_are_looked_at(robot):
    gray = bytes(4)
    now = time.time()
    for i in range(30):  # a second at 30 a second
        robot.send({"type": "video", "format": "gray8", "width": 2, "height": 2, "time": now - 1 + i / 30}, gray)
    robot.send({"type": "end"})
    assert 9 <= len([item for item in robot.items if isinstance(item, VideoFrame)]) <= 11


def test_words(robot):
    now = time.time()
    words = [{"word": " happy ", "start": now - 1, "end": now - 0.5, "confidence": 0.5}]
    robot.send({"type": "words", "words": words})
    heard = robot.get()
    assert isinstance(heard, HeardWords)
    (word,) = heard.words
    assert (word.word, word.confidence) == ("happy", 0.5) and abs(word.start_s - (now - 1)) < 0.2


def test_it_ends_when_it_says_so(robot):
    robot.send({"type": "end"})
    assert list(robot.items) == []


@pytest.mark.slow
def test_what_it_does_not_send_is_missing_two_seconds_later(robot):
    robot.send(sound(), BLOCK.tobytes())
    robot.get()
    assert robot.get(4) == NoTrack("video")
    robot.send({"type": "video", "format": "gray8", "width": 2, "height": 2}, bytes(4))
    robot.get(0.3)
    assert robot.source.counters["refused"] == 1


NOW = 0.0  # replaced by the current time
REFUSED = {
    "no JSON": (b"\xff\xfe{",),
    "nothing": (b"",),
    "nested": (b"[" * 10_000,),
    "another type": ({"type": "smell"},),
    "no samples": (sound(),),
    "too many frames": (sound(), b"", b""),
    "an empty block": (sound(), b""),
    "half a frame": (sound(channels=2), bytes(6)),
    "NaN": (sound(format="f32le"), np.array([0, np.nan], "<f4").tobytes()),
    "infinite": (sound(format="f32le"), np.array([0, np.inf], "<f4").tobytes()),
    "a rate of 0": (sound(rate=0), bytes(8)),
    "a rate of 10^12": (sound(rate=10**12), bytes(8)),
    "a rate that is no number": (sound(rate="fast"), bytes(8)),
    "no channels": (sound(channels=0), bytes(8)),
    "10,000 channels": (sound(channels=10_000), bytes(20_000)),
    "three seconds": (sound(), bytes(96_000)),
    "a picture's format": (sound(format="jpeg"), bytes(8)),
    "an hour ago": (sound(time=NOW - 3600), bytes(8)),
    "in an hour": (sound(time=NOW + 3600), bytes(8)),
    "milliseconds": (sound(time=NOW * 1000 + 1e12), bytes(8)),
    "a time that is no number": (b'{"type":"audio","time":NaN}', bytes(8)),
    "a picture of another size": ({"type": "video", "format": "gray8", "width": 9, "height": 9}, bytes(80)),
    "a picture of no size": ({"type": "video", "format": "rgb24"}, b""),
    "a picture of 10^5": ({"type": "video", "format": "gray8", "width": 10**5, "height": 1}, bytes(10**5)),
    "a picture of negative size": ({"type": "video", "format": "gray8", "width": -2, "height": -2}, bytes(4)),
    "no JPEG": ({"type": "video", "format": "jpeg"}, b"\xff\xd8 nonsense"),
    "half a JPEG's header": ({"type": "video", "format": "jpeg"}, jpeg(60, 40)[:30]),
    "words that end before": ({"type": "words", "words": [{"word": "a", "start": NOW - 1, "end": NOW - 2}]},),
    "an empty word": ({"type": "words", "words": [{"word": " ", "start": NOW - 1, "end": NOW}]},),
    "a long word": ({"type": "words", "words": [{"word": "a" * 999, "start": NOW - 1, "end": NOW}]},),
    "a certain word": ({"type": "words", "words": [{"word": "a", "start": NOW - 1, "end": NOW, "confidence": 7}]},),
}


def at_present(value):
    """The same with times counted from now."""
    if isinstance(value, dict):
        shifted = ("time", "start", "end")
        return {
            k: v + time.time() if k in shifted and isinstance(v, float) else at_present(v) for k, v in value.items()
        }
    return [at_present(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("frames", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_counted_told_once_and_costs_nothing_else(robot, caplog, frames):
    for _ in range(3):
        robot.send(*(at_present(frame) for frame in frames))
    robot.send(sound(), BLOCK.tobytes())
    assert isinstance(robot.get(), AudioChunk)
    assert robot.source.counters["refused"] == 3
    assert len(caplog.records) == 1 and "was refused" in caplog.text and len(caplog.records[0].message) < 1000


@pytest.mark.slow
def test_a_flood_is_dropped_and_counted(robot):
    for _ in range(15):  # 22 s of sound at once
        robot.send(sound(), bytes(48_000))
        robot.get(0.05)
    assert robot.source.counters["source_dropped"] >= 10


def test_numbers_that_never_came_are_counted_and_a_program_may_begin_again(robot):
    for seq in (0, 1, 4, 5, 0, 1):
        robot.send(sound(seq=seq), BLOCK.tobytes())
        assert isinstance(robot.get(), AudioChunk)
    assert robot.source.counters["source_gaps"] == 2


def test_a_number_that_jumps_costs_no_heartbeat(robot):
    """Counters travel as 64 bits."""
    for seq in (0, 1 << 52, 0, 1 << 52):
        robot.send(sound(seq=seq), BLOCK.tobytes())
        assert isinstance(robot.get(), AudioChunk)
    assert robot.source.counters["source_gaps"] == 2_000_000
    robot.send(sound(seq=1 << 80), BLOCK.tobytes())
    robot.send(sound(seq=1 << 52), BLOCK.tobytes())
    assert isinstance(robot.get(), AudioChunk) and robot.source.counters["refused"] == 1


@pytest.mark.parametrize(
    "endpoint", ["tcp://0.0.0.0:6000", "tcp://192.168.1.2:6000", "tcp://*:6000", "tcp://box:6000", "x", "inproc://a"]
)
def test_only_this_machine_may_send(endpoint):
    source = make_source(SourceSpec.parse(f"zmq:{endpoint}"), frozenset({"audio"}), SystemClock(), Config())
    with pytest.raises(SourceError, match=r"127\.0\.0\.1"):
        source.open()


def test_an_address_in_use(robot, tmp_path):
    with zmq.Context() as context, context.socket(zmq.PULL) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        spec = SourceSpec.parse(f"zmq:tcp://127.0.0.1:{port}")
        with pytest.raises(SourceError, match="Address already in use"):
            make_source(spec, frozenset({"audio"}), SystemClock(), Config()).open()


def test_at_fast_pace_there_is_nobody_to_wait_for():
    with pytest.raises(ConfigError, match="live"):
        Config(streams=[{"source": "zmq:ipc:///x"}], pace="fast")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "talk.wav"
    demo = ROOT / "stream/sources/demo.mp4"
    command = ["ffmpeg", "-loglevel", "error", "-t", "10", "-i", demo, "-ar", "16000", "-ac", "1", path]
    subprocess.run(command, check=True)
    return path


def wait_until_it_listens(endpoint: str) -> None:
    until = time.monotonic() + 20
    with Control(endpoint) as control:
        while not (control_path("auto", endpoint).exists() and control.status().state != "starting"):
            assert time.monotonic() < until
            time.sleep(0.1)


@pytest.mark.long
@pytest.mark.process
def test_the_example_is_labelled_and_may_stop_and_begin_again(tmp_path, recording):
    endpoint = f"ipc://{tmp_path}/robot"
    send = [sys.executable, ROOT / "examples/produce.py", recording, endpoint]
    public = f"tcp://127.0.0.1:{free_port()}"
    with Pipeline("--stream", f"robot=zmq:{endpoint}", "--set", "speech.recognizer=none", endpoint=public) as run:
        wait_until_it_listens(public)
        first = subprocess.Popen(send, env=environment())
        run.subscriber.wait_for("utterance", 1, 30)
        first.kill()
        first.wait()
        subprocess.run(send, check=True, timeout=60, env=environment())
        assert run.finish(20) == 0, run.output
    labels = run.subscriber.of("utterance")
    assert len(labels) == 3 and labels[0]["label"] == labels[1]["label"]
    assert all(label["latency_ms"]["total"] < 2000 for label in labels)


@pytest.mark.long
@pytest.mark.process
def test_the_cpp_example_is_labelled(tmp_path, recording):
    if shutil.which("g++") is None or subprocess.run(["pkg-config", "--exists", "libzmq"], check=False).returncode:
        pytest.skip("g++, pkg-config or libzmq3-dev is not installed")
    command = "g++ -std=c++17 -O2 produce.cpp -o produce -lzmq"
    for page in ("examples/README.md", "examples/produce.cpp"):
        assert command in (ROOT / page).read_text(encoding="utf-8")
    shutil.copy(ROOT / "examples/produce.cpp", tmp_path)
    subprocess.run(command.replace("-O2", "-O2 -Wall -Werror"), shell=True, cwd=tmp_path, check=True)
    endpoint = f"ipc://{tmp_path}/robot"
    public = f"tcp://127.0.0.1:{free_port()}"
    with Pipeline("--stream", f"robot=zmq:{endpoint}", "--set", "speech.recognizer=none", endpoint=public) as run:
        wait_until_it_listens(public)
        read = ["ffmpeg", "-loglevel", "error", "-re", "-i", recording, "-f", "s16le", "-"]
        with subprocess.Popen(read, stdout=subprocess.PIPE) as ffmpeg:
            subprocess.run([tmp_path / "produce", endpoint], stdin=ffmpeg.stdout, check=True, timeout=60)
        assert run.finish(20) == 0, run.output
    assert len(run.subscriber.of("utterance")) == 2
