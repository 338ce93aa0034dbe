"""Getting to know the voice: accuracy after 0, 1, 5, 10 and 20 utterances of people whom training never heard.

    python benchmarks/adapt.py --data DIR [--bundle ekman7]

By sound alone, on the held-out speakers of RAVDESS, EmoDB and nEMO below DIR, their utterances in random order, with
seven in ten neutral as in talk, and all of one mood (anger). Each is labelled as it is and by a baseline that has
learnt from the speaker's utterances before, as a live run does it; both see the same utterances. A figure for n
utterances is the mean over those with about n before them: 0, 1, 4 to 6, 8 to 12, 16 to 24.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks import common
from emostream.commands import exit_code
from emostream.engines.bundle import open_bundle
from emostream.stream.cores.adapt import Baseline
from emostream.stream.cores.classifier import Classifier, Features
from emostream.stream.features.face import CROP
from emostream.train.corpora import Clip, emodb, in_split, nemo, ravdess
from emostream.train.study.extract import Stored, extract

CORPORA = (ravdess, emodb, nemo)
ORDERS = ("random", "talk", "anger")
BEFORE = {0: (0, 0), 1: (1, 1), 5: (4, 6), 10: (8, 12), 20: (16, 24)}
_LENGTH = 25
_REPEATS = 40
_NEUTRAL = 0.7
_MOST = 60  # clips of each label and speaker


def orders(labels: np.ndarray, neutral: int, anger: int, order: str, rng: np.random.Generator) -> np.ndarray:
    """Which of a speaker's utterances come, one after another: (25,)."""
    if order == "random":
        return rng.permutation(len(labels))[:_LENGTH]
    if order == "anger":
        return rng.choice(np.flatnonzero(labels == anger), _LENGTH)
    kind = rng.random(_LENGTH) < _NEUTRAL
    pools = {True: np.flatnonzero(labels == neutral), False: np.flatnonzero(labels != neutral)}
    return np.array([rng.choice(pools[bool(plain)]) for plain in kind])


def follow(
    classifier: Classifier, sounds: list[np.ndarray], sequences: list[np.ndarray], adapt: bool
) -> list[np.ndarray]:
    """The label's number for each utterance of each sequence, which are followed side by side."""
    neutral = list(classifier.labels).index("neutral")
    baselines = [Baseline(classifier.rest["audio"], None) for _ in sequences]
    answers = [np.zeros(len(sequence), np.int64) for sequence in sequences]
    faces = classifier.encode_faces(np.zeros((0, CROP, CROP), np.uint8))  # none
    words = classifier.encode_words([])
    for step in range(max(map(len, sequences))):
        running = [k for k, sequence in enumerate(sequences) if step < len(sequence)]
        heard = [sounds[sequences[k][step]] for k in running]
        corrected = [baselines[k].correct(rows) if adapt else rows for k, rows in zip(running, heard, strict=True)]
        items = [Features(rows, faces, words) for rows in corrected]
        for k, rows, result in zip(running, heard, classifier.classify(items, [False] * len(items)), strict=True):
            answers[k][step] = int(result.probabilities.argmax())
            baselines[k].update(rows, float(result.probabilities[neutral]) ** 2)
    return answers


def measure(bundle_name: str, data: Path, cache: Path) -> list[tuple[object, ...]]:
    """Rows of the table: corpus, order, without and with the baseline by number of utterances before."""
    bundle = open_bundle(bundle_name)
    classifier = Classifier(bundle, "onnxruntime")
    labels = list(classifier.labels)
    rows: list[tuple[object, ...]] = []
    for corpus in CORPORA:
        chosen: dict[tuple[str, str], list[Clip]] = {}
        for item in in_split(corpus.load(data / corpus.__name__.rpartition(".")[2]), "val"):
            assert isinstance(item.content, Path)
            clips_of = chosen.setdefault((item.speaker, item.label), [])
            if len(clips_of) < _MOST:
                clips_of.append(Clip(item.content.name, item.label, item.speaker, item.speaker, audio=item.content))
        clips = [clip for clips_of in chosen.values() for clip in clips_of]
        stored = Stored(extract(clips, bundle, cache, 1, sound="voice"), "audio")
        sounds = [stored[i] for i in range(len(clips))]
        truth = np.array([labels.index(clip.label) for clip in clips])
        speakers = np.array([clip.speaker for clip in clips])
        for order in ORDERS:
            rng = np.random.default_rng(0)
            sequences = []
            for speaker in np.unique(speakers):
                own = np.flatnonzero(speakers == speaker)
                for _ in range(_REPEATS):
                    picked = orders(truth[own], labels.index("neutral"), labels.index("anger"), order, rng)
                    sequences.append(own[picked])
            right = {
                adapt: [
                    truth[sequence] == answer
                    for sequence, answer in zip(sequences, follow(classifier, sounds, sequences, adapt), strict=True)
                ]
                for adapt in (False, True)
            }
            cells = []
            for first, last in BEFORE.values():
                without, with_it = (
                    np.concatenate([answer[first : last + 1] for answer in right[adapt]]).mean()
                    for adapt in (False, True)
                )
                cells.append(f"{without:.3f} → {with_it:.3f}")
            rows.append((corpus.NAME, order, *cells))
    classifier.close()
    return rows


def main(arguments: list[str] | None = None) -> int:
    return exit_code(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora (docs/corpora.md)")
    parser.add_argument("--bundle", default="ekman7")
    parser.add_argument("--cache", type=Path, default=Path("build/adapt"))
    options = parser.parse_args(arguments)
    rows = measure(options.bundle, options.data, options.cache)
    print(common.table(("voices", "order", *(f"after {n}" for n in BEFORE)), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
