"""Sizes and lengths of training for ``python -m train fit``, by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    voice_steps: int
    voice_copies: int  # copies of each recording; the first is unchanged, the others are augmented
    face_epochs: int
    face_copies: int  # jittered crops of each still, half of them mirrored
    text_epochs: float
    text_batch: int
    text_copies: int  # copies of each line; the first is unchanged, the others are misheard
    fusion_steps: int
    attention: str
    most: int | None = None  # items per label, corpus and split


PRESETS = {
    # about 40 minutes on one core of 2025, 15 of them for the face encoder
    "ekman7": Preset(
        voice_steps=2400, voice_copies=5,
        face_epochs=20, face_copies=4, text_epochs=2, text_batch=64, text_copies=2,
        fusion_steps=14_000, attention="self",
    ),
    # a minute: shows that everything works together, but learns nothing useful
    "tiny": Preset(
        voice_steps=4, voice_copies=2, face_epochs=1, face_copies=2, text_epochs=1, text_batch=16, text_copies=2,
        fusion_steps=20, attention="self", most=20,
    ),
}  # fmt: skip
