"""Getting to know the voice: accuracy after 0, 1, 5, 10 and 20 utterances of people who were not in training.

    python benchmarks/adapt.py --data DIR [--bundle ekman7] [--conversations 100]

By sound alone, on the held-out speakers of RAVDESS, EmoDB and nEMO below DIR, with their utterances in random order,
with seven in ten neutral as in talk, or all of one mood (anger). Each utterance is labelled without adaptation and with
a baseline learnt from the speaker's preceding utterances, as in a live run. A figure for n utterances is the mean over
those with about n before them: 0, 1, 4 to 6, 8 to 12, 16 to 24.

With ``--conversations N``, N conversations of two to four of those speakers of one corpus instead, 6 or 20 utterances
each in random order, a second and a half apart: without adaptation, with the stream's baseline, with one for each voice
as identified by the speaker network, and with one for each true speaker. The sound is what voice activity detection
takes for speech, in quiet noise, as in a live run.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import common
from emostream.commands import exit_code
from emostream.engines.bundle import open_bundle
from emostream.errors import ModelError
from emostream.stream import models
from emostream.stream.clock import VirtualClock
from emostream.stream.config import Speech
from emostream.stream.cores.adapt import Adaptation
from emostream.stream.cores.classifier import Classifier, Features
from emostream.stream.cores.speakers import Speakers
from emostream.stream.cores.speech import SpeechCore
from emostream.stream.features.face import CROP
from emostream.stream.messages import SpeechEvent
from emostream.stream.speech.speaker import load_speaker
from emostream.stream.speech.speaker_vector import SpeakerEncoder
from emostream.stream.speech.vad import load_vad
from emostream.train.corpora import Clip, emodb, in_split, nemo, ravdess
from emostream.train.recordings import Sound, read_samples
from emostream.train.study.extract import Stored, extract

CORPORA = (ravdess, emodb, nemo)
ORDERS = ("random", "talk", "anger")
BEFORE = {0: (0, 0), 1: (1, 1), 5: (4, 6), 10: (8, 12), 20: (16, 24)}
_LENGTH = 25
_REPEATS = 40
_NEUTRAL = 0.7
_MOST = 60  # clips of each label and speaker, at most
_MOST_TALKED = 25  # … in conversations
POLICIES = ("none", "stream", "told", "true")  # whose baseline; told: the voice as identified
_EACH = (6, 20)  # utterances of each speaker
_PAUSE_NS = 1_500_000_000


def orders(labels: np.ndarray, neutral: int, anger: int, order: str, rng: np.random.Generator) -> np.ndarray:
    """The order of a speaker's utterances, as indices: (25,)."""
    if order == "random":
        return rng.permutation(len(labels))[:_LENGTH]
    if order == "anger":
        return rng.choice(np.flatnonzero(labels == anger), _LENGTH)
    kind = rng.random(_LENGTH) < _NEUTRAL
    pools = {True: np.flatnonzero(labels == neutral), False: np.flatnonzero(labels != neutral)}
    return np.array([rng.choice(pools[bool(plain)]) for plain in kind])


def label(
    classifier: Classifier, moments: Sequence[tuple[Adaptation, str | None, np.ndarray]]
) -> list[tuple[np.ndarray, list[float]]]:
    """Probabilities of utterances, each with what is known of the people and whose voice it is, and what came of the
    voice's trial, as a live run has them. Voice vectors: (n, dim)."""
    faces, words = classifier.encode_faces(np.zeros((0, CROP, CROP), np.uint8)), classifier.encode_words([])  # none
    sounds, trials = [], []
    for known, speaker, rows in moments:
        baseline = known.voice(speaker)
        sounds.append(rows if baseline is None else baseline.correct(rows))
        trials.append(known.trial(speaker, rows))
    tried = [rows for trial in trials for rows in trial]
    items = [Features(rows, faces, words) for rows in (*sounds, *tried)]
    results = classifier.classify(items, [False] * len(items))
    best = iter([float(result.probabilities.max()) for result in results[len(sounds) :]])
    return [(result.probabilities, [next(best) for _ in trial]) for result, trial in zip(results, trials, strict=False)]


def follow(
    classifier: Classifier, sounds: list[np.ndarray], sequences: list[np.ndarray], adapt: bool
) -> list[np.ndarray]:
    """The label's number for each utterance of each sequence; the sequences are processed side by side."""
    neutral = list(classifier.labels).index("neutral")
    known = [Adaptation({"audio": classifier.rest["audio"]} if adapt else {}, None, alone=True) for _ in sequences]
    answers = [np.zeros(len(sequence), np.int64) for sequence in sequences]
    for step in range(max(map(len, sequences))):
        running = [k for k, sequence in enumerate(sequences) if step < len(sequence)]
        heard = [sounds[sequences[k][step]] for k in running]
        moments = [(known[k], None, rows) for k, rows in zip(running, heard, strict=True)]
        for k, rows, (probabilities, tried) in zip(running, heard, label(classifier, moments), strict=True):
            answers[k][step] = int(probabilities.argmax())
            known[k].learn_voice(None, rows, float(probabilities[neutral]) ** 2, 0, tried)
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


@dataclass(frozen=True)
class Said:
    """A recording as a live run hears it. ``sound``: voice vectors (n, dim); ``voice``: (256,), the speaker network's
    vector for ``voice_s`` seconds of it, None if that is too little."""

    speaker: str
    label: str
    sound: np.ndarray
    voice: np.ndarray | None
    voice_s: float
    length_ns: int


def hear(path: Path, label: str, speaker: str, classifier: Classifier, encoder: SpeakerEncoder) -> Said | None:
    """The longest utterance of a recording, with half a second of quiet noise before it and a second after; None if
    voice activity detection finds none."""
    samples = read_samples(path).astype(np.float32)
    samples = np.pad(0.3 * samples / max(1.0, float(np.abs(samples).max())), (8_000, 16_000))
    samples += np.random.default_rng(0).normal(0, 3e-4, len(samples)).astype(np.float32)
    sound, vad = Sound.from_samples((samples * 32767).astype(np.int16)), load_vad(Speech().vad_model)
    core = SpeechCore("", vad, None, Speech(), VirtualClock(), vad.twin(), encoder.new_vector())
    messages = [message for block in sound.blocks for message in core.push(block)] + core.finish()
    ended = [event for event in messages if isinstance(event, SpeechEvent) and event.event == "ended"]
    if not ended:
        return None
    event = max(ended, key=lambda event: event.end_ns - event.start_ns)
    vectors = classifier.voice_encoder().encode(sound.rows(event.start_ns, event.end_ns))
    length_ns = event.end_ns - event.start_ns
    return Said(speaker, label, vectors, event.voice, event.voice_s, length_ns) if len(vectors) else None


def conversation(said: list[Said], each: int, order: str, rng: np.random.Generator) -> list[Said]:
    """Two to four of the speakers, if there are that many, with ``each`` utterances per speaker, in random order."""
    people = sorted({one.speaker for one in said})
    chosen: list[Said] = []
    for name in rng.choice(people, min(len(people), int(rng.integers(2, 5))), replace=False):
        own = [one for one in said if one.speaker == name]
        if order == "random":
            chosen += [own[i] for i in rng.choice(len(own), each, replace=False)]
        else:
            for plain in rng.random(each) < _NEUTRAL:
                pool = [one for one in own if (one.label == "neutral") == plain]
                chosen.append(pool[rng.integers(len(pool))])
    return [chosen[i] for i in rng.permutation(len(chosen))]


def names(talk: list[Said]) -> list[tuple[str | None, int]]:
    """The name of each utterance's voice, as a live run assigns it, and when the utterance ends."""
    speakers, at_ns, told = Speakers(int(Speech().speaker_s * 1e9)), 0, []
    for one in talk:
        at_ns += _PAUSE_NS + one.length_ns
        name = None if one.voice is None else speakers.assign(one.voice, one.voice_s, at_ns)
        told.append((name, at_ns))
    return told


def converse(classifier: Classifier, talks: list[list[Said]], policy: str) -> list[list[bool]]:
    """Whether each utterance of each conversation is labelled correctly."""
    neutral = list(classifier.labels).index("neutral")
    rest = {"audio": classifier.rest["audio"]} if policy != "none" else {}
    known = [Adaptation(rest, None, alone=policy == "stream") for _ in talks]
    told = [names(talk) for talk in talks]
    right: list[list[bool]] = [[] for _ in talks]
    for step in range(max(map(len, talks))):
        running = [k for k, talk in enumerate(talks) if step < len(talk)]
        said = [talks[k][step] for k in running]
        who = [one.speaker if policy == "true" else told[k][step][0] for k, one in zip(running, said, strict=True)]
        moments = [(known[k], name, one.sound) for k, one, name in zip(running, said, who, strict=True)]
        for k, one, name, (probabilities, tried) in zip(running, said, who, label(classifier, moments), strict=True):
            right[k].append(classifier.labels[int(probabilities.argmax())] == one.label)
            weight = float(probabilities[neutral]) ** 2
            known[k].learn_voice(name, one.sound, weight, told[k][step][1], tried)
    return right


def measure_conversations(bundle_name: str, data: Path, count: int) -> list[tuple[object, ...]]:
    """Rows of the table: corpus, order, utterances of each speaker, names for each speaker, accuracy by policy. Raises
    ModelError if the speaker network is not installed."""
    classifier, encoder = Classifier(open_bundle(bundle_name), "onnxruntime"), load_speaker(Speech())
    if encoder is None:
        raise ModelError(f"no network that tells voices apart is installed: {models.how_to_get('campplus')}")
    rows: list[tuple[object, ...]] = []
    for corpus in CORPORA:
        counts: Counter[tuple[str, str]] = Counter()
        said: list[Said] = []
        for item in in_split(corpus.load(data / corpus.__name__.rpartition(".")[2]), "val"):
            counts[item.speaker, item.label] += 1
            if counts[item.speaker, item.label] <= _MOST_TALKED:
                assert isinstance(item.content, Path)
                heard = hear(item.content, item.label, item.speaker, classifier, encoder)
                said += [] if heard is None else [heard]
        for order in ("random", "talk"):
            for each in _EACH:
                rng = np.random.default_rng(1)
                talks = [conversation(said, each, order, rng) for _ in range(count)]
                named = np.mean([len({n for n, _ in names(t)} - {None}) / len({o.speaker for o in t}) for t in talks])
                cells = []
                for policy in POLICIES:
                    shares = np.array([np.mean(right) for right in converse(classifier, talks, policy)])
                    cells.append(f"{shares.mean():.3f}")
                rows.append((corpus.NAME, order, each, f"{named:.1f}", *cells))
    classifier.close()
    return rows


def main(arguments: list[str] | None = None) -> int:
    return exit_code(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora (docs/corpora.md)")
    parser.add_argument("--bundle", default="ekman7")
    parser.add_argument("--cache", type=Path, default=Path("build/adapt"))
    parser.add_argument("--conversations", type=int, metavar="N", help="measure N conversations of several speakers")
    options = parser.parse_args(arguments)
    if options.conversations:
        talked = measure_conversations(options.bundle, options.data, options.conversations)
        print(common.table(("voices", "order", "each", "names per speaker", *POLICIES), talked))
        return 0
    rows = measure(options.bundle, options.data, options.cache)
    print(common.table(("voices", "order", *(f"after {n}" for n in BEFORE)), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
