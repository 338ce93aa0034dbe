"""stream/recording.py, nodes/record.py, sources/replay.py, stream-replay"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from mcap.reader import make_reader

from emostream.engines.bundle import BUNDLES
from emostream.errors import RunError, SourceError
from emostream.stream.config import Record, load_config
from emostream.stream.cores.audio import AudioCore
from emostream.stream.cores.video import VideoCore, make_detector
from emostream.stream.emotion import Emotion, Word
from emostream.stream.label import Labeller
from emostream.stream.messages import Face, FaceInFrame, Pcm, SpeechEvent
from emostream.stream.recorded import Recording, labels, sound_and_faces
from emostream.stream.recording import Recorder
from emostream.stream.sources import DEMO, DEMO_TWO
from emostream.stream.sources.base import AudioChunk, NoTrack
from emostream.stream.sources.file import FileSource
from emostream.stream.sources.replay import ReplaySource
from tests.emotions import emotion_message
from tests.processes import BIN, Pipeline, command, patience

_MS = 1_000_000
FACTS = {"run": "0123abcd", "version": "0", "config": "{}", "bundle": "ekman7"}


class Clock:
    def __init__(self) -> None:
        self.s = time.time()

    def __call__(self) -> float:
        return self.s


def recorder(folder: Path, clock: Clock | None = None, **settings: float) -> Recorder:
    return Recorder(Record(folder=str(folder), **settings), FACTS, lambda at_ns: at_ns, clock or Clock())


def pcm(i: int, stream: str = "desk") -> Pcm:
    samples = np.random.default_rng(i).integers(-3000, 3000, 512).astype(np.int16)
    at_ns = 32 * _MS * i
    return Pcm(
        stream=stream, media_start_ns=at_ns, media_end_ns=at_ns + 32 * _MS, captured_ns=10**18 + at_ns, samples=samples
    )


def face(i: int, people: int = 2, stream: str = "desk") -> Face:
    at_ns = 100 * _MS * i
    crops = [np.random.default_rng(100 * i + n).integers(0, 255, (48, 48)).astype(np.uint8) for n in range(people)]
    seen = [
        FaceInFrame(person=n + 1, crop=crop, box=(0.1, 0.2, 0.3, 0.4), score=0.9, mouth=(0.1, 0.2, 0.3))
        for n, crop in enumerate(crops)
    ]
    message = Face(
        stream=stream, media_start_ns=at_ns, media_end_ns=at_ns, captured_ns=10**18 + at_ns,
        crop=np.zeros((0, 0), np.uint8), faces=people, others=seen[1:],
    )  # fmt: skip
    if seen:
        message.crop, message.box, message.score = seen[0].crop, seen[0].box, seen[0].score
        message.person, message.mouth = 1, seen[0].mouth
    return message


def written(folder: Path, n: int = 30) -> Path:
    one = recorder(folder)
    for i in range(n):
        one.hear(pcm(i))
        one.see(face(i, people=i % 3))
    one.label(emotion_message(stream="desk"))
    one.close()
    return one.path


def content(path: Path, stream: str = "desk") -> list[object]:
    return [
        (item[0], item[1].tobytes()) if isinstance(item, tuple)
        else (item.media_start_ns, item.faces, item.crop.tobytes(), [each.crop.tobytes() for each in item.others])
        for item in sound_and_faces(path, stream)
    ]  # fmt: skip


def test_what_is_written_is_read_as_it_was(tmp_path):
    path = written(tmp_path)
    items = list(sound_and_faces(path, "desk"))
    sounds = [item for item in items if isinstance(item, tuple)]
    faces = [item for item in items if isinstance(item, Face)]
    assert [at_ns for at_ns, _ in sounds] == [32 * _MS * i for i in range(30)]
    for i, (_, samples) in enumerate(sounds):
        np.testing.assert_array_equal(samples, pcm(i).samples)
    for i, read in enumerate(faces):
        was = face(i, people=i % 3)
        assert (read.person, read.box, read.score, read.mouth, read.faces) == (
            was.person, was.box, was.score, was.mouth, was.faces,
        )  # fmt: skip
        np.testing.assert_array_equal(read.crop, was.crop)
        assert [each.person for each in read.others] == [each.person for each in was.others]
    assert [label.label for label in labels(path, "desk")] == [emotion_message(stream="desk").label]


def test_foxgloves_schemas_and_times(tmp_path):
    path = written(tmp_path)
    with path.open("rb") as file:
        reader = make_reader(file)
        by_topic = {channel.topic: (schema, message) for schema, channel, message in reader.iter_messages()}
        names = {topic: schema.name for topic, (schema, _) in by_topic.items()}
        summary = reader.get_summary()
    assert names == {
        "/desk/sound": "foxglove.RawAudio", "/desk/face": "foxglove.RawImage", "/desk/faces": "emostream.Faces",
        "/desk/utterance": "emostream.Emotion",
    }  # fmt: skip
    assert all(schema.encoding == "jsonschema" and json.loads(schema.data) for schema, _ in by_topic.values())
    sound = json.loads(by_topic["/desk/sound"][1].data)
    assert (sound["format"], sound["sample_rate"], sound["number_of_channels"]) == ("pcm-s16", 16_000, 1)
    at_ns = sound["timestamp"]["sec"] * 10**9 + sound["timestamp"]["nsec"]
    assert at_ns == by_topic["/desk/sound"][1].log_time == 10**18 + 29 * 32 * _MS
    image = json.loads(by_topic["/desk/face"][1].data)
    assert (image["width"], image["height"], image["encoding"], image["step"]) == (48, 48, "mono8", 48)
    assert summary is not None and summary.statistics.message_count == 30 + 30 + 20 + 1
    assert Recording.of(path).facts["run"] == FACTS["run"]


@pytest.mark.long
@pytest.mark.slow
def test_a_crash_at_any_byte_costs_the_end_alone(tmp_path):
    path = written(tmp_path, 120)
    data, whole = path.read_bytes(), content(path)
    assert not Recording.of(path).cut_short
    cut = tmp_path / "cut.mcap"
    lengths = []
    for size in [*range(len(data) // 2, len(data), 997), *range(len(data) - 60, len(data), 7)]:
        cut.write_bytes(data[:size])
        found = content(cut)
        assert found == whole[: len(found)]
        lengths.append(len(found))
    assert lengths == sorted(lengths) and lengths[0] > len(whole) // 4
    cut.write_bytes(data[: len(data) * 3 // 4])
    assert Recording.of(cut).cut_short


def test_what_is_no_recording_is_told(tmp_path):
    path = tmp_path / "x.mcap"
    for data in (b"", b"no recording", bytes(range(256)) * 20):
        path.write_bytes(data)
        with pytest.raises(SourceError, match="x.mcap: is no"):
            Recording.of(path)
    with pytest.raises(SourceError, match="cannot be read"):
        Recording.of(tmp_path / "none.mcap")
    with pytest.raises(SourceError, match=r"has no stream hall; it has desk"):
        ReplaySource(f"{written(tmp_path / 'r')}#hall", frozenset()).open()


def test_a_bit_that_was_turned_on_the_disk_is_told(tmp_path):
    path = written(tmp_path, 60)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceError, match="is damaged"):
        Recording.of(path)


@pytest.mark.parametrize(
    "bad",
    [
        b"{", b'{"media_ns": "x"}', b'{"media_ns": 1, "data": "?", "sample_rate": 16000}',
        b'{"media_ns": 1, "data": "QQ==", "sample_rate": 16000}', b"[" * 5000,
        b'{"media_ns": 9223372036854775807, "data": "AAA=", "sample_rate": 16000}',
    ],
)  # fmt: skip
def test_messages_that_lie_are_no_traceback(tmp_path, bad):
    one = recorder(tmp_path)
    one.hear(pcm(0))
    one._write("/desk/sound", "sound", 1, bad)
    one.close()
    with pytest.raises(SourceError, match="is damaged"):
        list(sound_and_faces(one.path, "desk"))


def test_files_are_of_so_many_minutes_and_only_their_owner_reads_them(tmp_path):
    clock = Clock()
    one = recorder(tmp_path / "r", clock, minutes=2)
    for i in range(6):
        one.hear(pcm(i))
        one.tick()
        clock.s += 61
    one.close()
    files = sorted((tmp_path / "r").iterdir())
    assert len(files) == 3
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    assert (tmp_path / "r").stat().st_mode & 0o777 == 0o700
    assert sum(len(content(path)) for path in files) == 6


def test_the_oldest_go_when_the_folder_is_full_and_other_files_stay(tmp_path):
    clock = Clock()
    (tmp_path / "mine.mcap").write_bytes(b"x" * 5000)
    one = recorder(tmp_path, clock, minutes=1, max_gb=250e-6)
    for i in range(400):
        one.hear(pcm(i))
        one.tick()
        clock.s += 1
    one.close()
    left = [path for path in tmp_path.glob("emostream-*")]
    assert (tmp_path / "mine.mcap").exists()
    assert 2 <= len(left) < 7 and sum(path.stat().st_size for path in left if path != one.path) <= 250_000
    assert one.path in left


def test_old_ones_go(tmp_path):
    clock = Clock()
    clock.s = 4e9  # decades after the file below was written
    path = written(tmp_path)
    recorder(tmp_path, clock, max_days=1).close()
    assert not path.exists()


def test_words_can_be_left_out(tmp_path):
    one = recorder(tmp_path)
    event = SpeechEvent(
        stream="desk", media_start_ns=0, media_end_ns=_MS, captured_ns=10**18, event="ended",
        words=[Word("secret", 0.0, 0.5, 1.0)],
    )  # fmt: skip
    one.note(event, keep_text=False)
    one.note(msgspec.structs.replace(event, event="progress"), keep_text=True)
    one.close()
    with one.path.open("rb") as file:
        (message,) = [message for _, _, message in make_reader(file).iter_messages()]
    assert json.loads(message.data)["words"] == [] and b"secret" not in one.path.read_bytes()


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="cannot record there"):
        recorder(tmp_path / "file" / "r")


@pytest.mark.slow
def test_a_recording_has_the_labels_of_what_was_recorded(tmp_path):
    """Labels are equal to the last digit, since sound and faces are those the nodes made."""
    config = load_config()
    with Labeller(config) as labeller:
        before = list(itertools.islice(labeller.label(DEMO_TWO), 2))  # one label for each voice
    source = FileSource(DEMO_TWO, frozenset({"audio", "video"}), 10.0)
    source.open()
    audio, video = AudioCore("demo_two.mp4", None), VideoCore("demo_two.mp4", make_detector(config.video), None)
    one = recorder(tmp_path)
    for item in source.items():
        if isinstance(item, NoTrack):
            continue
        if item.media_ns > (before[-1].end_s + 2) * 1e9:
            break
        for message in audio.push(item) if isinstance(item, AudioChunk) else video.push(item):
            if isinstance(message, Pcm):
                one.hear(message)
            elif isinstance(message, Face):
                one.see(message)
    for message in audio.flush():
        if isinstance(message, Pcm):
            one.hear(message)
    one.close()
    source.close()
    with Labeller(config) as labeller:
        after = list(itertools.islice(labeller.label_recording(str(one.path)), 2))
    facts = (
        "label", "probabilities", "text", "start_s", "end_s", "modalities", "speaker", "overlap", "face", "speaking",
        "faces",
    )  # fmt: skip
    assert len(before) == 2
    assert [[getattr(label, fact) for fact in facts] for label in after] == [
        [getattr(label, fact) for fact in facts] for label in before
    ]


def first_sentence(folder: Path, said: Iterable[Emotion] = ()) -> Path:
    """A recording of the demo's first five seconds of sound, with labels."""
    source = FileSource(DEMO, frozenset({"audio"}), 10.0)
    source.open()
    audio, one = AudioCore("demo.mp4", None), recorder(folder)
    for item in source.items():
        for message in audio.push(item) if isinstance(item, AudioChunk) else []:
            if isinstance(message, Pcm) and message.media_start_ns < 5 * 10**9:
                one.hear(message)
    for label in said:
        one.label(label)
    one.close()
    source.close()
    return one.path


@pytest.mark.slow
@pytest.mark.process
def test_what_another_bundle_would_change(tmp_path):
    """By the command. The other bundle is ours with two labels in each other's place."""
    options = ["--set", "speech.recognizer=none"]
    with Labeller(load_config(None, ["speech.recognizer=none"])) as labeller:
        (said,) = labeller.label_recording(str(first_sentence(tmp_path / "a")))
    path = first_sentence(tmp_path / "b", [said])
    manifest = json.loads((BUNDLES / "ekman7" / "manifest.json").read_text())
    labels_ = manifest["labels"]
    other = labels_[labels_.index(said.label) - 1]
    manifest["labels"] = [{said.label: other, other: said.label}.get(label, label) for label in labels_]
    manifest["name"] = "swapped"
    shutil.copytree(BUNDLES / "ekman7", tmp_path / "swapped")
    (tmp_path / "swapped" / "manifest.json").write_text(json.dumps(manifest))
    for more, changed, now in (
        (["--set", "fusion.prior=balanced"], 0, said.label), (["--compare", tmp_path / "swapped"], 1, other),
    ):  # fmt: skip
        done = command("stream-replay", path, *options, *more)
        assert f"{changed} of 1 would change" in done.stderr, done.stderr
        (row,) = done.stdout.splitlines()
        assert row[0] == " *"[changed] and re.search(rf"  {said.label} \d+% +→ {now} \d+%", row), row


@pytest.mark.long
@pytest.mark.process
@pytest.mark.realtime
def test_a_run_is_recorded_to_its_last_label_and_played_again(tmp_path):
    with Pipeline("--stream", "desk=demo:two", "--record", str(tmp_path / "r")) as run:
        assert run.finish(90) == 0, run.output
        live = run.subscriber.of("utterance")
    assert "recording sound and faces" in run.output
    (path,) = (tmp_path / "r").iterdir()
    found = Recording.of(path)
    assert not found.cut_short
    assert found.streams["desk"] >= {"sound", "face", "faces", "speech", "window", "utterance"}
    assert [label.label for label in labels(path, "desk")] == [message["label"] for message in live]
    assert len(live) >= 4  # on a machine that is too slow, sound goes missing within a sentence
    with Pipeline("--stream", f"desk=replay:{path}", "--pace", "fast") as run:
        assert run.finish(60) == 0, run.output
        again = run.subscriber.of("utterance")
    assert [(label["label"], label["text"]) for label in again] == [(label["label"], label["text"]) for label in live]
    done = subprocess.run([BIN / "stream-replay", path], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(live) and f"0 of {len(live)} would change" in done.stderr


@pytest.mark.long
@pytest.mark.process
def test_a_recording_that_cannot_be_costs_no_label(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with Pipeline("--stream", "desk=demo", "--record", str(tmp_path / "file" / "r")) as run:
        run.subscriber.wait_for("utterance", 1, 40)
        run.interrupt()
    assert "cannot record there" in run.output


@pytest.mark.long
@pytest.mark.process
def test_a_full_disk_ends_the_recording_and_no_label(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    try:
        with Pipeline("--stream", "desk=demo", "--record", str(folder / "r")) as run:
            run.subscriber.wait_for("utterance", 2, 40)
            assert run.interrupt() < patience(4)
            assert run.process.returncode == 0, run.output
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert run.output.count("cannot be written (No space left on device); recording ends") == 1
    assert "crashed" not in run.output
