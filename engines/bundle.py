"""A bundle: a folder with a manifest and the files that it lists by SHA-256.

manifest.json     labels, feature settings, window sizes, calibration, training data, licences, metrics, hashes
fusion.onnx       features of each modality, with lengths → logits; in plain ONNX, which every backend reads
fusion-cpu.onnx   the same weights in the operators that ONNX Runtime runs fastest on a CPU (optional)
fusion-gpu.onnx   the same weights in the form that costs TensorRT the fewest steps (optional)
fusion.safetensors the same weights for further training (optional)
voice.onnx        log-mel rows → voice vectors
face.onnx         face crop → vector
text.onnx         pieces of words → vectors
vocab.txt         the pieces, one per line
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from emostream.errors import BundleError
from emostream.files import as_json, sha256, user_path, write_atomically

BUNDLES = Path(__file__).parent / "bundles"
FORMAT = "emostream-bundle/3"
FUSION, VOICE, FACE, TEXT, PIECES = "fusion.onnx", "voice.onnx", "face.onnx", "text.onnx", "vocab.txt"
FUSION_CPU, FUSION_GPU = "fusion-cpu.onnx", "fusion-gpu.onnx"
WEIGHTS = "fusion.safetensors"
_OPTIONAL = (FUSION_CPU, FUSION_GPU, WEIGHTS)
# by graph and backend: the file that the backend runs fastest; all others run the graph's own file
_FASTEST = {
    (FUSION, "onnxruntime"): FUSION_CPU,
    (FUSION, "tensorrt"): FUSION_GPU,
    (FUSION, "tensorrt_rtx"): FUSION_GPU,
}
MODALITIES = ("audio", "video", "text")
Coordinate = Annotated[float, msgspec.Meta(ge=-1, le=1)]
SUBSETS = tuple("+".join(names) for n in (1, 2, 3) for names in itertools.combinations(MODALITIES, n))


# limits far beyond any real bundle; arrays of these sizes fit into memory
_MOST_DIM, _MOST_ROWS, _MOST_LABELS, _MOST_BYTES = 65_536, 100_000, 10_000, 50_000_000


class Modality(msgspec.Struct, forbid_unknown_fields=True):
    """Features of one modality: ``dim`` values a row, at most ``max_rows`` rows in a window."""

    dim: Annotated[int, msgspec.Meta(ge=1, le=_MOST_DIM)]
    max_rows: Annotated[int, msgspec.Meta(ge=1, le=_MOST_ROWS)]
    settings: dict[str, Any]


class Corpus(msgspec.Struct, forbid_unknown_fields=True):
    """One set of data that the bundle was trained on."""

    name: str
    used_for: str
    items: int
    licence: str
    citation: str


class File(msgspec.Struct, forbid_unknown_fields=True):
    """The expected size and hash of a file of the bundle."""

    sha256: str
    bytes: int


class _Head(msgspec.Struct):
    format: str


class Manifest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``manifest.json``. ``temperature`` divides the logits before the softmax (Guo et al., ICML 2017); it has a value
    for each of SUBSETS, the modalities that are present. A label whose probability is below ``uncertain_below`` is
    marked uncertain. ``modalities``: those that the network was trained with; it gets no others. ``label_shares``: how
    often each label occurred in the fusion network's training, for each of SUBSETS; empty, as in bundles made before it
    existed: equally often. ``rest``: by modality, the vector to which a person's resting face or neutral voice is
    shifted; without it, neither is learnt. ``coordinates``: valence and arousal of each label, in [-1, 1], where the
    training data had them; empty: the published ones."""

    format: str
    name: str
    version: str
    labels: Annotated[list[str], msgspec.Meta(min_length=1, max_length=_MOST_LABELS)]
    audio: Modality
    video: Modality
    text: Modality
    modalities: list[Literal["audio", "video", "text"]] = msgspec.field(default_factory=lambda: list(MODALITIES))  # type: ignore[arg-type]
    temperature: dict[str, Annotated[float, msgspec.Meta(gt=0)]]
    uncertain_below: Annotated[float, msgspec.Meta(ge=0, le=1)]
    label_shares: dict[str, dict[str, Annotated[float, msgspec.Meta(gt=0, le=1)]]] = {}
    rest: dict[str, list[float]] = {}
    coordinates: dict[str, tuple[Coordinate, Coordinate]] = {}
    training: dict[str, Any]
    corpora: list[Corpus]
    licence: str
    metrics: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, File]


@dataclass(frozen=True)
class Bundle:
    """An opened and verified bundle. ``id``: its name and the first 12 digits of its manifest's SHA-256."""

    folder: Path
    manifest: Manifest
    id: str

    def path(self, name: str) -> Path:
        """The path of one of its files."""
        return self.folder / name

    def path_for(self, graph: str, backend: str) -> Path:
        """The file that a backend runs for FUSION, VOICE or FACE: the one made for it if the bundle has that, else the
        portable one."""
        fastest = _FASTEST.get((graph, backend), graph)
        return self.path(fastest if fastest in self.manifest.files else graph)


def open_bundle(name: str | Path) -> Bundle:
    """Open a bundle by name, if it is shipped, or by the path of its folder, and verify each of its files.

    Raises BundleError if there is no such bundle, its manifest is not valid, or a file's hash is not the manifest's.
    """
    folder = user_path(name)
    if not os.path.isfile(folder / "manifest.json"):  # Path's own raises where a name is too long
        folder = BUNDLES / str(name)
    path = folder / "manifest.json"
    if not os.path.isfile(path):
        shipped = sorted(entry.parent.name for entry in BUNDLES.glob("*/manifest.json"))
        raise BundleError(
            f"bundle {str(name)!r} not found: there is no {user_path(name).absolute()}/manifest.json, and shipped are: "
            f"{', '.join(shipped)}"
        )
    try:
        raw = path.read_bytes() if path.stat().st_size <= _MOST_BYTES else b""
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        head = msgspec.json.decode(raw, type=_Head)
        if head.format != FORMAT:
            raise BundleError(f"{path}: format is {head.format!r}, this version reads {FORMAT!r}")
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: not a valid manifest ({error})") from error
    if len(set(manifest.labels)) < len(manifest.labels):
        raise BundleError(f"{path}: a label stands there twice")
    if set(manifest.temperature) != set(SUBSETS):
        raise BundleError(f"{path}: temperature is for {sorted(manifest.temperature)}, expected {sorted(SUBSETS)}")
    if not manifest.modalities:
        raise BundleError(f"{path}: modalities is empty")
    _check_label_shares(path, manifest)
    for name, vector in manifest.rest.items():
        if name not in MODALITIES or len(vector) != getattr(manifest, name).dim:
            raise BundleError(f"{path}: rest of {name!r} has {len(vector)} values, not as many as the modality")
    if manifest.coordinates and set(manifest.coordinates) != set(manifest.labels):
        raise BundleError(
            f"{path}: coordinates are of {sorted(manifest.coordinates)}, expected {sorted(manifest.labels)}"
        )
    for needed in (FUSION, VOICE, FACE, TEXT, PIECES):
        if needed not in manifest.files:
            raise BundleError(f"{path}: lists no {needed}")
    for file_name, expected in manifest.files.items():
        file = folder / file_name
        if "\0" in file_name or file.resolve().parent != folder.resolve():
            raise BundleError(f"{path}: {file_name!r} points outside the bundle")
        if not os.path.isfile(file):
            raise BundleError(f"{file}: missing, though the manifest lists it; restore the bundle")
        if (digest := sha256(file)) != expected.sha256:
            raise BundleError(
                f"{file}: SHA-256 is {digest[:12]}…, the manifest says {expected.sha256[:12]}…; "
                "the file was changed or damaged and is not loaded; restore the bundle"
            )
    return Bundle(folder, manifest, f"{manifest.name}@{hashlib.sha256(raw).hexdigest()[:12]}")


def _check_label_shares(path: Path, manifest: Manifest) -> None:
    """Raises BundleError if a set of modalities or a label is missing or unknown, or if shares do not sum to 1."""
    if not manifest.label_shares:
        return
    if set(manifest.label_shares) != set(SUBSETS):
        raise BundleError(f"{path}: label_shares is for {sorted(manifest.label_shares)}, expected {sorted(SUBSETS)}")
    for subset, shares in manifest.label_shares.items():
        if set(shares) != set(manifest.labels):
            raise BundleError(
                f"{path}: label_shares of {subset} is for {sorted(shares)}, expected {sorted(manifest.labels)}"
            )
        if not math.isclose(total := sum(shares.values()), 1, abs_tol=1e-3):
            raise BundleError(f"{path}: label_shares of {subset} sum to {total:g}, not 1")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Hash the bundle's files into ``manifest.files`` and write ``manifest.json``, whole or not at all."""
    manifest.files = {
        name: File(sha256(folder / name), (folder / name).stat().st_size)
        for name in (FUSION, *_OPTIONAL, VOICE, FACE, TEXT, PIECES)
        if name not in _OPTIONAL or (folder / name).exists()
    }
    write_atomically(folder / "manifest.json", as_json(manifest))
