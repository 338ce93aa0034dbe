"""A bundle of your own: a shipped bundle's encoders, and its fusion network trained further on your own recordings.

The recordings are used as they are, each with the modalities that it has: nothing is paired by label. Its figures come
from networks that were trained without the speakers whom they judge.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from emostream.engines.bundle import (
    FACE,
    FUSION,
    MODALITIES,
    PIECES,
    SUBSETS,
    TEXT,
    VOICE,
    WEIGHTS,
    Bundle,
    Corpus,
    Manifest,
    open_bundle,
    write_manifest,
)
from emostream.errors import BundleError
from emostream.files import sha256, write_atomically
from emostream.train import model as network
from emostream.train.bundle.calibrate import temperature_of, threshold
from emostream.train.bundle.features import cached, code_of
from emostream.train.bundle.fit import batch_of
from emostream.train.corpora import Clip
from emostream.train.graphs import fast
from emostream.train.graphs import portable as export
from emostream.train.metrics import interval, resampled, scores
from emostream.train.model import Fusion, build
from emostream.train.progress import Stage
from emostream.train.schedule import one_cycle
from emostream.train.study.extract import Stored, extract

VERSION = 1  # raise this number when training changes
FOLDS = 5
BATCH = 32
# Learning rates: of all but the last layer; of that if labels are new; of that if the base has them all. With 30
# clips, higher ones cost up to seven points on speakers whom neither the base nor these clips know.
RATE, NEW_LABELS, OLD_LABELS = 3e-5, 1e-3, 1e-4
WHOLE = 0.5  # share of the examples with all of their modalities; the others have some left out
SHORTEST = 0.5  # of a clip, at least, as a running estimate sees it
FEW = 20  # answers; with fewer no temperature and no threshold is fitted
MANY = 200  # answers; with fewer no temperature makes the network surer than it is: a few right answers prove little


@dataclass(frozen=True)
class Training:
    """``head``: the last layer's learning rate."""

    steps: int
    seed: int
    head: float


@dataclass(frozen=True)
class Recordings:
    """``rows`` by modality: each clip's features, (n, D), n = 0 where it lacks the modality; ``labels`` (N,) their
    numbers; ``folds`` (N,), the fold that tests on each, where the manifest says."""

    rows: Mapping[str, Sequence[np.ndarray]]
    labels: np.ndarray
    speakers: np.ndarray
    folds: np.ndarray | None = None

    def present(self, i: int) -> list[str]:
        """The modalities of a clip."""
        return [m for m, rows in self.rows.items() if len(rows[i])]


def read(
    clips: Sequence[Clip], labels: Sequence[str], bundle: Bundle, cache: Path, jobs: int, stage: Stage
) -> Recordings:
    """The clips' features by the bundle's own encoders. Raises Problems."""
    files = extract(clips, bundle, cache, jobs, stage("features"), "voice")
    numbers = np.array([list(labels).index(clip.label) for clip in clips], np.int64)
    rows = {m: [stored[i] for i in range(len(files))] for m in MODALITIES for stored in [Stored(files, m)]}
    folds = np.array([clip.fold for clip in clips]) if clips[0].fold is not None else None
    return Recordings(rows, numbers, np.array([clip.speaker for clip in clips]), folds)


def notes_on(data: Recordings, clips: Sequence[Clip], labels: Sequence[str], folds: Sequence[np.ndarray]) -> list[str]:
    """What limits the figures, in words for the user and the manifest."""
    notes = []
    if len(set(data.speakers)) == 1:
        notes.append("one speaker: the figures are for other recordings of the same person, others will be worse")
    elif data.folds is None and (least := min(len(set(data.speakers)), FOLDS)) < FOLDS:
        notes.append(f"{least} speakers: the figures vary much from speaker to speaker")
    everything = np.arange(len(data.labels))
    for k, label in enumerate(labels):
        if any(not (data.labels[np.setdiff1d(everything, test)] == k).any() for test in folds):
            notes.append(f"all clips of {label!r} are in one fold: they are judged by a network that has not met it")
    for m in MODALITIES:
        lacking = [clip.where for i, clip in enumerate(clips) if not len(data.rows[m][i])]
        if 0 < len(lacking) < len(clips):
            shown = ", ".join(lacking[:5]) + (", …" if len(lacking) > 5 else "")
            notes.append(f"{len(lacking)} of {len(clips)} clips have no {m}: {shown}")
        elif lacking:
            notes.append(f"no clip has {m}: the bundle does not use it")
    rated = sum(clip.dimensions is not None for clip in clips)
    if 0 < rated < len(clips):
        notes.append(f"valence and arousal are given for {rated} of {len(clips)} clips, not for all: they are not used")
    return notes


def coordinates_of(clips: Sequence[Clip]) -> dict[str, tuple[float, float]]:
    """Mean valence and arousal of each label's clips; empty if some clip has none."""
    by_label: dict[str, list[tuple[float, float]]] = {}
    for clip in clips:
        if clip.dimensions is None:
            return {}
        by_label.setdefault(clip.label, []).append(clip.dimensions)
    means = {label: np.mean(points, axis=0).round(4).tolist() for label, points in by_label.items()}
    return {label: (valence, arousal) for label, (valence, arousal) in means.items()}


def start(base: Bundle, labels: Sequence[str]) -> Fusion:
    """The base's fusion network with these labels: those that the base has begin as they are there, others at random.
    Raises BundleError if the base has no weights."""
    path = base.path(WEIGHTS)
    if WEIGHTS not in base.manifest.files:
        raise BundleError(f"bundle {base.id} has no {WEIGHTS}, so it cannot be trained further; choose another --base")
    dims = {m: getattr(base.manifest, m).dim for m in MODALITIES}
    model = build(attention=base.manifest.training["preset"]["attention"], dims=dims, labels=len(labels))
    assert isinstance(model, Fusion)
    state = load_file(str(path))
    theirs = {name: state.pop(f"classifier.{name}") for name in ("weight", "bias")}
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        for number, label in enumerate(labels):
            if label in base.manifest.labels:
                for name, values in theirs.items():
                    model.classifier.get_parameter(name)[number] = values[base.manifest.labels.index(label)]
    return model


def train(model: Fusion, data: Recordings, chosen: np.ndarray, how: Training) -> Fusion:
    """Train on the chosen clips: labels alike often, with modalities left out and stretches taken at random."""
    torch.manual_seed(how.seed)
    rng = np.random.default_rng(how.seed)
    model = copy.deepcopy(model).train()
    by_label = [chosen[data.labels[chosen] == k] for k in np.unique(data.labels[chosen])]
    new = list(model.classifier.parameters())
    old = [p for name, p in model.named_parameters() if not name.startswith("classifier.")]
    optimiser = torch.optim.AdamW([{"params": old}, {"params": new}], weight_decay=2e-2)
    schedule = one_cycle(optimiser, [RATE, how.head], how.steps, warm_up=0.1)
    for _ in range(how.steps):
        items = [int(rng.choice(by_label[k])) for k in rng.integers(len(by_label), size=BATCH)]
        rows = examples(data, items, rng)
        logits = model(**batch_of(rows))
        loss = F.cross_entropy(logits, torch.from_numpy(data.labels[items]), label_smoothing=0.1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval()


def examples(data: Recordings, items: Sequence[int], rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """Features of a batch, varied at random; at least one modality of each clip stays."""
    rows: dict[str, list[np.ndarray]] = {m: [] for m in data.rows}
    for i in items:
        present = data.present(i)
        kept = set(present)
        if len(present) > 1 and rng.random() > WHOLE:
            kept = set(rng.permutation(present)[: rng.integers(1, len(present))].tolist())
        for m, clips in data.rows.items():
            x = clips[i] if m in kept else clips[i][:0]
            if m != "text" and len(x) > 2:
                n = int(rng.integers(max(1, int(SHORTEST * len(x))), len(x) + 1))
                first = int(rng.integers(len(x) - n + 1))
                noise = rng.normal(0, 0.1, (1, x.shape[1])).astype(np.float32)
                x = x[first : first + n] + noise
            rows[m].append(x)
    return rows


@torch.inference_mode()
def predict(model: Fusion, data: Recordings, items: Sequence[int], given: Sequence[str]) -> np.ndarray:
    """Logits (N, labels) of clips by some modalities alone."""
    out = []
    for first in range(0, len(items), BATCH):
        part = items[first : first + BATCH]
        rows = {m: [clips[i] if m in given else clips[i][:0] for i in part] for m, clips in data.rows.items()}
        out.append(model(**batch_of(rows)).numpy())
    return np.concatenate(out)


def folds_of(data: Recordings, seed: int) -> list[np.ndarray]:
    """Each fold's clips: those that the manifest gives it, else those of its speakers, or with one speaker any."""
    everything = np.arange(len(data.labels))
    if data.folds is not None:
        return [everything[data.folds == fold] for fold in np.unique(data.folds)]
    speakers, count = len(set(data.speakers)), np.bincount(data.labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # labels of few clips are in few folds
        if speakers > 1:
            folds = min(FOLDS, speakers, int(count.max()))
            by_speaker = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
            parts = [test for _, test in by_speaker.split(everything, data.labels, data.speakers)]
        else:
            by_clip = StratifiedKFold(min(FOLDS, int(count.min())), shuffle=True, random_state=seed)
            parts = [test for _, test in by_clip.split(everything, data.labels)]
    return [test for test in parts if 0 < len(test) < len(everything)]


Answers = dict[str, tuple[np.ndarray, np.ndarray]]  # by set of modalities: logits, clips


def judge(
    base: Fusion,
    data: Recordings,
    folds: Sequence[np.ndarray],
    how: Training,
    cache: Path,
    about: dict[str, Any],
    stage: Stage,
) -> Answers:
    """Answers of networks that were trained without the clips of each fold, by set of modalities."""
    step_done = stage("trained without each speaker")
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {subset: [] for subset in SUBSETS}
    for number, test in enumerate(folds):
        others = np.setdiff1d(np.arange(len(data.labels)), test)
        model = kept(base, data, others, how, cache, about | {"without": test.tolist()})
        for subset in SUBSETS:
            modalities = subset.split("+")
            items = [int(i) for i in test if set(modalities) <= set(data.present(int(i)))]
            if items:
                parts[subset].append((predict(model, data, items, modalities), np.array(items)))
        step_done(number + 1, len(folds))
    return {
        subset: (np.concatenate([logits for logits, _ in results]), np.concatenate([items for _, items in results]))
        for subset, results in parts.items()
        if results
    }


def kept(
    base: Fusion, data: Recordings, chosen: np.ndarray, how: Training, cache: Path, about: dict[str, Any]
) -> Fusion:
    """``train``, or what it gave before."""

    def make() -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in train(base, data, chosen, how).state_dict().items()}

    state = cached(cache, "own", about | asdict(how), make)
    model = copy.deepcopy(base)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return model.eval()


def make_own(
    clips: Sequence[Clip],
    labels: Sequence[str],
    table: Path,
    base: Bundle,
    out: Path,
    cache: Path,
    steps: int,
    seed: int,
    jobs: int,
    stage: Stage,
) -> Manifest:
    """Train on the clips, which the file ``table`` lists, and write the bundle. Raises Problems, BundleError or
    ExportError."""
    first = start(base, labels)
    training = Training(steps, seed, OLD_LABELS if set(labels) <= set(base.manifest.labels) else NEW_LABELS)
    data = read(clips, labels, base, cache, jobs, stage)
    digest = hashlib.sha256(repr([(c.label, c.speaker) for c in clips]).encode())
    for rows in data.rows.values():
        for x in rows:
            digest.update(x.tobytes())
    about = {
        "version": VERSION, "code": code_of(network, sys.modules[__name__]), "base": base.id, "labels": list(labels),
        "data": digest.hexdigest(),
    }  # fmt: skip
    folds = folds_of(data, seed)
    answers = judge(first, data, folds, training, cache, about, stage)
    model = kept(first, data, np.arange(len(clips)), training, cache, about)
    stage("trained on all")(1, 1)

    seen = [m for m in MODALITIES if any(len(x) for x in data.rows[m])]
    same = set(labels) == set(base.manifest.labels)
    figures, temperature, how = {}, {}, {}
    for subset in SUBSETS:
        logits, items = answers.get(subset, (np.zeros((0, len(labels))), np.zeros(0, np.int64)))
        truth, predicted = data.labels[items], logits.argmax(axis=1)
        if len(truth):
            ends = {m: interval(x) for m, x in resampled(truth, predicted, data.speakers[items]).items()}
            figures[subset] = {**scores(truth, predicted), "intervals": ends}
        if len(truth) >= FEW:
            softest = 0.2 if len(truth) >= MANY else 1.0
            temperature[subset] = round(max(softest, temperature_of(logits, truth)), 4)
            how[subset] = f"fitted on {len(truth)} answers"
        else:
            temperature[subset] = base.manifest.temperature[subset] if same else 1.0
            how[subset] = f"{'that of the base' if same else '1'}: {len(truth)} answers are too few to fit one"
    confidence, right = _answers_with_all(data, answers, temperature)
    if len(right) >= FEW:
        limit, limit_how = round(threshold(confidence, right), 3), f"fitted on {len(right)} answers"
    else:
        limit = base.manifest.uncertain_below if same else round((1 + 1 / len(labels)) / 2, 3)
        limit_how = "that of the base" if same else "halfway between chance and certainty"
        limit_how += f": {len(right)} answers are too few to fit one"
    out.mkdir(parents=True, exist_ok=True)
    for file in (VOICE, FACE, TEXT, PIECES):
        shutil.copyfile(base.path(file), out / file)
    worst = {FUSION: export.export_fusion(model, out / FUSION)}
    worst |= fast.export_fast(model, out)
    write_atomically(out / WEIGHTS, save(dict(model.state_dict())))
    share = {label: 1 / len(labels) for label in labels}
    manifest = copy.deepcopy(base.manifest)
    manifest.name, manifest.labels, manifest.version = out.name, list(labels), "1"
    manifest.modalities = seen  # type: ignore[assignment]
    manifest.temperature = temperature
    manifest.uncertain_below = limit
    manifest.coordinates = coordinates_of(clips)
    manifest.label_shares = {subset: share for subset in SUBSETS}
    manifest.training = {
        "command": f"stream-train fit --corpus manifest --data {table.name} --base {base.manifest.name} "
        f"--steps {steps} --seed {seed}",
        "base": base.id, "data_sha256": sha256(table), "steps": steps, "seed": seed,
        "clips": len(clips), "speakers": len(set(data.speakers)),
        "preset": {"attention": base.manifest.training["preset"]["attention"]},
        "export_difference": {file: float(f"{value:.2g}") for file, value in worst.items()},
    }  # fmt: skip
    manifest.metrics = {
        "chance": f"balanced accuracy 1/{len(labels)}",
        "how": f"each clip judged by a network that was trained without its "
        f"{'speaker' if len(set(data.speakers)) > 1 else 'fold, though with its speaker'}, {len(folds)} folds",
        "notes": notes_on(data, clips, labels, folds),
        "validation": figures,
        "calibration": {"temperature": how, "uncertain_below": limit_how},
    }
    manifest.corpora = [*base.manifest.corpora, Corpus(table.name, "fusion", len(clips), "your own", "")]
    manifest.licence = f"Your recordings' own, and the base's: {base.manifest.licence}"
    write_manifest(out, manifest)
    open_bundle(out)
    return manifest


def _answers_with_all(
    data: Recordings, answers: Answers, temperature: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and rightness of each clip's answer by all the modalities that it has."""
    confidence, right = [], []
    for subset, (logits, items) in answers.items():
        scaled = logits / temperature[subset]
        p = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        for row, i in zip(p, items, strict=True):
            if "+".join(data.present(int(i))) == subset:
                confidence.append(row.max())
                right.append(row.argmax() == data.labels[i])
    return np.array(confidence), np.array(right)
