"""Optimisation profiles: the input shapes for which an engine is compiled."""

from __future__ import annotations

from emostream.engines.bundle import FACE, FUSION, MODALITIES, VOICE, Manifest

Profile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""The smallest, the typical and the largest shape of each input."""

_TYPICAL_ROWS = 5  # an utterance of 3 s in windows of 15 s: a fifth
_TYPICAL_BATCH = 4  # an utterance, and the same without each of its three modalities
_VOICE_ROWS = (8, 304, 1504)  # log-mel rows: 80 ms, 3 s, 15 s
_CROPS = (1, 8, 64)  # crops per run of the face network: one, a short utterance's, the live code's limit


def of_bundle(manifest: Manifest, graph: str, max_batch: int = 8) -> Profile:
    """Shapes that occur in the live pipeline for one of a bundle's graphs, FUSION, VOICE or FACE, by its manifest's
    window sizes. ``max_batch``: the fusion graph's. An absent modality has one row.

    Raises ValueError for another graph or a batch below 1.
    """
    if max_batch < 1:
        raise ValueError(f"max_batch is {max_batch}; it must be at least 1")
    if graph == FACE:
        side = manifest.video.settings["crop"]
        smallest, typical, largest = ((crops, side, side) for crops in _CROPS)
        return {"crops": (smallest, typical, largest)}
    if graph == VOICE:
        smallest, typical, largest = ((1, rows, manifest.audio.settings["n_mels"]) for rows in _VOICE_ROWS)
        return {"rows": (smallest, typical, largest)}
    if graph != FUSION:
        raise ValueError(f"{graph!r} is not a graph of a bundle; choose {FUSION}, {VOICE} or {FACE}")
    profile: Profile = {}
    batch = min(_TYPICAL_BATCH, max_batch)
    for name in MODALITIES:
        modality = getattr(manifest, name)
        rows, dim = max(1, modality.max_rows // _TYPICAL_ROWS), modality.dim
        profile[name] = ((1, 1, dim), (batch, rows, dim), (max_batch, modality.max_rows, dim))
        profile[f"{name}_len"] = ((1,), (batch,), (max_batch,))
    return profile
