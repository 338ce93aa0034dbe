"""Unusable input ends in one clear line and a non-zero exit code; partly usable input gives labels."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq

from emostream.engines.bundle import BUNDLES
from emostream.engines.load import available
from emostream.errors import EmostreamError
from emostream.stream.run_command import run
from tests import media
from tests.processes import Pipeline, command, free_port

pytestmark = pytest.mark.process


def run_once(*arguments: object) -> subprocess.CompletedProcess[str]:
    return command("stream-run", "--set", f"bus.emotion=tcp://127.0.0.1:{free_port()}", *arguments)


def the_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command printed on stderr."""
    assert done.returncode != 0
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "/no/such/config.toml"], "/no/such/config.toml: cannot be read"),
        (["--stream", "file:/no/such.mp4"], "/no/such.mp4: no such file"),
        (["--set", "speech.vad_model=/no/such.onnx"], "/no/such.onnx: not a silero-vad model"),
        (["--set", "bus.run_dir=/proc/nothing"], "bus.run_dir = '/proc/nothing': cannot be used"),
    ],
)
def test_one_line(arguments: list[str], said: str):
    assert said in the_line(run_once(*arguments))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "speech.hangovr_ms=3"], "speech.hangovr_ms is no known key; known there: hangover_ms"),
        (["--set", "speech.hangover_ms=soon"], "speech.hangover_ms = 'soon'"),
        (["--set", "fusion.backend=abacus"], "fusion.backend = 'abacus': is no backend; use one of: auto"),
        (["--set", "bus.emotion=tcp://0.0.0.0:5556"], "so it needs keys. Type: stream-keys new server"),
        (["--stream", "gramophone"], "is no source; use demo[:two], file:PATH"),
        (["--stream", "microphone", "--pace", "fast"], 'pace = "fast" is for files; microphone is live'),
        (["--stream", "file:/tmp"], "/tmp: is a folder"),
        (["--set", "fusion.prior={hapiness = 0.2}"], "fusion.prior: bundle ekman7 has no label hapiness; it has anger"),
        (["--set", "fusion.bundle=nothing"], "bundle 'nothing' not found"),
        (["--jsonl", "/no/such/folder/x"], "/no/such/folder/x: cannot be written"),
    ],
)
def test_the_error_is_one_line(monkeypatch, arguments: list[str], said: str):
    """Of the command as a function, before it starts a process."""
    monkeypatch.setattr(sys, "argv", ["stream-run", "--set", f"bus.emotion=tcp://127.0.0.1:{free_port()}", *arguments])
    with pytest.raises(EmostreamError) as error:
        run()
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("maker", [media.text_file, media.empty_file])
def test_not_a_media_file(maker, tmp_path):
    path = maker(tmp_path / "fake.mp4")
    assert f"{path}: not a media file that FFmpeg can read" in the_line(run_once("--stream", f"file:{path}"))


def test_nothing_in_it_can_be_decoded(tmp_path):
    path = media.undecodable(tmp_path / "x.mkv")
    said = f"error: no source could be used: {path}: nothing in it can be decoded"
    done = run_once("--stream", f"file:{path}")
    assert done.returncode == 1 and said in done.stderr and not done.stdout


def test_port_in_use():
    with zmq.Context() as context, context.socket(zmq.PUB) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        done = command("stream-run", "--set", f"bus.emotion=tcp://127.0.0.1:{port}")
    line = the_line(done)
    assert f"tcp://127.0.0.1:{port}: cannot be bound (Address already in use)" in line
    assert "choose another with --set bus.emotion" in line


def test_a_backend_that_cannot_run_ends_the_run_at_once():
    """On a machine without a GPU: fusion reports the reason without waiting for the others or for its sockets."""
    if not available()["tensorrt"]:
        pytest.skip("TensorRT can run here")
    begun = time.monotonic()
    done = run_once("--stream", "demo", "--set", "fusion.backend=tensorrt")
    assert time.monotonic() - begun < 15  # mostly for starting the processes; the demo takes 27 s
    assert done.returncode == 1
    assert "error: fusion: backend 'tensorrt' cannot run here" in done.stderr
    assert "error: fusion cannot run: " in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_bundle_hash(tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLES / "ekman7", bundle)
    with (bundle / "fusion.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\1\2\3")
    line = the_line(run_once("--set", f"fusion.bundle={bundle}"))
    assert "fusion.onnx: SHA-256 is" in line and "is not loaded" in line


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "video.detector=yunet",
            "no yunet model found; run: stream-models pull yunet",
        ),
        ("speech.recognizer=vosk", "run: stream-models pull vosk-en"),
    ],
)
def test_a_missing_model_names_the_command_that_installs_it(setting, said, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = run_once("--set", setting)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def degraded(path: Path, *more: object) -> tuple[list[dict], str]:
    """Labels and output of a run that must succeed."""
    with Pipeline("--stream", f"file:{path}", "--pace", "fast", *more) as run:
        assert run.finish(60) == 0, run.output
        assert "Traceback" not in run.output
        return run.subscriber.of("utterance"), run.output


@pytest.mark.long
def test_no_video_track(tmp_path):
    labels, output = degraded(media.audio_only(tmp_path / "sound.wav"))
    assert "has no video track; going on without video" in output
    assert labels and labels[0]["modalities"]["video"]["coverage"] == 0
    assert labels[0]["modalities"]["audio"]["coverage"] > 0.9 and labels[0]["modalities"]["text"]["frames"] > 0


@pytest.mark.long
def test_no_audio_track(tmp_path):
    labels, output = degraded(media.video_only(tmp_path / "faces.mp4"))
    assert "has no audio track; going on without audio" in output
    assert len(labels) == 1 and labels[0]["modalities"]["video"]["coverage"] > 0.8
    assert labels[0]["modalities"]["audio"]["frames"] == 0 and labels[0]["text"] == ""


@pytest.mark.long
def test_no_face(tmp_path):
    labels, _ = degraded(media.no_face(tmp_path / "wall.mp4"))
    assert labels and labels[0]["modalities"]["video"]["frames"] == 0


@pytest.mark.parametrize("maker", [media.silent_audio, pytest.param(media.zero_length_audio, marks=pytest.mark.long)])
def test_no_speech(maker, tmp_path):
    labels, output = degraded(maker(tmp_path / "quiet.wav"), "--set", "speech.recognizer=none")
    assert labels == [] and "utterances: 0 labelled of 0 heard" in output


@pytest.mark.long
def test_stream_label_on_everything_at_once(tmp_path):
    """Good, odd and bad files in one call: each gets labels or an error line, and the exit code is 1."""
    good = [
        media.audio_only(tmp_path / "8k.wav", rate=8000),
        media.audio_only(tmp_path / "192k.wav", rate=192_000),
        media.audio_only(tmp_path / "8ch.wav", layout="7.1"),
        media.variable_frame_rate(tmp_path / "vfr.mkv"),
    ]
    odd = {
        media.truncated_mp4(tmp_path / "cut.mp4"): "ended after 1.9 of its 4.0 s; it is cut short or damaged",
        media.corrupt_middle(tmp_path / "bad.ts"): "were damaged",
        media.corrupt_middle(tmp_path / "bad.mkv", 0.3): "were damaged",
        media.silent_audio(tmp_path / "silent.wav"): "no utterance in it",
        media.zero_length_audio(tmp_path / "zero.wav"): "its audio track is empty",
    }
    bad = {
        media.truncated_mp4(tmp_path / "lost.mp4", faststart=False): "not a media file that FFmpeg can read",
        tmp_path / "missing.wav": "no such file",
        media.undecodable(tmp_path / "no.mkv"): "error: ",
    }
    done = command("stream-label", *good, *odd, *bad, timeout=110)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for path in good:
        assert any(line.startswith(path.name) for line in done.stdout.splitlines()), path
    for path, said in {**odd, **bad}.items():
        assert any(str(path) in line and said in line for line in done.stderr.splitlines()), (path, done.stderr)
    assert command("stream-label", good[0]).returncode == 0


def test_live_code_imports_no_torch():
    """Live code must not need torch, nor import it where it is installed."""
    code = (
        "import sys\n"
        "from emostream.engines import onnx\n"
        "from emostream.stream import cli, doctor, label, supervisor\n"
        "from emostream.stream.cores import audio, video\n"
        "from emostream.stream.nodes import capture, fusion, speech\n"
        "from emostream.stream.sources import file, microphone, network\n"
        "from emostream.stream.speech import pocketsphinx, vosk\n"
        "assert not {'torch', 'emostream.train'} & set(sys.modules), 'torch or emostream.train was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
