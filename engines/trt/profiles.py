"""Optimisation profiles: the input shapes for which an engine is compiled."""

from __future__ import annotations

from emostream.engines.bundle import FACE, FUSION, MODALITIES, Manifest

Profile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""By input: the smallest, the typical and the largest shape."""

_TYPICAL_ROWS = 5  # an utterance of 3 s in windows of 15 s: a fifth
_TYPICAL_BATCH = 4  # one label, and what each of three modalities contributed to it
_CROPS = (1, 8, 64)  # in one run of the face network; what a short utterance brings, and what the live code ends at


def of_bundle(manifest: Manifest, graph: str, max_batch: int = 8) -> Profile:
    """Shapes of the live pipeline for one of the bundle's graphs, FUSION or FACE, from its manifest's window sizes.

    ``max_batch`` is that of the fusion graph. A modality that is absent has one row. Raises ValueError for another
    graph or a batch below 1.
    """
    if max_batch < 1:
        raise ValueError(f"max_batch is {max_batch}; it must be at least 1")
    if graph == FACE:
        side = manifest.video.settings["crop"]
        smallest, typical, largest = ((crops, side, side) for crops in _CROPS)
        return {"crops": (smallest, typical, largest)}
    if graph != FUSION:
        raise ValueError(f"{graph!r} is not a graph of a bundle; choose {FUSION} or {FACE}")
    profile: Profile = {}
    batch = min(_TYPICAL_BATCH, max_batch)
    for name in MODALITIES:
        modality = getattr(manifest, name)
        rows, dim = max(1, modality.max_rows // _TYPICAL_ROWS), modality.dim
        profile[name] = ((1, 1, dim), (batch, rows, dim), (max_batch, modality.max_rows, dim))
        profile[f"{name}_len"] = ((1,), (batch,), (max_batch,))
    return profile
