"""stream/output.py"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from emostream.errors import ConfigError
from emostream.stream.emotion import Emotion, encode_emotion
from emostream.stream.output import KEPT_FILES, Background, LabelFile, open_labels, resume_labels
from tests.emotions import emotion_message


def seqs(path: Path) -> list[int]:
    return [json.loads(line)["seq"] for line in path.read_text().splitlines()]


def test_lines_are_appended_and_private(tmp_path):
    path, warnings = tmp_path / "labels.jsonl", []
    for n in range(3):
        file = LabelFile(path, 0, warnings.append)
        file.add(emotion_message(seq=n))
        file.close()
    assert seqs(path) == [0, 1, 2] and stat.S_IMODE(path.stat().st_mode) == 0o600 and not warnings


def test_a_new_file_begins_beyond_a_size_and_old_ones_go(tmp_path):
    path = tmp_path / "labels.jsonl"
    file = LabelFile(path, 1000, print)
    for n in range(40):
        file.add(emotion_message(seq=n))
    file.close()
    files = [path, *(path.with_name(f"labels.jsonl.{k}") for k in range(1, KEPT_FILES + 1))]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(0 < one.stat().st_size <= 1000 and stat.S_IMODE(one.stat().st_mode) == 0o600 for one in files)
    kept = [n for one in reversed(files) for n in seqs(one)]
    assert kept == list(range(kept[0], 40))  # none missing, none twice, the newest last


def test_what_does_not_fit_is_counted_and_warned_of_once_and_leaves_no_half_line(tmp_path, monkeypatch):
    path, warnings = tmp_path / "labels.jsonl", []
    file = LabelFile(path, 0, warnings.append)
    file.add(emotion_message(seq=0))
    write, full = os.write, [True]
    monkeypatch.setattr(os, "write", lambda fd, line: write(fd, line[:20] if full[0] else line))
    for n in (1, 2):
        file.add(emotion_message(seq=n))
    full[0] = False
    file.add(emotion_message(seq=3))
    file.close()
    assert seqs(path) == [0, 3] and file.lost == 2
    assert warnings == [f"{path}: labels cannot be written (No space left on device)"]


def test_a_place_that_cannot_be_written_is_an_error_at_once(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        LabelFile(tmp_path / "no/labels.jsonl", 0, print)


def test_a_pipe_is_never_waited_for(tmp_path):
    path, warnings = tmp_path / "labels", []
    os.mkfifo(path)
    file = LabelFile(path, 0, warnings.append)
    file.add(emotion_message(seq=0))  # nobody reads yet
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file.add(emotion_message(seq=1))
    wrong = 0
    while file.lost < 3:  # nobody empties it
        file.add(emotion_message(seq=2))
        wrong += 1
        assert wrong < 1000
    with os.fdopen(reading, "rb") as pipe:
        first = pipe.readline()
        file.close()
        rest = pipe.read().splitlines()
    assert json.loads(first)["seq"] == 1 and [json.loads(line)["seq"] for line in rest] == [2] * (wrong - 2)
    assert len(warnings) == 2 and "No such device" in warnings[0] and "temporarily unavailable" in warnings[1]


def test_half_a_line_in_a_pipe_does_not_spoil_the_next(tmp_path, monkeypatch):
    path = tmp_path / "labels"
    os.mkfifo(path)
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as pipe:
        file = LabelFile(path, 0, lambda text: None)
        write = os.write
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", lambda fd, line: write(fd, line[:20]))
            file.add(emotion_message(seq=0))
        file.add(emotion_message(seq=1))
        file.close()
        half, whole = pipe.read().splitlines()
    assert len(half) == 20 and json.loads(whole)["seq"] == 1 and file.lost == 1


# stream-label --out


def write_labels(path: Path, *streams: str, torn: bytes = b"") -> None:
    lines = [encode_emotion(emotion_message(stream=name, seq=n)) + b"\n" for n, name in enumerate(streams)]
    path.write_bytes(b"".join(lines) + torn)


def streams(path: Path) -> list[str]:
    return [json.loads(line)["stream"] for line in path.read_text().splitlines()]


def test_a_file_of_labels_replaces_an_older_one_and_is_private_either_way(tmp_path):
    path = tmp_path / "labels.jsonl"
    open_labels(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_labels(path, "a.wav")
    path.chmod(0o644)
    open_labels(path).close()
    assert path.read_bytes() == b"" and stat.S_IMODE(path.stat().st_mode) == 0o600
    open_labels(Path(os.devnull)).close()


@pytest.mark.parametrize("torn", [b"", b'{"schema":"emostr', encode_emotion(emotion_message()), b"\0\0\0"])
@pytest.mark.parametrize(
    ("names", "done", "left"),
    [
        (["a.wav", "b.wav", "c.wav"], {"a.wav"}, ["a.wav", "a.wav"]),  # b.wav may have been interrupted
        (["a.wav", "c.wav"], {"a.wav"}, ["a.wav", "a.wav", "b.wav"]),
        (["c.wav"], set(), ["a.wav", "a.wav", "b.wav"]),
    ],
)
def test_labels_go_on_after_the_last_recording_that_is_done(tmp_path, names, done, left, torn):
    path = tmp_path / "labels.jsonl"
    write_labels(path, "a.wav", "a.wav", "b.wav", torn=torn)
    file, found = resume_labels(path, names)
    file.write(encode_emotion(emotion_message(stream="new")) + b"\n")
    file.close()
    assert (found, streams(path)) == (done, [*left, "new"])


def test_labels_of_former_versions_name_the_file_alone(tmp_path):
    path = tmp_path / "labels.jsonl"
    write_labels(path, "a.wav", "b.wav")
    file, done = resume_labels(path, ["here/a.wav", "here/b.wav", "here/c.wav"])
    file.close()
    assert (done, streams(path)) == ({"here/a.wav"}, ["a.wav"])
    with pytest.raises(ConfigError, match=r"do not say which of these they are of: here/a\.wav, there/a\.wav"):
        resume_labels(path, ["here/a.wav", "there/a.wav"])


def test_resuming_begins_a_file_that_is_not_there(tmp_path):
    file, done = resume_labels(tmp_path / "labels.jsonl", ["a.wav"])
    file.close()
    assert not done and stat.S_IMODE((tmp_path / "labels.jsonl").stat().st_mode) == 0o600


def test_what_cannot_be_resumed_is_left_as_it_is(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text("{}\nmy notes\n")
    with pytest.raises(ConfigError, match="is left as it is: line 1 is no label"):
        resume_labels(path, ["a.wav"])
    assert path.read_text() == "{}\nmy notes\n"
    with pytest.raises(ConfigError, match=r"by their paths; twice: a\.wav"):
        resume_labels(path, ["a.wav", "b.wav", "a.wav"])
    with pytest.raises(ConfigError, match="is no file"):
        resume_labels(tmp_path, ["a.wav"])
    with pytest.raises(ConfigError, match="cannot be written"):
        open_labels(tmp_path / "no/labels.jsonl")


class Stalled:
    """A view that blocks until it is released."""

    def __init__(self) -> None:
        self.go, self.shown, self.lines = threading.Event(), [], []

    def emotion(self, message: Emotion) -> None:
        self.go.wait(20)
        self.shown.append(message.seq)

    def health(self, message: object) -> None: ...
    def close(self) -> None: ...

    def log(self, node: str, level: str, text: str) -> None:
        self.lines.append(text)


def test_a_stalled_view_delays_nobody():
    view = Stalled()
    shown = Background(view)
    begun = time.monotonic()
    for n in range(12_000):
        shown.emotion(emotion_message(seq=n))
    assert shown.left_out >= 1_900
    assert not shown.close(wait_s=0.1)
    assert time.monotonic() - begun < 5
    view.go.set()
    until = time.monotonic() + 10
    while not view.lines:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert view.lines == [f"the display took nothing for a while; {shown.left_out} lines and updates were not shown"]


def test_all_is_shown_in_order_and_then_the_last():
    view, ended = Stalled(), []
    view.go.set()
    shown = Background(view)
    for n in range(100):
        shown.emotion(emotion_message(seq=n))
    assert shown.close(last=lambda: ended.append(len(view.shown)))
    assert view.shown == list(range(100)) and ended == [100] and shown.error is None


def test_a_closed_pipe_ends_the_view_alone():
    class Closed(Stalled):
        def emotion(self, message: Emotion) -> None:
            raise BrokenPipeError

    shown = Background(Closed())
    shown.emotion(emotion_message(seq=0))
    shown.emotion(emotion_message(seq=1))
    assert shown.close() and isinstance(shown.error, BrokenPipeError)


def test_a_full_disk_that_has_room_again_gets_the_rest():
    class Full(Stalled):
        def emotion(self, message: Emotion) -> None:
            if message.seq < 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.shown.append(message.seq)

    view = Full()
    shown = Background(view)
    for n in range(4):
        shown.emotion(emotion_message(seq=n))
    assert shown.close() and view.shown == [2, 3]
    assert isinstance(shown.error, OSError)  # output is missing, and the exit code says so
