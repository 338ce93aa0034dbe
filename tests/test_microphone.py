"""A real microphone path: PulseAudio plays into a null sink, and sounddevice captures from its monitor."""

from __future__ import annotations

import shutil
import subprocess
import time

import numpy as np
import pytest

from emostream.stream.listen import listen_status
from tests import media
from tests.processes import Pipeline, command, environment, patience

pytestmark = [pytest.mark.process, pytest.mark.realtime, pytest.mark.xdist_group("microphone")]

_MISSING = [name for name in ("pulseaudio", "pactl", "paplay") if shutil.which(name) is None]
pulseaudio_only = pytest.mark.skipif(
    bool(_MISSING), reason=f"needs {', '.join(_MISSING)}: apt-get install pulseaudio pulseaudio-utils"
)


class PulseAudio:
    """A sound server whose only microphone hears what its only speaker plays. ``env``: the environment for its
    clients."""

    def __init__(self, home) -> None:
        home.chmod(0o700)
        self.env = {
            **environment(),
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "PULSE_RUNTIME_PATH": str(home / "pulse"),
        }
        self.env.pop("PULSE_SERVER", None)
        self.start()

    def start(self) -> None:
        self._server = subprocess.Popen(
            ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no",
             "-L", "module-native-protocol-unix"],
            env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + 10
        while subprocess.run(["pactl", "info"], env=self.env, capture_output=True).returncode != 0:
            assert time.monotonic() < until, "PulseAudio did not start"
            time.sleep(0.1)
        self.plug(48_000)

    def plug(self, rate_hz: int, channels: int = 2) -> None:
        sink = ["module-null-sink", "sink_name=speaker", f"rate={rate_hz}", f"channels={channels}"]
        subprocess.run(["pactl", "load-module", *sink], env=self.env, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["pactl", "set-default-source", "speaker.monitor"], env=self.env, check=True)

    def unplug(self) -> None:
        subprocess.run(["pactl", "unload-module", "module-null-sink"], env=self.env, check=True)

    def play(self, path) -> None:
        subprocess.run(["paplay", "-d", "speaker", str(path)], env=self.env, check=True, timeout=30)

    def stop(self) -> None:
        self._server.kill()
        self._server.wait()


@pytest.fixture
def pulse(tmp_path):
    server = PulseAudio(tmp_path)
    if "pulse, " not in (found := devices(server.env)):
        server.stop()
        pytest.skip(f"PortAudio sees no PulseAudio (apt-get install libasound2-plugins libportaudio2):\n{found}")
    yield server
    server.stop()


def wait_until_it_listens(run: Pipeline, seconds: float = 40) -> None:
    for _, status in listen_status(run.endpoint, timeout_s=seconds):
        if status.state == "running":
            return
    raise AssertionError(f"it does not run after {seconds} s: {run.output}")


def devices(env: dict[str, str]) -> str:
    from tests.processes import BIN

    return subprocess.run([BIN / "stream-doctor"], env=env, capture_output=True, text=True, timeout=60).stdout


@pulseaudio_only
def test_speech_played_into_the_virtual_microphone_is_labelled(pulse, tmp_path):
    """Played up to three times, since on a busy machine a sound server loses samples."""
    sound = media.audio_only(tmp_path / "speech.wav", seconds=4.0, rate=48000)
    with Pipeline("--stream", "desk=microphone:pulse", env=pulse.env) as run:
        wait_until_it_listens(run)
        for _ in range(3):
            before, started = len(run.subscriber.of("utterance")), time.time()
            pulse.play(sound)
            label = run.subscriber.wait_for("utterance", before + 1, 10)[before]
            if label["captured_ns"] / 1e9 < started + 1:  # the rest of the last try
                label = run.subscriber.wait_for("utterance", before + 2, 10)[before + 1]
            heard = {"this", "is", "the", "best", "day"} & set(label["text"].split())
            if len(heard) >= 3:
                break
            time.sleep(2)
        assert run.interrupt() < patience(3)
        assert run.process.returncode == 0, run.output
    assert label["stream"] == "desk"
    assert len(heard) >= 3, run.output
    lost = "gaps in capture: 0" not in run.output or "sound is missing" in run.output  # which is told
    assert label["modalities"]["audio"]["coverage"] > (0.5 if lost else 0.9), run.output
    assert label["modalities"]["video"] == {"frames": 0, "coverage": 0.0, "contribution": 0.0}
    # the sound spoke from 0.5 to 3.1 s, and the label says that it was captured while it did, give or take buffering
    assert 1.0 < label["captured_ns"] / 1e9 - started < 5.0  # earlier, where a busy machine lost sound within it
    assert label["latency_ms"]["queue"] >= 0


@pulseaudio_only
def test_a_microphone_that_goes_away_is_reported_and_comes_back(pulse, tmp_path):
    """The sound server dies and is restarted, as if a device were unplugged and plugged in again."""
    sound = media.audio_only(tmp_path / "speech.wav", seconds=4.0, rate=48000)
    with Pipeline("--stream", "desk=microphone:pulse", env=pulse.env) as run:
        wait_until_it_listens(run)
        pulse.stop()
        time.sleep(3)
        pulse.start()
        time.sleep(3)
        pulse.play(sound)
        run.subscriber.wait_for("utterance", 1, 10)
        assert run.interrupt() < patience(3)
        assert run.process.returncode == 0, run.output
    assert "has stopped delivering sound" in run.output
    assert "is back" in run.output


@pulseaudio_only
@pytest.mark.long
@pytest.mark.parametrize(("rate_hz", "channels"), [(8000, 1), (44_100, 2)])
def test_a_headset_that_vanishes_and_returns_at_another_rate(pulse, tmp_path, rate_hz, channels):
    """As Bluetooth does between music and calls. The sound server stays, without any source meanwhile."""
    sound = media.audio_only(tmp_path / "speech.wav", seconds=4.0, rate=48000)
    with Pipeline("--stream", "desk=microphone:pulse", env=pulse.env) as run:
        wait_until_it_listens(run)
        pulse.play(sound)
        first = run.subscriber.wait_for("utterance", 1, 10)[0]
        pulse.unplug()
        time.sleep(4)
        pulse.plug(rate_hz, channels)
        time.sleep(4)
        for _ in range(3):  # on a busy machine a sound server loses samples
            before = len(run.subscriber.of("utterance"))
            pulse.play(sound)
            label = run.subscriber.wait_for("utterance", before + 1, 10)[before]
            if whole := label["end_s"] - label["start_s"] > 2.2:  # of 2.7 s
                break
        assert run.interrupt() < patience(3)
        assert run.process.returncode == 0, run.output
    assert run.output.count("has stopped delivering sound") >= 1 and run.output.count("is back") == 1
    assert whole and label["label"] == first["label"], run.output
    assert label["modalities"]["audio"]["coverage"] > 0.8


def test_a_missing_microphone_is_reported_in_one_line():
    with Pipeline("--stream", "microphone:no-such-device") as run:
        assert run.finish(30) == 1
    lines = [line for line in run.output.splitlines() if "error" in line]
    assert any("microphone:no-such-device cannot be opened" in line and "stream-doctor" in line for line in lines)
    assert "Traceback" not in run.output


def test_doctor_lists_the_devices():
    done = command("stream-doctor")
    assert done.returncode == 0, done.stdout
    for word in ("silero-vad", "ekman7", "onnxruntime", "microphones", "cameras", "yunet"):
        assert word in done.stdout


def test_times_follow_the_count_of_samples():
    """Jitter of callbacks does not move the timeline; a lasting shift moves it once."""
    from emostream.stream.clock import VirtualClock
    from emostream.stream.source_spec import SourceSpec
    from emostream.stream.sources.microphone import Microphone

    rng = np.random.default_rng(0)
    microphone = Microphone(SourceSpec.parse("microphone"), 20, VirtualClock())
    at, block = 1_000_000_000, 20_000_000
    times = []
    for i in range(300):
        lost = 300_000_000 if i >= 100 else 0
        reported = at + i * block + lost + int(rng.uniform(-80e6, 80e6))
        begun = microphone._follow(reported)
        microphone._next_ns = begun + block
        times.append(begun)
    steps = np.diff(times)
    assert (steps == block).sum() >= len(steps) - 2
    assert abs(times[-1] - (at + 299 * block + 300_000_000)) < 160_000_000
