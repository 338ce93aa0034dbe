"""The commands as processes: real decoder, voice activity, recogniser, face detector and sockets."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest

from emostream.stream.emotion import emotion_json_schema
from emostream.stream.sources import DEMO
from tests import media
from tests.processes import BIN, ROOT, Pipeline, command, free_port, patience

pytestmark = pytest.mark.process

PARTS = ("endpoint_wait", "recognition", "queue", "encode", "fusion", "other")


@pytest.fixture(scope="module")
def truth() -> list[dict]:
    return json.loads(DEMO.with_suffix(".json").read_text())["sentences"]


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> Path:
    """Four seconds of a talking face."""
    return media.talking_face(tmp_path_factory.mktemp("talk") / "talk.mp4")


def same_labels(first: list[dict], second: list[dict]) -> None:
    """Labels must be equal except for the stream's name and the times of the run."""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for key in one.keys() - {"stream", "source", "latency_ms", "captured_ns", "published_ns", "run"}:
            assert one[key] == other[key], key


@dataclass
class DemoRun:
    """A run of the demo in real time, and what its listeners printed."""

    labels: list[dict]
    windows: list[dict]
    messages: list[tuple[str, dict]]
    jsonl: str
    output: str
    plain: str  # stream-listen
    raw: str  # stream-listen --json
    readme: subprocess.CompletedProcess[str]


def readme_lines(endpoint: str) -> str:
    """README's Python lines, changed to listen at ``endpoint`` and no longer than needed."""
    block = re.search(r"```python\n(import emostream\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    assert len([line for line in block[1].splitlines() if line.strip()]) == 6
    code = block[1].replace("tcp://127.0.0.1:5556", endpoint).replace("timeout_s=60", "timeout_s=20")
    assert endpoint in code and "timeout_s=20" in code
    return code


@pytest.fixture(scope="module")
def demo(talk) -> DemoRun:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    out = talk.with_name("labels.jsonl")
    listeners = [
        subprocess.Popen([BIN / "stream-listen", endpoint, *more], stdout=subprocess.PIPE, text=True)
        for more in ([], ["--json"])
    ]
    readme = subprocess.Popen(
        [sys.executable, "-c", readme_lines(endpoint)],
        cwd=talk.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert readme.stdout is not None
    first_line = readme.stdout.readline()  # the file is labelled; then it listens
    with Pipeline("--config", "config.toml", "--jsonl", out, endpoint=endpoint) as run:
        assert run.finish(60) == 0, run.output
        readme_output, readme_errors = readme.communicate(timeout=30)
        for listener in listeners:
            listener.send_signal(signal.SIGINT)
        plain, raw = (listener.communicate(timeout=10)[0] for listener in listeners)
        assert [listener.returncode for listener in listeners] == [0, 0]
        return DemoRun(
            run.subscriber.of("utterance"), run.subscriber.of("window"), list(run.subscriber.messages), out.read_text(),
            run.output, plain, raw,
            subprocess.CompletedProcess([], readme.returncode, first_line + readme_output, readme_errors),
        )  # fmt: skip


def test_demo_in_real_time(truth, demo):
    """A subscriber receives one valid label per sentence, in time, with latency parts that sum to the total."""
    labels, windows = demo.labels, demo.windows
    for topic, message in demo.messages:
        jsonschema.validate(message, emotion_json_schema())
        assert topic == f"emotion.{message['kind']}.demo"
    assert len(labels) == len(truth) == 5
    assert [label["seq"] for label in labels] == [0, 1, 2, 3, 4]
    assert [window["seq"] for window in windows] == list(range(len(windows)))
    assert len(windows) > 20
    assert [json.loads(line) for line in demo.jsonl.splitlines()] == labels
    for label, sentence in zip(labels, truth, strict=True):
        assert abs(label["start_s"] - sentence["start_s"]) < 0.3
        assert abs(label["end_s"] - sentence["end_s"]) < 0.3
        wanted = set(sentence["text"].lower().replace(",", "").replace("!", "").replace(".", "").split())
        assert len(wanted & set(label["text"].split())) / len(wanted) > 0.6
        assert all(label["modalities"][name]["coverage"] > 0.8 for name in ("audio", "video"))
        assert sum(label["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        latency = label["latency_ms"]
        assert sum(latency[part] for part in PARTS) == pytest.approx(latency["total"], abs=0.01)
        assert latency["total"] == pytest.approx((label["published_ns"] - label["captured_ns"]) / 1e6, abs=0.01)
        assert 192 <= latency["endpoint_wait"] <= 432  # the configured hangovers, in whole frames of 32 ms
        assert all(latency[part] > -1 for part in PARTS)
    assert "utterances: 5 labelled of 5 heard" in demo.output
    assert "dropped: 0   missed in transit: 0" in demo.output


def check_agreement(talk: Path, folder: Path, runs: int) -> None:
    """Runs at fast pace and ``stream-label`` give the same labels of a file."""
    assert command("stream-label", talk, "--out", folder / "label").returncode == 0
    paths = [folder / "label"]
    for i in range(runs):
        paths.append(folder / f"run{i}")
        with Pipeline("--stream", f"file:{talk}", "--pace", "fast", "--jsonl", paths[-1]) as run:
            assert run.finish(60) == 0, run.output
    labels, *others = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    assert len(labels) >= 1
    assert labels[0]["stream"] == "talk.mp4" and labels[0]["latency_ms"] is None
    for other in others:
        same_labels(labels, other)


def test_a_fast_run_and_stream_label_agree(talk, tmp_path):
    check_agreement(talk, tmp_path, runs=1)


@pytest.mark.long
def test_fast_runs_and_stream_label_agree(talk, tmp_path):
    check_agreement(talk, tmp_path, runs=3)


@pytest.mark.long
def test_two_streams_at_once(talk, tmp_path):
    """Two streams share one fusion process; each is labelled as if it were alone. Labels at a pause reach subscribers
    alone."""
    out = tmp_path / "labels.jsonl"
    streams = ("--stream", f"left=file:{talk}", "--stream", f"right=file:{talk}")
    # a long wait, since there is no early label if the pause is detected only with the end
    wait = ("--set", "speech.hangover_ms=1500", "--set", "speech.min_hangover_ms=1500")
    with Pipeline(*streams, "--jsonl", out, "--set", "fusion.early=true", *wait) as run:
        assert run.finish(60) == 0, run.output
        heard = run.subscriber.of("utterance")
    labels = [json.loads(line) for line in out.read_text().splitlines()]
    assert [label for label in heard if label["final"]] == labels
    for label in labels:
        early = [one for one in heard if one["stream"] == label["stream"] and one["seq"] < label["seq"]]
        assert early and early[-1]["utterance"] == label["utterance"] and not early[-1]["final"]
    by_stream = {name: [label for label in labels if label["stream"] == name] for name in ("left", "right")}
    assert len(by_stream["left"]) >= 1
    for one, other in zip(by_stream["left"], by_stream["right"], strict=True):
        assert one["text"] == other["text"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)


@pytest.mark.alone
def test_interrupt_ends_with_the_last_label(truth):
    """Ctrl-C within a sentence: its label still comes, and the run ends within 3 s with exit code 0."""
    with Pipeline("--config", "config.toml") as run:
        run.subscriber.wait_for("window", 5, 30)
        assert not run.subscriber.of("utterance")
        assert run.interrupt() < patience(3)
        assert run.process.returncode == 0, run.output
        assert len(run.subscriber.of("utterance")) == 1
    assert "utterances: 1 labelled of 1 heard" in run.output


@pytest.mark.long
def test_terminate_ends_in_the_same_way(talk):
    with Pipeline("--stream", f"file:{talk}", "--set", "speech.recognizer=none") as run:
        run.subscriber.wait_for("window", 1, 30)
        run.process.send_signal(signal.SIGTERM)
        assert run.finish(4) == 0, run.output


def test_a_killed_node_is_restarted_and_the_others_carry_on():
    """The video process is killed in mid-run: labels keep coming, later ones with faces again."""
    with Pipeline("--config", "config.toml") as run:
        run.subscriber.wait_for("utterance", 1, 30)
        os.kill(run.node("video.demo"), signal.SIGKILL)
        labels = run.subscriber.wait_for("utterance", 4, 40)
        run.interrupt()
        assert run.process.returncode == 0, run.output
    assert "video.demo: crashed" in run.output
    assert labels[-1]["modalities"]["video"]["coverage"] > 0.5
    assert all(label["modalities"]["audio"]["coverage"] > 0.8 for label in labels)


@pytest.mark.long
def test_at_fast_pace_a_crash_ends_the_run_with_an_error():
    """Labels that lack a part of the file must not look as if nothing were lost."""
    with Pipeline("--config", "config.toml", "--pace", "fast") as run:
        run.subscriber.wait_for("window", 1, 30)
        os.kill(run.node("video.demo"), signal.SIGKILL)
        assert run.finish(10) == 1
    assert "video.demo crashed (exit code -9); at fast pace nothing may be lost" in run.output
    assert "Traceback" not in run.output


def test_listen_prints_the_published_messages(demo):
    messages = [json.loads(line) for line in demo.raw.splitlines()]
    assert messages == demo.labels
    assert [line.split()[4] for line in demo.plain.splitlines()] == [label["label"] for label in demo.labels]


def test_the_lines_of_the_readme_run(demo):
    """The lines are unchanged except for the port and the timeout."""
    assert demo.readme.returncode == 0, demo.readme.stderr
    file, live = demo.readme.stdout.splitlines()[0], demo.readme.stdout.splitlines()[1:]
    assert "this is the best day" in file.lower()
    assert len(live) == len(demo.labels)
    assert all(label["text"] in line for line, label in zip(live, demo.labels, strict=True))


CLIPS = sorted(Path(os.environ.get("EMOSTREAM_DATA", "/nonexistent"), "clips").glob("*.mpg"))


@pytest.mark.long
@pytest.mark.skipif(not CLIPS, reason="EMOSTREAM_DATA names no folder with clips/*.mpg")
def test_real_clips(tmp_path):
    """Real talking faces: each clip holds one spoken sentence, so at least one utterance with a face."""
    with Pipeline("--stream", f"file:{CLIPS[0]}") as run:
        assert run.finish(60) == 0, run.output
        assert run.subscriber.of("utterance")
    out = tmp_path / "labels.jsonl"
    assert command("stream-label", *CLIPS, "--out", out, timeout=100).returncode == 0
    labels = [json.loads(line) for line in out.read_text().splitlines()]
    assert {label["stream"] for label in labels} == {path.name for path in CLIPS}
    assert sum(label["modalities"]["video"]["coverage"] > 0.9 for label in labels) >= len(CLIPS)
