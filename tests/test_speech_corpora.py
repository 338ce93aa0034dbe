"""train/corpora/nemo.py, tess.py, meetings.py, nonverbal.py"""

from __future__ import annotations

import pytest

from emostream.errors import CorpusError
from emostream.train.corpora import meetings, nemo, nonverbal, tess

_HEAD = "file\temotion\tspeaker\tgender\tage\ttext\n"


def test_nemo(tmp_path):
    (tmp_path / "WR0_surprised_64.opus").touch()
    (tmp_path / "KD0_happiness_1.opus").touch()
    (tmp_path / "labels.tsv").write_text(
        _HEAD + "WR0_surprised_64.opus\tsurprised\tWR0\tmale\t23\tucho\nKD0_happiness_1.opus\thappiness\tKD0\tf\t1\t-\n"
    )
    items = nemo.load(tmp_path)
    assert [(i.label, i.split, i.speaker) for i in items] == [
        ("surprise", "train", "nemo-WR0"), ("joy", "val", "nemo-KD0"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "no such file"),
        ("file\temotion\nWR0_x.opus\tanger\n", "needs the columns"),
        (_HEAD + "WR0_x.opus\tbored\tWR0\tm\t1\t-\n", "line 2: unknown emotion 'bored'"),
        (_HEAD + "WR0_x.opus\tanger\tWR0\tm\t1\t-\n", "line 2: WR0_x.opus is not in"),
    ],
)
def test_another_layout_than_nemos_is_an_error(tmp_path, table, message):
    if table is not None:
        (tmp_path / "labels.tsv").write_text(table)
    with pytest.raises(CorpusError, match=message):
        nemo.load(tmp_path)


def test_tess(tmp_path):
    for name in ("OAF_back_angry", "OA_bite_neutral", "YAF_back_ps"):
        (tmp_path / f"{name}.opus").touch()
    assert [(i.label, i.split, i.speaker) for i in tess.load(tmp_path)] == [
        ("anger", "train", "tess-O"), ("neutral", "train", "tess-O"), ("surprise", "train", "tess-Y"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["OAF_back_bored.opus", "x.wav", None])
def test_another_layout_than_tess_is_an_error(tmp_path, name):
    if name:
        (tmp_path / name).touch()
    with pytest.raises(CorpusError, match="OAF_back_angry"):
        tess.load(tmp_path)


# Ordinary talk, and sounds without words


def turn(excerpt, start, length, speaker):
    return f"SPEAKER {excerpt} 1 {start} {length} <NA> <NA> {speaker} <NA> <NA>\n"


def test_meetings_are_cut_where_one_person_talks_alone(tmp_path):
    rows = turn("trn01", 0.0, 2.0, "A") + turn("trn01", 2.3, 1.0, "A") + turn("trn01", 3.0, 2.0, "B")
    rows += (
        turn("trn01", 10.0, 13.0, "A")
        + turn("trn01", 30.0, 6.0, "A")
        + turn("trn01", 31.0, 1.0, "B")
        + turn("tst00", 0.0, 0.5, "C")
        + turn("tst00", 5.0, 1.0, "C")
    )
    (tmp_path / "turns.rttm").write_text(rows + turn("absent", 0.0, 5.0, "D"))
    for name in ("trn01", "tst00"):
        (tmp_path / f"{name}.opus").touch()
    items = meetings.load(tmp_path)
    assert {item.label for item in items} == {"neutral"}
    assert [(item.content.stem, item.span_s, item.split, item.speaker) for item in items] == [
        ("trn01", pytest.approx((0.0, 3.0)), "train", "ami-A"),  # one turn over the short pause, until B begins
        ("trn01", pytest.approx((3.3, 5.0)), "train", "ami-B"),
        ("trn01", pytest.approx((10.0, 16.0)), "train", "ami-A"),  # in pieces; the last second is one too
        ("trn01", pytest.approx((16.0, 22.0)), "train", "ami-A"),
        ("trn01", pytest.approx((22.0, 23.0)), "train", "ami-A"),
        ("trn01", pytest.approx((30.0, 31.0)), "train", "ami-A"),
        ("trn01", pytest.approx((32.0, 36.0)), "train", "ami-A"),  # from where B is done
        ("tst00", pytest.approx((5.0, 6.0)), "val", "ami-C"),
    ]


@pytest.mark.parametrize("rows", [None, "SPEAKER a 1\n", "SPEAKER a 1 x y - - B\n", turn("absent", 0, 5, "A")])
def test_meetings_that_cannot_be_read(tmp_path, rows):
    if rows is not None:
        (tmp_path / "turns.rttm").write_text(rows)
    with pytest.raises(CorpusError):
        meetings.load(tmp_path)


def test_sounds_without_words(tmp_path):
    with pytest.raises(CorpusError, match="no recording"):
        nonverbal.load(tmp_path)
    for speaker in "ABCDE":
        for kind in ("laughing", "crying", "coughing", "moaning"):
            (tmp_path / f"{kind}_{speaker}_1_2.opus").touch()
    items = nonverbal.load(tmp_path)
    assert {item.speaker for item in items if item.split == "val"} == {"deeply-A", "deeply-E"}
    assert sorted({(item.content.stem.split("_")[0], item.label) for item in items}) == [
        ("coughing", "neutral"), ("crying", "sadness"), ("laughing", "joy"),
    ]  # fmt: skip
