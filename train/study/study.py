"""The public corpus of the study: sound, faces and words of three corpora, to be paired by label.

The face encoder and the word table are a bundle's and stay frozen. FER2013 gives its split "val" and GoEmotions its
"dev" alone, of which neither has seen an item, so that no fold's training or test items shaped the features. The
bundle's sound has no encoder: MFCC are MFCC, and all speakers of RAVDESS are used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from emostream.engines.bundle import FACE, WORDS, Bundle
from emostream.stream.cores.classifier import Classifier
from emostream.stream.features.words import tokens
from emostream.train.bundle import face, features
from emostream.train.bundle.features import Ragged, cached, fingerprint
from emostream.train.corpora import LABELS, fer2013, goemotions, numbers, of, ravdess, some
from emostream.train.study.dataset import Grouped

NAME = "label-paired (RAVDESS, FER2013, GoEmotions)"
FRAMES = 10  # jittered crops of each still: a second of video
VERSION = 1  # raise this number when the making of the features here changes
Stage = Callable[[str], Callable[[int, int], None]]


def label_paired(
    data: Path,
    bundle: Bundle,
    cache: Path,
    folds: int = 5,
    most: int | None = None,
    stage: Stage = lambda name: lambda done, total: None,
) -> Grouped:
    """The three corpora below ``data`` in folds: speakers of RAVDESS, single stills, single comments.

    ``most``: items of each label and corpus, for a quick look. Raises CorpusError or ModelError.
    """
    clips = some(ravdess.load(data / "ravdess"), most)
    stills = some(of(fer2013.load(data / "fer2013"), "val"), most)
    comments = [item for item in of(goemotions.load(data / "goemotions"), "val") if tokens(str(item.content))]
    comments = some(comments, most)
    hashes = {name: bundle.manifest.files[name].sha256 for name in (FACE, WORDS)}
    classifier = Classifier(bundle, "onnxruntime")

    def make_faces() -> dict[str, np.ndarray]:
        crops, rng, step_done = face.decode(stills), np.random.default_rng(0), stage("face vectors")
        out = np.empty((len(crops), FRAMES, bundle.manifest.video.dim), np.float16)
        for k in range(FRAMES):
            out[:, k] = classifier.encode_faces(face.jitter(crops, rng, strong=False))
            step_done(k + 1, FRAMES)
        return {"vectors": out}

    def make_words() -> dict[str, np.ndarray]:
        ragged = Ragged.of([classifier.encode_words(tokens(str(item.content))) for item in comments])
        return {"rows": ragged.rows.astype(np.float16), "starts": ragged.starts.astype(np.int64)}

    items = {"audio": clips, "video": stills, "text": comments}
    settings = {
        "version": VERSION, "frames": FRAMES, "bundle": hashes, "text": bundle.manifest.text.settings,
        "items": {m: fingerprint(chosen, labels=True) for m, chosen in items.items()},
    }  # fmt: skip
    sound = features.audio(clips, 0, cache, done=stage("audio features"))
    faces = cached(cache, "study-faces", settings, make_faces)["vectors"]
    text = Ragged(**cached(cache, "study-words", settings, make_words))
    content = {"audio": sound.rows, "video": faces, "text": text.rows}
    return Grouped(
        NAME,
        LABELS,
        {"audio": sound, "video": faces, "text": text},
        {m: numbers(chosen) for m, chosen in items.items()},
        {
            "audio": np.array([item.speaker for item in clips]),
            "video": np.arange(len(stills)).astype(str),
            "text": np.arange(len(comments)).astype(str),
        },
        together=False,
        folds=folds,
        # what was computed, not only from what: a change of any code behind the features is seen here
        settings=settings | {"content": {m: hashlib.sha256(rows).hexdigest() for m, rows in content.items()}},
    )
