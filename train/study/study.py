"""The public corpus of the study: sound, faces and words of three corpora, to be paired by label.

The face encoder and the word table are a bundle's and stay frozen. Of FER2013 only the split "val" is used and of
GoEmotions only "dev", which neither encoder has seen, so that no fold's training or test items shaped the features.
Sound has no encoder in a bundle, so all speakers of RAVDESS are used.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from emostream.engines.bundle import FACE, TEXT, Bundle
from emostream.stream.cores.classifier import Classifier
from emostream.stream.features.text import tokens
from emostream.train.bundle import face, features
from emostream.train.bundle.features import Ragged, cached, fingerprint
from emostream.train.corpora import LABELS, fer2013, goemotions, in_split, label_numbers, limit_per_label, ravdess
from emostream.train.progress import Stage, ignore_stage
from emostream.train.study.dataset import GroupedFolds

NAME = "label-paired (RAVDESS, FER2013, GoEmotions)"
FRAMES = 10  # jittered crops of each still: a second of video
VERSION = 1  # raise this number when the code here changes the features


def label_paired(
    data: Path,
    bundle: Bundle,
    cache: Path,
    folds: int = 5,
    limit: int | None = None,
    stage: Stage = ignore_stage,
) -> GroupedFolds:
    """The three corpora below ``data`` in folds: speakers of RAVDESS, single stills, single comments.

    ``limit``: items per label and corpus, for a quick look. Raises CorpusError or ModelError.
    """
    clips = limit_per_label(ravdess.load(data / "ravdess"), limit)
    stills = limit_per_label(in_split(fer2013.load(data / "fer2013"), "val"), limit)
    comments = [item for item in in_split(goemotions.load(data / "goemotions"), "val") if tokens(str(item.content))]
    comments = limit_per_label(comments, limit)
    hashes = {name: bundle.manifest.files[name].sha256 for name in (FACE, TEXT)}
    classifier = Classifier(bundle, "onnxruntime")

    def make_faces() -> dict[str, np.ndarray]:
        crops, rng, step_done = face.decode(stills), np.random.default_rng(0), stage("face vectors")
        vectors = np.empty((len(crops), FRAMES, bundle.manifest.video.dim), np.float16)
        for k in range(FRAMES):
            vectors[:, k] = classifier.encode_faces(face.jitter(crops, rng, strong=False))
            step_done(k + 1, FRAMES)
        return {"vectors": vectors}

    def make_words() -> dict[str, np.ndarray]:
        ragged = Ragged.of([classifier.encode_words(tokens(str(item.content))) for item in comments])
        return {"rows": ragged.rows.astype(np.float16), "starts": ragged.starts.astype(np.int64)}

    items = {"audio": clips, "video": stills, "text": comments}
    settings = {
        "version": VERSION, "frames": FRAMES, "bundle": hashes, "text": bundle.manifest.text.settings,
        "items": {m: fingerprint(chosen, labels=True) for m, chosen in items.items()},
    }  # fmt: skip
    sound = features.audio(clips, cache, done=stage("audio features"))
    faces = cached(cache, "study-faces", settings, make_faces)["vectors"]
    text = Ragged(**cached(cache, "study-words", settings, make_words))
    content = {"audio": sound.rows, "video": faces, "text": text.rows}
    return GroupedFolds(
        NAME,
        LABELS,
        {"audio": sound, "video": faces, "text": text},
        {m: label_numbers(chosen) for m, chosen in items.items()},
        {
            "audio": np.array([item.speaker for item in clips]),
            "video": np.arange(len(stills)).astype(str),
            "text": np.arange(len(comments)).astype(str),
        },
        aligned=False,
        folds=folds,
        # the features themselves, not only what they were made from: this sees a change of any code behind them
        settings=settings | {"content": {m: hashlib.sha256(rows.data).hexdigest() for m, rows in content.items()}},
    )
