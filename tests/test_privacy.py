"""What people said, and how they looked and sounded, is found only where it was asked for."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from emostream import Config
from emostream.commands import exit_code
from emostream.stream.cores.audio import AudioCore
from emostream.stream.cores.video import VideoCore, make_detector
from emostream.stream.label_command import label
from emostream.stream.messages import AudioRows, Face, Pcm
from emostream.stream.sources import DEMO
from emostream.stream.sources.base import AudioChunk
from emostream.stream.sources.file import FileSource
from tests import media
from tests.fusion import Run, all_topics
from tests.processes import BIN, Pipeline
from tests.test_telemetry import namespaces  # noqa: F401  # a fixture
from tests.trap import HOME, Trap

WORDS = [b"happy", b"angry", b"afraid", b"lonely", b"mother", b"meeting"]  # of the demo, as every recogniser hears them
SPOKEN = [(1.0, 2.5, "my mother died"), (4.0, 5.5, "so lonely")]


def test_dropped_words_count_for_the_label_and_are_in_no_message():
    kept = Run(estimates=True).live(all_topics(8, SPOKEN))
    dropped = Run(estimates=True, privacy={"text": "drop"}).live(all_topics(8, SPOKEN))
    assert [label.text for label in kept.labels] == [words for *_, words in SPOKEN] and kept.windows
    assert all(message.text == "" and message.words == [] for message in dropped.published)
    assert [m.probabilities for m in dropped.published] == [m.probabilities for m in kept.published]
    assert [m.modalities for m in dropped.published] == [m.modalities for m in kept.published]


@pytest.fixture
def stream_label(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """stream-label in this process: its exit code and everything it printed."""

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["stream-label", *map(str, words)])
        code = exit_code(label)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.process
def test_stream_label_replaces_labels_or_goes_on_with_them(tmp_path, stream_label):
    out, talks = tmp_path / "labels.jsonl", [media.audio_only(tmp_path / f"{n}.wav", 4.0) for n in range(2)]
    out.write_text("{}\n")
    assert stream_label(*talks, "--resume")[0] == 2
    code, printed = stream_label(*talks, "--out", out, "--resume")
    assert code == 2 and "line 1 is no label" in printed and out.read_text() == "{}\n"
    code, printed = stream_label(talks[0], "--out", out, "--set", "privacy.text=drop")
    assert code == 0 and "happy" not in printed + out.read_text() and "joy" in out.read_text()
    with out.open("ab") as file:  # the second recording's labels, interrupted within a line
        file.write(out.read_bytes().replace(b"0.wav", b"1.wav") + b'{"schema"')
    code, printed = stream_label(*talks, tmp_path / "none.wav", "--out", out, "--resume")
    labels = [json.loads(line) for line in out.read_text().splitlines()]
    assert code == 1 and "none.wav" in printed and stat.S_IMODE(out.stat().st_mode) == 0o600
    assert [(one["stream"], "happy" in one["text"]) for one in labels] == [("0.wav", False), ("1.wav", True)]


# Whole runs


def what_nodes_hold() -> list[bytes]:
    """Some of the samples, log-mel rows and pixels that a run of the demo passes from node to node."""
    source = FileSource(DEMO, frozenset({"audio", "video"}), Config().video.fps)
    source.open()
    audio, video = AudioCore("main", None), VideoCore("main", make_detector(Config().video), None)
    arrays: list[np.ndarray] = []
    for item in source.items():
        for message in audio.push(item) if isinstance(item, AudioChunk) else video.push(item):  # type: ignore[arg-type]
            match message:
                case Pcm() if np.abs(message.samples).max() > 3000:
                    arrays.append(message.samples[100:132])
                case AudioRows():
                    arrays.append(message.rows[0, :16])
                case Face() if message.found:
                    arrays.append(message.crop[24])
    source.close()
    assert {array.dtype.kind for array in arrays} == {"i", "f", "u"} and len(arrays) > 300
    return [array.tobytes() for array in arrays if np.ptp(array) > 5]


RUN = """
import emostream
config = emostream.load_config(changes={changes!r}, streams=["demo"])
emostream.run(config, on_health=print, on_log=print{more})
"""


def run(folder: Path, *changes: str, more: str = "") -> tuple[dict, str]:
    """A run in the trap that prints heartbeats and log lines, at level debug: the trap's report, and the output."""
    changes = ("bus.emotion=tcp://127.0.0.1:5999", "log.level=debug", *changes)
    code = RUN.format(changes=list(changes), more=more)
    trap = Trap(folder, sys.executable, "-c", code, needles=[*WORDS, *what_nodes_hold()])
    report = trap.report()
    assert "utterances" in trap.output and "Log" not in trap.output
    return report, trap.output


@pytest.mark.long
@pytest.mark.process
@pytest.mark.usefixtures("namespaces")
def test_nothing_of_the_person_is_in_files_lines_or_heartbeats(tmp_path):
    report, printed = run(tmp_path / "trap")
    assert report["found"] == {} and any("/emostream-" in path for path in report["seen"])
    assert not any(word.decode() in printed for word in WORDS)


@pytest.mark.long
@pytest.mark.process
@pytest.mark.usefixtures("namespaces")
def test_dropped_words_are_nowhere_at_all(tmp_path):
    report, printed = run(tmp_path / "trap", "privacy.text=drop", "pace=fast", more=", on_emotion=print")
    assert report["found"] == {} and printed.count("kind='utterance'") == 5 and "kind='window'" in printed
    assert not any(word.decode() in printed for word in WORDS)


@pytest.mark.long
@pytest.mark.process
@pytest.mark.usefixtures("namespaces")
def test_words_are_in_the_file_that_was_asked_for_alone(tmp_path):
    words = ["--stream", "demo", "--pace", "fast", "--quiet", "--jsonl", HOME / "labels.jsonl"]
    words += ["--set", "bus.emotion=tcp://127.0.0.1:5999"]
    trap = Trap(tmp_path / "trap", BIN / "stream-run", *words, needles=[*WORDS, *what_nodes_hold()])
    report = trap.report()
    assert report["found"] == {f"{HOME}/labels.jsonl": sorted(word.hex() for word in WORDS)}
    assert trap.output == ""


@pytest.mark.long
@pytest.mark.process
def test_a_node_that_crashes_leaves_no_memory_on_disk(tmp_path, monkeypatch):
    """Core dumps are off, whatever the shell allows."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        crashed = subprocess.Popen([sys.executable, "-c", "import os; os.abort()"])
        crashed.wait()
        written = [path.name for path in tmp_path.iterdir()]
        if not written:
            pytest.skip(f"this machine's core_pattern writes no file here: {pattern.strip()}")
        for path in tmp_path.iterdir():
            path.unlink()
        with Pipeline("--stream", "demo") as pipeline:
            pipeline.subscriber.wait_for("window", 1, 30)
            node = psutil.Process(pipeline.node("speech.main"))
            assert node.rlimit(psutil.RLIMIT_CORE)[0] == 0
            os.kill(node.pid, signal.SIGSEGV)
            pipeline.subscriber.wait_for("utterance", 2, 30)
            pipeline.interrupt()
        assert "speech.main: crashed" in pipeline.output
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    assert list(tmp_path.iterdir()) == []
