"""Contact sheets: what they collect, their layout and drawing, and the folder that they are written into."""

from __future__ import annotations

import io
import json
import logging
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from emostream.errors import ConfigError
from emostream.stream.messages import Face, FaceInFrame, Pcm
from emostream.stream.sheet.collect import Sheet
from emostream.stream.sheet.drawing import _COLOURS, draw
from emostream.stream.sheet.folder import Sheets
from emostream.stream.sheet.layout import Layout
from tests import media
from tests.emotions import emotion_message
from tests.processes import command

NAMES = ("anger", "joy", "neutral")


def sheet_of(*spans: tuple[float, float], length_s: float, name: str = "a.wav", **changes) -> Sheet:
    """A recording with a tone in each span and silence between, an utterance in each."""
    sheet = Sheet(name)
    for i in range(int(length_s * 10)):
        loud = any(start_s <= i / 10 < end_s for start_s, end_s in spans)
        samples = (np.sin(np.arange(1600) / 5) * (8000 if loud else 0)).astype(np.int16)
        times = {"media_start_ns": i * 100_000_000, "media_end_ns": (i + 1) * 100_000_000, "captured_ns": 0}
        sheet.take(Pcm(stream="a", samples=samples, **times))
    for number, (start_s, end_s) in enumerate(spans, 1):
        fields = {"label": "joy", "probabilities": {"anger": 0.1, "joy": 0.8, "neutral": 0.1}} | changes
        times = {"utterance": number, "start_s": start_s, "end_s": end_s}
        sheet.add(emotion_message(kind="window", **times | fields | {"end_s": (start_s + end_s) / 2}))
        sheet.add(emotion_message(**times | fields))
    return sheet


def pixels(picture: bytes) -> np.ndarray:
    """A PNG as (height, width, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def share_of(colour: str, picture: bytes) -> float:
    """The part of a picture that has nearly this colour."""
    near = np.abs(pixels(picture).astype(int) - np.round(255 * np.array(to_rgb(colour)))) <= 6
    return float(near.all(axis=2).mean())


# What is collected


def test_crops_are_those_of_the_face_that_the_label_is_of_within_its_utterance():
    sheet = Sheet("a.mp4")
    for i in range(30):
        mine, other = np.full((48, 48), i, np.uint8), np.full((48, 48), 100 + i, np.uint8)
        times = {"media_start_ns": i * 100_000_000, "media_end_ns": i * 100_000_000, "captured_ns": 0}
        sheet.take(Face(stream="a", crop=other, person=1, others=[FaceInFrame(2, mine)], faces=2, **times))
    for face in (2, 1, None):
        sheet.add(emotion_message(start_s=1.0, end_s=2.0, face=face))
    first, second, none = ([int(crop[0, 0]) for crop in said.crops] for said in sheet.said)
    assert first == [11, 13, 16, 18] and second == [111, 113, 116, 118] and none == []
    sheet.forget_before(1_500_000_000)
    sheet.add(emotion_message(start_s=1.0, end_s=2.0, face=2))
    assert [int(crop[0, 0]) for crop in sheet.said[-1].crops] == [15, 16, 18, 19]


def test_the_waveform_has_the_lowest_and_highest_samples_and_gaps():
    sheet = Sheet("a.wav")
    for start_ns, samples in ((0, [0, -16384, 3, 8192, 1, 1, 2, 2]), (2_000_000_000, [5]), (2_000_000_000, [])):
        times = {"media_start_ns": start_ns, "media_end_ns": start_ns + 32_000_000, "captured_ns": 0}
        sheet.take(Pcm(stream="a", samples=np.array(samples, np.int16), **times))
    wave = sheet.waveform()
    assert wave.peaks[:2].tolist() == [[-0.5, 0.0], [3 / 32768, 0.25]] and len(wave.peaks) == 5
    assert wave.edges_s[:, 0].tolist() == pytest.approx([0, 0.008, 0.016, 0.024, 2.0])
    assert len(wave.cut(0.008, 2.0).peaks) == 3 and sheet.length_s == pytest.approx(2.032)


# Layout


@pytest.mark.slow
def test_no_row_cuts_an_utterance_and_no_time_is_left_out():
    spans = [(i * 7.0, i * 7.0 + 5.5) for i in range(60)]
    sheet = sheet_of(*spans, length_s=425.0)
    row_s, rows = sheet.rows(most=100)
    assert row_s == 30 and rows[0][0] == 0 and rows[-1][1] == pytest.approx(425.0)
    assert all(first[1] == second[0] for first, second in pairwise(rows))
    assert all(end_s - start_s <= row_s for start_s, end_s in rows)
    for start_s, end_s in spans:
        assert any(first <= start_s and end_s <= last for first, last in rows), (start_s, end_s)


def test_speech_without_a_pause_and_an_utterance_longer_than_a_row():
    sheet = sheet_of((0.0, 15.0), (15.0, 30.0), (30.0, 45.0), (45.0, 100.0), length_s=100.0)
    _, rows = sheet.rows(most=100)
    assert rows == [(0.0, 30.0), (30.0, 45.0), (45.0, 75.0), (75.0, 100.0)]


@pytest.mark.parametrize("hours", [1, 24, pytest.param(100, marks=pytest.mark.slow)])
def test_a_long_recording_has_a_bounded_number_of_pages(hours):
    sheet = Sheet("a.wav")
    for start_s in range(0, hours * 3600, 20):
        sheet.add(emotion_message(start_s=float(start_s), end_s=start_s + 15.0))
    assert 5 < len(Layout(sheet).pages) <= 20


def test_a_short_recording_has_one_row_of_its_own_scale():
    assert sheet_of((0.5, 2.0), length_s=5.0).rows(most=9) == (5.0, [(0.0, 5.0)])
    assert len(Layout(sheet_of((0.5, 2.0), length_s=5.0)).pages) == 1


# The pictures


@pytest.mark.slow
def test_an_uncertain_label_looks_otherwise_and_labels_have_their_places():
    sure = draw(sheet_of((1.0, 4.0), length_s=5.0))[0]
    unsure = draw(sheet_of((1.0, 4.0), length_s=5.0, uncertain=True))[0]
    other = draw(sheet_of((1.0, 4.0), length_s=5.0, label="anger"))[0]
    assert pixels(sure).shape[1] == 1800 and sure != unsure != other
    assert share_of(_COLOURS["joy"], sure) > share_of(_COLOURS["joy"], unsure) > 0.0001  # dashed
    assert share_of(_COLOURS["anger"], sure) == 0 and share_of(_COLOURS["anger"], other) > 0.0001


@pytest.mark.slow
def test_faces_are_drawn_where_they_are_known():
    sheet = sheet_of((1.0, 4.0), length_s=5.0)
    plain = draw(sheet)[0]
    crop = np.full((48, 48), 77, np.uint8)
    sheet.take(Face(stream="a", media_start_ns=10**9, media_end_ns=10**9, captured_ns=0, crop=crop, person=1, faces=1))
    without = draw(sheet)[0]
    sheet.add(emotion_message(start_s=1.0, end_s=4.0, face=1, probabilities=sheet.said[0].label.probabilities))
    sheet.said.pop(0)
    with_face = draw(sheet)[0]
    gray = "#4d4d4d"
    assert share_of(gray, with_face) > 0.004 > share_of(gray, without) and len(pixels(without)) > len(pixels(plain))


@pytest.mark.long
@pytest.mark.slow
def test_pages_of_a_long_recording_are_bounded_and_each_shows_the_whole():
    spans = [(i * 8.0, i * 8.0 + (0.4 if i % 3 else 7.0)) for i in range(60)]
    pages = draw(sheet_of(*spans, length_s=490.0))
    assert len(pages) > 1 and all(len(pixels(page)) <= 2546 for page in pages)
    tops = [pixels(page)[: 140 * 150 // 72] for page in pages]
    assert all(share_of(_COLOURS["joy"], page) > 0.001 for page in pages) and (tops[0] != tops[1]).any()


@pytest.mark.slow
def test_odd_content_is_drawn(caplog):
    odd = sheet_of(
        (0.0, 0.05), (0.05, 0.1), length_s=0.2, name="$x^{$ \\udcff\n.wav", text="$\\frac{ 한국어 " + "w" * 300
    )
    odd.said[0].label.label = "awe"  # a label of a user's own bundle
    odd.said[0].label.probabilities = {"awe": 0.7, "joy": 0.2, "calm": 0.1}
    with caplog.at_level(logging.WARNING):
        assert draw(odd)[0].startswith(b"\x89PNG")
    assert all("boxes on its sheet" in line for line in caplog.messages)
    assert draw(sheet_of(length_s=3.0))[0].startswith(b"\x89PNG")  # nobody spoke
    assert draw(Sheet("empty"))[0].startswith(b"\x89PNG")


# The folder


def test_sheets_are_private_and_pages_of_a_longer_one_go(tmp_path, monkeypatch):
    from emostream.stream.sheet import drawing

    recording = Path("talk.wav")
    sheets = Sheets(tmp_path / "new" / "sheets", [recording])
    for pages in ([b"1", b"2", b"3"], [b"4"]):
        monkeypatch.setattr(drawing, "draw", lambda sheet, pages=pages: pages)
        sheets.write(recording, Sheet("talk.wav"))
        found = {path.name: path.read_bytes() for path in (tmp_path / "new" / "sheets").iterdir()}
        assert list(found[name] for name in sorted(found, key=len)) == pages
    assert sheets.path(recording).stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_be_and_a_package_that_is_missing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        Sheets(tmp_path / "file", [Path("a.wav")])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"contact sheet needs a package \(matplotlib\): pip install 'emo"):
        Sheets(tmp_path / "out", [Path("a.wav")])
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.process
def test_a_batch_goes_on_after_a_fault_and_is_resumed(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        media.audio_only(tmp_path / folder / "talk.wav", 4.0)
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    files = [tmp_path / "broken.wav", tmp_path / "a" / "talk.wav", tmp_path / "b" / "talk.wav"]
    out, sheets = tmp_path / "labels.jsonl", tmp_path / "sheets"
    label = ["stream-label", "--set", "speech.recognizer=none", *files, "--sheets", sheets, "--out", out]
    done = command(*label)
    assert done.returncode == 1 and "broken.wav" in done.stderr, done.stderr
    names = ["a_talk.wav.png", "b_talk.wav.png"]
    assert sorted(path.name for path in sheets.iterdir()) == names
    assert all(share_of("#1d1c1a", (sheets / name).read_bytes()) > 0.001 for name in names)
    lines = out.read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["utterance"] * 2 and len(lines) == 2
    (sheets / names[0]).unlink()
    before = (sheets / names[1]).stat().st_mtime_ns
    done = command(*label, "--resume")
    assert done.returncode == 1 and "has the sheets of 1 of them already" in done.stderr, done.stderr
    assert sorted(path.name for path in sheets.iterdir()) == names
    assert (sheets / names[1]).stat().st_mtime_ns == before
    assert [json.loads(line)["source"] for line in out.read_text().splitlines()] == [str(path) for path in files[1:]]
    shutil.rmtree(sheets)
    done = command("stream-label", files[1], "--resume", "--set", "speech.recognizer=none")
    assert done.returncode == 2 and "--resume is for what --out and --sheets name" in done.stderr
