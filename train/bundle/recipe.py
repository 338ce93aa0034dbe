"""From corpora to a bundle, stage by stage."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import torch
from safetensors.torch import save

from emostream.engines.bundle import (
    FACE,
    FORMAT,
    FUSION,
    MODALITIES,
    PIECES,
    TEXT,
    VOICE,
    WEIGHTS,
    Corpus,
    Manifest,
    Modality,
    open_bundle,
    write_manifest,
)
from emostream.errors import CorpusError, Problems
from emostream.files import write_atomically
from emostream.stream.features import face as live_face
from emostream.stream.features import logmel
from emostream.stream.features import text as live_text
from emostream.stream.features import voice as live_voice
from emostream.train import model as network
from emostream.train.bundle import face, text, voice
from emostream.train.bundle import fit as fusion_training
from emostream.train.bundle.calibrate import calibrate
from emostream.train.bundle.evaluate import answers, by_group, calibration_report
from emostream.train.bundle.features import cached, code_of
from emostream.train.bundle.fit import (
    MAX_ROWS,
    SHARE,
    VERSION,
    Pool,
    fit,
    label_shares,
    make_fusion,
    report,
)
from emostream.train.bundle.presets import PRESETS, Preset
from emostream.train.bundle.stages import in_conditions, make_faces, make_speech, make_texts
from emostream.train.bundle.voice_recipe import SHARES
from emostream.train.corpora import (
    LABELS,
    Item,
    emodb,
    fer2013,
    goemotions,
    in_split,
    limit_per_label,
    meetings,
    meld,
    nemo,
    nonverbal,
    ravdess,
)
from emostream.train.graphs import fast
from emostream.train.graphs import portable as export
from emostream.train.metrics import scores
from emostream.train.model import Fusion
from emostream.train.progress import Stage, StepDone

log = logging.getLogger(__name__)

FPS = 10  # face vectors per second that training assumes


NEEDED = (ravdess, fer2013, goemotions)  # the figures of sound, faces and words are on their held-out parts
OPTIONAL = (emodb, nemo, meetings, nonverbal, meld)
SURROUNDINGS = ("noise", "rir")  # folders used, with the meetings, for augmentation
# Weights of further sounds in the fusion network's training; those of acted speech sum to 1
EVERYDAY: Mapping[ModuleType, float] = {meetings: 0.07, nonverbal: 0.06}


def folder_of(corpus: ModuleType) -> str:
    """The name of a corpus's folder: that of its module."""
    return corpus.__name__.rpartition(".")[2]


def load_all(data: Path) -> tuple[dict[ModuleType, list[Item]], list[str]]:
    """Items by corpus below ``data``, and the names of missing folders, without which training continues.

    Raises Problems that lists what is wrong with the existing folders, and which of ``NEEDED`` are missing.
    """
    items: dict[ModuleType, list[Item]] = {}
    problems = []
    absent = [name for name in SURROUNDINGS if not (data / name).is_dir()]
    for corpus in (*NEEDED, *OPTIONAL):
        folder = data / folder_of(corpus)
        items[corpus] = []
        if corpus in OPTIONAL and not folder.is_dir():
            absent.append(folder.name)
            continue
        try:
            items[corpus] = corpus.load(folder)
        except CorpusError as error:
            problems.append(f"{corpus.NAME}: {error}")
    if problems:
        raise Problems(str(data), problems)
    return items, absent


def shares_by_label(pools: Mapping[str, Pool], subset: str) -> dict[str, float]:
    """How often each label occurs among the fusion network's training examples of these modalities."""
    shares = label_shares(pools, subset.split("+"))
    return {label: round(float(share), 6) for label, share in zip(LABELS, shares, strict=True)}


def make_model(
    pools: Mapping[str, Pool],
    steps: int,
    share: Mapping[str, float],
    preset: Preset,
    cache: Path,
    seed: int,
    step_done: StepDone,
) -> Fusion:
    """Train or load a fusion model on the pools; see ``fit``."""
    digests = {m: hashlib.sha256() for m in pools}
    for m, pool in pools.items():
        for part in pool.parts():
            digests[m].update(np.ascontiguousarray(part).data)
    settings = {
        "version": VERSION, "code": code_of(network, fusion_training),
        "steps": steps, "seed": seed, "attention": preset.attention, "share": dict(share),
        "pools": {m: digest.hexdigest() for m, digest in digests.items()},
    }  # fmt: skip

    def make() -> dict[str, np.ndarray]:
        trained = fit(pools, steps, seed, preset.attention, share, step_done=step_done)
        return {name: value.numpy() for name, value in trained.state_dict().items()}

    state = cached(cache, "fusion", settings, make)
    model = make_fusion(pools, preset.attention)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return model.eval()


def trained_without(
    training: Mapping[str, Pool], held_out: Mapping[str, Pool], preset: Preset, cache: Path, seed: int, stage: Stage
) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of models trained without one modality, by that modality and by the modalities given. They show what it
    costs to use one model for all sets of modalities.

    Each is trained on as many batches of each kind as the bundle's model gets without that modality.
    """
    figures = {}
    for absent in MODALITIES:
        share = {subset: often for subset, often in SHARE.items() if absent not in subset.split("+")}
        total = sum(share.values())
        model = make_model(
            {m: pool for m, pool in training.items() if m != absent}, int(preset.fusion_steps * total),
            {subset: often / total for subset, often in share.items()}, preset, cache, seed, stage(f"without {absent}"),
        )  # fmt: skip
        (whole,) = answers(model, {m: pool for m, pool in held_out.items() if m != absent}, 1, seed, tuple(share))
        figures[absent] = {name: scores(truth, logits.argmax(1)) for name, (logits, truth) in whole.items()}
    return figures


def make_bundle(
    preset_name: str, data: Path, out: Path | None, cache: Path, seed: int, stage: Stage, portable: bool = False
) -> tuple[Manifest, Path]:
    """Train a preset on the corpora below ``data`` and write the bundle; returns its manifest and its folder.

    ``portable``: without the fast graphs. Raises CorpusError, ModelError or ExportError.
    """
    preset = PRESETS[preset_name]
    out = out or Path("bundles") / preset_name
    corpora, absent = load_all(data)
    if absent:
        log.warning("%s: no %s; training does without", data, ", ".join(absent))
    fast.try_exports(preset.attention, {}, fast=not portable)
    if preset.most is not None:
        corpora = {
            corpus: [
                item for split in ("train", "val") for item in limit_per_label(in_split(items, split), preset.most)
            ]
            for corpus, items in corpora.items()
        }
    clips, german, polish, stills, comments, lines = (
        corpora[corpus] for corpus in (ravdess, emodb, nemo, fer2013, goemotions, meld)
    )

    spoken = {str(corpus.NAME): (corpora[corpus], share) for corpus, share in SHARES.items() if corpora[corpus]}
    everyday = {str(corpus.NAME): (corpora[corpus], share) for corpus, share in EVERYDAY.items() if corpora[corpus]}
    speech = make_speech(spoken, everyday, data, preset, cache, seed, stage)
    sounds = speech.held_out
    seen = make_faces(stills, data, preset, cache, seed, stage)
    net, faces = seen.net, seen.pools
    said = make_texts([comments, lines], preset, cache, seed, stage)
    texts = said.held_out

    training: dict[str, Pool] = {
        "audio": speech.training,
        "video": faces["train"],
        "text": said.training,
    }
    model = make_model(training, preset.fusion_steps, SHARE, preset, cache, seed, stage("fusion"))

    held_out: dict[str, Pool] = {
        "audio": sounds(sorted(in_split(clips, "val"), key=lambda item: item.speaker)), "video": faces["val"],
        "text": texts(in_split(comments, "val")),
    }  # fmt: skip
    (whole,) = answers(model, held_out, 1, seed)
    figures = {
        name + (" (label-paired)" if "+" in name else ""): report(truth, logits)
        for name, (logits, truth) in whole.items()
    }
    figures |= by_group(
        model,
        sounds,
        texts,
        in_split(clips, "val"),
        {
            f"audio, {emodb.NAME}": in_split(german, "val"),
            f"audio, {nemo.NAME}": in_split(polish, "val"),
            f"audio, {meetings.NAME}": in_split(corpora[meetings], "val"),
            f"audio, {nonverbal.NAME}": in_split(corpora[nonverbal], "val"),
            f"text, {meld.NAME}": in_split(lines, "val"),
        },
    )
    first, second = answers(model, held_out, 2, seed)
    calibration = calibrate((first, second), seed)
    without = trained_without(training, held_out, preset, cache, seed, stage)

    out.mkdir(parents=True, exist_ok=True)
    worst = {FUSION: export.export_fusion(model, out / FUSION), FACE: export.export_face(net, out / FACE)}
    worst[VOICE] = voice.export(speech.net, out / VOICE)
    for name in fast.GRAPHS:
        (out / name).unlink(missing_ok=True)  # files of an earlier bundle
    if not portable:
        worst |= fast.export_fast(model, out)
    write_atomically(out / WEIGHTS, save(dict(model.state_dict())))
    worst[TEXT] = export.export_text(said.net, out / TEXT, said.pieces)
    write_atomically(out / PIECES, "".join(f"{piece}\n" for piece in said.pieces.number))
    manifest = Manifest(
        format=FORMAT,
        name=preset_name,
        version="1",
        labels=list(LABELS),
        audio=Modality(live_voice.DIM, MAX_ROWS["audio"], {**logmel.SETTINGS, **live_voice.SETTINGS}),
        video=Modality(face.DIM, MAX_ROWS["video"], {**live_face.SETTINGS, "fps": FPS}),
        text=Modality(text.DIM, MAX_ROWS["text"], dict(live_text.SETTINGS)),
        temperature=calibration.temperature,
        uncertain_below=calibration.uncertain_below,
        label_shares={subset: shares_by_label(training, subset) for subset in SHARE},
        rest={m: [round(float(x), 4) for x in rest] for m, rest in (("audio", speech.rest), ("video", seen.rest))},
        training={
            "command": f"python -m train fit --preset {preset_name} --data DIR --seed {seed}"
            + (" --portable" if portable else ""),
            "preset": dataclasses.asdict(preset),
            "seed": seed,
            "parameters": {
                "fusion": sum(p.numel() for p in model.parameters()),
                "voice": sum(p.numel() for p in speech.net.stages.parameters()),
                "face": sum(p.numel() for p in net.parameters()),
                "text": sum(p.numel() for p in said.net.parameters()),
            },
            "label_paired": "no corpus here has informative sound, face and words of the same moment; an example is a "
            "clip, a still face and a text of equal label, drawn afresh each time. That is synthetic and treats the "
            "modalities as independent given the label.",
            "video": "each face is a still: its sequence is made of jittered crops of one image",
            "held_out": {
                ravdess.NAME: f"actors {', '.join(ravdess.HELD_OUT)}",
                emodb.NAME: f"speakers {', '.join(emodb.HELD_OUT)}",
                nemo.NAME: f"speakers {', '.join(nemo.HELD_OUT)}",
                meetings.NAME: f"excerpts {', '.join(meetings.HELD_OUT)}",
                nonverbal.NAME: f"every {nonverbal.HELD_OUT}th speaker",
                fer2013.NAME: "split val",
                goemotions.NAME: "dev",
                meld.NAME: "dev",
            },
            "without": absent,
            "selection": "no epoch or model was chosen on the held-out data: the model is that of the last step. The "
            "preset's sizes were set by hand with these figures in view.",
            "export_difference": {name: float(f"{value:.2g}") for name, value in worst.items()},
        },
        corpora=[
            Corpus(module.NAME, used, len(in_split(items, "train")), module.LICENCE, module.CITATION)
            for module, items, used in (
                (ravdess, clips, "audio"),
                (emodb, german, "audio"),
                (nemo, polish, "audio"),
                (meetings, corpora[meetings], "audio"),
                (nonverbal, corpora[nonverbal], "audio"),
                (fer2013, stills, "video"),
                (goemotions, comments, "text"),
                (meld, lines, "text"),
            )
            if items
        ],
        licence="Research use, non-commercial: the weights derive from RAVDESS and nEMO (CC BY-NC-SA 4.0), "
        "from Deeply (CC BY-NC-ND 4.0) and from "
        "FER2013's images and EmoDB, which were given out for research.",
        metrics={
            "chance": "balanced accuracy 1/7 = 0.143",
            "validation": figures,
            "conditions": in_conditions(model, speech),
            "face_encoder_alone": seen.own,
            "text_encoder_alone": dict(zip((goemotions.NAME, meld.NAME), said.own.values(), strict=False)),
            "trained_without": without,
            "calibration": calibration_report(calibration),
        },
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "onnx": onnx.__version__,
            "numpy": np.__version__,
        },
        files={},
    )
    write_manifest(out, manifest)
    open_bundle(out)
    return manifest, out
