"""Names and places as people have them: of files, folders and streams; and terminals that cannot print them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import zmq

from emostream.errors import ConfigError, SourceError
from emostream.files import printable
from emostream.stream.config import load_config, parse_stream
from emostream.stream.label_command import is_media, named_files
from emostream.stream.public import EmotionPublisher
from emostream.stream.source_spec import SourceSpec
from emostream.stream.sources.file import FileSource
from emostream.stream.status import NodeStatus, Status, StreamStatus, decode_status, encode_status
from tests import media
from tests.emotions import emotion_message
from tests.processes import BIN, environment

# Files


def test_what_is_meant_by_names_folders_and_patterns(tmp_path, monkeypatch):
    for name in ("a/one.wav", "a/deep/two.MP4", "a/notes.txt", "a/x.py", "b/three.opus", "b/[4].flac"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in named_files(["a"])[0]] == ["a/deep/two.MP4", "a/one.wav"]
    assert [str(path) for path in named_files(["b/*", "a/one.wav", "b/three.opus"])[0]] == [
        "b/[4].flac", "b/three.opus", "a/one.wav",
    ]  # fmt: skip
    assert [str(path) for path in named_files(["b/[4].flac", "gone.wav"])[0]] == ["b/[4].flac", "gone.wav"]
    assert len(named_files(["**/*.wav"])[0]) == 1
    assert named_files(["-"])[0] == [Path("/dev/stdin")]
    (tmp_path / "empty").mkdir()
    for name in ("empty", "*.mp3"):
        with pytest.raises(ConfigError, match="no media files|no file fits"):
            named_files([name])
        files, unmatched = named_files([name, "a/one.wav"])  # one failure never ends the batch
        assert files == [Path("a/one.wav")] and len(unmatched) == 1 and name in unmatched[0]


@pytest.mark.parametrize(
    "name",
    ["a.wav", "A.MP4", "x.mkv", "x.ts", "x.opus", "x.flac", "x.m4a", "x.webm", "x.mov", "x.VOB", "x.h264", "x.awb"],
)
def test_names_of_media(name, tmp_path):
    assert is_media(tmp_path / name) and not is_media(tmp_path / f"{name}.txt")


@pytest.mark.parametrize("name", ["2026-01-31T12:30:05.flac", "http:x.flac", "a b.flac", "-.flac", "%s{x}[bold].flac"])
def test_odd_names_are_opened(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copy(media.audio_only(tmp_path / "talk.flac", 1.0), name)
    source = FileSource(tmp_path / name, frozenset({"audio"}), 10)
    source.open()
    assert source.tracks() == {"audio"}
    source.close()


@pytest.mark.parametrize(
    ("name", "why"),
    [("n" * 300, "File name too long"), ("gone.wav", "no such file"), ("a\0b", "null"), ("x/" * 3000, "too long")],
)
def test_what_cannot_be_reached_is_one_line(tmp_path, name, why):
    with pytest.raises(SourceError, match=why) as error:
        FileSource(tmp_path / name, frozenset({"audio"}), 10).open()
    assert len(str(error.value).splitlines()) == 1


def test_names_that_are_not_utf8_can_be_written():
    name = os.fsdecode(b"caf\xe9.flac")
    assert printable(name) == "caf\ufffd.flac" and printable("你好") == "你好"
    json.dumps(printable(name)).encode()
    assert printable("a\nb\x1b[2Jc\x9b1m\t.wav") == "a\ufffdb\ufffd[2Jc\ufffd1m\ufffd.wav"


def labelled(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [BIN / "stream-label", "--set", "speech.recognizer=none", *arguments],
        capture_output=True, timeout=60, env=environment() | (env or {}), check=False,
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.process
def test_a_batch_goes_on_whatever_one_file_is(tmp_path):
    good = media.audio_only(tmp_path / "good.wav", 4.0)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a/talk.wav", "b/talk.wav", "你好.wav"):
        shutil.copy(good, tmp_path / name)
    latin = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    shutil.copy(good, latin)
    text = media.text_file(tmp_path / "text.wav")
    out = tmp_path / "labels.jsonl"
    done = labelled(
        tmp_path / "a/talk.wav", text, tmp_path / ("n" * 300), tmp_path / "b/talk.wav", latin, tmp_path / "你好.wav",
        "--out", out, env={"PYTHONIOENCODING": "ascii:strict"},
    )  # fmt: skip
    assert done.returncode == 1 and b"Traceback" not in done.stderr, done.stderr
    assert done.stderr.count(b"error: ") == 2
    labels = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [label["stream"] for label in labels] == ["talk.wav", "talk.wav", "caf\ufffd.wav", "你好.wav"]
    assert [label["source"] for label in labels] == [
        f"{tmp_path}/{name}" for name in ("a/talk.wav", "b/talk.wav", "caf\ufffd.wav", "你好.wav")
    ]
    shown = done.stdout.decode()  # which is whose is said there, too, where the names alone do not
    assert shown.startswith(f"{tmp_path}/a/talk.wav  ") and f"\n{tmp_path}/b/talk.wav  " in shown
    assert "\n??.wav  " in shown
    again = labelled(tmp_path / "a/talk.wav", tmp_path / "b/talk.wav", "--out", out, "--resume")
    assert b"labels of 2 of them already" in again.stderr


@pytest.mark.process
@pytest.mark.parametrize("command", ["stream-doctor", "stream-models list", "stream-label --help", "stream-run --help"])
def test_a_terminal_of_another_encoding(command):
    name, *rest = command.split()
    env = environment() | {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([BIN / name, *rest], capture_output=True, env=env, timeout=60, check=False)
    assert b"Traceback" not in done.stderr and done.stdout, done.stderr


# Configurations


def test_a_plain_path_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk").touch()
    for text in ("talk", "talk.wav", "/a/b", "../x.mp4", "./c d/e"):
        spec = SourceSpec.parse(text)
        assert (spec.kind, spec.location) == ("file", text)
    assert parse_stream("desk=talk.wav").name == "desk"
    assert parse_stream("a\nb.wav").source == parse_stream("x=a\nb.wav").source == "a\nb.wav"
    assert SourceSpec.parse("file:a\nb").location == "a\nb"
    two = parse_stream("desk=sub/talk.wav,face.mp4")
    assert (two.audio, two.video) == ("sub/talk.wav", "face.mp4")
    assert parse_stream("microphone,face.mp4").audio == "microphone"
    (tmp_path / "a.b,c.mp4").touch()
    for text in ("a.b,c.mp4", "one, two.mp4", "file:talk.wav,face.mp4", "http://h/a.wav,b.mp4"):
        assert parse_stream(text).source == text
    for text in ("nonsense", "ftp://x/y.wav", "micro phone", ""):
        with pytest.raises(ValueError, match="is no source"):
            SourceSpec.parse(text)


def test_a_configuration_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(b'\xef\xbb\xbf[log]\nlevel = "debug"\n')
    assert load_config(path).log.level == "debug"


def test_relative_paths_in_a_configuration_are_relative_to_it(tmp_path):
    (tmp_path / "config.toml").write_text(
        """
        [[streams]]
        name = "a"
        source = "file:talk.wav"
        [[streams]]
        name = "b"
        audio = "file:/abs/talk.wav"
        video = "file:sub/x.mp4"
        [[streams]]
        name = "c"
        source = "file:-"
        [[streams]]
        name = "d"
        source = "http://h/x.wav"
        [[streams]]
        name = "e"
        source = "replay:r/x.mcap"
        [[streams]]
        name = "f"
        audio = "sub/talk.wav"
        video = "camera"
        [[streams]]
        name = "g"
        source = "no-suffix"
        [record]
        folder = "r"
        [fusion]
        bundle = "ekman7"
        profile = "me"
        [bus]
        keys = "~/keys"
        """
    )
    (tmp_path / "no-suffix").touch()
    (tmp_path / "camera").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").touch()
    config = load_config(tmp_path / "config.toml", ["speech.vad_model=vad.onnx"])
    a, b, c, d, e, f, g = config.streams
    assert (f.audio, f.video, g.source) == (f"{tmp_path}/sub/talk.wav", "camera", f"{tmp_path}/no-suffix")
    assert e.source == f"replay:{tmp_path}/r/x.mcap" and config.record.folder == f"{tmp_path}/r"
    assert a.source == f"file:{tmp_path}/talk.wav" and c.source == "file:-" and d.source == "http://h/x.wav"
    assert (b.audio, b.video) == ("file:/abs/talk.wav", f"file:{tmp_path}/sub/x.mp4")
    assert (config.fusion.bundle, config.fusion.profile) == ("ekman7", f"{tmp_path}/me")
    assert (config.bus.keys, config.speech.vad_model) == ("~/keys", "vad.onnx")  # those of the command line are not
    (tmp_path / "second.toml").write_text('fusion.bundle = "mine"')
    assert load_config(tmp_path / "second.toml").fusion.bundle == f"{tmp_path}/mine"
    assert load_config(tmp_path / "second.toml", ["fusion.bundle=mine"]).fusion.bundle == "mine"
    assert load_config(None, [], ["file:talk.wav"]).streams[0].source == "file:talk.wav"


# Streams


def heard(tmp_path: Path, topics: list[bytes], send: Callable[[EmotionPublisher], object]) -> list[list[dict]]:
    """What a subscriber to each of these topics gets of what is published until each has several."""
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        sockets = [stack.enter_context(context.socket(zmq.SUB)) for _ in topics]
        publisher = stack.enter_context(closing(EmotionPublisher(context, f"ipc://{tmp_path}/bus")))
        for socket, topic in zip(sockets, topics, strict=True):
            socket.linger = 0
            socket.subscribe(topic)
            socket.connect(f"ipc://{tmp_path}/bus")
        got: list[list[dict]] = [[] for _ in topics]
        for _ in range(100):
            send(publisher)
            for socket, messages in zip(sockets, got, strict=True):
                while socket.poll(2):
                    messages.append(json.loads(socket.recv_multipart()[1]))
            if min(map(len, got)) > 9:
                break
    return got


def test_one_stream_can_be_subscribed_to_without_others_that_begin_so(tmp_path):
    def send(publisher: EmotionPublisher) -> None:
        for stream in ("desk", "desk2", "desk-b"):
            publisher.send(emotion_message(stream=stream))

    new, old = heard(tmp_path, [b"emotion/utterance/desk/", b"emotion.utterance.desk"], send)
    assert {message["stream"] for message in new} == {"desk"} and len(new) > 3
    assert {message["stream"] for message in old} == {"desk", "desk2", "desk-b"}  # as before, for a release


def test_the_status_of_one_stream_can_be_subscribed_to(tmp_path):
    nodes = {name: NodeStatus(state="running") for name in ("audio.desk", "audio.desk2", "speech.desk2", "fusion")}
    streams = {"desk": StreamStatus(state="away", behind_s=3.5), "desk2": StreamStatus(sound_lost_s=1.5)}
    whole = encode_status(Status(run="r", state="degraded", streams=streams, nodes=nodes))
    topics = [b"stream/status/desk/", b"stream/status/desk2/", b"status", b"emotion"]
    desk, desk2, run, labels = heard(
        tmp_path, topics, lambda publisher: publisher.send_status(whole) or publisher.send(emotion_message())
    )
    assert len(desk) > 9 and all(list(message["streams"]) == ["desk"] for message in desk)
    assert (desk[0]["run"], desk[0]["state"], desk[0]["streams"]["desk"]["behind_s"]) == ("r", "degraded", 3.5)
    assert set(desk[0]["nodes"]) == {"audio.desk", "fusion"} and set(desk2[0]["nodes"]) == {*nodes} - {"audio.desk"}
    assert desk2[0]["streams"]["desk2"]["sound_lost_s"] == 1.5 and decode_status(json.dumps(desk2[0]).encode())
    assert all(message == json.loads(whole) for message in run)  # subscribers of before see nothing of it
    assert {message["schema"] for message in labels} == {"emostream/1"}
