"""When data from a network was captured, and how long it is held back."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from emostream.stream.clock import SystemClock
from emostream.stream.config import Config
from emostream.stream.source_spec import SourceSpec
from emostream.stream.sources import make_source
from emostream.stream.sources.arrival import Arrival, Smoother
from emostream.stream.sources.base import AudioChunk, VideoFrame
from tests import media
from tests.processes import BIN, ROOT, Pipeline

S = 1_000_000_000
BOTH = frozenset({"audio", "video"})


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def now_ns(self) -> int:
        return round(self.seconds * S)


def played(arrivals: list[tuple[float, float]]) -> list[float]:
    """Capture times in seconds since 1000 s, from pairs of arrival time and time stamp."""
    clock = Clock()
    arrival = Arrival(clock)  # type: ignore[arg-type]  # of which it needs the time alone
    out = []
    for at_s, stamp_s in arrivals:
        clock.seconds = 1000 + at_s
        out.append(arrival.media_ns(stamp_s) / S - 1000)
    return out


def test_what_comes_in_bursts_keeps_its_own_times():
    arrivals = [(2.0 * (i // 100 + 1), 50 + 0.02 * i) for i in range(1000)]  # segments of two seconds
    times = played(arrivals)
    steps = np.diff(times[100:])
    assert np.allclose(steps, 0.02, atol=1e-6)
    assert max(t - at for (at, _), t in zip(arrivals, times, strict=True)) < 1e-6  # nothing before it was captured


def test_jitter_does_not_move_it():
    rng = np.random.default_rng(0)
    arrivals = [(0.02 * i + rng.uniform(0, 0.2), 7 + 0.02 * i) for i in range(1500)]
    times = played(arrivals)
    assert np.abs(np.diff(times[200:]) - 0.02).max() < 0.01


def test_a_source_that_is_later_for_good_is_followed():
    arrivals = [(0.1 * i, 0.1 * i) for i in range(100)] + [(0.1 * i + 5, 0.1 * i) for i in range(100, 500)]
    times = played(arrivals)
    assert times[110] == pytest.approx(11.0, abs=0.1)  # late at first …
    assert times[-1] == pytest.approx(arrivals[-1][0], abs=0.1)  # … and then the source's clock has a new offset


def test_without_a_stamp_it_is_now():
    assert Arrival(Clock()).media_ns(None) == 1000 * S  # type: ignore[arg-type]


def test_what_has_no_stamps_at_all():
    arrival = Arrival(Clock())  # type: ignore[arg-type]
    arrival.arrived(999 * S)
    assert arrival.media_ns(None) == 1000 * S


def delays(late_s: list[tuple[float, float]]) -> list[float]:
    smoother = Smoother()
    out = []
    for at_s, late in late_s:
        smoother.push(round(late * S), round(at_s * S))
        out.append(smoother.delay_ns / S)
    return out


def test_bursts_are_held_back_as_long_as_the_latest_was_late():
    late = [(2.0 * (i // 100), 2.0 - 0.02 * (i % 100)) for i in range(1000)]
    assert set(delays(late)[1:]) == {2.0}


def test_what_is_even_is_not_held_back():
    assert set(delays([(0.02 * i, 0.25 * (i % 2)) for i in range(1000)])) == {0.0}


def test_a_moment_of_trouble_is_forgotten():
    out = delays([(0.1 * i, 1.5 if i == 50 else 0.02) for i in range(400)])
    assert out[49] == 0 and out[50] == 1.5 and out[-1] == 0
    assert delays([(1.0, 1e6)]) == [15.0]


# Over HTTP


class Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...


class Camera(Quiet):
    """Pictures as a cheap camera sends them: five a second, with no times."""

    FPS = 5

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        faces = media.face_frames(10)
        try:
            for i in range(1000):
                jpeg = cv2.imencode(".jpg", faces[i % len(faces)])[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")
                time.sleep(1 / self.FPS)
        except OSError:
            self.close_connection = True


@pytest.fixture
def serve() -> Iterator:
    servers = []

    def start(handler) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def read(url: str, seconds: float, wanted=BOTH) -> tuple[list, bool]:
    """Items of a source until it ends or the time is over, and whether it is live."""
    source = make_source(SourceSpec.parse(url), frozenset(wanted), SystemClock(), Config())
    source.open()
    until, out = time.monotonic() + seconds, []
    for item in source.items():
        if item is not None:
            out.append(item)
        if time.monotonic() > until:
            break
    source.close()
    return out, source.live


@pytest.mark.parametrize("suffix", ["flac", "mp3", "webm", "ts", "wav", "mkv"])
def test_a_file_behind_a_url_is_read_once_from_its_start(tmp_path, serve, suffix):
    media.audio_only(tmp_path / f"talk.{suffix}", 4.0)
    url = serve(functools.partial(Quiet, directory=tmp_path))
    items, live = read(f"{url}/talk.{suffix}", 20)
    chunks = [item for item in items if isinstance(item, AudioChunk)]
    assert not live and chunks[0].media_ns < S // 10
    assert sum(len(chunk.samples) / chunk.rate_hz for chunk in chunks) == pytest.approx(4, abs=0.15)


@pytest.mark.process
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed")
def test_a_playlist_that_has_ended_is_a_file_too(tmp_path, serve):
    demo = ROOT / "stream/sources/demo.mp4"
    command = ["ffmpeg", "-loglevel", "error", "-i", demo, "-t", "8", "-c:v", "mpeg2video", "-c:a", "mp2", "-f", "hls"]
    subprocess.run([*command, "-hls_time", "2", "-hls_list_size", "0", tmp_path / "talk.m3u8"], check=True)
    items, live = read(f"{serve(functools.partial(Quiet, directory=tmp_path))}/talk.m3u8", 20)
    assert not live
    assert [item for item in items if isinstance(item, AudioChunk)][-1].media_end_ns == pytest.approx(8 * S, abs=S // 3)
    assert len([item for item in items if isinstance(item, VideoFrame)]) == pytest.approx(80, abs=4)


@pytest.mark.process
@pytest.mark.realtime
def test_pictures_of_a_slow_camera_have_the_times_at_which_they_come(serve):
    items, live = read(f"{serve(Camera)}/video", 6, {"video"})
    times = np.array([item.media_ns / S for item in items if isinstance(item, VideoFrame)])
    assert live and len(times) >= 20
    assert np.diff(times).max() < 0.6 and np.diff(times).min() > 0.02
    assert abs(times[-1] - time.time()) < 1


# Pipes


@pytest.mark.process
@pytest.mark.realtime
@pytest.mark.parametrize("how", ["fifo", "stdin", "substitution"])
def test_a_pipe_is_read_once_and_ends(tmp_path, how):
    sound = media.talking_face(tmp_path / "talk.ts", 4.0)
    common = ["--set", "speech.recognizer=none"]
    if how == "fifo":
        os.mkfifo(fifo := tmp_path / "pipe.ts")
        threading.Thread(target=lambda: (time.sleep(3), fifo.write_bytes(sound.read_bytes())), daemon=True).start()
        with Pipeline("--stream", f"file:{fifo}", *common) as run:
            assert run.finish(40) == 0, run.output
            output = run.output
    else:
        command = "stream-run --pace fast --set speech.recognizer=none --set bus.emotion=ipc://$1/bus --stream "
        tail = "file:- < <(cat $1/talk.ts)" if how == "stdin" else "file:<(cat $1/talk.ts)"
        path = f"{BIN}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", command + tail, "bash", tmp_path],
            capture_output=True, text=True, timeout=60, env=os.environ | {"PATH": path}, check=False,
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
    assert "1 labelled of 1 heard" in output and "Traceback" not in output


def test_a_pipe_into_which_nobody_writes_is_told(tmp_path, monkeypatch):
    from emostream.errors import SourceError
    from emostream.stream.sources.network import Pipe

    os.mkfifo(fifo := tmp_path / "pipe")
    monkeypatch.setattr(Pipe, "WAIT_S", 0.3)
    source = make_source(SourceSpec.parse(f"file:{fifo}"), BOTH, SystemClock(), Config())
    with pytest.raises(SourceError, match=r"nobody has written into it for 0\.3 s"):
        source.open()


@pytest.mark.long
@pytest.mark.process
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed")
def test_a_live_playlist_is_labelled_as_the_file_is(tmp_path, serve):
    demo = ROOT / "stream/sources/demo.mp4"
    command = [
        "ffmpeg",
        "-loglevel",
        "error",
        "-re",
        "-stream_loop",
        "-1",
        "-i",
        demo,
        "-vn",
        "-c:a",
        "aac",
        "-f",
        "hls",
    ]
    options = ["-hls_time", "2", "-hls_list_size", "6", "-hls_flags", "delete_segments", tmp_path / "live.m3u8"]
    with subprocess.Popen([*command, *options]) as ffmpeg:
        time.sleep(10)
        url = serve(functools.partial(Quiet, directory=tmp_path))
        with Pipeline("--stream", f"{url}/live.m3u8", "--set", "speech.recognizer=none") as run:
            labels = list(run.subscriber.wait_for("utterance", 7, 80))
            run.interrupt()
        ffmpeg.kill()
    lengths = [label["end_s"] - label["start_s"] for label in labels[1:]]
    assert min(lengths) > 2 and max(lengths) < 5  # whole sentences of the demo
    assert all(label["latency_ms"]["total"] < 1000 for label in labels)
