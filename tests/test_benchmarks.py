"""Benchmarks: a file holds what its script says, matching reveals every fault, parts sum, percentiles are right."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import common, endpoint, labels, latency, live_run, networks, script, startup, words
from emostream.commands import exit_code
from emostream.errors import ConfigError
from emostream.stream.emotion import Latency
from emostream.stream.sources.file import FileSource
from tests import benchmark_runs
from tests.benchmark_runs import T0_NS, beat

SIX_SIGMA = 6.5 * script.NOISE
ROOT = Path(__file__).parent.parent


# Script


def decoded(path: Path, medium: str) -> list:
    """All chunks or frames of a file as the pipeline reads them, at the picture's own rate."""
    source = FileSource(path, frozenset({medium}), 25)
    source.open()
    try:
        return list(source.items())
    finally:
        source.close()


@pytest.fixture(scope="module")
def segments() -> list[script.Segment]:
    return script.demo_segments()


@pytest.mark.slow
def test_a_script_says_where_its_speech_is(segments, tmp_path):
    """Each segment is in the decoded file, sample for sample, where the script says; between them is noise only."""
    written = script.make_script(tmp_path / "s.mkv", segments, 7, 0.9, True, "demo")
    chunks = decoded(written.path, "audio")
    assert chunks[0].media_ns == 0
    assert {len(chunk.samples) for chunk in chunks[:-1]} == {script.BLOCK}
    sound = np.concatenate([chunk.samples[:, 0] for chunk in chunks])
    assert len(sound) == round(written.length_s * script.RATE_HZ)
    assert [u.name for u in written.utterances] == [segments[i % 5].name for i in range(7)]
    last = 0
    for utterance, segment in zip(written.utterances, segments * 2, strict=False):
        start, end = (round(ns * script.RATE_HZ / 1e9) for ns in (utterance.start_ns, utterance.end_ns))
        assert np.abs(sound[last:start]).max() < SIX_SIGMA
        assert np.abs(sound[start:end] - segment.samples).max() < SIX_SIGMA
        assert np.abs(segment.samples[-script.RATE_HZ // 50 :]).max() > SIX_SIGMA  # the end stands out from the noise
        last = end
    assert np.abs(sound[last:]).max() < SIX_SIGMA
    pauses = [(b.start_ns - a.end_ns) / 1e9 for a, b in zip(written.utterances, written.utterances[1:], strict=False)]
    assert 0.9 <= min(pauses) and max(pauses) <= 1.15 and len({round(pause, 3) for pause in pauses}) == 6
    times = [frame.media_ns for frame in decoded(written.path, "video")]
    assert times[0] == 0 and times[-1] / 1e9 > written.length_s - 0.1
    uneven = np.abs(np.diff(times)[:-3] - 40e6) > 1e6  # the last pictures lack the frames they depend on
    assert not uneven.any()  # also where the clip begins anew


@given(before=st.integers(0, 8000), speech=st.integers(1600, 48_000), after=st.integers(0, 12_000))
def test_speech_is_found_in_a_recording(before, speech, after):
    tone = 0.3 * np.sin(np.arange(speech) * 0.2, dtype=np.float32)
    noise = np.random.default_rng(0).normal(0, 1e-4, before + speech + after).astype(np.float32)
    recording = noise + np.concatenate([np.zeros(before), tone, np.zeros(after)]).astype(np.float32)
    spans = script.find_speech("tone", recording)
    assert spans is not None
    cut = before - (max(0, before // 160 * 160 - 1600))  # where speech starts in what is kept
    assert abs(spans.start - cut) <= 160
    assert abs((spans.end - spans.start) - speech) <= 320
    assert len(spans.samples) - spans.end <= script.TAIL_S * script.RATE_HZ


@pytest.mark.parametrize(("pause_s", "taken"), [(0.2, True), (0.3, False)])
def test_a_recording_with_a_long_pause_is_skipped(pause_s, taken):
    tone = 0.3 * np.sin(np.arange(8000) * 0.2, dtype=np.float32)
    recording = np.concatenate([tone, np.zeros(round(pause_s * 16_000), np.float32), tone])
    assert (script.find_speech("two", recording) is not None) is taken
    assert script.find_speech("nothing", np.zeros(16_000, np.float32)) is None


def test_a_folder_without_speech_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no RAVDESS speech clips"):
        script.ravdess_segments(tmp_path, 3)


# Matching and parts


def label(start_s: float, end_s: float, seq: int = 0, late_ms: float = 10.0) -> labels.Label:
    return benchmark_runs.label("bench", seq, start_s, end_s, late_ms)


def said(*spans: tuple[float, float]) -> list[script.Utterance]:
    return [script.Utterance(f"{i}", round(a * 1e9), round(b * 1e9)) for i, (a, b) in enumerate(spans)]


def changed(original: labels.Label, **fields) -> labels.Label:
    from msgspec.structs import replace as with_fields

    return labels.Label(original.received_ns, with_fields(original.emotion, **fields))


TALK = said((1.0, 2.0), (3.0, 4.0), (5.0, 6.0))


def test_labels_find_their_utterances():
    late = [label(1.1, 2.1), label(3.1, 3.9), label(4.95, 6.1)]
    matching = labels.match(TALK, late)
    assert matching.pairs == list(zip(TALK, late, strict=True))
    assert not (matching.missed or matching.doubled or matching.unexpected)


def test_missed_doubled_and_unexpected():
    halves = [label(3.0, 3.4), label(3.5, 4.0)]
    matching = labels.match(TALK, [*halves, label(5.0, 6.0), label(8.0, 9.0)])
    assert matching.missed == [TALK[0]]
    assert matching.doubled == [TALK[1]]
    assert [utterance for utterance, _ in matching.pairs] == [TALK[2]]
    assert [one.emotion.start_s for one in matching.unexpected] == [8.0]


def test_a_label_over_two_utterances_leaves_one_missed():
    matching = labels.match(TALK, [label(1.0, 3.5), label(5.0, 6.0)])
    assert matching.missed == [TALK[1]] and [u for u, _ in matching.pairs] == [TALK[0], TALK[2]]


@given(st.permutations([0, 1, 2]))
def test_matching_does_not_depend_on_the_order_of_labels(order):
    late = [label(1.1, 2.1), label(3.1, 3.9), label(4.95, 6.1)]
    assert labels.match(TALK, [late[i] for i in order]).pairs == list(zip(TALK, late, strict=True))


@given(off_ms=st.integers(-200, 300), late_ms=st.integers(4, 500))
def test_parts_sum_to_the_total(off_ms, late_ms):
    """``total`` counts from the script's end, wherever voice activity detection saw it."""
    figures = labels.parts(TALK[0], label(1.0, 2 + off_ms / 1000, late_ms=late_ms), T0_NS)
    assert figures["total"] == pytest.approx(off_ms + 416 + late_ms + 1, abs=0.01)
    assert figures["vad"] == pytest.approx(off_ms, abs=0.01) and figures["transport"] == pytest.approx(1)
    assert sum(figures[name] for name in labels.PARTS) == pytest.approx(figures["total"], abs=0.01)


def test_parts_that_do_not_sum_are_an_error():
    good = label(1.0, 2.0)
    latency_ms = good.emotion.latency_ms
    assert latency_ms is not None

    def wrong(**fields: float) -> Latency:
        return Latency(**{name: getattr(latency_ms, name) for name in latency_ms.__struct_fields__} | fields)

    with pytest.raises(ValueError, match="parts are"):
        labels.parts(TALK[0], changed(good, latency_ms=wrong(other=3.0)), T0_NS)
    with pytest.raises(ValueError, match="negative"):
        labels.parts(TALK[0], changed(good, latency_ms=wrong(other=-2.0, queue=9.0)), T0_NS)
    with pytest.raises(ValueError, match="time of capture"):
        labels.parts(TALK[0], changed(good, end_s=2.1), T0_NS)
    with pytest.raises(ValueError, match="no latency"):
        labels.parts(TALK[0], changed(good, latency_ms=None), T0_NS)


def good_run() -> live_run.Watch:
    watch = live_run.Watch(T0_NS, [label(u.start_ns / 1e9, u.end_ns / 1e9, i) for i, u in enumerate(TALK)])
    watch.beats["fusion"] = [beat("fusion", state="done")]
    return watch


TALK_SCRIPT = script.Script(Path("talk.mkv"), TALK, 7.0, "made up")


def test_a_good_run_has_no_faults():
    figures, faults = latency.judge(TALK_SCRIPT, good_run(), "audio")
    assert not faults
    assert figures["total"]["p50"] == pytest.approx(427, rel=1e-3)
    assert figures["without endpoint wait"]["max"] == pytest.approx(11, rel=1e-3)
    assert figures["confirmed end → label"]["max"] == pytest.approx(11, rel=1e-3)
    means = sum(part["mean"] for part in figures["parts"].values())
    assert means == pytest.approx(sum(row["total"] for row in figures["each"]) / 3, abs=0.01)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda run: run.labels.pop(), "missed: 2"),
        (lambda run: run.labels.append(label(5.5, 5.9, 3)), "doubled: 2"),
        (lambda run: run.labels.append(label(8.0, 9.0, 3)), "unexpected label"),
        (lambda run: run.labels.append(label(8.0, 9.0, 5)), "labels lost"),
        (lambda run: run.beats["audio"].append(beat("audio", dropped=2)), "lost: audio 2"),
        (lambda run: run.beats["audio"].append(beat("audio", counters={"capture_gaps": 1})), "lost: audio 1"),
        (lambda run: setattr(run, "t0_ns", T0_NS + 5_000_000), "time of capture"),
        (lambda run: run.faults.append("stream-run ended with exit code 1"), "exit code 1"),
        (lambda run: run.late.append("it had not started in 90 s"), "not started in 90 s"),
    ],
)
def test_every_fault_of_a_run_is_reported(spoil, fault):
    run = good_run()
    spoil(run)
    assert any(fault in line for line in latency.judge(TALK_SCRIPT, run, "audio")[1])


def test_a_modality_that_no_label_has_is_a_fault():
    assert "no label had video in it" in latency.judge(TALK_SCRIPT, good_run(), "audio+video")[1]


# Percentiles, tables, files


@given(st.lists(st.floats(-500, 60_000), min_size=1, max_size=100))
def test_percentiles_are_those_of_the_values(values):
    figures = common.percentiles(values)
    width = max(values) - min(0.0, *values)
    for percentile in common.PERCENTILES:
        true = np.percentile(values, percentile, method="inverted_cdf")
        assert figures[f"p{percentile:g}"] == pytest.approx(true, abs=0.001 * width + 0.003)
    assert figures["max"] == pytest.approx(max(values), abs=0.001) and figures["n"] == len(values)


def test_percentiles_of_nothing_are_an_error():
    with pytest.raises(ValueError, match="no values"):
        common.percentiles([])


def test_a_table_is_markdown():
    assert common.table(["", "n"], [["a", 1.25], ["bc", 3]]).splitlines() == [
        "|     |   n |", "| --- | --: |", "| a   | 1.2 |", "| bc  |   3 |",
    ]  # fmt: skip


@pytest.fixture
def result() -> common.Result:
    return common.Result("trial", {"utterances": 3}, ["the subscriber is near"], {"total": {"p50": 1.0}})


@pytest.mark.process
def test_a_result_states_its_machine_versions_settings_and_bias(result, tmp_path):
    assert common.finish(tmp_path, result, "| table |", lambda path: path.write_bytes(b"png") and None) == 0
    written = json.loads((tmp_path / "trial.json").read_text())
    assert written.keys() == {"name", "when", "machine", "versions", "settings", "bias", "figures", "faults"}
    assert written["machine"]["cores"] >= 1 and written["versions"]["python"]
    text = (tmp_path / "trial.md").read_text()
    for part in ("| table |", "utterances = 3", "the subscriber is near", written["machine"]["cpu"], "trial.png"):
        assert part in text
    assert (tmp_path / "trial.png").read_bytes() == b"png"


@pytest.mark.process
def test_faults_make_the_exit_code_and_no_old_picture_stays(result, tmp_path, capsys):
    (tmp_path / "trial.png").write_bytes(b"of an older run")
    faulty = replace(result, figures={}, faults=["missed: 3"])
    assert common.finish(tmp_path, faulty, "nothing", lambda path: pytest.fail("there is nothing to draw")) == 1
    assert not (tmp_path / "trial.png").exists()
    assert "missed: 3" in capsys.readouterr().err and "must not be quoted" in (tmp_path / "trial.md").read_text()


def test_import_times_are_summed_by_package():
    text = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:      1500 |       1500 |   numpy.core\n"
        "import time:       500 |       2000 | numpy\n"
        "Some other line\n"
        "import time:      3000 |       3000 | zmq\n"
    )
    assert startup.parse_importtime(text) == {"zmq": 3.0, "numpy": 2.0}
    assert list(startup.parse_importtime(text)) == ["zmq", "numpy"]


# The commands


@pytest.mark.process
def test_a_missed_utterance_makes_the_commands_exit_code(monkeypatch, tmp_path, capsys):
    """The files are still written, and say that the figures must not be quoted."""

    def measure(played: script.Script, setting: str, recognizer: str, changes, progress) -> live_run.Watch:
        assert recognizer == "none" and changes == []
        first = played.utterances[0]
        return live_run.Watch(T0_NS, [label(first.start_ns / 1e9, round(first.end_ns / 1e9, 3))])

    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.delenv("EMOSTREAM_DATA", raising=False)
    assert latency.main(["--settings", "audio", "--utterances", "2", "--out", str(tmp_path)]) == 1
    assert "audio: missed: demo 2 (anger)" in capsys.readouterr().err
    assert json.loads((tmp_path / "latency.json").read_text())["faults"]
    assert (tmp_path / "latency.png").exists()


def test_word_errors_and_what_grids_names_say(tmp_path):
    assert words.errors("a b c".split(), "a b c".split()) == 0
    assert words.errors("a b c".split(), "x b c d".split()) == 2
    assert words.errors("a b c".split(), []) == 3
    (tmp_path / "ravdess").mkdir()
    (tmp_path / "ravdess" / "03-01-05-01-02-01-12.wav").touch()
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "grid_lwbszn.mpg").touch()
    assert [clip.said for clip in words.clips(tmp_path, 5, lines=0)] == [
        "dogs are sitting by the door", "lay white by s zero now",
    ]  # fmt: skip


@pytest.mark.parametrize("benchmark", [latency, endpoint, words])
def test_a_folder_without_recordings_is_wrong_usage(benchmark, tmp_path, capsys):
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path)]
    assert exit_code(lambda: benchmark.main(arguments)) == 2
    assert "no RAVDESS speech clips" in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.parametrize("module", [networks, startup], ids=lambda module: module.__name__)
def test_a_benchmark_runs_as_a_file_and_as_a_module(module):
    """From a checkout's root, as the documents say."""
    name = module.__name__.rpartition(".")[2]
    for command in ([f"benchmarks/{name}.py"], ["-m", f"benchmarks.{name}"]):
        done = subprocess.run([sys.executable, *command, "--help"], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: {name}.py ") and "--quick" in done.stdout


@pytest.mark.process
@pytest.mark.parametrize("process", startup.WORK)
def test_what_a_process_imports_and_loads_is_there(process):
    """WORK is code in strings, which no type checker reads."""
    times = startup.alone(process)
    assert times["imports"] > 0 and times["loading"] > 0


@pytest.mark.process
@pytest.mark.alone
def test_latency_of_the_real_pipeline(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("EMOSTREAM_DATA", raising=False)
    code = latency.main(["--quick", "--settings", "audio", "--out", str(tmp_path)])
    assert code == 0, capsys.readouterr().err
    figures = json.loads((tmp_path / "latency.json").read_text())["figures"]["audio"]
    assert figures["utterances"] == figures["labels"] == figures["total"]["n"] == 2
    assert 192 <= figures["parts"]["endpoint_wait"]["mean"] <= 432  # the hangovers, in whole frames of 32 ms
    assert 0 < figures["confirmed end → label"]["p50"] < 5000
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert "confirmed end → label" in (tmp_path / "latency.md").read_text()


@pytest.mark.long
@pytest.mark.process
def test_milestones_of_a_real_start():
    times, faults = startup.measure(to_label=False)
    assert not faults
    order = ["supervisor up", "all processes started", "all nodes ready", "go"]
    assert sorted(order, key=times.__getitem__) == order
    assert all(times[f"{name} started"] < times[f"{name} ready"] for name in startup.NODES)
