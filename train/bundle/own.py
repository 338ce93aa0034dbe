"""A bundle of your own: a shipped bundle's encoders, and its fusion network trained further on your own recordings.

The recordings are used as they are, each with the modalities that it has: nothing is paired by label. Its figures come
from networks that were trained without the speakers whom they judge.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from emostream.errors import BundleError, Problems
from emostream.files import write_atomically
from emostream.train import model as network
from emostream.train.bundle.calibrate import temperature_of, threshold
from emostream.train.bundle.features import cached, code_of
from emostream.train.bundle.fit import batch_of
from emostream.train.corpora import Clip
from emostream.train.graphs import fast
from emostream.train.graphs import portable as export
from emostream.train.metrics import interval, scores
from emostream.train.model import Fusion, build
from emostream.train.progress import Stage
from emostream.train.schedule import one_cycle
from emostream.train.study.extract import Stored, extract

log = logging.getLogger(__name__)

VERSION = 1  # raise this number when training changes
FOLDS = 5
STEPS = 300
BATCH = 32
RATE, NEW_RATE = 3e-4, 1e-3  # of what the base knows already, and of the new labels' layer
WHOLE = 0.5  # share of the examples with all of their modalities; the others have some left out
SHORTEST = 0.5  # of a clip, at least, as a running estimate sees it
FEW = 20  # examples; with fewer no temperature is fitted


@dataclass(frozen=True)
class Recordings:
    """``rows`` by modality: each clip's features, (n, D), n = 0 where it lacks the modality."""

    rows: Mapping[str, Sequence[np.ndarray]]
    labels: np.ndarray
    speakers: np.ndarray

    def present(self, i: int) -> list[str]:
        """The modalities of a clip."""
        return [m for m, rows in self.rows.items() if len(rows[i])]


def check(clips: Sequence[Clip], labels: Sequence[str], where: str) -> None:
    """Raises Problems if there are too few labels, or too few clips of one."""
    count = Counter(clip.label for clip in clips)
    wrong = [] if len(labels) > 1 else [f"there is one label, {labels[0]!r}: nothing to tell apart"]
    wrong += [f"label {label!r} has one clip; two are needed at least" for label in labels if count[label] == 1]
    if wrong:
        raise Problems(where, wrong)


def read(
    clips: Sequence[Clip], labels: Sequence[str], bundle: Bundle, cache: Path, jobs: int, stage: Stage
) -> Recordings:
    """The clips' features by the bundle's own encoders. Raises Problems."""
    files = extract(clips, bundle, cache, jobs, stage("features"), "voice")
    numbers = np.array([list(labels).index(clip.label) for clip in clips], np.int64)
    rows = {m: [stored[i] for i in range(len(files))] for m in MODALITIES for stored in [Stored(files, m)]}
    return Recordings(rows, numbers, np.array([clip.speaker for clip in clips]))


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


def train(model: Fusion, data: Recordings, chosen: np.ndarray, steps: int, seed: int) -> Fusion:
    """Train on the chosen clips: labels alike often, with modalities left out and stretches taken at random."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = copy.deepcopy(model).train()
    by_label = [chosen[data.labels[chosen] == k] for k in np.unique(data.labels[chosen])]
    new = list(model.classifier.parameters())
    old = [p for name, p in model.named_parameters() if not name.startswith("classifier.")]
    optimiser = torch.optim.AdamW([{"params": old}, {"params": new}], weight_decay=2e-2)
    schedule = one_cycle(optimiser, [RATE, NEW_RATE], steps, warm_up=0.1)
    for _ in range(steps):
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
    """Each fold's clips: those of its speakers, or with one speaker any."""
    speakers = len(set(data.speakers))
    everything = np.arange(len(data.labels))
    if speakers > 1:
        splitter = StratifiedGroupKFold(min(FOLDS, speakers), shuffle=True, random_state=seed)
        return [test for _, test in splitter.split(everything, data.labels, data.speakers)]
    log.warning("one speaker: the figures are for other recordings of the same person")
    least = int(np.bincount(data.labels).min())
    by_clip = StratifiedKFold(min(FOLDS, least), shuffle=True, random_state=seed)
    return [test for _, test in by_clip.split(everything, data.labels)]


Answers = dict[str, tuple[np.ndarray, np.ndarray]]  # by set of modalities: logits, clips


def judge(
    base: Fusion, data: Recordings, steps: int, seed: int, cache: Path, about: dict[str, Any], stage: Stage
) -> Answers:
    """Answers of networks that were trained without the speakers, by set of modalities."""
    folds = folds_of(data, seed)
    step_done = stage("trained without each speaker")
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {subset: [] for subset in SUBSETS}
    for number, test in enumerate(folds):
        others = np.setdiff1d(np.arange(len(data.labels)), test)
        model = kept(base, data, others, steps, seed, cache, about | {"without": test.tolist()})
        for subset in SUBSETS:
            given = subset.split("+")
            items = [int(i) for i in test if set(given) <= set(data.present(int(i)))]
            if items:
                parts[subset].append((predict(model, data, items, given), np.array(items)))
        step_done(number + 1, len(folds))
    return {
        subset: (np.concatenate([logits for logits, _ in found]), np.concatenate([items for _, items in found]))
        for subset, found in parts.items()
        if found
    }


def kept(
    base: Fusion, data: Recordings, chosen: np.ndarray, steps: int, seed: int, cache: Path, about: dict[str, Any]
) -> Fusion:
    """``train``, or what it gave before."""

    def make() -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in train(base, data, chosen, steps, seed).state_dict().items()}

    state = cached(cache, "own", about | {"steps": steps, "seed": seed}, make)
    model = copy.deepcopy(base)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return model.eval()


def make_own(
    clips: Sequence[Clip],
    labels: Sequence[str],
    name: str,
    base: Bundle,
    out: Path,
    cache: Path,
    steps: int,
    seed: int,
    jobs: int,
    stage: Stage,
) -> Manifest:
    """Train on the clips and write the bundle. Raises Problems, BundleError or ExportError."""
    check(clips, labels, name)
    first = start(base, labels)
    data = read(clips, labels, base, cache, jobs, stage)
    digest = hashlib.sha256(repr([(c.label, c.speaker) for c in clips]).encode())
    for rows in data.rows.values():
        for x in rows:
            digest.update(x.tobytes())
    about = {
        "version": VERSION, "code": code_of(network, sys.modules[__name__]), "base": base.id, "labels": list(labels),
        "data": digest.hexdigest(),
    }  # fmt: skip
    answers = judge(first, data, steps, seed, cache, about, stage)
    model = kept(first, data, np.arange(len(clips)), steps, seed, cache, about)
    stage("trained on all")(1, 1)

    seen = [m for m in MODALITIES if any(len(x) for x in data.rows[m])]
    figures, temperature = {}, {}
    for subset in SUBSETS:
        temperature[subset] = 1.0
        if subset in answers:
            logits, items = answers[subset]
            truth = data.labels[items]
            predicted = logits.argmax(axis=1)
            low, high = interval((predicted == truth).astype(float), data.speakers[items])
            figures[subset] = {**scores(truth, predicted), "low": round(low, 4), "high": round(high, 4)}
            if len(truth) >= FEW:
                temperature[subset] = round(max(0.5, temperature_of(logits, truth)), 4)
    confidence, right = _answers_with_all(data, answers, temperature)
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
    manifest.uncertain_below = round(threshold(confidence, right), 3)
    manifest.label_shares = {subset: share for subset in SUBSETS}
    manifest.training = {
        "command": f"stream-train fit --corpus manifest --data {name} --base {base.manifest.name} --seed {seed}",
        "base": base.id, "steps": steps, "seed": seed, "clips": len(clips), "speakers": len(set(data.speakers)),
        "preset": {"attention": base.manifest.training["preset"]["attention"]},
        "export_difference": {file: float(f"{value:.2g}") for file, value in worst.items()},
    }  # fmt: skip
    manifest.metrics = {
        "chance": f"balanced accuracy 1/{len(labels)}",
        "how": "each clip judged by a network that was trained without its speaker"
        if len(set(data.speakers)) > 1
        else "one speaker: each clip judged by a network that was trained without it",
        "validation": figures,
    }
    manifest.corpora = [*base.manifest.corpora, Corpus(name, "fusion", len(clips), "your own", "")]
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
