"""The encoders of a bundle, each trained or loaded, and the corpora encoded as vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from emostream.stream.features.text import WordPieces, tokens
from emostream.train.bundle import face, talking, text, voice_recipe
from emostream.train.bundle import fit as fusion_training
from emostream.train.bundle.degrade import CONDITIONS, possible, surroundings
from emostream.train.bundle.features import Ragged, cached, code_of, fingerprint
from emostream.train.bundle.fit import (
    Faces,
    Lines,
    Sounds,
)
from emostream.train.bundle.presets import Preset
from emostream.train.bundle.voice import VoiceNet
from emostream.train.bundle.voice_recipe import VoicePreset
from emostream.train.bundle.voice_rows import judged
from emostream.train.corpora import (
    LABELS,
    Item,
    in_split,
    label_numbers,
    ravdess,
)
from emostream.train.metrics import scores
from emostream.train.model import Fusion
from emostream.train.progress import Stage


@dataclass(frozen=True)
class Speech:
    """The voice encoder and the corpora of speech encoded by it."""

    net: VoiceNet
    training: Sounds
    held_out: Callable[[list[Item]], Sounds]
    under: dict[str, Sounds]  # RAVDESS's held-out recordings under each of CONDITIONS
    heard: dict[str, float]  # the share of them in which speech is detected

    @property
    def rest(self) -> np.ndarray:
        """The mean vector of neutral speech in training: (168,)."""
        neutral = np.flatnonzero(self.training.labels == LABELS.index("neutral"))
        means = np.stack([self.training.rows(int(i)).mean(axis=0) for i in neutral])
        rest: np.ndarray = np.average(means, axis=0, weights=self.training.weights[neutral])
        return rest


def make_speech(
    speech: Mapping[str, tuple[list[Item], float]],
    everyday: Mapping[str, tuple[list[Item], float]],
    data: Path,
    preset: Preset,
    cache: Path,
    seed: int,
    stage: Stage,
) -> Speech:
    """Train or load the voice encoder, and the vectors of all recordings.

    ``speech``: items and share by corpus. ``everyday``: the same for corpora that the encoder is not trained on; their
    share is spread evenly over their labels.
    """
    sizes = VoicePreset(preset.voice_steps, preset.voice_copies, preset.most)
    corpora = voice_recipe.make_corpora(speech, data, cache, sizes, seed, stage)
    net = voice_recipe.make_encoder(speech, corpora, cache, sizes, seed, stage)
    others = voice_recipe.make_corpora(everyday, data, cache, sizes, seed + len(corpora), stage)
    around = surroundings(data, judging=True)
    vectors = [
        voice_recipe.make_vectors(net, corpus.copies, cache, stage(f"voice vectors of {name}"))
        for name, corpus in zip((*speech, *everyday), (*corpora, *others), strict=True)
    ]
    labels = np.concatenate([corpus.labels for corpus in (*corpora, *others)])
    weights = [np.full(len(corpus.labels), corpus.share / len(corpus.labels)) for corpus in corpora]
    for corpus in others:
        _, label, count = np.unique(corpus.labels, return_inverse=True, return_counts=True)
        weights.append(corpus.share / len(count) / count[label])
    training = Sounds(
        [Ragged.joined(copies) for copies in zip(*vectors, strict=True)],
        np.arange(len(labels)),
        labels,
        np.concatenate(weights),
    )
    all_speech = (*speech.values(), *everyday.values())
    judged_on = [item for items, _ in all_speech for item in voice_recipe.split(items, "val", sizes)]
    clean, _ = judged(judged_on, CONDITIONS[0], around, cache)
    plain = voice_recipe.make_vectors(net, [clean], cache)
    place = {(item.content, item.span_s): i for i, item in enumerate(judged_on)}

    def held_out(items: list[Item]) -> Sounds:
        return Sounds(
            plain,
            np.array([place[item.content, item.span_s] for item in items], np.int64),
            label_numbers(items),
            np.ones(len(items)),
        )

    actors = voice_recipe.split(speech[ravdess.NAME][0], "val", sizes)
    under, heard = {}, {}
    for condition in possible(around):
        rows, was_heard = judged(actors, condition, around, cache)
        sequences = voice_recipe.make_vectors(net, [rows], cache)
        under[condition] = Sounds(sequences, np.arange(len(actors)), label_numbers(actors), np.ones(len(actors)))
        heard[condition] = round(float(was_heard.mean()), 4)
    return Speech(net, training, held_out, under, heard)


def in_conditions(model: Fusion, speech: Speech) -> dict[str, dict[str, float]]:
    """Scores on RAVDESS's held-out recordings under each condition, by sound alone."""
    figures = {}
    for condition, pool in speech.under.items():
        logits = fusion_training.logits_of(model, {"audio": pool}, {"audio": np.arange(len(pool.labels))})
        figures[condition] = {**scores(pool.labels, logits.argmax(1)), "heard": speech.heard[condition]}
    return figures


@dataclass(frozen=True)
class Stills:
    """The face encoder, the pool of each split, its own classifier's scores, and the vector to which a resting face is
    shifted: the mean of all faces. On a talking face that is better than the mean of neutral ones, whose mouths are
    shut in stills: .40 instead of .29 of 52 takes, given the neutral takes as rest."""

    net: face.FaceNet
    pools: dict[str, Faces]
    own: dict[str, dict[str, float]]
    rest: np.ndarray


def make_faces(items: list[Item], data: Path, preset: Preset, cache: Path, seed: int, stage: Stage) -> Stills:
    """Train or load the face encoder, and the vectors of all faces."""
    splits = {split: in_split(items, split) for split in ("train", "val")}
    crops = {split: face.decode(chosen) for split, chosen in splits.items()}
    votes = np.array([item.votes for item in splits["train"]], np.int64)
    net = face.FaceNet()

    def make_net() -> dict[str, np.ndarray]:
        trained = face.train(crops["train"], votes, preset.face_epochs, seed, stage("face encoder"))
        return {name: value.numpy() for name, value in trained.state_dict().items()}

    settings = {
        "version": face.VERSION, "code": code_of(face),
        "epochs": preset.face_epochs, "seed": seed,
        "items": fingerprint(splits["train"], labels=True), "votes": hashlib.sha256(votes.tobytes()).hexdigest(),
    }  # fmt: skip
    state = cached(cache, "face", settings, make_net)
    net.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    net.eval()

    def make_vectors() -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        step_done = stage("face vectors")
        vectors: dict[str, np.ndarray] = {}
        for split, plain in crops.items():
            copies = []
            for k in range(preset.face_copies):
                side = np.ascontiguousarray(plain if 2 * k < preset.face_copies else plain[:, :, ::-1])
                talking = k % 2  # every second copy opens or shuts its mouth
                copies.append(face.encode(net, face.jitter(side, rng, strong=False, talking=talking)))
                step_done(len(vectors) * preset.face_copies + k + 1, len(crops) * preset.face_copies)
            vectors[split] = np.stack(copies, axis=1)  # (N, K, 128)
        return vectors

    settings |= {"copies": preset.face_copies, "val": fingerprint(splits["val"], labels=False)}
    vectors = cached(cache, "face-vectors", settings, make_vectors)
    own = {"FER+ val": face.evaluate(net, crops["val"], label_numbers(splits["val"]))}
    if talking.there(data):
        own["RAVDESS actor 01, speaking"] = talking.judge(net, data)
    return Stills(
        net,
        {split: Faces(vectors[split], label_numbers(chosen)) for split, chosen in splits.items()},
        own,
        vectors["train"].mean(axis=(0, 1)),
    )


@dataclass(frozen=True)
class Texts:
    """The text encoder, its vocabulary, the training pool, a function from held-out items to their pool, and its own
    classifier's scores by corpus."""

    net: text.TextNet
    pieces: WordPieces
    training: Lines
    held_out: Callable[[list[Item]], Lines]
    own: dict[str, dict[str, float]]


def make_texts(corpora: list[list[Item]], preset: Preset, cache: Path, seed: int, stage: Stage) -> Texts:
    """Train or load the text encoder on the corpora's training items, and the vectors of all lines. A text without a
    word is left out. Raises ModelError."""
    items = [[item for item in corpus if tokens(str(item.content))] for corpus in corpora]
    training = [item for corpus in items for item in in_split(corpus, "train")]
    numbers = np.concatenate([np.full(len(in_split(corpus, "train")), n) for n, corpus in enumerate(items)])
    said = [str(item.content) for item in training]

    def make_net() -> dict[str, np.ndarray]:
        trained = text.train(
            said, label_numbers(training), numbers, preset.text_epochs, seed, stage("text encoder"), preset.text_batch
        )
        return {name: value.numpy() for name, value in trained.state_dict().items()}

    settings = {
        "version": text.VERSION, "code": code_of(text), "epochs": preset.text_epochs, "batch": preset.text_batch,
        "seed": seed, "items": fingerprint(training, labels=True),
    }  # fmt: skip
    state = cached(cache, "text", settings, make_net)
    net, pieces = text.pretrained(len(items))
    net.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    net.eval()

    def lines_of(items: list[Item]) -> list[np.ndarray]:
        return [pieces.line(tokens(str(item.content))) for item in items]

    def vectors_of(lines: list[np.ndarray], settings: dict[str, object], name: str) -> Ragged:
        def make() -> dict[str, np.ndarray]:
            ragged = text.encode(net, lines, stage(name))
            return {"rows": ragged.rows, "starts": ragged.starts.astype(np.int64)}

        return Ragged(**cached(cache, "text-vectors", settings, make))

    copies = []
    for copy in range(preset.text_copies):
        lines = lines_of(training)
        if copy:
            mishearing, rng = text.Mishearing([tokens(line) for line in said]), np.random.default_rng([seed, copy])
            lines = [pieces.line(mishearing.heard(tokens(line), rng)) for line in said]
        copies.append(vectors_of(lines, settings | {"copy": copy}, f"text vectors {copy + 1}"))
    pool = Lines(copies, np.arange(len(training)), label_numbers(training))
    judged_on = [item for corpus in items for item in in_split(corpus, "val")]
    plain = vectors_of(lines_of(judged_on), settings | {"val": fingerprint(judged_on, labels=False)}, "text vectors")
    place = {id(item): i for i, item in enumerate(judged_on)}

    def held_out(chosen: list[Item]) -> Lines:
        chosen = [item for item in chosen if id(item) in place]
        return Lines([plain], np.array([place[id(item)] for item in chosen], np.int64), label_numbers(chosen))

    own = {}
    for n, corpus in enumerate(items):
        chosen = in_split(corpus, "val")
        if chosen:
            predicted = text.predict(net, lines_of(chosen), n).argmax(axis=1)
            own[str(n)] = scores(label_numbers(chosen), predicted)
    return Texts(net, pieces, pool, held_out, own)
