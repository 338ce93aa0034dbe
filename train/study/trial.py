"""One run of the study: train on a fold's training part, choose the epoch on its dev part, test once.

The protocol is the paper's (Rajan, Brutti and Cavallaro, ICASSP 2022): Adam, batches of 32, cross-entropy, a lower
learning rate when the dev loss stalls, an end after 10 epochs without a better dev accuracy, and the weights of the
epoch with the best dev accuracy. Only then is the test part used.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from emostream.engines.bundle import MODALITIES
from emostream.errors import CorpusError
from emostream.files import write_atomically
from emostream.train.metrics import accuracy
from emostream.train.model import Encoder, Fusion, build
from emostream.train.study.dataset import Folds, Part
from emostream.train.study.examples import Collator, batches, draw, lengths, rows_of

CODE = 1  # raise this number when a change of the models or of this file changes results: runs are then repeated
PROTOCOL = {
    "batch": 32, "learning_rate": 1e-3, "plateau_patience": 10, "plateau_factor": 0.1, "stop_after": 10,
    "test_draws": 4,
}  # fmt: skip
# "test_draws": label-paired test examples per item of the first modality, so that a fold's figure depends less on which
# face and text a clip happens to be paired with


@dataclass(frozen=True)
class Spec:
    """A system, see ``train.model.build``, and the fold to train it on. ``modalities`` are in MODALITIES' order."""

    variant: str
    attention: str
    modalities: tuple[str, ...]
    pooling: bool
    fold: int
    seed: int

    @property
    def system(self) -> str:
        """Such as ``avt-cross``, ``a-self``, ``avt-self-nosp`` (without statistical pooling)."""
        letters = "".join(m[0] for m in self.modalities)
        return f"{letters}-{self.attention}{'' if self.pooling else '-nosp'}"


@dataclass(frozen=True)
class Training:
    """``modality_dropout``: how often a modality is left out of a training example, which keeps at least one (default
    variant only; the paper has none). ``standardise``: give the paper variant, which has no normalisation of its own,
    features of mean 0 and deviation 1; False leaves arrays as their authors prepared them.
    """

    max_epochs: int = 40
    modality_dropout: float = 0.0
    standardise: bool = True


@dataclass(frozen=True)
class Result:
    """A finished run. ``logits`` (N, labels) float32 and ``truth`` (N,) of the test examples; ``items[m]`` (N,): the
    item of the test part that gave modality m. ``dev``: loss and accuracy after each epoch.
    """

    spec: Spec
    training: Training
    logits: np.ndarray
    truth: np.ndarray
    items: dict[str, np.ndarray]
    dev: list[dict[str, float]]
    best_epoch: int
    seconds: float
    parameters: int
    train_items: int
    test_items: int

    def save(self, path: Path) -> None:
        """Write everything into one file, whole or not at all."""
        arrays = {"logits": self.logits, "truth": self.truth}
        arrays |= {f"items_{m}": numbers for m, numbers in self.items.items()}
        facts = {k: v for k, v in asdict(self).items() if k not in ("logits", "truth", "items")}
        path.parent.mkdir(parents=True, exist_ok=True)
        contiguous = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
        write_atomically(path, save(contiguous, {"run": json.dumps(facts)}))

    @classmethod
    def load(cls, path: Path) -> Result:
        """Raises CorpusError if ``save`` did not write the file."""
        try:
            with safe_open(path, "numpy") as file:
                facts = json.loads(file.metadata()["run"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            items = {name[6:]: array for name, array in arrays.items() if name.startswith("items_")}
            spec, training = facts.pop("spec"), Training(**facts.pop("training"))
            spec = Spec(**spec | {"modalities": tuple(spec["modalities"])})
            return cls(spec, training, arrays["logits"], arrays["truth"], items, **facts)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CorpusError(f"{path}: not a finished run ({error}); delete it and call again") from error


def path_of(out: Path, spec: Spec, training: Training, folds: Folds) -> Path:
    """The run's file, named by what it is and a hash of everything that its figures depend on."""
    settings = {
        "code": CODE, "protocol": PROTOCOL, "spec": asdict(spec), "training": asdict(training), "corpus": folds.name,
        "labels": list(folds.label_names), "folds": folds.folds, "features": folds.settings,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return out / "runs" / f"{spec.variant}-{spec.system}-fold{spec.fold}-seed{spec.seed}-{digest}.safetensors"


# --- training --------------------------------------------------------------------------------------------------------


def make_model(spec: Spec, collator: Collator, labels: int) -> torch.nn.Module:
    """The system with random weights; in the default variant, with the training part's means and deviations."""
    model = build(
        variant=spec.variant, attention=spec.attention, modalities=spec.modalities, pooling=spec.pooling,
        labels=labels, dims=collator.dims, rows=collator.rows if spec.variant == "paper" else None, sound="mfcc",
    )  # fmt: skip
    if isinstance(model, Fusion):
        for m, encoder in model.encoders.items():
            assert isinstance(encoder, Encoder)
            mean, std = collator.columns[m]
            encoder.mean.copy_(torch.from_numpy(mean))
            encoder.std.copy_(torch.from_numpy(std))
    return model


@torch.inference_mode()
def predict(
    model: torch.nn.Module,
    collator: Collator,
    part: Part,
    items: Mapping[str, np.ndarray],
    rows: np.ndarray,
    labels: int,
) -> np.ndarray:
    """Logits (N, labels) float32 of the examples, in their order. ``rows`` (N,): their lengths."""
    model.eval()
    order = np.argsort(rows, kind="stable")  # batches of similar length have little padding
    logits = np.empty((len(order), labels), np.float32)
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        logits[chosen] = model(**collator(part, items, chosen)).numpy()
    return logits


def run(spec: Spec, training: Training, folds: Folds) -> Result:
    """Train, select and test one system on one fold; the same seed gives the same result on the same machine.

    Raises CorpusError if the corpus lacks a modality or a label, or has features that are not finite; ValueError for
    a system that ``train.model.build`` refuses; FloatingPointError if the loss is no longer finite.
    """
    began = time.monotonic()
    if training.modality_dropout and spec.variant == "paper":
        raise ValueError("the paper's network has no masks, so no modality can be left out: use the default variant")
    parts, labels = folds.split(spec.fold), len(folds.label_names)
    if lacking := [m for m in spec.modalities if m not in parts["train"].features]:
        raise CorpusError(f"{folds.name} has no {', '.join(lacking)}; it has {', '.join(parts['train'].features)}")
    rng = np.random.default_rng([spec.seed, spec.fold])
    torch.manual_seed(int(rng.integers(2**31)))
    paper = spec.variant == "paper"
    collator = Collator(
        parts["train"], spec.modalities, paper, training.standardise or not paper, training.modality_dropout
    )
    model = make_model(spec, collator, labels)
    # drawn by the fold alone, so that all systems and seeds are selected and tested on the same examples
    dev_items, dev_truth = draw(parts["dev"], 1, np.random.default_rng([spec.fold, 1]))
    length = {name: lengths(part, spec.modalities) for name, part in parts.items()}  # by part and modality
    dev_rows = rows_of(length["dev"], dev_items)

    optimiser = torch.optim.Adam(model.parameters(), lr=PROTOCOL["learning_rate"])
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=PROTOCOL["plateau_factor"], patience=int(PROTOCOL["plateau_patience"])
    )
    dev: list[dict[str, float]] = []
    best, best_epoch, state = -1.0, -1, {}
    for epoch in range(training.max_epochs):
        _train_epoch(model, collator, parts["train"], length["train"], optimiser, rng, epoch)
        logits = predict(model, collator, parts["dev"], dev_items, dev_rows, labels)
        loss = float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(dev_truth)))
        dev.append({"loss": loss, "accuracy": accuracy(dev_truth, logits.argmax(1))})
        schedule.step(loss)
        if dev[-1]["accuracy"] > best:
            best, best_epoch = dev[-1]["accuracy"], epoch
            state = {name: value.clone() for name, value in model.state_dict().items()}
        elif epoch - best_epoch >= PROTOCOL["stop_after"]:
            break
    model.load_state_dict(state)

    test_items, test_truth = draw(parts["test"], int(PROTOCOL["test_draws"]), np.random.default_rng([spec.fold, 2]))
    logits = predict(model, collator, parts["test"], test_items, rows_of(length["test"], test_items), labels)
    return Result(
        spec, training, logits, test_truth, {m: test_items[m] for m in spec.modalities}, dev, best_epoch,
        round(time.monotonic() - began, 2), sum(p.numel() for p in model.parameters()),
        *(len(_first(parts[name])) for name in ("train", "test")),
    )  # fmt: skip


def _first(part: Part) -> np.ndarray:
    return next(part.labels[m] for m in MODALITIES if m in part.labels)


def _train_epoch(
    model: torch.nn.Module, collator: Collator, part: Part, length: Mapping[str, np.ndarray],
    optimiser: torch.optim.Optimizer, rng: np.random.Generator, epoch: int,
) -> None:  # fmt: skip
    model.train()
    items, truth = draw(part, 1, rng)
    rows = rows_of(length, items)
    usable = np.flatnonzero(rows)  # nothing can be learnt from an utterance without any of these modalities
    if collator.rows:
        rows = np.zeros_like(rows)  # the paper's variant makes all the same length
    for batch in batches(rows[usable], int(PROTOCOL["batch"]), rng):
        chosen = usable[batch]
        loss = F.cross_entropy(model(**collator(part, items, chosen, rng)), torch.from_numpy(truth[chosen]))
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} in epoch {epoch}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
