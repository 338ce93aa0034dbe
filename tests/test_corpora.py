"""Corpora of whole utterances: manifests, IEMOCAP's release and its processed folds, each on a made-up tree."""

import pickle
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from emostream.errors import CorpusError, Problems
from emostream.train.corpora import iemocap, iemocap_folds, manifest
from tests import media


def lines(error):
    return "\n".join(error.value.problems)


def test_only_the_first_problems_are_listed():
    problems = Problems("list.csv", [f"row {n}: odd" for n in range(1, 61)])
    text = str(problems)
    assert text.startswith("list.csv: 60 problems\n  row 1: odd\n") and text.endswith("row 50: odd\n  and 10 more")
    again = pickle.loads(pickle.dumps(problems))
    assert again.problems == problems.problems and str(again) == text
    assert str(Problems("x", ["y"])) == "x: 1 problem\n  y"


# --- manifests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest")
    media.audio_only(folder / "one.wav", 1.0)
    media.audio_only(folder / "two.wav", 2.0)
    media.zero_length_audio(folder / "none.wav")
    media.text_file(folder / "letter.wav")
    media.empty_file(folder / "empty.mp4")
    return folder


def write(folder, text):
    path = folder / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_manifest_rows_become_clips(files):
    rows = [
        "path,label,speaker,start_s,end_s,text,valence,arousal",
        "one.wav,glad,anna,,,,0.5,-1",
        'two.wav,cross, bert ,0.5,2.05,"Well, well.",,',  # ends later than the file, by rounding
        ",glad,carl,,,only words,,",
    ]
    whole, stretch, words = manifest.load(write(files, "\n".join(rows)))
    assert whole.media == files / "one.wav" and (whole.start_s, whole.end_s, whole.text) == (None, None, None)
    assert (stretch.start_s, stretch.end_s, stretch.text) == (0.5, 2.05, "Well, well.")
    assert stretch.speaker == stretch.group == "bert" and stretch.where == "row 2" and stretch.fold is None
    assert whole.dimensions == (0.5, -1) and stretch.dimensions is None
    assert words.media is None and words.text == "only words"


def test_parquet_and_csv_give_the_same_clips(files):
    table = {
        "path": ["one.wav", "two.wav", None], "label": ["a", "b", "a"], "speaker": [1, 2, 3],
        "start_s": [None, 0.25, None], "end_s": [None, 1.0, None], "text": ["", "so", "no"], "fold": [0, 1, 2],
    }  # fmt: skip
    parquet.write_table(pa.table(table), files / "list.parquet")
    rows = ["path,label,speaker,start_s,end_s,text,fold", "one.wav,a,1,,,,0", "two.wav,b,2,0.25,1,so,1", ",a,3,,,no,2"]
    clips = manifest.load(files / "list.parquet")
    assert clips == manifest.load(write(files, "\ufeff" + "\r\n".join(rows)))
    assert [clip.fold for clip in clips] == [0, 1, 2]


def test_manifest_reports_all_problems_at_once(files):
    rows = [
        "path,label,speaker,start_s,end_s,text,fold",
        "one.wav,glad,anna,,,,0",  # 1, the only good one
        "gone.wav,glad,anna,,,,0",
        "none.wav,glad,bert,,,,1",
        "letter.wav,glad,bert,,,,1",
        "empty.mp4,glad,bert,,,,1",
        "two.wav,smug,carl,,,,2",  # 6
        "two.wav,,,,,,2",
        "two.wav,glad,carl,1,1,,2",
        "two.wav,glad,carl,1.5,1,,2",
        "two.wav,glad,carl,0,2.5,,2",
        "two.wav,glad,carl,2.5,,,2",  # 11
        "two.wav,glad,carl,nan,1,,2",
        "two.wav,glad,carl,one,inf,,-1",
        "",  # a blank line counts
        ",glad,carl,,,,2",
        "two.wav,glad,carl,0,1,,2",  # 16
        "two.wav,glad,carl,,1.0,,2",
        "two.wav,glad,anna,0.5,1,,1",
        "two.wav,glad,dora,0.25,1,,",
        "two.wav,glad,dora",  # 20
        ",glad,carl,0.5,,text,2",
    ]
    path = write(files, "\n".join(rows))
    with pytest.raises(Problems) as error:
        manifest.load(path, labels=("glad", "sad"))
    want = [
        f"row 2: {files}/gone.wav: no such file", "row 3: .*none.wav: is empty",
        "row 4: .*letter.wav: not a media file",
        "row 5: .*empty.mp4: not a media file", "row 6: label 'smug' is not one of: glad, sad", "row 7: has no label",
        "row 7: has no speaker", "row 8: is empty: start_s 1 is not before end_s 1",
        "row 9: is empty: start_s 1.5 is not before end_s 1", r"row 10: end_s 2.5 is after the file's end \(2.00 s\)",
        "row 11: start_s 2.5 is after", "row 12: start_s 'nan' is not a number from 0 up",
        "row 13: start_s 'one' is not a number", "row 13: end_s 'inf' is not a number from 0 up",
        "row 13: fold '-1' is not a whole number from 0 up", "row 15: has neither a path nor a text",
        "row 17: is the same clip as row 16", "row 18: speaker 'anna' is in fold 1 here and in fold 0 in row 1",
        "row 19: has no fold, other rows have one", "row 20: has 3 values, the header has 7",
        "row 21: has a start_s or end_s but no path",
    ]  # fmt: skip
    for pattern in want:
        assert any(re.match(pattern, line) for line in error.value.problems), pattern
    numbers = [int(line.split()[1][:-1]) for line in error.value.problems]
    assert len(numbers) == len(want) and numbers == sorted(numbers) and str(path) in str(error.value)


def test_manifest_needs_three_folds(files):
    with pytest.raises(Problems, match="2 different, at least 3"):
        manifest.load(write(files, "path,label,speaker,fold\none.wav,a,x,0\ntwo.wav,b,y,1\n"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", b"path,label\n", "no column speaker; it has path, label"),
        ("list.csv", b"path,label,speaker,label\n", "column label twice"),
        ("list.csv", b"path,label,speaker\n", "no rows"),
        ("list.csv", b"", "no column path"),
        ("list.csv", b"path,label,speaker\n\xff\xfe,a,b\n", "UTF-8"),
        ("list.parquet", b"no table", "no Parquet file"),
        ("list.txt", b"path,label,speaker\n", ".csv or .parquet"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        manifest.load(tmp_path / name)
    with pytest.raises(CorpusError, match="no such file"):
        manifest.load(tmp_path / "other.csv")


# --- IEMOCAP, as it is released --------------------------------------------------------------------------------------


def release(folder):
    """Five sessions of two dialogues, one of each actor with the markers. Each has a turn of every kind of label."""
    root = folder / "IEMOCAP_full_release"
    for session in range(1, 6):
        place = root / f"Session{session}"
        for lead in "FM":
            name = f"Ses0{session}{lead}_impro01"
            evaluation, said = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""], []
            (place / "sentences/wav" / name).mkdir(parents=True)
            for i, code in enumerate([*iemocap.EMOTION, *iemocap.DROPPED]):
                turn = f"{name}_{'FM'[i % 2]}{i:03}"
                evaluation += [
                    f"[{i}.2500 - {i}.7500]\t{turn}\t{code}\t[2.5000, 2.5000, 2.5000]",
                    "C-E2:\tNeutral;\t()",
                    "",
                ]
                said.append(f"{turn} [{i:03}.2500-{i:03}.7500]: Turn {i}: yes.")
                (place / "sentences/wav" / name / f"{turn}.wav").touch()
            said.append("M: (laughs)")
            for part, text in (("EmoEvaluation", evaluation), ("transcriptions", said)):
                (place / "dialog" / part).mkdir(parents=True, exist_ok=True)
                (place / "dialog" / part / f"{name}.txt").write_text("\n".join(text) + "\n")
            (place / "dialog/EmoEvaluation/Categorical").mkdir(exist_ok=True)
            (place / "dialog/EmoEvaluation" / f"._{name}.txt").write_bytes(b"\0\5\26\7")  # a file that macOS leaves
            (place / "dialog/avi/DivX").mkdir(parents=True, exist_ok=True)
            (place / "dialog/avi/DivX" / f"{name}.avi").touch()
    return root


def test_iemocap_turns_with_words_sides_and_sessions(tmp_path):
    root = release(tmp_path)
    clips = iemocap.load(root)
    assert clips == iemocap.load(tmp_path)
    assert len(clips) == 5 * 2 * 7 and {clip.label for clip in clips} == set(iemocap.LABELS)
    second = next(clip for clip in clips if clip.where == "Ses02F_impro01_M001")
    assert (second.label, second.speaker, second.group, second.fold) == ("excitement", "Ses02_M", "Session2", 1)
    assert (second.start_s, second.end_s, second.text) == (1.25, 1.75, "Turn 1: yes.")
    assert second.media == root / "Session2/dialog/avi/DivX/Ses02F_impro01.avi"
    assert second.audio == root / "Session2/sentences/wav/Ses02F_impro01/Ses02F_impro01_M001.wav"
    sides = {(clip.where[5], clip.where[-4]): clip.crop for clip in clips}
    assert sides == {("F", "F"): "left", ("F", "M"): "right", ("M", "M"): "left", ("M", "F"): "right"}
    for session in range(5):
        assert {clip.speaker for clip in clips if clip.fold == session} == {f"Ses0{session + 1}_{sex}" for sex in "FM"}


def test_iemocap_counts_are_compared_with_the_published_ones(tmp_path):
    assert sum(iemocap.COUNTS.values()) == 7487
    clips = iemocap.load(release(tmp_path))
    assert "anger: 10 clips, published 1103" in iemocap.check_counts(clips) and len(iemocap.check_counts(clips)) == 7
    one = {clip.label: clip for clip in clips}
    assert iemocap.check_counts([one[label] for label, n in iemocap.COUNTS.items() for _ in range(n)]) == []


def test_iemocap_in_another_layout_reports_all_that_is_missing(tmp_path):
    root = release(tmp_path)
    shutil.rmtree(root / "Session1")
    shutil.rmtree(root / "Session2/dialog/avi")
    (root / "Session3/dialog/avi/DivX/Ses03F_impro01.avi").unlink()
    (root / "Session3/sentences/wav/Ses03M_impro01/Ses03M_impro01_F000.wav").unlink()
    (root / "Session3/dialog/transcriptions/Ses03M_impro01.txt").write_text("nothing\n")
    (root / "Session4/dialog/transcriptions/Ses04F_impro01.txt").unlink()
    evaluation = root / "Session5/dialog/EmoEvaluation/Ses05F_impro01.txt"
    evaluation.write_text(
        "[1.0 - 2.0]\tSes05F_impro01_F000\tbad\t[1, 1, 1]\n[2.0 - 1.0]\tSes05F_impro01_F000\tneu\t[1, 1, 1]\n"
        "[1.0 - 2.0]\tSes05M_impro01_F000\tneu\t[1, 1, 1]\n"
    )
    (root / "Session5/dialog/EmoEvaluation/Ses05M_impro01.txt").write_text("")
    (root / "Session5/dialog/EmoEvaluation/Session.txt").write_text("")
    with pytest.raises(Problems, match="full release") as error:
        iemocap.load(root)
    for text in (
        "Session1: no such folder", "Session2/dialog/avi/DivX: no such folder", "Ses03F_impro01.avi: no such file",
        "Ses03M_impro01_F000.wav: no such file", "transcriptions/Ses03M_impro01.txt: no line is like",
        "transcriptions/Ses04F_impro01.txt: no such file", "Ses05F_impro01.txt, line 1: cannot be read: '[1.0 - 2.0]",
        "line 2: Ses05F_impro01_F000 starts at 2 s and ends at 1 s", "Ses05F_impro01.txt, line 3: cannot be read",
        "Ses05M_impro01.txt: no line is like", "Session.txt: not named like a dialogue of session 5",
    ):  # fmt: skip
        assert text in lines(error), text
    assert len(error.value.problems) == 11
    with pytest.raises(Problems, match="Session5: no such folder"):
        iemocap.load(tmp_path / "nowhere")


# --- IEMOCAP, as processed folds -------------------------------------------------------------------------------------


def processed(folder, folds=2, text="nlp_trans", one_hot=False, sizes=(9, 4, 5)):
    """Arrays of 4 words, 3 pictures and 6 rows of sound; clip 1 has no picture, clip 2 is cut in all its lengths."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(20, 5)).astype(np.float32)
    folder.mkdir()
    np.save(folder / "W_embedding.npy", table)
    for fold in range(folds):
        place = folder / f"fold{fold + 1:02}"
        place.mkdir()
        for split, n in zip(("train", "dev", "test"), sizes, strict=True):
            words = rng.integers(1, 20, (n, 4))
            words[0, 2:] = 0
            labels = np.arange(n) % 7
            arrays = {
                text: words if text == "nlp_trans" else table[words], "video": rng.normal(size=(n, 3, 8)),
                "video_seqN": [2, 0, 40, *[3] * (n - 3)], "audio_mfcc": rng.normal(size=(n, 6, 12)),
                "audio_seqN": [4, 6, 750, *[6] * (n - 3)], "audio_prosody": rng.normal(size=(n, 3)),
                "label": np.eye(7)[labels] if one_hot else labels,
            }  # fmt: skip
            for name, array in arrays.items():
                np.save(place / f"{split}_{name}.npy", array)
    return folder


def test_folds_are_whole_or_cut_to_their_lengths(tmp_path):
    folder = processed(tmp_path / "folds")
    cut, whole = (iemocap_folds.load(folder, fixed) for fixed in (False, True))
    assert cut.folds == 2 and cut.settings != whole.settings and len(cut.label_names) == 7
    test = cut.split(1)["test"]
    assert test.aligned and test.labels["text"].tolist() == [0, 2, 3, 4]  # without clip 1, which has no picture
    assert [len(test.features["video"][i]) for i in range(4)] == [2, 3, 3, 3]
    assert [len(test.features["audio"][i]) for i in range(4)] == [4, 6, 6, 6]
    assert [len(test.features["text"][i]) for i in range(4)] == [2, 4, 4, 4]
    table = np.load(folder / "W_embedding.npy")
    words = np.load(folder / "fold02/test_nlp_trans.npy")
    assert np.array_equal(test.features["text"][1], table[words[2]])
    assert np.allclose(test.features["audio"][0], np.load(folder / "fold02/test_audio_mfcc.npy")[0, :4])
    fixed = whole.split(1)["test"].features
    assert {m: fixed[m][0].shape for m in fixed} == {"audio": (6, 12), "video": (3, 8), "text": (4, 5)}
    assert np.array_equal(fixed["text"][0], table[words[0]]) and fixed["audio"][0].dtype == np.float32
    assert cut.prosody(1, "test").shape == (4, 3)
    sent = pickle.dumps(cut)  # another process gets the paths of the arrays, not the arrays
    assert len(sent) < 5000 and np.array_equal(pickle.loads(sent).split(1)["test"].features["text"][1], table[words[2]])


def test_folds_with_ready_word_vectors_and_one_hot_labels(tmp_path):
    numbers = iemocap_folds.load(processed(tmp_path / "numbers"), False)
    vectors = iemocap_folds.load(processed(tmp_path / "vectors", text="text", one_hot=True), False)
    for split, part in numbers.split(0).items():
        other = vectors.split(0)[split]
        assert np.array_equal(part.labels["audio"], other.labels["audio"])
        for i in range(len(part.labels["text"])):
            assert np.array_equal(part.features["text"][i], other.features["text"][i])
    single = iemocap_folds.load(tmp_path / "numbers/fold01", True)
    assert single.folds == 1 and len(single.split(0)["train"].features["text"]) == 8


def test_labels_are_named_where_their_counts_are_the_published_ones(tmp_path, monkeypatch):
    folder = processed(tmp_path / "folds", folds=1, sizes=(12, 4, 5))
    assert iemocap_folds.load(folder, True).label_names == tuple(f"label {k}" for k in range(7))
    numbers = np.repeat(np.arange(7), [3, 0, 6, 1, 5, 2, 4])
    for split, part in zip(("train", "dev", "test"), np.split(numbers, [12, 16]), strict=True):
        np.save(folder / f"fold01/{split}_label.npy", part)
    monkeypatch.setattr(iemocap_folds, "COUNTS", dict(zip("abcdefg", range(7), strict=True)))
    assert "".join(iemocap_folds.load(folder, True).label_names) == "dagbfce"


def test_folds_report_all_that_is_wrong_with_the_arrays(tmp_path):
    folder = processed(tmp_path / "folds")
    first, second = folder / "fold01", folder / "fold02"

    def change(place, name, item, value, kind=float):
        array = np.load(place / f"{name}.npy").astype(kind)
        array[item] = value
        np.save(place / f"{name}.npy", array)

    change(first, "train_video", (3, 1, 1), np.nan)
    change(first, "dev_label", 2, 7)
    change(first, "test_nlp_trans", (1, 1), 20)
    change(first, "test_audio_seqN", 0, -1)
    np.save(second / "dev_audio_mfcc.npy", np.zeros((3, 6, 12)))
    np.save(second / "test_video.npy", np.zeros((5, 3, 9)))
    np.save(second / "test_audio_prosody.npy", np.array(["a"] * 5))
    (second / "train_label.npy").unlink()
    (second / "test_audio_mfcc.npy").write_bytes(b"no array")
    (second / "train_nlp_trans.npy").unlink()
    with pytest.raises(Problems) as error:
        iemocap_folds.load(folder, True)
    for text in (
        "fold01/train_video.npy: NaN or infinite in item 3",
        "fold01/dev_label.npy: not a whole number from 0 to 6 in item 2",
        "fold01/test_nlp_trans.npy: not whole numbers from 0 to 19, the rows of W_embedding in item 1",
        "fold01/test_audio_seqN.npy: not a whole number from 0 up in item 0",
        "fold02: dev arrays are of different numbers of clips: video 4, video_seqN 4, audio_mfcc 3",
        "fold02/test_video.npy: clips have the shape (3, 9), in the first fold (3, 8)",
        "fold02/test_audio_prosody.npy: holds <U1, expected numbers", "fold02/train_label.npy: no such file",
        "fold02/test_audio_mfcc.npy: is no array that NumPy reads",
        "fold02: has neither train_text.npy nor train_nlp_trans.npy",
    ):  # fmt: skip
        assert text in lines(error), text
    assert len(error.value.problems) == 10
    with pytest.raises(CorpusError, match="fold01, fold02"):
        iemocap_folds.load(tmp_path / "nowhere", True)


def test_word_numbers_need_their_vectors(tmp_path):
    folder = processed(tmp_path / "folds", folds=1)
    (folder / "W_embedding.npy").unlink()
    with pytest.raises(Problems, match="neither here nor in the folder above"):
        iemocap_folds.load(folder, True)
