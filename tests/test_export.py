"""Labels in the formats of other tools, read back by those tools' own libraries."""

from __future__ import annotations

import csv
import io
import stat
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pyarrow.parquet as parquet
import pympi
import pytest
from praatio import textgrid

from emostream.errors import ConfigError
from emostream.stream.export import WRITERS, Export, file_names, form_of
from tests import media
from tests.emotions import emotion_message
from tests.processes import BIN, environment

LABELS = [
    emotion_message(start_s=0.5, end_s=3.0, text='=so "happy", & <b>', uncertain=True),
    emotion_message(start_s=3661.25, end_s=3662.0, label="anger", text="", valence=-0.5),
]


def test_csv():
    rows = list(csv.DictReader(io.StringIO(WRITERS["csv"](LABELS).decode())))
    assert [row["label"] for row in rows] == ["joy", "anger"] and rows[0]["text"] == '\'=so "happy", & <b>'
    assert (rows[0]["p_joy"], rows[1]["valence"], rows[0]["has_audio"]) == ("0.75", "-0.5", "1.0")


def test_parquet(tmp_path):
    (tmp_path / "x").write_bytes(WRITERS["parquet"](LABELS))
    rows = parquet.read_table(tmp_path / "x").to_pylist()
    assert rows[0]["text"] == '=so "happy", & <b>' and rows[1]["start_s"] == 3661.25 and rows[0]["uncertain"] is True


def test_vtt():
    text = WRITERS["vtt"](LABELS).decode()
    assert text.startswith("WEBVTT\n")
    assert '00:00:00.500 --> 00:00:03.000\n<v a>[joy?] =so "happy", &amp; &lt;b>' in text
    assert "01:01:01.250 --> 01:01:02.000\n<v a>[anger] …" in text


def test_elan(tmp_path):
    (tmp_path / "x.eaf").write_bytes(WRITERS["eaf"](LABELS))
    document = pympi.Elan.Eaf(str(tmp_path / "x.eaf"))
    assert [tuple(one[:3]) for one in sorted(document.get_annotation_data_for_tier("emotion"))] == [
        (500, 3000, "joy?"), (3_661_250, 3_662_000, "anger"),
    ]  # fmt: skip
    assert sorted(document.get_annotation_data_for_tier("words"))[0][2] == '=so "happy", & <b>'


def test_praat(tmp_path):
    overlapping = [*LABELS, emotion_message(start_s=2.5, end_s=4.0, label="fear")]
    (tmp_path / "x.TextGrid").write_bytes(WRITERS["textgrid"](overlapping))
    grid = textgrid.openTextgrid(str(tmp_path / "x.TextGrid"), includeEmptyIntervals=False)
    entries = [(round(e.start, 2), round(e.end, 2), e.label) for e in grid.getTier("emotion").entries]
    assert entries == [(0.5, 3.0, "joy?"), (3.0, 4.0, "fear"), (3661.25, 3662.0, "anger")]


ODD = ["\t=1", "\r=1", "one\r\n\r\n00:00:00.000 --> 99:00:00.000\ntwo", "nul\x00 bell\x07 \ufffe", "＝1", "a\u2028b"]


def test_words_with_control_characters_break_no_form(tmp_path):
    """Read by another library than wrote them."""
    labels = [emotion_message(start_s=2.0 * i, end_s=2.0 * i + 1, text=text) for i, text in enumerate(ODD)]
    plain = ["=1", "=1", "one 00:00:00.000 --> 99:00:00.000 two", "nul  bell", "＝1", "a b"]
    rows = list(csv.DictReader(io.StringIO(WRITERS["csv"](labels).decode(), newline="")))
    assert [row["text"].removeprefix("'") for row in rows] == plain
    assert [row["text"][0] == "'" for row in rows] == [True, True, False, False, True, False]
    document = ElementTree.fromstring(WRITERS["eaf"](labels))
    words = document.find("TIER[@TIER_ID='words']")
    assert words is not None and [value.text for value in words.iter("ANNOTATION_VALUE")] == plain
    (tmp_path / "x.TextGrid").write_bytes(WRITERS["textgrid"](labels))
    tier = pympi.Praat.TextGrid(str(tmp_path / "x.TextGrid"), codec="utf-8").get_tier("words")
    assert [text for _, _, text in tier.get_intervals() if text.strip()] == plain
    cues = WRITERS["vtt"](labels).decode().split("\n\n")
    assert len(cues) == 1 + len(ODD) and all(cue.count("-->") == 1 for cue in cues[1:])


@pytest.mark.parametrize("form", WRITERS)
def test_nothing_is_a_file_too(form):
    assert isinstance(WRITERS[form]([]), bytes)


def test_forms_of_names(tmp_path):
    names = {"x.csv": "csv", "x.TextGrid": "textgrid", "x.EAF": "eaf", "labels": "jsonl", "x.json": "jsonl"}
    assert {name: form_of(tmp_path / name) for name in names} == names
    with pytest.raises(ConfigError, match=r"can be written as \.jsonl, \.csv"):
        form_of(tmp_path / "x.xlsx")


def test_what_cannot_be_written_is_said_before_anything_is_labelled(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        Export(tmp_path / "no" / "x.csv", "csv", [tmp_path / "a"])
    with pytest.raises(ConfigError, match="is for one recording; name a folder"):
        Export(tmp_path / "x.vtt", "vtt", [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ConfigError, match="/dev/null: is no file"):
        Export(Path("/dev/null"), "csv", [tmp_path / "a"])


def test_recordings_of_one_name_in_two_folders_do_not_overwrite_each_other(tmp_path):
    first, second, other = tmp_path / "a" / "talk.mp4", tmp_path / "b" / "talk.mp4", tmp_path / "b" / "more.mp4"
    export = Export(tmp_path / "out", "vtt", [first, second, other])
    for path, text in ((first, "one"), (second, "two"), (other, "three")):
        export.add(emotion_message(text=text))
        export.end_recording(path)
    written = {path.name: path.read_text().split("] ")[1].strip() for path in (tmp_path / "out").iterdir()}
    assert written == {"a_talk.mp4.vtt": "one", "b_talk.mp4.vtt": "two", "more.mp4.vtt": "three"}


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/x/a/t.wav", "/y/a/t.wav", "/z/b/t.wav"], ["x_a_t.wav", "y_a_t.wav", "b_t.wav"]),
        (["/a/t.wav", "/a/T.wav"], ["1_a_t.wav", "2_a_T.wav"]),
        (["/a/t.wav", "/t.wav", "/a_t.wav"], ["1_a_t.wav", "t.wav", "3_a_t.wav"]),
        (["t.wav", "./x/../t.wav"], ["t.wav", "t.wav"]),
    ],
)
def test_names_of_what_is_made_of_recordings(paths, names):
    assert list(file_names([Path(path) for path in paths]).values()) == names


@pytest.mark.long
@pytest.mark.process
def test_stream_label_writes_them(tmp_path):
    for name in ("a", "b"):
        media.audio_only(tmp_path / f"{name}.wav", 4.0)
    label = [BIN / "stream-label", "--set", "speech.recognizer=none", tmp_path / "a.wav"]
    for more in (
        [tmp_path / "b.wav", "--out", tmp_path / "out", "--format", "textgrid"],
        ["--out", tmp_path / "x.csv"],
    ):
        done = subprocess.run(
            [*label, *more], capture_output=True, text=True, env=environment(), timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.wav.TextGrid", "b.wav.TextGrid"]
    assert (tmp_path / "x.csv").read_text().splitlines()[1].split(",")[1:3] == ["a.wav", f"{tmp_path}/a.wav"]


@pytest.mark.long
@pytest.mark.process
def test_a_table_whose_command_is_killed_loses_no_label(tmp_path):
    files = [media.audio_only(tmp_path / f"{n}.wav", 4.0) for n in range(3)]
    label = [BIN / "stream-label", "--set", "speech.recognizer=none", *files, "--out"]
    out, journal, whole = tmp_path / "x.csv", tmp_path / "x.csv.jsonl", tmp_path / "whole.csv"
    out.write_text("older\n")
    with subprocess.Popen([*label, out], stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None and [process.stdout.readline() for _ in range(2)]
        process.kill()
    assert out.read_text() == "older\n" and journal.read_text().count("\n") >= 2
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    for path, note in ((out, f"has the labels of {journal.read_text().count(chr(10)) - 1} of them"), (whole, "")):
        done = subprocess.run([*label, path, "--resume"], capture_output=True, text=True, env=environment(), timeout=60)
        assert done.returncode == 0 and note in done.stderr, done.stderr
    assert out.read_text() == whole.read_text() and out.read_text().count("\n") == 4 and not journal.exists()
    done = subprocess.run([*label, out, "--resume"], capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 2 and f"{out}: is done" in done.stderr
