"""From corpora of speech to a voice encoder and its figures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from emostream.errors import CorpusError, Problems
from emostream.stream.features import voice as live_voice
from emostream.train.bundle import voice, voice_fit
from emostream.train.bundle.degrade import CONDITIONS, Surroundings, surroundings
from emostream.train.bundle.features import Ragged, cached, code_of, fingerprint
from emostream.train.bundle.voice import VoiceNet
from emostream.train.bundle.voice_fit import VoiceCorpus, judge, train
from emostream.train.bundle.voice_rows import copy_of
from emostream.train.corpora import LABELS, Item, emodb, in_split, label_numbers, limit_per_label, nemo, ravdess
from emostream.train.progress import Stage, StepDone, ignore

VERSION = 1  # raise this number when training changes
# Shares of the corpora in the training examples. RAVDESS has the most speakers and all seven labels; with .35 for nEMO,
# the only corpus without disgust, RAVDESS and EmoDB lost two points each.
SHARES: Mapping[ModuleType, float] = {ravdess: 0.5, emodb: 0.25, nemo: 0.25}
JUDGED_ELSEWHERE = ("ravdess-01",)  # not trained on: face and voice together serve to evaluate the face encoder


Figures = dict[str, dict[str, dict[str, float]]]  # by corpus and condition


@dataclass(frozen=True)
class VoicePreset:
    steps: int
    copies: int  # copies of each recording; the first is unchanged, the others are augmented
    most: int | None = None  # items of each label, corpus and split


PRESETS = {
    # some 25 minutes on one core of 2025, half of them for the augmented copies
    "full": VoicePreset(steps=2400, copies=5),
    # shows that everything fits together
    "tiny": VoicePreset(steps=4, copies=2, most=3),
}


def load_speech(data: Path) -> dict[str, tuple[list[Item], float]]:
    """Items and share of each corpus below ``data``. Raises Problems that lists what is wrong with all of them."""
    corpora, problems = {}, []
    for module, share in SHARES.items():
        try:
            corpora[str(module.NAME)] = (module.load(data / module.__name__.rpartition(".")[2]), share)
        except CorpusError as error:
            problems.append(f"{module.NAME}: {error}")
    if problems:
        raise Problems(str(data), problems)
    return corpora


def split(items: list[Item], name: str, preset: VoicePreset) -> list[Item]:
    """The items of a split, limited by the preset, without speakers kept for another evaluation."""
    chosen = [item for item in in_split(items, name) if name != "train" or item.speaker not in JUDGED_ELSEWHERE]
    return limit_per_label(chosen, preset.most)


def make_corpora(
    speech: Mapping[str, tuple[list[Item], float]],
    data: Path,
    cache: Path,
    preset: VoicePreset,
    seed: int,
    stage: Stage,
) -> list[VoiceCorpus]:
    """The training part of each corpus as log-mel rows: unchanged and augmented."""
    around = surroundings(data, judging=False)
    training = []
    for number, (name, (items, share)) in enumerate(speech.items()):
        chosen = split(items, "train", preset)
        copies = _copies(chosen, preset.copies, around, cache, seed + number, stage(f"log-mel rows of {name}"))
        training.append(VoiceCorpus(copies, label_numbers(chosen), share))
    return training


def make_encoder(
    speech: Mapping[str, tuple[list[Item], float]],
    training: Sequence[VoiceCorpus],
    cache: Path,
    preset: VoicePreset,
    seed: int,
    stage: Stage,
) -> VoiceNet:
    """Train or load the encoder on what ``make_corpora`` made of ``speech``. Raises ModelError."""

    def make() -> dict[str, np.ndarray]:
        step_done = stage("voice encoder")
        net = train(training, preset.steps, seed, lambda step, loss, _: step_done(step, preset.steps, loss))
        return {name: value.numpy() for name, value in net.state_dict().items()}

    settings = {
        "version": VERSION, "code": code_of(voice, voice_fit),
        "steps": preset.steps, "copies": preset.copies, "seed": seed,
        "items": [fingerprint(split(items, "train", preset), labels=True) for items, _ in speech.values()],
        "shares": [corpus.share for corpus in training],
    }  # fmt: skip
    state = cached(cache, "voice-encoder", settings, make)
    net = VoiceNet(len(LABELS))
    net.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return net.eval()


def make_voice(data: Path, cache: Path, preset: VoicePreset, seed: int, stage: Stage) -> tuple[VoiceNet, Figures]:
    """Train or load the encoder; returns it and its own classifier's scores on held-out speakers, by corpus and
    condition. Raises CorpusError or ModelError."""
    speech = load_speech(data)
    net = make_encoder(speech, make_corpora(speech, data, cache, preset, seed, stage), cache, preset, seed, stage)
    judging = surroundings(data, judging=True)
    figures = {
        name: judge(net, split(items, "val", preset), judging, cache, CONDITIONS) for name, (items, _) in speech.items()
    }
    return net, figures


def make_vectors(net: VoiceNet, rows: Sequence[Ragged], cache: Path, step_done: StepDone = ignore) -> list[Ragged]:
    """Each recording's voice vectors, as a live run has them at the recording's end: (vectors, 168) float16."""
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.numpy().tobytes())

    @torch.inference_mode()
    def run(rows: np.ndarray) -> np.ndarray:
        computed: np.ndarray = net(torch.from_numpy(rows)).numpy()
        return computed

    encoder, total, encoded = live_voice.VoiceEncoder(run), sum(map(len, rows)), 0
    sequences = []
    for copy in rows:
        content = hashlib.sha256(copy.rows.tobytes() + copy.starts.tobytes()).hexdigest()

        def make(copy: Ragged = copy, encoded: int = encoded) -> dict[str, np.ndarray]:
            vectors = []
            for i in range(len(copy)):
                encoder.reset()
                vectors.append(encoder.encode(copy[i].astype(np.float32)))
                step_done(encoded + i + 1, total)
            ragged = Ragged.of(vectors)
            return {"rows": ragged.rows.astype(np.float16), "starts": ragged.starts.astype(np.int64)}

        settings = {"net": digest.hexdigest(), "rows": content, "settings": live_voice.SETTINGS}
        sequences.append(Ragged(**cached(cache, "voice-vectors", settings, make)))
        encoded += len(copy)
    return sequences


def _copies(
    items: list[Item], number: int, around: Surroundings, cache: Path, seed: int, step_done: StepDone
) -> list[Ragged]:
    """Log-mel rows of the unchanged recordings, then of ``number - 1`` augmented copies."""
    copies = []
    for copy in range(number):

        def ready(done: int, total: int, copy: int = copy) -> None:
            step_done(copy * total + done, number * total)

        copies.append(copy_of(items, copy, around, cache, seed, ready))
    return copies
