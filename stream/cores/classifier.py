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
from emostream.stream.features.spelling import PUNCTUATION
from emostream.stream.features.text import TextEncoder, WordPieces
from emostream.stream.features.voice import VoiceEncoder
from emostream.stream.prior import Prior, log_ratios

_MAX_CROPS = 64  # per run of the face network, to bound the memory that a long backlog needs


@dataclass(frozen=True)
class Features:
    """One utterance's rows of each modality: (time, dim) float32 each, with time = 0 if the modality is absent."""

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
    """``probabilities``: (labels,) float64, summing to 1. ``contributions``: by modality, see emotion.Evidence.
    ``backend``: the backend that ran the network, if it was not the classifier's own."""

    probabilities: np.ndarray
    contributions: dict[str, float]
    backend: str = ""


@dataclass(frozen=True)
class Encode:
    """A run of the encoders. ``crops``: (n, 48, 48) uint8; ``rows``: from ``VoiceEncoder.begin``; ``pieces``: from
    ``TextEncoder.begin``."""

    crops: np.ndarray
    rows: Sequence[np.ndarray] = ()
    pieces: Sequence[np.ndarray] = ()


@dataclass(frozen=True)
class Encoded:
    """The answer to an ``Encode``: face vectors (n, dim), and (1, m, dim) for each of its rows and pieces; float32."""

    faces: np.ndarray
    voices: Sequence[np.ndarray] = ()
    texts: Sequence[np.ndarray] = ()


@dataclass(frozen=True)
class Classify:
    """A run of the fusion network. At least one modality of each item must be present. ``contributions``: for which
    items to compute the contribution of each modality."""

    items: Sequence[Features]
    contributions: Sequence[bool]

    def rows(self) -> list[Features]:
        """The network's input: each item and, if its contributions are wanted, the item without each modality."""
        rows: list[Features] = []
        for item, wanted in zip(self.items, self.contributions, strict=True):
            rows.append(item)
            present = item.present()
            if wanted and len(present) > 1:
                rows += [_without(item, name) for name in present]
        return rows


class Head:
    """The part that needs no network: a bundle's labels, and probabilities from logits. ``prior``: how often each
    label occurs where the bundle is used.

    Raises BundleError if the bundle was trained on other features than this version computes, and ConfigError if the
    prior does not match its labels.
    """

    backend = ""

    def __init__(self, bundle: Bundle, prior: Prior = "training") -> None:
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
        self.dims = manifest.audio.dim, manifest.video.dim, manifest.text.dim
        self.face_dim = manifest.video.dim
        self.punctuation = bool(manifest.text.settings.get(PUNCTUATION, False))
        self._manifest = manifest
        self.rest = {name: np.array(vector, np.float32) for name, vector in manifest.rest.items()}
        self._log_ratios = log_ratios(prior, manifest)
        self._pieces = WordPieces.load(bundle.path(PIECES))

    def correct_for(self, prior: Prior) -> None:
        """Use another prior from now on. Raises ConfigError if it does not match the bundle's labels."""
        self._log_ratios = log_ratios(prior, self._manifest)

    def voice_encoder(self) -> VoiceEncoder:
        """The encoder for the sound of one stream's utterances."""
        return VoiceEncoder(self._run_voice)

    def text_encoder(self) -> TextEncoder:
        """The encoder for the words of one stream."""
        return TextEncoder(self._run_text, self._pieces, self._manifest.text.dim)

    def _run_voice(self, rows: np.ndarray) -> np.ndarray:
        raise NotImplementedError("the networks are elsewhere")

    def _run_text(self, pieces: np.ndarray) -> np.ndarray:
        raise NotImplementedError("the networks are elsewhere")

    def run(self, call: Encode | Classify) -> Encoded | list[Result]:
        """Run the networks for a call."""
        raise NotImplementedError("the networks are elsewhere")

    def results(self, call: Classify, logits: np.ndarray, backend: str = "") -> list[Result]:
        """The result of each item, from the network's output for ``call.rows()``: (rows, labels). ``backend``: the
        backend that ran it, if not ``self.backend``."""
        rows_left = iter(self._probabilities(call.rows(), logits))
        results = []
        for item, wanted in zip(call.items, call.contributions, strict=True):
            full = next(rows_left)
            label = int(full.argmax())
            present = item.present()
            shares = dict.fromkeys(MODALITIES, 0.0)
            if wanted and len(present) == 1:
                shares[present[0]] = float(full[label] - 1 / len(self.labels))
            elif wanted:
                for name in present:
                    shares[name] = float(full[label] - next(rows_left)[label])
            results.append(Result(full, shares, backend))
        return results

    def _probabilities(self, rows: Sequence[Features], logits: np.ndarray) -> np.ndarray:
        """(rows, labels) probabilities, calibrated and corrected for the prior."""
        subsets = ["+".join(row.present()) for row in rows]
        temperature = np.array([self._manifest.temperature[subset] for subset in subsets])
        logits = logits.astype(np.float64) / temperature[:, None]
        logits += np.stack([self._log_ratios[subset] for subset in subsets])
        exp = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: np.ndarray = exp / exp.sum(axis=1, keepdims=True)
        return probabilities


class Classifier(Head):
    """A bundle's networks, loaded once. ``prior``: how often each label occurs where they are used.

    Raises what ``Head`` raises, and BackendError if the backend cannot load the networks.
    """

    def __init__(self, bundle: Bundle, backend: str = "auto", threads: int = 1, prior: Prior = "training") -> None:
        super().__init__(bundle, prior)
        self._voice = load(bundle, VOICE, "onnxruntime", threads)  # only a few rows per call: a GPU would not pay
        self._face = load(bundle, FACE, backend, threads)
        self._fusion = load(bundle, FUSION, backend, threads)
        self._text = load(bundle, TEXT, "onnxruntime", threads)  # its int8 matrix products are meant for CPUs
        self._words = self.text_encoder()
        self.backend = self._fusion.name

    def warm_up(self) -> None:
        """Run each network once, so that the first utterance does not wait for set-up."""
        faces = self.encode_faces(np.zeros((2, face.CROP, face.CROP), np.uint8))
        sound = self.voice_encoder().encode(np.zeros((500, logmel.DIM), np.float32))
        item = Features(sound, faces, self.encode_words(["one", "two", "three"]))
        self.classify([item], [True])

    def close(self) -> None:
        """Release the networks; the classifier cannot be used afterwards."""
        self._voice.close()
        self._face.close()
        self._text.close()
        self._fusion.close()

    def _run_voice(self, rows: np.ndarray) -> np.ndarray:
        return self._voice.run({"rows": rows})["vectors"]

    def _run_text(self, pieces: np.ndarray) -> np.ndarray:
        return self._text.run({"pieces": pieces})["vectors"]

    def encode_faces(self, crops: np.ndarray) -> np.ndarray:
        """Vectors of (n, 48, 48) uint8 crops: (n, dim) float32."""
        if not len(crops):
            return np.zeros((0, self.face_dim), np.float32)
        parts = [crops[i : i + _MAX_CROPS] for i in range(0, len(crops), _MAX_CROPS)]
        return np.concatenate([self._face.run({"crops": np.ascontiguousarray(part)})["vectors"] for part in parts])

    def encode_words(self, words: Sequence[str]) -> np.ndarray:
        """Vectors of the last words: (n, dim) float32; n = 0 if they are in a language that is not known."""
        return self._words.encode(words)

    def classify(self, batch: Sequence[Features], contributions: Sequence[bool]) -> list[Result]:
        """Probabilities of each item and, where ``contributions`` is True, the contribution of each modality, in one
        run of the network. At least one modality of each item must be present.
        """
        call = Classify(batch, contributions)
        return self.results(call, self.logits(call.rows()))

    def run(self, call: Encode | Classify) -> Encoded | list[Result]:
        """See ``Head.run``."""
        if isinstance(call, Encode):
            return self.encode(call)
        return self.results(call, self.logits(call.rows()))

    def encode(self, call: Encode) -> Encoded:
        """Run the encoders."""
        return Encoded(
            self.encode_faces(call.crops),
            [self._run_voice(rows) for rows in call.rows],
            [self._run_text(pieces) for pieces in call.pieces],
        )

    def logits(self, rows: Sequence[Features]) -> np.ndarray:
        """The fusion network's output for each row, in one run: (rows, labels) float32."""
        inputs: dict[str, np.ndarray] = {}
        for name in MODALITIES:
            max_rows = getattr(self._manifest, name).max_rows
            inputs[name], inputs[f"{name}_len"] = pad(
                [getattr(row, name) for row in rows], max_rows
            )  # (B, T, dim), (B,)
        return self._fusion.run(inputs)["logits"]


def _without(item: Features, name: str) -> Features:
    values = {other: getattr(item, other) for other in MODALITIES}
    values[name] = values[name][:0]
    return Features(**values)
