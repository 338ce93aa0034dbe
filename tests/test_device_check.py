"""Device checks and problem reports, with files in place of microphone and camera."""

from __future__ import annotations

import json
import stat
import subprocess
import wave
import zipfile
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from emostream.errors import ConfigError, SourceError
from emostream.stream.config import Config
from emostream.stream.device_check import hear, see
from emostream.stream.messages import Pcm, Picture
from emostream.stream.problem_report import ProblemReport
from emostream.stream.report_media import ReportMedia
from emostream.stream.status import Status
from tests import media
from tests.processes import BIN, Subscriber, environment, free_port

WITHOUT_WORDS = Config(speech={"recognizer": "none"})


def test_what_a_microphone_hears(tmp_path):
    talk = media.audio_only(tmp_path / "talk.wav", 4.0)
    said = list(hear(f"file:{talk}", 3, WITHOUT_WORDS))
    assert "recording 3 s" in said[0] and said[1].startswith("2.9 s at 16000 Hz, 1 channel")
    assert said[2].startswith("loudest: -") and said[3].startswith("speech: 2.")


@pytest.mark.parametrize(
    ("gain", "said"), [(0.0, "is it muted"), (0.003, "very quiet"), (30.0, "clipped"), (0.5, "dBFS\n")]
)
def test_what_is_wrong_with_it_is_said(tmp_path, gain, said):
    samples = np.clip(media.speech_samples(3.0) * gain, -32768, 32767).astype(np.int16)
    media.write_media(tmp_path / "talk.wav", speech=samples)
    assert said in "\n".join(hear(str(tmp_path / "talk.wav"), 2.9, WITHOUT_WORDS)) + "\n"


def test_what_a_camera_sees(tmp_path):
    said = list(see(f"file:{media.video_only(tmp_path / 'face.mp4')}", 1.5, Config()))
    assert said[1].startswith("15 pictures of 480x360") or said[1].startswith("16 pictures of 480x360")
    assert said[2].split()[3] == said[2].split()[5] and "pixels wide" in said[3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "said"), [((0, 0), "top left"), ((720, 540), "bottom right"), ((360, 270), "middle")]
)
def test_where_the_face_is(tmp_path, where, said):
    canvas = np.full((900, 1200, 3), 90, np.uint8)
    canvas[where[1] : where[1] + 360, where[0] : where[0] + 480] = media.face_frames(1)[0]
    media.write_media(tmp_path / "face.mp4", frames=[cv2.resize(canvas, (1200, 900))] * 20)
    assert f"at last in the {said}, " in list(see(str(tmp_path / "face.mp4"), 0.5, Config()))[-1]


@pytest.mark.parametrize(
    ("try_it", "source"), [(hear, "camera:0"), (see, "microphone"), (hear, "nonsense"), (see, "x.mp4")]
)
def test_what_cannot_be_tried_is_one_line(try_it, source):
    with pytest.raises(SourceError) as error:
        list(try_it(source, 1, WITHOUT_WORDS))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.process  # uname, which Python's platform module may start
def test_a_report_holds_what_is_needed_and_no_secrets(tmp_path):
    token = "S3cret-of-the-page"
    config = Config(streams=[{"source": "rtsp://admin:S3cret@10.0.0.1/x?token=S3cret"}], page={"token": token})
    report = ProblemReport(tmp_path / "report.zip", config)
    report.log("capture.main", "error", "rtsp://admin:S3cret@10.0.0.1/x cannot be opened")
    report.log("page", "warning", f"http://127.0.0.1:8800/{token}/")
    report.status = Status(run="abc")
    assert report.write() == f"report: {tmp_path / 'report.zip'}"
    assert stat.S_IMODE((tmp_path / "report.zip").stat().st_mode) == 0o600
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        text = {name: archive.read(name).decode() for name in archive.namelist()}
    assert "S3cret" not in "".join(text.values()) and "admin:***@" in text["log.txt"]
    assert json.loads(text["status.json"])["run"] == "abc" and json.loads(text["config.json"])["speech"]
    assert "numpy " in text["versions.txt"] and "backends: onnxruntime" in text["doctor.txt"]
    assert "cannot be written" in ProblemReport(tmp_path / "no" / "x.zip", config).write()


@pytest.mark.process
def test_the_last_seconds_are_in_a_report_only_where_they_were_asked_for(tmp_path, short_path):
    pytest.importorskip("mcap")
    from emostream.stream.recording import Recorder

    config = Config(streams=[{"source": "demo"}], bus={"run_dir": str(short_path / "s")})
    with closing(ReportMedia(config, 2)) as last:
        record = last.config.record
        assert record.video and stat.S_IMODE(Path(record.folder).stat().st_mode) == 0o700
        now_s = 1000.0
        recorder = Recorder(record, {"run": "abc"}, lambda at_ns: at_ns, now=lambda: now_s)
        for n in range(100):  # ten seconds
            now_s, times = (
                1000 + n / 10,
                {"media_start_ns": n * 10**8, "media_end_ns": (n + 1) * 10**8, "captured_ns": 0},
            )
            recorder.hear(Pcm(stream="desk", samples=np.full(1600, n, np.int16), **times))
            recorder.look(Picture(stream="desk", jpeg=np.full(9, n, np.uint8), width=1, height=1, **times))
            recorder.tick()
            last.tick()
        assert len(list(Path(record.folder).glob("*.mcap"))) <= 4
        recorder.close()
        said = ProblemReport(tmp_path / "report.zip", config, last).write()
    assert "the last 2 s of sound and pictures" in said and not Path(record.folder).exists()
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        assert b"LAST 2 SECONDS" in archive.read("README.txt") and record.folder not in str(archive.read("config.json"))
        pictures = [name for name in archive.namelist() if name.endswith(".jpg")]
        with archive.open("desk-from-7.90s.wav") as file, wave.open(file) as sound:
            samples = np.frombuffer(sound.readframes(10**6), "<i2")
    assert pictures == [f"desk-{at}s.jpg" for at in ("7.90", "8.40", "8.90", "9.40", "9.90")]
    assert list(samples[::1600]) == list(range(79, 100))


@pytest.mark.parametrize(
    ("settings", "seconds", "why"),
    [({"record": {"folder": "x"}}, 10, "recorded already"), ({"pace": "fast"}, 10, "real time"), ({}, 61, "1 to 60")],
)
def test_when_there_are_no_last_seconds(settings, seconds, why):
    with pytest.raises(ConfigError, match=why):
        ReportMedia(Config(**settings), seconds)


@pytest.mark.long
@pytest.mark.process
def test_stream_listen_says_when_a_pipeline_is_not_there(tmp_path):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with subprocess.Popen(
        [BIN / "stream-listen", endpoint],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as listener:
        assert listener.stderr is not None
        assert listener.stderr.readline() == f"{endpoint}: no pipeline is there yet; waiting\n"
        run = [BIN / "stream-run", "--set", f"bus.emotion={endpoint}", "--report", tmp_path / "r.zip", "--quiet"]
        with subprocess.Popen(run, env=environment()) as pipeline:
            assert f"{endpoint}: a pipeline is there (run " in listener.stderr.readline()
            subscriber = Subscriber(endpoint)
            subscriber.wait_for("utterance", 1, 30)
            subscriber.close()
            pipeline.terminate()
        assert listener.stderr.readline() == f"{endpoint}: the pipeline went away; waiting\n"
        listener.terminate()
    with zipfile.ZipFile(tmp_path / "r.zip") as archive:
        assert b"happy" not in b"".join(archive.read(name) for name in archive.namelist())
        assert json.loads(archive.read("status.json"))["streams"]["demo"]["labelled"] >= 1
