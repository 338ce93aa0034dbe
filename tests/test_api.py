"""The public API: what emostream/__init__.py names."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
import zmq

import emostream
from emostream.stream.sources import DEMO
from tests import media
from tests.emotions import emotion_message
from tests.processes import free_port

ROOT = Path(__file__).parent.parent


def test_only_the_public_names_are_listed_and_each_is_there():
    assert dir(emostream) == sorted(emostream.__all__)
    assert all(getattr(emostream, name) is not None for name in emostream.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Labeler'"):
        emostream.Labeler  # noqa: B018


@pytest.mark.process
def test_importing_it_loads_nothing_heavy():
    heavy = {"numpy", "onnxruntime", "av", "zmq", "cv2", "pydantic", "msgspec", "importlib.metadata"}
    code = f"import sys, os, emostream; print(*sorted({heavy} & set(sys.modules)), os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


# Labeller


@pytest.fixture(scope="module")
def labeller():
    config = emostream.load_config(changes=["fusion.backend=onnxruntime"])
    with emostream.Labeller(config) as labeller:
        yield labeller


def decoded(seconds: float) -> tuple[np.ndarray, int, np.ndarray]:
    """The demo clip's first seconds: (n, channels) float32, its rate, and (m, height, width) gray at 25 per second."""
    with av.open(str(DEMO)) as container:
        sound = [frame for frame in container.decode(audio=0) if frame.time < seconds]
        samples = np.concatenate([frame.to_ndarray().T for frame in sound])
    frames = np.stack([media.gray(image) for image in media.face_frames(round(25 * seconds))])
    return samples, sound[0].sample_rate, frames


@pytest.mark.long
@pytest.mark.slow
def test_arrays_give_the_labels_of_their_file(labeller):
    with closing(labeller.label(DEMO)) as emotions:
        want = next(emotions)
    samples, rate_hz, frames = decoded(4.5)
    (label,) = labeller.label_arrays(samples, rate_hz, frames, 25, name="desk")
    assert (label.stream, label.label, label.text, label.latency_ms) == ("desk", want.label, want.text, None)
    assert (label.start_s, label.end_s) == pytest.approx((want.start_s, want.end_s), abs=0.064)
    assert label.probabilities == pytest.approx(want.probabilities, abs=0.05)
    for name in ("audio", "video"):
        assert label.modalities[name].frames == pytest.approx(want.modalities[name].frames, abs=3)


@pytest.mark.long
@pytest.mark.slow
def test_samples_of_any_form_give_the_same_label(labeller):
    whole = media.speech_samples(4.0)
    (want,) = labeller.label_arrays(whole, 16_000)
    for dtype, channels in ((np.int16, 1), (np.float64, 2), (np.float32, 0)):
        samples = whole if dtype == np.int16 else (whole / 32768).astype(dtype)
        if channels:
            samples = np.repeat(samples[:, None], channels, axis=1)
        (label,) = labeller.label_arrays(samples, 16_000)
        assert (label.label, label.text) == (want.label, want.text)
    assert label.probabilities == pytest.approx(want.probabilities, abs=1e-3)
    assert label.modalities["video"].frames == 0


@pytest.mark.slow
def test_colour_pictures_alone_give_a_label(labeller):
    colour = np.stack([image[..., ::-1] for image in media.face_frames(50)])
    (label,) = labeller.label_arrays(frames=colour, fps=25)
    gray = np.stack([media.gray(image) for image in media.face_frames(50)])
    (same,) = labeller.label_arrays(frames=gray, fps=25)
    assert label.modalities["video"].frames == 20 and label.modalities["audio"].frames == 0
    assert label.probabilities == same.probabilities


BAD_ARRAYS = {
    "nothing": ({}, "neither sound nor picture"),
    "no rate": ({"samples": np.zeros(100, np.int16)}, "rate_hz is None"),
    "rate 0": ({"samples": np.zeros(100, np.int16), "rate_hz": 0}, "rate_hz is 0"),
    "int32": ({"samples": np.zeros(100, np.int32), "rate_hz": 16_000}, r"not \(100,\) int32"),
    "endless rate": ({"samples": np.zeros(100, np.int16), "rate_hz": float("inf")}, "rate_hz is inf"),
    "a rate of text": ({"samples": np.zeros(100, np.int16), "rate_hz": "16000"}, "rate_hz is 16000"),
    "a list": ({"samples": [0] * 100, "rate_hz": 16_000}, "not a list"),
    "channels first": ({"samples": np.zeros((2, 16_000), np.int16), "rate_hz": 16_000}, "1 to 64 channels"),
    "no channels": ({"samples": np.zeros((100, 0), np.int16), "rate_hz": 16_000}, "1 to 64 channels"),
    "int16 as floats": ({"samples": np.full(100, 3e4), "rate_hz": 16_000}, r"not in \[-1, 1\]"),
    "empty pictures": ({"frames": np.zeros((2, 0, 0), np.uint8), "fps": 25}, "frames must be"),
    "3 axes": ({"samples": np.zeros((9, 9, 9), np.float32), "rate_hz": 16_000}, "samples must be"),
    "NaN": ({"samples": np.full(100, np.nan), "rate_hz": 16_000}, "NaN"),
    "no fps": ({"frames": np.zeros((2, 48, 48), np.uint8)}, "fps is None"),
    "float pictures": ({"frames": np.zeros((2, 48, 48)), "fps": 25}, "frames must be"),
    "four colours": ({"frames": np.zeros((2, 48, 48, 4), np.uint8), "fps": 25}, "frames must be"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_arrays_of_another_form_are_refused(labeller, arguments, message):
    with pytest.raises(emostream.EmostreamError, match=message):
        list(labeller.label_arrays(**arguments))


def test_silence_has_no_label_and_no_error(labeller):
    assert list(labeller.label_arrays(np.zeros(32_000, np.int16), 16_000)) == []
    assert list(labeller.label_arrays(np.zeros(0, np.int16), 16_000)) == []


@pytest.mark.slow
def test_a_path_may_be_a_string_and_a_missing_file_is_an_error(labeller, tmp_path):
    clip = media.audio_only(tmp_path / "talk.wav")
    assert [e.label for e in labeller.label(str(clip))] == [e.label for e in labeller.label(clip)] != []
    with pytest.raises(emostream.EmostreamError, match="is empty"):
        list(labeller.label(""))
    with pytest.raises(emostream.EmostreamError, match="nowhere.mp4: no such file"):
        list(labeller.label(tmp_path / "nowhere.mp4"))


# listen


@pytest.mark.slow
def test_listen_yields_labels_and_skips_what_is_none(caplog):
    label, estimate = emotion_message(), emotion_message(kind="window")
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.bind(endpoint)
        heard: list[emostream.Emotion] = []
        listener = emostream.listen(endpoint, timeout_s=1)
        thread = threading.Thread(target=lambda: heard.extend(listener))
        thread.start()
        assert socket.recv() == b"\1emotion.utterance."
        socket.send_multipart([b"emotion.utterance.a", b"no label"])
        socket.send_multipart([b"emotion.utterance.a"])
        socket.send_multipart([b"emotion.utterance.a", b'{"label": null}'])
        for message in (estimate, label):
            socket.send_multipart([message.topic.encode(), emostream_json(message)])
        thread.join(10)
    assert heard == [label]
    assert len([r for r in caplog.records if r.levelno == logging.WARNING and "skipped" in r.message]) == 3


@pytest.mark.slow
def test_listen_says_which_labels_did_not_come(caplog):
    """Numbers of a run go on at a later thousand where fusion was started again: 12,000 after 10,002."""
    numbers = {"r": [10_000, 10_001, 10_001, 10_004, 12_000, 12_001, 14_003], "s": [7, 8]}
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.bind(endpoint)
        heard: list[emostream.Emotion] = []
        thread = threading.Thread(target=lambda: heard.extend(emostream.listen(endpoint, timeout_s=1)))
        thread.start()
        assert socket.recv() == b"\1emotion.utterance."
        for run, its_numbers in numbers.items():
            for seq in its_numbers:
                label = emotion_message(run=run, seq=seq)
                socket.send_multipart([label.topic.encode(), emostream_json(label)])
        thread.join(10)
    assert [label.seq for label in heard] == [*numbers["r"], *numbers["s"]]
    said = [record.message.removeprefix(f"{endpoint}: ") for record in caplog.records]
    assert said == ["2 labels of a did not come", "at least 3 labels of a did not come"]


def emostream_json(message: emostream.Emotion) -> bytes:
    from emostream.stream.emotion import encode_emotion

    return encode_emotion(message)


def test_a_configuration_may_be_a_path_and_nothing_else(tmp_path):
    (tmp_path / "config.toml").write_text("[nonsense]")
    for begin in (emostream.Labeller, emostream.run):
        for config in (tmp_path / "config.toml", str(tmp_path / "config.toml")):
            with pytest.raises(emostream.EmostreamError, match="nonsense"):
                begin(config)
        with pytest.raises(TypeError, match="a Config or a path, not dict"):
            begin({"nonsense": 1})


def test_a_configuration_made_by_hand_tells_all_its_problems():
    with pytest.raises(emostream.EmostreamError) as caught:
        emostream.Config(pace="slow", video={"fps": -1}, fusion={"nonsense": 1})
    text = str(caught.value)
    assert len(text.splitlines()) == 3 and "pace = 'slow'" in text and "nonsense is no known key" in text
    assert not emostream.Config(fusion={"adapt": False}).fusion.adapt


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_listen_refuses_a_port_that_cannot_be(port):
    with pytest.raises(emostream.EmostreamError, match="ports are 1 to 65535"):
        next(emostream.listen(f"tcp://127.0.0.1:{port}", timeout_s=1))


def test_listen_refuses_an_address_that_is_none():
    for endpoint in ("nowhere", "tcp://:5556", "tcp://127.0.0.1", "inproc://x", ""):
        with pytest.raises(emostream.EmostreamError, match="not a valid endpoint"):
            next(emostream.listen(endpoint, timeout_s=1))


def test_listen_ends_when_nothing_comes():
    assert list(emostream.listen(f"tcp://127.0.0.1:{free_port()}", timeout_s=0.05)) == []


# run


@pytest.mark.long
@pytest.mark.process
def test_run_calls_back_and_stops_when_told(tmp_path):
    config = emostream.load_config(changes=[f"bus.emotion=ipc://{tmp_path}/bus"], streams=["demo"])
    stop, labels, nodes = threading.Event(), [], set()

    def on_emotion(emotion: emostream.Emotion) -> None:
        labels.append(emotion)
        if emotion.kind == "utterance":
            stop.set()

    summary = emostream.run(config, on_emotion=on_emotion, on_health=lambda h: nodes.add(h.node), stop=stop)
    assert [emotion.kind for emotion in labels].count("utterance") == summary.utterances >= 1
    assert any(emotion.kind == "window" for emotion in labels)
    assert nodes == {"audio.main", "video.main", "speech.main", "fusion"}


@pytest.mark.process
def test_a_script_without_the_guard_ends_and_is_told_of_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import emostream\n"
        f"config = emostream.load_config(changes='bus.emotion=ipc://{tmp_path}/bus', streams='demo')\n"
        "emostream.run(config)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "could not start" in done.stderr.splitlines()[-1] and "__main__" in done.stderr.splitlines()[-1]


@pytest.mark.process
def test_run_says_why_and_leaves_the_environment_as_it_was(tmp_path, monkeypatch):
    monkeypatch.delenv("EMOSTREAM_NODE", raising=False)
    config = emostream.load_config(changes=[f"bus.emotion=ipc://{tmp_path}/bus", "fusion.backend=tensorrt"])
    before = dict(os.environ)
    with pytest.raises(emostream.EmostreamError, match="fusion cannot run: backend 'tensorrt' cannot run here"):
        emostream.run(config)
    assert dict(os.environ) == before


@pytest.mark.process
def test_run_raises_what_cannot_be_used(tmp_path):
    changes = [f"bus.emotion=ipc://{tmp_path}/bus"]
    with pytest.raises(emostream.EmostreamError, match="no such file"):
        emostream.run(emostream.load_config(changes=changes, streams=["file:nowhere.mp4"]))
    with pytest.raises(
        emostream.EmostreamError, match="no source could be used: http://127.0.0.1:9/nothing cannot be opened"
    ):
        emostream.run(emostream.load_config(changes=changes, streams=["http://127.0.0.1:9/nothing"]))
