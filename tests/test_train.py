"""Training: the corpora's layouts, export, and a whole run on tiny made-up data."""

import math
import zlib
from types import ModuleType

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import soundfile
import torch

from emostream.engines.bundle import FUSION_CPU, FUSION_GPU, MODALITIES, SUBSETS, VOICE, open_bundle
from emostream.engines.onnx import OnnxRuntime
from emostream.errors import CorpusError, Problems
from emostream.stream.cores.classifier import Classifier, Features
from emostream.stream.features import mfcc
from emostream.train import corpora
from emostream.train.bundle import face, features, recipe, voice_fit
from emostream.train.bundle.degrade import CONDITIONS, augment, possible, surroundings
from emostream.train.bundle.evaluate import half_of
from emostream.train.bundle.features import Ragged
from emostream.train.bundle.fit import Faces, Lines, Sounds, batch_of, fit, label_shares, paired
from emostream.train.commands.main import main
from emostream.train.corpora import LABELS, emodb, fer2013, goemotions, meld, nemo, ravdess
from emostream.train.graphs import portable as export
from emostream.train.model import ATTENTION
from emostream.train.recordings import Sound
from tests.nets import small

torch.set_num_threads(1)

# --- export ------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("attention", ATTENTION)
def test_exported_fusion_gives_what_torch_gives(attention, tmp_path):
    model = small(attention)
    assert export.export_fusion(model, tmp_path / "fusion.onnx") <= export.TOLERANCE
    with torch.no_grad():
        model.classifier.bias += 0.01
    with pytest.raises(export.ExportError, match="differs"):
        export.check_fusion(model, tmp_path / "fusion.onnx")


def test_exported_face_takes_bytes_and_ignores_light(tmp_path):
    net = face.FaceNet().eval()
    assert export.export_face(net, tmp_path / "face.onnx") <= export.TOLERANCE
    graph = OnnxRuntime(tmp_path / "face.onnx")
    crop = np.random.default_rng(0).integers(60, 120, (1, 48, 48), np.uint8)
    plain, bright = (graph.run({"crops": c})["vectors"] for c in (crop, crop * 2))
    assert plain.shape == (1, 128) and plain.dtype == np.float32
    assert np.abs(plain - bright).max() < 0.1  # twice the light and contrast
    assert plain.mean() == pytest.approx(0, abs=1e-5) and plain.var() == pytest.approx(1, abs=1e-2)


# --- corpora, on made-up trees in their layouts --------------------------------------------------------------------


def tone(path, seconds=0.4, rate=16_000):
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    subtype = "OPUS" if path.suffix == ".opus" else None
    soundfile.write(
        path, rng.normal(0, 0.1, int(seconds * rate)), rate, format="OGG" if subtype else None, subtype=subtype
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for actor in ("02", "17", "18"):
        for emotion in range(1, 9):
            tone(root / "ravdess" / f"03-01-{emotion:02}-01-02-01-{actor}.flac")
    tone(root / "ravdess" / "03-02-03-01-02-01-02.flac")  # a song
    for speaker in ("03", "12"):
        for letter in "WLEAFTN":
            tone(root / "emodb" / f"{speaker}a01{letter}a.wav")
    rows = ["file\temotion\tspeaker"]
    for speaker in ("AB0", "KD0"):
        for emotion in nemo.EMOTION:
            tone(root / "nemo" / f"{speaker}_{emotion}.wav")
            rows.append(f"{speaker}_{emotion}.wav\t{emotion}\t{speaker}")
    (root / "nemo/labels.tsv").write_text("\n".join(rows))
    for name in ("noise/esc10/rain_1-100-A", "noise/esc10/rain_5-100-A"):
        tone(root / f"{name}.opus")
    turns = [f"SPEAKER {name} 1 0.0 1.5 <NA> <NA> {name} <NA> <NA>\n" for name in ("trn01", "tst00")]
    for name in ("trn01", "tst00"):
        tone(root / f"meetings/{name}.opus", 1.5)
    (root / "meetings/turns.rttm").write_text("".join(turns))
    for kind in ("laughing", "crying", "coughing"):
        for speaker in ("A", "B"):
            tone(root / f"nonverbal/{kind}_{speaker}_1.opus")
    for number in range(4):
        tone(root / f"rir/{number}.flac", 0.1)
    rng = np.random.default_rng(0)
    stills = [
        (cv2.imencode(".png", rng.integers(0, 256, (48, 48), np.uint8))[1].tobytes(), label, split)
        for split in ("train", "val") for label in LABELS for _ in range(3)
    ]  # fmt: skip
    images, labels, splits = map(list, zip(*stills, strict=True))
    for folder in ("fer2013", "goemotions", "meld"):
        (root / folder).mkdir()
    parquet.write_table(pa.table({"image": images, "label": labels, "split": splits}), root / "fer2013/faces.parquet")
    names = [*(fer2013.VOTES[label] for label in LABELS), *fer2013.OTHERS]
    votes = {name: [8 * (fer2013.VOTES[label] == name) for label in labels] for name in names}
    votes["contempt"][0], votes["fear"][1] = 9, -1  # most people saw contempt; and one that FER+ does not have
    parquet.write_table(pa.table(votes), root / "fer2013/ferplus.parquet")
    for split in ("train", "dev"):
        texts = [f"[NAME] feels {label} {word}!" for label in LABELS for word in ("today", "now", "here")]
        tags = [[label] for label in LABELS for _ in range(3)]
        comments = {"text": [*texts, "two things", "..."], "labels": [*tags, ["joy", "fear"], ["neutral"]]}
        parquet.write_table(pa.table(comments), root / f"goemotions/{split}.parquet")
        said = {"Utterance": texts, "Speaker": ["Joey"] * len(texts), "Emotion": [tag[0] for tag in tags]}
        parquet.write_table(pa.table({**said, "Dialogue_ID": [0] * len(texts)}), root / f"meld/{split}.parquet")
    return root


def test_ravdess(data):
    items = ravdess.load(data / "ravdess")
    assert len(items) == 24  # the song is skipped
    assert {item.speaker for item in items if item.split == "val"} == {"ravdess-17", "ravdess-18"}
    labels = [item.label for item in items if item.speaker == "ravdess-02"]
    assert labels == ["neutral", "neutral", "joy", "sadness", "anger", "fear", "disgust", "surprise"]


def test_emodb(data):
    items = emodb.load(data / "emodb")
    assert len(items) == 12  # boredom is dropped
    assert {item.speaker for item in items if item.split == "val"} == {"emodb-12"}
    assert {item.content.stem[5]: item.label for item in items} == {
        "W": "anger", "E": "disgust", "A": "fear", "F": "joy", "T": "sadness", "N": "neutral"
    }  # fmt: skip


def test_tables(data):
    stills = fer2013.load(data / "fer2013")
    assert len(stills) == 40 and sum(stills[0].votes) == 8 == stills[0].votes[LABELS.index(stills[0].label)]
    comments = goemotions.load(data / "goemotions")
    assert len(comments) == 2 * 22 and not any("[" in item.content for item in comments)  # one label each
    assert corpora.in_split(meld.load(data / "meld"), "val")[0].speaker == "Joey"


@pytest.mark.parametrize("corpus", [ravdess, emodb, fer2013, goemotions, meld])
def test_a_wrong_layout_is_an_error_that_names_the_place(corpus, tmp_path):
    with pytest.raises(CorpusError, match=str(tmp_path)):
        corpus.load(tmp_path)
    tone(tmp_path / "noise.wav")
    for name in ("faces", "ferplus", "train", "dev"):
        parquet.write_table(pa.table({"nothing": [1]}), tmp_path / f"{name}.parquet")
    with pytest.raises(CorpusError, match=r"column|named"):
        corpus.load(tmp_path)


def test_an_unknown_label_is_an_error(tmp_path):
    table = pa.table({"Utterance": ["oh"], "Speaker": ["Joey"], "Emotion": ["hunger"]})
    parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(CorpusError, match="hunger"):
        meld.load(tmp_path)


# --- features, words, faces -----------------------------------------------------------------------------------------


def test_audio_features_are_those_of_the_live_extractor_and_are_kept(data, tmp_path):
    items = emodb.load(data / "emodb")[:3]
    ragged = features.audio(items, tmp_path)
    assert len(ragged) == 3
    want = mfcc.mfcc(
        soundfile.read(items[1].content, dtype="int16")[0]
    )  # noise has no utterance: the whole clip counts
    assert np.allclose(ragged[1], want, atol=0.1)  # kept in half precision
    again = features.audio(items, tmp_path)
    assert np.array_equal(again.rows, ragged.rows) and len(list(tmp_path.iterdir())) == 1
    features.audio(items[:2], tmp_path)  # other items, another folder
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("features", ["mfcc", "logmel"])
def test_rows_of_a_sound_lie_within_the_bounds(features):
    samples = np.random.default_rng(0).integers(-3000, 3000, 16_240).astype(np.int16)
    sound = Sound.from_samples(samples, features)
    frame_ms = 25 if features == "mfcc" else 32
    times = sound.row_times() // 1_000_000
    assert times[0] == 0 and times[-1] + frame_ms <= 1015 < times[-1] + 10 + frame_ms
    for start, end in (100, 200), (0, 40), (-50, 40), (990, 9000), (300, 310):
        within = [int(t) for t in times if start <= t and t + frame_ms <= end]
        assert len(sound.rows(start * 1_000_000, end * 1_000_000)) == len(within)


@pytest.mark.long
@pytest.mark.slow
def test_face_jitter_and_training():
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 80, (28, 48, 48), np.uint8)
    labels = np.repeat(np.arange(7), 4)
    for k in range(7):
        crops[labels == k, 6 * k : 6 * k + 6] += 120  # a bright band whose height is the label
    assert face.jitter(crops, rng).shape == crops.shape and face.jitter(crops, rng).dtype == np.uint8
    losses = []
    votes = np.eye(7, dtype=np.int64)[labels] * 9
    net = face.train(crops, votes, 10, 0, lambda done, total, loss: losses.append(loss), batch=14)
    assert losses[-1] < losses[0]
    assert np.isfinite(face.encode(net, crops)).all()


# --- pools, figures, calibration --------------------------------------------------------------------------------


def test_pools_vary_only_when_asked():
    rng = np.random.default_rng(0)
    plain, changed = (Ragged.of([rng.normal(size=(n, 168)).astype(np.float16) for n in (9, 8)]) for _ in range(2))
    sounds = Sounds([plain, changed], np.array([1]), np.array([0]), np.ones(1))
    assert np.array_equal(sounds.rows(0), plain[1].astype(np.float32))
    faces = Faces(rng.normal(size=(2, 4, 128)).astype(np.float32), np.array([0, 1]))
    said, misheard = (Ragged.of([rng.normal(size=(n, 5)).astype(np.float16) for n in (4, 3)]) for _ in range(2))
    lines = Lines([said, misheard], np.array([1]), np.array([0]))
    for pool, dim in ((sounds, 168), (faces, 128), (lines, 5)):
        assert np.array_equal(pool.rows(0), pool.rows(0))
        for _ in range(20):
            varied = pool.rows(0, rng)
            assert len(varied) >= 1 and varied.shape[1] == dim and varied.dtype == np.float32
    batch = batch_of({"video": [np.ones((200, 3), np.float32), np.zeros((0, 3), np.float32)]})
    assert batch["video"].shape == (2, 150, 3) and batch["video_len"].tolist() == [150, 0]


def test_labels_are_drawn_more_evenly_than_they_occur():
    labels = np.repeat(np.arange(7), [640, 10, 10, 10, 10, 10, 10])
    pools = {m: Faces(np.zeros((700, 2, 1), np.float32), labels) for m in ("video", "audio")}
    alone, together = label_shares(pools, ("video",)), label_shares(pools, ("audio", "video"))
    assert alone.sum() == pytest.approx(1) and together.sum() == pytest.approx(1)
    assert alone[0] / alone[1] == pytest.approx(64**0.7)
    assert together[0] / together[1] == pytest.approx(64**0.35)


def test_pairs_have_equal_labels_and_only_items_that_may_be_drawn():
    labels = {"audio": np.array([0, 0, 1, 2, -1]), "text": np.array([1, 0, 2, -1, 2, 2])}
    drawn = paired(labels, ("audio", "text"), 30, np.random.default_rng(0))
    truth = labels["audio"][drawn["audio"]]
    assert np.array_equal(truth, labels["text"][drawn["text"]])
    assert np.bincount(truth).tolist() == [30, 30, 30]
    assert set(drawn["text"]) == {0, 1, 2, 4, 5}


def test_halves_share_no_actor_and_no_item():
    pool = Faces(np.zeros((9, 2, 1), np.float32), np.zeros(9, np.int64))
    assert half_of("audio", pool).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert half_of("video", pool).tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]


# --- a whole run, and the shipped bundle ------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(400)  # on a busy machine
def test_fit_tiny_makes_a_bundle_that_opens_and_runs(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(voice_fit, "PROBE", 256)
    monkeypatch.setattr(voice_fit, "PROBE_STEPS", 20)
    monkeypatch.setattr(export, "LENGTHS", (1, 20))  # all of them are in test_graphs.py
    command = ["fit", "--preset", "tiny", "--data", str(data), "--cache", str(tmp_path / "cache"), "--out"]
    assert main([*command, str(tmp_path / "first")]) == 0
    bundle = open_bundle(tmp_path / "first")
    assert bundle.manifest.labels == list(LABELS) and "audio" in capsys.readouterr().out
    shares = bundle.manifest.label_shares
    assert set(shares) == set(SUBSETS) and all(
        sum(mix.values()) == pytest.approx(1, abs=1e-4) for mix in shares.values()
    )
    assert main(["card", str(bundle.folder)]) == 0 and "# Model card: tiny" in capsys.readouterr().out
    graph = OnnxRuntime(bundle.path("fusion.onnx"))
    arrays = export.fusion_inputs(
        {"audio": 168, "video": 128, "text": 128}, {"audio": [50], "video": [0], "text": [3]},
        np.random.default_rng(0),
    )  # fmt: skip
    assert graph.run(arrays)["logits"].shape == (1, 7)
    rows = np.full((1, 80, 32), 10, np.float32)
    assert OnnxRuntime(bundle.path(VOICE)).run({"rows": rows})["vectors"].shape == (1, 10, 168)
    assert set(bundle.manifest.metrics["conditions"]) == set(CONDITIONS)
    assert all(bundle.path(name).is_file() for name in (FUSION_CPU, FUSION_GPU))


@pytest.mark.long
@pytest.mark.timeout(400)
def test_fit_is_the_same_again_and_portable_if_asked(data, tmp_path):
    """The seed decides everything, also from an empty cache."""
    for name in ("first", "second"):
        command = ["fit", "--preset", "tiny", "--data", str(data), "--cache", str(tmp_path / f"cache-{name}"), "--out"]
        assert main([*command, str(tmp_path / name), *(["--portable"] if name == "second" else [])]) == 0
    assert not any((tmp_path / "second" / name).exists() for name in (FUSION_CPU, FUSION_GPU))
    assert (tmp_path / "first/fusion.onnx").read_bytes() == (tmp_path / "second/fusion.onnx").read_bytes()


def test_fit_without_data_names_the_option(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("EMOSTREAM_DATA", raising=False)
    assert main(["fit", "--preset", "tiny"]) == 2
    assert "--data" in capsys.readouterr().err
    assert main(["fit", "--preset", "tiny", "--data", str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    for corpus in ("RAVDESS", "FER+", "GoEmotions"):  # everything that is missing, at once
        assert corpus in errors


def test_training_does_without_what_is_not_there_and_says_so(data, tmp_path, caplog):
    for name in ("ravdess", "fer2013", "goemotions"):
        (tmp_path / name).symlink_to(data / name)
    items, absent = recipe.load_all(tmp_path)
    assert absent == ["noise", "rir", "emodb", "nemo", "meetings", "nonverbal", "meld"]
    assert items[ravdess] and not items[emodb]
    (tmp_path / "meld").mkdir()  # it exists, but with the wrong content
    with pytest.raises(Problems, match="MELD"):
        recipe.load_all(tmp_path)
    around = surroundings(tmp_path, judging=False)
    assert possible(around) == ["clean", "white 10 dB", "telephone", "quiet", "clipped"]
    rng, samples = np.random.default_rng(0), np.full(4000, 1000, np.int16)
    assert all(len(augment(samples, around, rng)[0]) for _ in range(20))


def test_recordings_and_images_that_cannot_be_used_are_listed_at_once(tmp_path):
    good, short, none, odd = (tmp_path / f"{name}.wav" for name in ("good", "short", "none", "odd"))
    tone(good)
    soundfile.write(short, np.zeros(100), 16_000)
    none.write_bytes(b"no sound")
    soundfile.write(odd, np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    items = [corpora.Item(path, "joy", "train") for path in (good, short, none, odd)]
    with pytest.raises(Problems) as found:
        features.audio(items, tmp_path / "cache")
    assert len(found.value.problems) == 3
    for words_of_it in (
        "short.wav: shorter than",
        "none.wav: not a media file",
        "odd.wav: sound at 0.00 s is not finite",
    ):
        assert words_of_it in str(found.value)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    images = [corpora.Item(b"\x89PNG", "joy", "train"), corpora.Item(b"", "joy", "val")]
    with pytest.raises(Problems, match="FER.*: 2 problems\n.*image 1 of split train.*\n.*image 2 of split val"):
        face.decode(images)


def test_a_pool_without_a_label_is_an_error():
    pool = Faces(np.zeros((6, 2, 128), np.float32), np.arange(6))
    with pytest.raises(CorpusError, match="surprise"):
        fit({"video": pool}, steps=1, seed=0)


def test_shipped_bundle_is_complete_and_better_than_chance_in_each_modality():
    bundle = open_bundle("ekman7")
    manifest = bundle.manifest
    assert manifest.labels == list(LABELS)
    assert sum(file.bytes for file in manifest.files.values()) < 40_000_000
    parameters = manifest.training["parameters"]
    assert parameters["face"] < 1_500_000 and parameters["fusion"] < 1_000_000
    assert 1 / 7 < manifest.uncertain_below < 1
    for m in MODALITIES:
        figures = manifest.metrics["validation"][m]
        chance_error = math.sqrt(1 / 7 * 6 / 7 / figures["items"])
        assert figures["balanced_accuracy"] > 1 / 7 + 4 * chance_error
    assert {corpus.name for corpus in manifest.corpora} == {
        "RAVDESS", "EmoDB", "nEMO", "AMI", "Deeply", "FER+", "GoEmotions", "MELD",
    }  # fmt: skip
    assert "synthetic" in manifest.training["label_paired"]
    classifier = Classifier(bundle, "onnxruntime")
    words = Features(np.zeros((0, 168)), np.zeros((0, 128)), classifier.encode_words("i am so angry at you".split()))
    (result,) = classifier.classify([words], [False])
    assert manifest.labels[int(result.probabilities.argmax())] == "anger"


def test_what_a_changed_module_trained_before_is_not_used(tmp_path):
    module = ModuleType("network")
    module.__file__ = str(tmp_path / "network.py")
    (tmp_path / "network.py").write_text("relu")
    calls = []

    def weights() -> np.ndarray:
        def make() -> dict[str, np.ndarray]:
            calls.append(len(calls))
            return {"w": np.array(calls[-1:])}

        return features.cached(tmp_path, "fusion", {"code": features.code_of(module)}, make)["w"]

    assert [weights(), weights()] == [0, 0]
    (tmp_path / "network.py").write_text("gelu")
    assert [weights(), weights()] == [1, 1]
