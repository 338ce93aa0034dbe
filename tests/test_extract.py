"""Extraction of clips: the live features, cached, never stale, with all problems in one list."""

import copy
import dataclasses
import json
import re
from fractions import Fraction

import av
import cv2
import numpy as np
import onnx
import pytest
import soundfile
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from emostream.engines.bundle import open_bundle, write_manifest
from emostream.errors import CorpusError, Problems
from emostream.stream.config import Config, Speech
from emostream.stream.cores.classifier import Classifier
from emostream.stream.cores.video import VideoCore
from emostream.stream.features import mfcc
from emostream.stream.label import Labeller
from emostream.stream.sources.base import VideoFrame
from emostream.train.commands.main import main
from emostream.train.corpora import Clip, iemocap
from emostream.train.corpora.recorded import read_corpus
from emostream.train.study import extract as extraction
from emostream.train.study.extract import dataset, extract, lengths
from tests import media
from tests.test_corpora import release

pytestmark = pytest.mark.slow


def arrays_of(path):
    return load_file(path)


def clip(where="clip", path=None, **more):
    return Clip(where, "glad", "anna", "anna", media=path, **more)


def split_screen(path, left, right, fps=10):
    """A small AVI of MPEG-4 pictures, as IEMOCAP has them, two sequences of images side by side."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 640, 240, "yuv420p"
        stream.bit_rate = 4_000_000
        for i, pair in enumerate(zip(left, right, strict=True)):
            image = np.concatenate([cv2.resize(half, (320, 240)) for half in pair], axis=1)
            frame = av.VideoFrame.from_ndarray(image, "bgr24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    media.audio_only(folder / "one.wav", 1.0)
    media.audio_only(folder / "two.wav", 2.0)
    media.talking_face(folder / "face.mkv", 3.5)
    media.video_only(folder / "mute.mp4", 20)
    split_screen(folder / "pair.avi", media.face_frames(20), media.faceless_frames(20))
    return folder


def some_clips(files):
    return [
        clip("a", files / "one.wav", text="How nice!"), clip("b", files / "face.mkv", start_s=0.5, end_s=1.5),
        clip("c", files / "face.mkv", start_s=2.0), clip("d", files / "two.wav", end_s=1.0),
        clip("e", text="Just words"),
    ]  # fmt: skip


# --- the same as live ------------------------------------------------------------------------------------------------


def test_a_clip_has_the_features_of_a_live_utterance_with_its_bounds(files, tmp_path, bundle, monkeypatch):
    seen = []
    run = Classifier.run
    monkeypatch.setattr(
        Classifier, "run", lambda self, call: (seen.extend(getattr(call, "items", ())), run(self, call))[1]
    )
    labels = list(Labeller(Config(speech=Speech(recognizer="none"))).label(files / "face.mkv"))
    assert len(labels) == len(seen) == 1
    bounds = {"start_s": labels[0].start_s, "end_s": labels[0].end_s}
    arrays = arrays_of(extract([clip("u", files / "face.mkv", **bounds)], bundle, tmp_path)[0])
    assert len(seen[0].audio) > 25 and len(seen[0].video) > 20
    live = seen[0].video  # the same person in the same frames, though the detector ran in different ones
    assert arrays["video"].shape == live.shape
    alike = (
        np.sum(arrays["video"] * live, axis=1) / np.linalg.norm(arrays["video"], axis=1) / np.linalg.norm(live, axis=1)
    )
    assert alike.mean() > 0.95
    assert arrays["text"].shape == (0, bundle.manifest.text.dim)


@pytest.fixture(scope="module")
def extracted(files, tmp_path_factory, bundle):
    """The features of ``some_clips`` and their cache."""
    cache = tmp_path_factory.mktemp("cache")
    return extract(some_clips(files), bundle, cache), cache


def test_sound_and_words_are_those_of_the_feature_code(extracted, bundle, classifier):
    paths, _ = extracted
    assert np.allclose(
        arrays_of(paths[0])["audio"], mfcc.mfcc(media.speech_samples(1.0)), atol=1e-4
    )  # sums of other order
    assert np.array_equal(arrays_of(paths[0])["text"], classifier.encode_words(["how", "nice"]))
    assert arrays_of(paths[0])["video"].shape == (0, bundle.manifest.video.dim)
    two = mfcc.mfcc(media.speech_samples(2.0))
    assert arrays_of(paths[3])["audio"].shape == (98, 120) and np.allclose(
        arrays_of(paths[3])["audio"], two[:98], atol=1e-4
    )  # row 97 ends at 995 ms, row 98 at 1005 ms
    assert arrays_of(paths[4])["audio"].shape == (0, 120) and arrays_of(paths[4])["text"].shape == (
        4,  # two words, with the marks of start and end
        bundle.manifest.text.dim,
    )


def test_one_half_of_a_split_screen(files, tmp_path, bundle, classifier):
    left, right = (
        clip(side, files / "pair.avi", audio=files / "one.wav", start_s=0.4, end_s=1.6, crop=side)
        for side in ("left", "right")
    )
    paths = extract([left, right], bundle, tmp_path)
    assert lengths(paths)["video"].tolist() == [12, 0]  # the right half is empty
    core = VideoCore("x", extraction.make_detector(extraction.Video()), None)
    with av.open(str(files / "pair.avi")) as container:
        images = [frame.to_ndarray(format="gray")[:, :320] for frame in container.decode(video=0)]
    messages = [core.push(VideoFrame(images[i], i * 100_000_000))[0] for i in range(4, 16)]
    want = classifier.encode_faces(np.stack([message.crop for message in messages]))
    assert np.allclose(arrays_of(paths[0])["video"], want, atol=1e-5)
    whole = mfcc.mfcc(media.speech_samples(1.0))  # from its own file, whatever the bounds in the other one
    assert np.allclose(arrays_of(paths[1])["audio"], whole, atol=1e-4)


# --- kept ------------------------------------------------------------------------------------------------------------


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.mark.long
@pytest.mark.process
def test_two_processes_give_the_same_as_one(files, extracted, tmp_path, bundle):
    calls = []
    extract(some_clips(files), bundle, tmp_path, 2, lambda done, total: calls.append((done, total)))
    assert contents(tmp_path) == contents(extracted[1]) and len(contents(tmp_path)) == 5
    assert calls[0] == (0, 5) and calls[-1] == (5, 5)


@pytest.mark.process
@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.long)])
def test_an_interrupted_extraction_goes_on(files, tmp_path, bundle, jobs):
    clips = some_clips(files)

    def stop(done, total):
        if done >= 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(clips, bundle, tmp_path, jobs, stop)
    kept = contents(tmp_path)
    assert 1 <= len(kept) < 5 or jobs == 2
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    counts = []
    paths = extract(clips, bundle, tmp_path, 1, lambda done, total: counts.append(done))
    assert counts[0] == len(kept) and counts[-1] == 5 and all(path.is_file() for path in paths)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())  # nothing is extracted twice
    assert not list(tmp_path.rglob("*.part"))


def test_a_half_written_file_is_not_used(files, tmp_path, bundle):
    (path,) = extract([clip("a", files / "one.wav")], bundle, tmp_path)
    whole = path.read_bytes()
    path.unlink()
    path.with_name(f".{path.name}.1.part").write_bytes(whole[:100])
    extract([clip("a", files / "one.wav")], bundle, tmp_path)
    assert path.read_bytes() == whole


def test_stale_features_are_never_used(files, tmp_path, bundle, monkeypatch):
    path = media.audio_only(tmp_path / "mine.wav", 1.0)
    mine = clip("a", path, text="yes")
    first = extract([mine], bundle, tmp_path)
    assert extract([dataclasses.replace(mine, label="sad", where="z")], bundle, tmp_path) == first  # features are equal
    changed = [dataclasses.replace(mine, **change) for change in ({"text": "no"}, {"end_s": 0.5}, {"crop": "left"})]
    assert len({*first, *extract(changed, bundle, tmp_path)}) == 4
    before, size = arrays_of(first[0])["audio"], path.stat().st_size
    soundfile.write(path, media.speech_samples(1.0)[::-1], 16_000, "PCM_16")  # other sound, of the same length
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    again = extract([mine], bundle, tmp_path)
    assert path.stat().st_size == size and again != first and not np.array_equal(arrays_of(again[0])["audio"], before)
    monkeypatch.setitem(mfcc.SETTINGS, "rate_hz", 8_000)
    other = extract([mine], bundle, tmp_path)
    assert other[0].parent.parent != again[0].parent.parent and other[0].name == again[0].name
    assert json.loads((other[0].parent.parent / "settings.json").read_text())["audio"]["rate_hz"] == 8_000


@pytest.fixture
def odd_bundle(bundle, tmp_path):
    """The shipped bundle with NaN for every text vector."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ("fusion.onnx", "voice.onnx", "face.onnx", "text.onnx", "vocab.txt"):
        (folder / name).write_bytes(bundle.path(name).read_bytes())
    nothing = numpy_helper.from_array(np.array([np.nan], np.float32))
    nodes = [
        helper.make_node("Shape", ["pieces"], ["shape"]),
        helper.make_node("Concat", ["shape", "dim"], ["sizes"], axis=0),
        helper.make_node("ConstantOfShape", ["sizes"], ["vectors"], value=nothing),
    ]
    graph = helper.make_graph(
        nodes, "nan",
        [helper.make_tensor_value_info("pieces", TensorProto.INT64, ["batch", "rows"])],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", "rows", bundle.manifest.text.dim])],
        [numpy_helper.from_array(np.array([bundle.manifest.text.dim], np.int64), "dim")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "text.onnx")
    write_manifest(folder, copy.deepcopy(bundle.manifest))
    return open_bundle(folder)


def test_another_bundle_has_another_hash_and_its_nan_is_a_problem(files, tmp_path, bundle, odd_bundle):
    assert extraction.settings(bundle)["text"] != extraction.settings(odd_bundle)["text"]
    with pytest.raises(Problems, match="a: text features are NaN or infinite in row 0"):
        extract(
            [clip("a", files / "one.wav", text="words"), clip("b", files / "one.wav")], odd_bundle, tmp_path / "cache"
        )
    assert len(contents(tmp_path / "cache")) == 1  # the other one is kept


# --- bad input -------------------------------------------------------------------------------------------------------


def test_all_problems_come_together_and_the_rest_is_kept(files, tmp_path, bundle):
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan] * 800, np.float32), 16_000, "FLOAT")
    soundfile.write(tmp_path / "short.wav", np.zeros(300, np.int16), 16_000)
    media.text_file(tmp_path / "letter.mp4")
    media.truncated_mp4(tmp_path / "cut.mp4", faststart=False)
    media.write_media(tmp_path / "nobody.mp4", frames=media.faceless_frames(5))
    clips = [
        clip("row 1", tmp_path / "nan.wav"), clip("row 2", tmp_path / "short.wav"), clip("row 3", files / "one.wav"),
        clip("row 4", tmp_path / "letter.mp4"), clip("row 5", tmp_path / "cut.mp4"),
        clip("row 6", tmp_path / "nobody.mp4"),
        clip("row 7", files / "two.wav", start_s=1.0, end_s=1.01), clip("row 8", text="..."),
        clip("row 9", files / "pair.avi", audio=tmp_path / "short.wav"),
    ]  # fmt: skip
    with pytest.raises(Problems) as error:
        extract(clips, bundle, tmp_path / "cache")
    for found, want in zip(
        error.value.problems,
        (
            "row 1: .*nan.wav: sound at 0.00 s is not finite", "row 2: its sound is shorter than one frame",
            "row 4: .*letter.mp4: not a media file", "row 5: .*cut.mp4: not a media file", "row 6: has no features",
            "row 7: its sound is shorter", "row 8: has no features", "row 9: its sound is shorter",
        ),
        strict=True,
    ):  # fmt: skip
        assert re.match(want, found), found
    assert len(contents(tmp_path / "cache")) == 1


def test_missing_files_are_listed_before_anything_is_read(files, tmp_path, bundle):
    clips = [clip("row 1", files / "one.wav"), clip("row 2", files / "x.wav"), clip("row 3", audio=files / "y.wav")]
    with pytest.raises(Problems) as error:
        extract(clips, bundle, tmp_path / "cache")
    assert [p.split(":")[0] for p in error.value.problems] == ["row 2", "row 3"] and "x.wav" in error.value.problems[0]
    assert not (tmp_path / "cache").exists()


# --- folds -----------------------------------------------------------------------------------------------------------


def many(n, text="so"):
    return [Clip(f"c{i}", "ab"[i % 2], f"s{i % 6}", f"s{i % 6}", text=f"{text} {i}") for i in range(n)]


def test_folds_never_split_a_group_and_leave_absent_modalities_out(tmp_path, bundle):
    clips = many(24)
    folds = dataset("mine", clips, ("a", "b"), extract(clips, bundle, tmp_path), folds=3)
    assert list(folds.features) == ["text"] and folds.folds == 3
    assert folds.features["text"][5].shape == (4, bundle.manifest.text.dim)
    for f in range(3):
        parts = folds.split(f)
        sizes = {split: len(part.labels["text"]) for split, part in parts.items()}
        assert sum(sizes.values()) == 24 and min(sizes.values()) >= 4
    with pytest.raises(CorpusError, match="6 groups, too few for 7"):
        dataset("mine", clips, ("a", "b"), extract(clips, bundle, tmp_path), folds=7)


def test_predefined_folds_are_kept_and_each_item_is_tested_once(tmp_path, bundle):
    clips = [dataclasses.replace(c, fold=(7, 2, 4)[i % 3]) for i, c in enumerate(many(12))]
    files = extract(clips, bundle, tmp_path)
    folds = dataset("mine", clips, ("a", "b"), files)
    assert folds.folds == 3
    for f, number in enumerate((2, 4, 7)):
        part = folds.split(f)["test"]
        want = [i for i, c in enumerate(clips) if c.fold == number]
        assert part.labels["text"].tolist() == [i % 2 for i in want]
        assert np.array_equal(part.features["text"][1], arrays_of(files[want[1]])["text"])
        parts = folds.split(f)
        assert [len(parts[split].labels["text"]) for split in ("train", "dev", "test")] == [4, 4, 4]
        following = [i % 2 for i, c in enumerate(clips) if c.fold == (2, 4, 7)[(f + 1) % 3]]
        assert parts["dev"].labels["text"].tolist() == following
    others = [dataclasses.replace(c, label="a") for c in clips]
    assert dataset("mine", others, ("a", "b"), files).settings != folds.settings


# --- the command -----------------------------------------------------------------------------------------------------


def command(*words):
    return main(["features", *map(str, words)])


def test_command_extracts_a_manifest_and_prints_a_summary(files, tmp_path, capsys):
    rows = [
        "path,label,speaker,text",
        f"{files}/one.wav,glad,anna,how nice",
        f"{files}/mute.mp4,sad,bert,",
        ",sad,carl,oh no",
    ]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    words = ("--corpus", "manifest", "--data", tmp_path / "list.csv", "--cache", tmp_path / "cache")
    assert command(*words) == 0
    out = capsys.readouterr().out
    assert "list.csv: 3 clips, 3 speakers" in out and "labels: glad 1, sad 2" in out
    assert "audio: 1 clips have it, 98.0 rows (0.98 s) each" in out and "text: 2 clips have it, 4.0 rows" in out
    assert "video: 1 clips have it" in out and f"features: {tmp_path / 'cache'}" in out
    assert command(*words, "--labels", "glad,happy") == 1
    err = capsys.readouterr().err
    assert "list.csv: 2 problems" in err and "row 3: label 'sad' is not one of: glad, happy" in err


def test_command_on_iemocap_warns_of_other_counts(tmp_path, capsys):
    root = release(tmp_path)
    for avi in root.rglob("*.avi"):
        if avi.name.startswith("Ses01F"):
            split_screen(avi, media.face_frames(8), media.faceless_frames(8))
        else:
            media.write_media(avi.with_suffix(".mkv"), frames=media.faceless_frames(2)).rename(avi)
    for wav in root.rglob("*.wav"):
        media.audio_only(wav, 0.1)
    assert command("--corpus", "iemocap", "--data", tmp_path, "--cache", tmp_path / "cache") == 0
    done = capsys.readouterr()
    assert "warning: anger: 10 clips, published 1103" in done.err
    assert "IEMOCAP: 70 clips, 10 speakers, 5 groups" in done.out and "text: 70 clips have it, 5.0 rows" in done.out
    assert "audio: 70 clips have it, 8.0 rows" in done.out and "video: 1 clips have it, 5.0 rows" in done.out
    clips = iemocap.load(root)
    folds = dataset("IEMOCAP", clips, iemocap.LABELS, extract(clips, open_bundle("ekman7"), tmp_path / "cache"))
    assert folds.folds == 5 and len(folds.split(4)["test"].labels["audio"]) == 14


def test_acted_corpora_are_clips_too(tmp_path, capsys):
    for name in ("03-01-05-01-02-01-12", "03-01-03-01-02-01-17"):
        (tmp_path / "ravdess").mkdir(exist_ok=True)
        media.audio_only(tmp_path / "ravdess" / f"{name}.wav", 0.5)
    corpus = read_corpus("ravdess", tmp_path)
    assert corpus.label_names == ("anger", "joy") and [c.group for c in corpus.clips] == ["ravdess-17", "ravdess-12"]
    assert corpus.clips == read_corpus("ravdess", tmp_path / "ravdess").clips
    assert command("--corpus", "emodb", "--data", tmp_path, "--cache", tmp_path / "cache") == 1
    assert "EmoDB" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.slow
def test_command_makes_the_papers_two_tables_of_iemocap(tmp_path, capsys):
    root = release(tmp_path)
    for avi in root.rglob("*.avi"):
        split_screen(avi, media.face_frames(20), media.face_frames(20))
    for wav in root.rglob("*.wav"):
        media.audio_only(wav, 0.3)
    words = ("crossval", "--corpus", "iemocap", "--data", tmp_path, "--out", tmp_path / "out")
    small = ("--seeds", 1, "--max-epochs", 1, "--cache", tmp_path / "cache")
    assert main([str(word) for word in (*words, *small)]) == 0
    report = (tmp_path / "out/report/study.md").read_text()
    assert "## One, two and three modalities" in report and "## Ablation, three modalities" in report
    assert "| A+V+T | cross | 0." in report and "IEMOCAP" in report
