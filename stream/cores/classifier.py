"""Runs the networks of a bundle: sound, face crops and words to vectors, vectors to probabilities."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from emostream.engines.bundle import FACE, FUSION, MODALITIES, PIECES, TEXT, VOICE, Bundle
from emostream.engines.load import load
from emostream.errors import BundleError
from emostream.stream.features import face, logmel, text, voice
from emostream.stream.features.padding import pad
from emostream.stream.features.text import TextEncoder, WordPieces
from emostream.stream.features.voice import VoiceEncoder
from emostream.stream.prior import Prior, log_ratios

_MAX_CROPS = 64  # in one run of the face network, to bound the memory that a long backlog needs


@dataclass(frozen=True)
class Features:
    """One utterance's rows of each modality: (time, dim) float32 each, of time 0 if the modality is absent."""

    audio: np.ndarray
    video: np.ndarray
    text: np.ndarray

    def present(self) -> list[str]:
        """The modalities that have rows."""
        return [name for name in MODALITIES if len(getattr(self, name))]

    def only(self, modalities: Collection[str]) -> Features:
        """The same without the rows of other modalities."""
        return Features(*(getattr(self, name)[: None if name in modalities else 0] for name in MODALITIES))


@dataclass(frozen=True)
class Result:
    """``probabilities``: (labels,) float64, of sum 1. ``contributions``: by modality, see emotion.Evidence."""

    probabilities: np.ndarray
    contributions: dict[str, float]


class Classifier:
    """A bundle's networks, loaded once. ``prior``: how often each label occurs where they are used.

    Raises BundleError if they were trained on other features than this version computes, ConfigError if the prior is
    not of the bundle's labels, and BackendError if the backend cannot load them.
    """

    def __init__(self, bundle: Bundle, backend: str = "auto", threads: int = 1, prior: Prior = "training") -> None:
        manifest = bundle.manifest
        for name, ours in (
            ("audio", logmel.SETTINGS | voice.SETTINGS),
            ("video", face.SETTINGS),
            ("text", text.SETTINGS),
        ):
            theirs = getattr(manifest, name).settings
            for key, value in ours.items():
                wanted = theirs.get(key)
                if (tuple(wanted) if isinstance(wanted, list) else wanted) != value:
                    raise BundleError(
                        f"bundle {bundle.id} was made for {name} {key} = {wanted!r}; this version computes {value!r}"
                    )
        self.labels = manifest.labels
        self.bundle_id = bundle.id
        self.modalities = manifest.modalities
        self.uncertain_below = manifest.uncertain_below
        self.coordinates = manifest.coordinates
        self._manifest = manifest
        self.rest = {name: np.array(vector, np.float32) for name, vector in manifest.rest.items()}
        self._log_ratios = log_ratios(prior, manifest)
        self._voice = load(bundle, VOICE, "onnxruntime", threads)  # rows come few at a time: a GPU would not pay
        self._face = load(bundle, FACE, backend, threads)
        self._fusion = load(bundle, FUSION, backend, threads)
        self._text = load(bundle, TEXT, "onnxruntime", threads)  # its int8 products are for processors
        self._words = TextEncoder(
            lambda pieces: self._text.run({"pieces": pieces})["vectors"],
            WordPieces.load(bundle.path(PIECES)),
            manifest.text.dim,
        )
        self.backend = self._fusion.name

    def warm_up(self) -> None:
        """Run each network once, so that the first utterance does not wait for set-up."""
        faces = self.encode_faces(np.zeros((2, face.CROP, face.CROP), np.uint8))
        sound = self.voice_encoder().encode(np.zeros((500, logmel.DIM), np.float32))
        item = Features(sound, faces, self.encode_words(["one", "two", "three"]))
        self.classify([item], [True])

    def correct_for(self, prior: Prior) -> None:
        """Take another prior from now on. Raises ConfigError if it is not of the bundle's labels."""
        self._log_ratios = log_ratios(prior, self._manifest)

    def close(self) -> None:
        """Release the networks; the classifier cannot be used afterwards."""
        self._voice.close()
        self._face.close()
        self._text.close()
        self._fusion.close()

    def voice_encoder(self) -> VoiceEncoder:
        """The encoder for the sound of one stream's utterances."""
        return VoiceEncoder(lambda rows: self._voice.run({"rows": rows})["vectors"])

    def encode_faces(self, crops: np.ndarray) -> np.ndarray:
        """Vectors of (n, 48, 48) uint8 crops: (n, dim) float32."""
        if not len(crops):
            return np.zeros((0, self._manifest.video.dim), np.float32)
        parts = [crops[i : i + _MAX_CROPS] for i in range(0, len(crops), _MAX_CROPS)]
        return np.concatenate([self._face.run({"crops": np.ascontiguousarray(part)})["vectors"] for part in parts])

    def encode_words(self, words: Sequence[str]) -> np.ndarray:
        """Vectors of the last words: (n, dim) float32, n = 0 where they are of a language that is not known."""
        return self._words.encode(words)

    def classify(self, batch: Sequence[Features], contributions: Sequence[bool]) -> list[Result]:
        """Probabilities of each item and, where ``contributions`` is True, the contribution of each modality, in one
        run of the network. At least one modality of each item must be present.
        """
        rows: list[Features] = []
        for item, wanted in zip(batch, contributions, strict=True):
            rows.append(item)
            present = item.present()
            if wanted and len(present) > 1:
                rows += [_without(item, name) for name in present]
        probabilities = self._run(rows)
        results = []
        rows_left = iter(probabilities)
        for item, wanted in zip(batch, contributions, strict=True):
            full = next(rows_left)
            label = int(full.argmax())
            present = item.present()
            shares = dict.fromkeys(MODALITIES, 0.0)
            if wanted and len(present) == 1:
                shares[present[0]] = float(full[label] - 1 / len(self.labels))
            elif wanted:
                for name in present:
                    shares[name] = float(full[label] - next(rows_left)[label])
            results.append(Result(full, shares))
        return results

    def _run(self, rows: Sequence[Features]) -> np.ndarray:
        """(rows, labels) probabilities, calibrated and corrected for the prior."""
        inputs: dict[str, np.ndarray] = {}
        for name in MODALITIES:
            max_rows = getattr(self._manifest, name).max_rows
            inputs[name], inputs[f"{name}_len"] = pad(
                [getattr(row, name) for row in rows], max_rows
            )  # (B, T, dim), (B,)
        subsets = ["+".join(row.present()) for row in rows]
        temperature = np.array([self._manifest.temperature[subset] for subset in subsets])
        logits = self._fusion.run(inputs)["logits"].astype(np.float64) / temperature[:, None]
        logits += np.stack([self._log_ratios[subset] for subset in subsets])
        exp = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: np.ndarray = exp / exp.sum(axis=1, keepdims=True)
        return probabilities


def _without(item: Features, name: str) -> Features:
    values = {other: getattr(item, other) for other in MODALITIES}
    values[name] = values[name][:0]
    return Features(**values)
