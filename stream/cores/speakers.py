"""Tells speakers apart: clusters a stream's utterances online by how similar their voices are.

Nobody is enrolled, and names (s1, s2, …) are only valid within a run. A voice is the mean of its utterances. It is
forgotten after a while of not being heard; a voice beyond ``MOST`` replaces the one not heard for longest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAME = 0.30  # least correlation between an utterance and its speaker's voice
BOUND = 0.15  # the same, if that voice belongs to the face that speaks
FEW_S = 1.2  # seconds of speech; less does not make a new speaker
MOST = 8
_MOST_S = 4.0  # seconds of one utterance that count at most


@dataclass
class _Voice:
    name: str
    total: np.ndarray
    heard_ns: int
    face: int | None = None

    def alike(self, vector: np.ndarray) -> float:
        return float(self.total @ vector) / max(float(np.linalg.norm(self.total)), 1e-9)


class Speakers:
    """The voices of one stream. ``forget_ns``: how long a voice is remembered after it was last heard; ``first``: one
    less than the number of the first voice."""

    def __init__(self, forget_ns: int, first: int = 0) -> None:
        self._forget_ns = forget_ns
        self._voices: list[_Voice] = []
        self._names = first

    def find(self, vector: np.ndarray, at_ns: int, face: int | None = None) -> str | None:
        """The name of a voice that was heard before; None for a new one. ``vector``: (dim,) of length 1; ``face``: the
        one that certainly speaks."""
        voice = self._find(vector, at_ns, face)
        return None if voice is None else voice.name

    def face(self, name: str | None) -> int | None:
        """The face that goes with a voice."""
        return next((voice.face for voice in self._voices if voice.name == name), None)

    @property
    def names(self) -> set[str]:
        """The names of the voices that are remembered."""
        return {voice.name for voice in self._voices}

    def of_face(self, face: int | None, at_ns: int) -> str | None:
        """The voice that goes with a face."""
        return next((voice.name for voice in self._known(at_ns) if face is not None and voice.face == face), None)

    def tell(self, vector: np.ndarray, seconds: float, at_ns: int, face: int | None = None) -> str | None:
        """The name that ``assign`` would return, without learning: for an utterance that may go on."""
        voice = self._find(vector, at_ns, face)
        if voice is not None:
            return voice.name
        return None if self._is_little(seconds, at_ns) else f"s{self._names + 1}"

    def assign(self, vector: np.ndarray, seconds: float, at_ns: int, face: int | None = None) -> str | None:
        """Name the voice of an utterance and learn from it; a voice unlike all known ones gets a new name. None if too
        little was said to decide."""
        self._voices = self._known(at_ns)
        voice = self._find(vector, at_ns, face)
        if voice is None:
            if self._is_little(seconds, at_ns):
                return None
            if len(self._voices) == MOST:
                self._voices.remove(min(self._voices, key=lambda voice: voice.heard_ns))
            self._names += 1
            voice = _Voice(f"s{self._names}", np.zeros(len(vector)), at_ns)
            self._voices.append(voice)
        voice.total = voice.total + min(seconds, _MOST_S) * vector
        voice.heard_ns = max(voice.heard_ns, at_ns)
        if face is not None:
            for other in self._voices:
                other.face = None if other.face == face else other.face
            voice.face = face
        return voice.name

    def _known(self, at_ns: int) -> list[_Voice]:
        return [voice for voice in self._voices if at_ns - voice.heard_ns <= self._forget_ns]

    def _is_little(self, seconds: float, at_ns: int) -> bool:
        """Whether too little was said for a new voice while others are known."""
        return seconds < FEW_S and bool(self._known(at_ns))

    def _find(self, vector: np.ndarray, at_ns: int, face: int | None) -> _Voice | None:
        known = self._known(at_ns)
        if not known:
            return None
        own = next((voice for voice in known if face is not None and voice.face == face), None)
        if own is not None and own.alike(vector) >= BOUND:
            return own
        best = max(known, key=lambda voice: voice.alike(vector))
        return best if best.alike(vector) >= SAME else None
