"""stream/summary.py and stream/view.py"""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from emostream.stream.emotion import Emotion, Evidence, Latency
from emostream.stream.messages import Health
from emostream.stream.status import NodeStatus, Status, StreamStatus
from emostream.stream.summary import Summary
from emostream.stream.view import JsonView, LiveView, PlainView, plain_line, senses_line, wrapped


def _emotion(**changes: Any) -> Emotion:
    fields = {
        "kind": "utterance", "stream": "demo", "seq": 0, "utterance": 1, "start_s": 0.5, "end_s": 3.0,
        "label": "joy", "confidence": 0.714, "uncertain": False,
        "probabilities": {"anger": 0.1, "joy": 0.714, "neutral": 0.186}, "text": "so happy [today]", "words": [],
        "modalities": {"audio": Evidence(250, 1.0, 0.2), "video": Evidence(0, 0.0, 0.0), "text": Evidence(3, 0.4, 0.1)},
        "latency_ms": _latency(431.4), "captured_ns": 1, "published_ns": 2, "bundle": "b", "backend": "c",
    }  # fmt: skip
    return Emotion(**(fields | changes))


def _latency(total: float) -> Latency:
    return Latency(total, total - 30, 18.0, 1.0, 4.0, 6.0, 1.0)


def _health(node: str, **fields: Any) -> Health:
    return Health(**({"node": node, "state": "running"} | fields))


# The summary


def test_a_run_without_anything():
    assert Summary().lines() == [
        "utterances: 0 labelled of 0 heard",
        "lost: nothing",
        "dropped: 0   missed in transit: 0   gaps in capture: 0",
    ]


def test_labels_are_counted_and_running_estimates_are_not():
    summary = Summary()
    for label in ("joy", "anger", "joy"):
        summary.add(_emotion(label=label))
    summary.add(_emotion(kind="window", label="fear", latency_ms=None))
    summary.status.streams = {"left": StreamStatus(heard=3), "right": StreamStatus(heard=1)}
    assert summary.utterances == 3
    assert summary.lines()[0] == "utterances: 3 labelled of 4 heard  (joy 2, anger 1)"


def test_percentiles_of_each_part_of_the_latency():
    summary = Summary()
    for total in range(101):  # percentile p of 0 … 100 is p
        summary.add(_emotion(latency_ms=_latency(300.0 + total)))
    summary.add(_emotion(latency_ms=None))
    lines = summary.lines()
    assert lines[2] == "latency: half came within 350 ms of the last word, nine of ten within 390 ms"
    assert "(n=101)" in lines[4]
    rows = {line.split()[0]: line.split()[1:] for line in lines[6:13]}
    assert rows["total"] == ["350.0", "390.0", "399.0"]
    assert rows["endpoint_wait"] == ["320.0", "360.0", "369.0"]
    assert rows["recognition"] == ["18.0", "18.0", "18.0"]
    assert set(rows) == {"total", "endpoint_wait", "recognition", "queue", "encode", "fusion", "other"}


def test_percentiles_are_of_the_last_ten_thousand_utterances():
    summary = Summary()
    held = summary.latencies.nbytes
    for number in range(10_100):
        summary.add(_emotion(latency_ms=_latency(9000.0 if number < 100 else 300.0)))
    assert summary.latencies.nbytes == held
    lines = summary.lines()
    assert "(n=10000)" in lines[4]
    assert lines[6].split() == ["total", "300.0", "300.0", "300.0"]
    assert lines[13].endswith("0 of 10100")


def test_without_latencies_there_is_no_table_of_them():
    summary = Summary()
    summary.add(_emotion(latency_ms=None))
    assert not any("latency" in line for line in summary.lines())


def test_losses_are_named_by_node_and_stream():
    summary = Summary()
    summary.status = Status(
        nodes={
            "fusion": NodeStatus(dropped=7, gaps=2, counters={"utterances_in": 3, "labels_ready_at_end": 2}, starts=1),
            "speech.demo": NodeStatus(dropped=5, starts=1),
            "audio.demo": NodeStatus(counters={"capture_gaps": 4}, starts=3, away_s=1.25),
        },
        streams={"demo": StreamStatus(state="ended", heard=3, labelled=1, unlabelled=2, sound_lost_s=0.6)},
    )
    summary.add(_emotion())
    lines = summary.lines()
    assert lines[3] == "lost: demo: ended, 1 labelled of 3 heard, 0.6 s of sound lost, 2 without a label"
    assert lines[-2:] == [
        "dropped: 12 (fusion 7, speech.demo 5)   missed in transit: 2 (fusion 2)   gaps in capture: 4 (audio.demo 4)",
        "started again: 2 (audio.demo 2), away for 1.2 s in all",
    ]
    assert "labels already computed at the pause: 2 of 1" in "\n".join(lines)


def test_nothing_was_lost_is_said_only_where_nothing_was():
    summary = Summary()
    for node in (NodeStatus(dropped=1), NodeStatus(gaps=1), NodeStatus(counters={"late_frames": 1})):
        summary.status = Status(nodes={"video.demo": node}, streams={"demo": StreamStatus(heard=1, labelled=1)})
        assert "lost: no utterance; what was dropped or missing is below" in summary.lines()
        assert "1 (video.demo 1)" in summary.lines()[-1]
    summary.status = Status(nodes={"fusion": NodeStatus(counters={"not_published": 4})})
    assert "lost: nothing" in summary.lines() and "had the endpoint: 4 labels" in summary.lines()[-1]


# One line per label


def test_what_came_too_late_is_told():
    nodes = {"capture.a": NodeStatus(counters={"late_chunks": 3, "late_frames": 2}), "fusion": NodeStatus()}
    assert "came too late to be used: 5 (capture.a 5)" in Summary(status=Status(nodes=nodes)).lines()
    assert not any("too late" in line for line in Summary(status=Status(nodes={"fusion": NodeStatus()})).lines())


def test_a_label_as_a_line():
    line = plain_line(_emotion())
    assert line.split() == ["demo", "0.50-", "3.00", "s", "joy", "71%", "431", "ms", "[a-t]", "so", "happy", "[today]"]


def test_lines_of_different_labels_are_aligned():
    lines = [
        plain_line(_emotion()),
        plain_line(_emotion(label="surprise", uncertain=True, confidence=1.0, latency_ms=None, start_s=100, end_s=103)),
    ]
    assert len({line.index("[a-t]") for line in lines}) == 1
    assert "surprise?" in lines[1]
    assert "ms" not in lines[1]


def test_a_label_without_words_ends_without_blanks():
    assert plain_line(_emotion(text="")).endswith("[a-t]")
    assert plain_line(_emotion(final=False)) == plain_line(_emotion()) + " …"


def _consoles(**options: Any) -> tuple[Console, Console]:
    return tuple(Console(file=io.StringIO(), width=80, **options) for _ in range(2))  # type: ignore[return-value]


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("quiet", [False, True])
def test_plain_view(quiet):
    out, errors = _consoles()
    view = PlainView(out, errors, quiet)
    view.emotion(_emotion(text="many words " * 20))
    view.emotion(_emotion(kind="window"))
    view.health(_health("fusion"))
    view.log("fusion", "info", "bundle [bold]ekman7[/bold]")
    view.log("audio.demo", "warning", "a gap")
    view.close()
    labels, told = _text(out).splitlines(), _text(errors).splitlines()
    assert len(labels) == (0 if quiet else 1)  # not wrapped, and not the running estimate
    times = [line.partition(" ")[0] for line in told]  # stderr is not a terminal
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one) for one in times)
    told = [line.partition(" ")[2] for line in told]
    assert told == ([] if quiet else ["info: fusion: bundle [bold]ekman7[/bold]"]) + ["warning: audio.demo: a gap"]


def test_on_a_terminal_a_plain_log_line_has_no_time():
    out, errors = _consoles(force_terminal=True)
    PlainView(out, errors).log("audio.demo", "warning", "a gap")
    assert "\nwarning: audio.demo: a gap" in f"\n{_text(errors)}"


@pytest.mark.parametrize("quiet", [False, True])
def test_json_view(quiet):
    out, errors = io.StringIO(), io.StringIO()
    view = JsonView(out, errors, quiet)
    view.emotion(_emotion(text="so\nhappy 😀"))
    view.emotion(_emotion(kind="window"))
    view.health(_health("fusion"))
    view.log("fusion", "info", "begins")
    view.log("audio.demo", "warning", 'a "gap"')
    view.summary(["one", "two"])
    view.close()
    shown, told = ([json.loads(line) for line in file.getvalue().splitlines()] for file in (out, errors))
    assert [line["message"] for line in told] == ([] if quiet else ["begins"]) + ['a "gap"']
    assert (told[-1]["level"], told[-1]["node"], told[-1]["stream"]) == ("warning", "audio.demo", "demo")
    assert [line["kind"] for line in shown] == ([] if quiet else ["label"]) + ["summary"]
    assert shown[-1]["message"] == "one\ntwo"
    if not quiet:
        assert shown[0]["label"] == "joy" and shown[0]["stream"] == "demo" and "so\nhappy 😀" in shown[0]["message"]
        assert not {"text", "words"} & shown[0].keys()  # words are only where a plain line shows them


# The moving picture


@pytest.fixture
def live():
    console = Console(file=io.StringIO(), width=100, height=40, force_terminal=True, color_system="truecolor")
    view = LiveView(console, ["demo", "door"], "emostream")
    yield view, console
    view.close()


def _picture(view: LiveView) -> str:
    console = Console(file=io.StringIO(), width=100, height=60)
    console.print(view.render())
    return _text(console)


def test_how_sure_it_was_comes_second():
    summary = Summary()
    for uncertain in (True, False, False):
        summary.add(_emotion(uncertain=uncertain))
    assert summary.lines()[1] == "sure: 2 of 3 (the others: ?)"


def running(*names: str, **fields) -> Status:
    return Status(state="running", streams={name: StreamStatus(state="running", **fields) for name in names})


def test_before_anyone_speaks(live):
    view, _ = live
    assert _picture(view).count("starting …") == 2
    names = list(view._now)
    view.status(running(*names, level_dbfs=-42.0, speech=0.031, face=1.0))
    picture = _picture(view)
    assert picture.count("listening …") == 2 and "starting" not in picture
    assert picture.count("level ▃ -42 dB   speech 3%   a face") == 2
    assert "[avt]" in picture and "?: not sure" in picture
    assert "emostream" in picture


def test_while_someone_speaks_and_after(live):
    view, console = live
    view.status(running(*view._now))
    view.emotion(_emotion(kind="window", latency_ms=None))
    picture = _picture(view)
    assert "speaking" in picture
    assert "so happy [today]" in picture
    assert picture.count("listening …") == 1
    assert all(label in picture for label in ("anger", "joy", "neutral"))
    assert "valence" not in picture
    view.emotion(_emotion(valence=0.5, arousal=-0.25))
    assert "valence +0.50  arousal -0.25" in _picture(view)
    view.emotion(_emotion())
    picture = _picture(view)
    assert "speaking" not in picture
    assert "431 ms after the last word" in picture
    view.close()
    assert "so happy [today]" in _text(console)  # the line stays when the picture is gone


def test_bars_are_as_long_as_the_probabilities(live):
    view, _ = live
    view.emotion(_emotion(probabilities={"anger": 0.0, "joy": 1.0, "neutral": 0.5}))
    bars = {line.split()[1]: line for line in _picture(view).splitlines() if "█" in line or "·" in line}
    assert bars["anger"].count("█") == 0
    assert bars["joy"].count("·") == 0
    assert bars["neutral"].count("█") == bars["neutral"].count("·") == bars["joy"].count("█") / 2


def test_health_is_shown_with_load_and_losses(live):
    view, _ = live
    second = 1_000_000_000
    view.health(_health("fusion", cpu_s=1.0, sent_ns=second, rss_bytes=100 * 2**20))
    view.health(_health("fusion", cpu_s=1.5, sent_ns=3 * second, rss_bytes=120 * 2**20, dropped=3, gaps=4))
    view.health(_health("audio.demo", rss_bytes=2**20))
    picture = _picture(view)
    assert "fusion 25% 120M lost 7" in picture
    assert "audio.demo 0% 1M" in picture


@pytest.mark.parametrize(
    "emotion",
    [
        _emotion(text=""),
        _emotion(text="[/red] [not a tag \x1b[31m", label="pride", probabilities={"pride": 1.0}),
        _emotion(text="word " * 200, latency_ms=None),
        _emotion(stream="one that was not announced"),
        _emotion(probabilities={"joy": 1.0000001, "anger": -0.0000001}),
    ],
)
def test_nothing_in_a_message_breaks_the_picture(live, emotion):
    view, _ = live
    view.emotion(emotion)
    view.log("fusion", "error", "[/] not markup")
    view.log("fusion", "unheard of", "level")
    assert emotion.label in _picture(view)


def test_three_streams_fit_a_small_terminal():
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    view = LiveView(console, ["a", "b", "c"], "emostream")
    view.status(running("a", "b", "c", level_dbfs=-20.0, speech=1.0, face=0.0))
    for stream in "abc":
        view.emotion(_emotion(stream=stream, text="word " * 60))
    view.close()
    shown = Console(file=io.StringIO(), width=80, height=24)
    shown.print(view.render())
    lines = shown.file.getvalue().splitlines()  # type: ignore[attr-defined]  # a StringIO
    assert len(lines) <= 23 and all(len(line) <= 80 for line in lines)
    assert sum("joy" in line for line in lines) == 3


@pytest.mark.parametrize("width", [40, 80, 100, 300])
def test_long_sentences_go_on_below_their_beginning(width):
    line = plain_line(_emotion(text="a rather long sentence that goes on and on " * 4))
    lines = wrapped(line, width).splitlines()
    assert " ".join(part.strip() for part in lines).split() == line.split()
    if width >= 82:
        assert all(len(part) <= width for part in lines)
        assert all(part.startswith(" " * 41) for part in lines[1:])


@pytest.mark.parametrize(
    ("face", "words"), [(1.0, "a face"), (0.2, "now and then a face"), (0.0, "no face"), (None, "")]
)
def test_what_is_heard_and_seen(face, words):
    assert senses_line(StreamStatus(face=face)) == words
    assert senses_line(StreamStatus(level_dbfs=-120.0, speech=0.0)) == "level ▁ -120 dB   speech 0%"
    assert senses_line(StreamStatus(level_dbfs=0.0)) == "level █ 0 dB"
