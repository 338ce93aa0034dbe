"""train/corpora/nemo.py, train/corpora/tess.py"""

from __future__ import annotations

import pytest

from emostream.errors import CorpusError
from emostream.train.corpora import nemo, tess

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
