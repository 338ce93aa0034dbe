"""A real RTSP server, GStreamer's: over TCP and UDP, with passwords, and started again with other codecs and sizes."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from emostream.stream.sources import DEMO
from tests.processes import Pipeline, free_port, patience

PYTHON = "/usr/bin/python3"  # which has GObject introspection
SERVER = Path(__file__).with_name("rtsp_server.py")
PACKAGES = "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-rtsp gstreamer1.0-plugins-good ffmpeg"


def _missing() -> str:
    if shutil.which("ffmpeg") is None or not Path(PYTHON).exists():
        return "ffmpeg or the system's Python"
    asked = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer as _"
    done = subprocess.run([PYTHON, "-c", asked], capture_output=True, text=True)
    return done.stderr.strip().rpartition("\n")[2]


pytestmark = [pytest.mark.long, pytest.mark.process, pytest.mark.realtime]


@pytest.fixture(scope="module", autouse=True)
def _server_there():
    if missing := _missing():
        pytest.skip(f"{missing}: apt-get install {PACKAGES}")


def recording(path: Path, *options: str) -> Path:
    """The demo clip three times over, as a camera would send it."""
    subprocess.run(
        ["ffmpeg", "-v", "error", "-stream_loop", "2", "-i", DEMO, *options, path], check=True, timeout=patience(120)
    )
    return path


@contextmanager
def served(port: int, file: Path, *options: str):
    with subprocess.Popen([PYTHON, SERVER, str(port), file, *options], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        yield
        server.kill()


@pytest.mark.parametrize(("transport", "more"), [("tcp", []), ("udp", ["--digest"])])
def test_a_camera_that_is_started_again_with_another_codec_and_size(tmp_path, transport, more):
    port = free_port()
    before = recording(tmp_path / "before.mkv", "-c", "copy")
    other = ["-r", "10", "-s", "720x540", "-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none"]
    after = recording(tmp_path / "after.mkv", *other, "-g", "10", "-c:a", "pcm_mulaw", "-ar", "8000")
    secret = ["--transport", transport, "--user", "admin", "--password", "p@ss:w/rd", *more]
    source = f"rtsp://admin:p%40ss%3Aw%2Frd@127.0.0.1:{port}/cam"
    with Pipeline("--stream", f"door={source}", "--set", "video.open_timeout_s=3") as run:
        time.sleep(0.1)
        with served(port, before, *secret):
            first = run.subscriber.wait_for("utterance", 3, patience(45))
        time.sleep(4)
        count = len(run.subscriber.of("utterance"))
        with served(port, after, "--video", "hevc", "--audio", "pcm_mulaw", *secret):
            second = run.subscriber.wait_for("utterance", count + 4, patience(60))[count:]
        assert run.interrupt() < patience(3)
        assert run.process.returncode == 0, run.output
    assert "went away" in run.output and "is back" in run.output
    assert "p%40ss" not in run.output and "p@ss" not in run.output
    for label in (first[1], *second[1:3]):  # those that are there from their start on
        assert label["modalities"]["audio"]["coverage"] > 0.9 and label["modalities"]["video"]["coverage"] > 0.8, label
        assert -60 < label["latency_ms"]["queue"] < 5000  # of a busy machine; not those of another clock


def test_a_wrong_password_is_one_line(tmp_path):
    port = free_port()
    with (
        served(port, recording(tmp_path / "x.mkv", "-c", "copy"), "--user", "admin", "--password", "right"),
        Pipeline("--stream", f"rtsp://admin:wr0ng@127.0.0.1:{port}/cam") as run,
    ):
        assert run.finish(patience(30)) == 1
    assert "cannot be opened" in run.output and "401" in run.output.replace("Unauthorized", "401")
    assert "wr0ng" not in run.output and "Traceback" not in run.output
