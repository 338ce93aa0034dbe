"""Getting to know the person: separates how this person always looks or sounds from what they feel.

People differ more at rest than most moods do. A baseline is the mean of one person's vectors while they feel nothing in
particular. Later vectors are shifted by the difference between this baseline and a vector that all people share. The
correction grows slowly: the first utterance is not corrected, the tenth mostly is. If a person says everything in one
mood, little of it counts as rest, so the mood is not mistaken for the person.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import numpy as np

ENOUGH = 2.0  # utterances after which half of the difference is corrected
MOST_FACES = 16  # remembered for each stream
MOST = 20.0  # utterances remembered; older ones count less and less


class Baseline:
    """One person's vector at rest, in one modality. ``everyone``: the shared vector to which everybody's rest is
    shifted, (dim,); ``forget_ns``: how long the person may be away before being forgotten, None for ever."""

    def __init__(self, everyone: np.ndarray, forget_ns: int | None) -> None:
        self._everyone, self._forget_ns = everyone.astype(np.float32), forget_ns
        self._sum = np.zeros(len(everyone))
        self._weight = 0.0
        self._seen_ns = 0

    def seen(self, at_ns: int) -> None:
        """Somebody is there at this media time. Forgets the previous person if they have been away too long."""
        if self._forget_ns is not None and at_ns - self._seen_ns > self._forget_ns:
            self._sum[:] = 0
            self._weight = 0.0
        self._seen_ns = max(self._seen_ns, at_ns)

    def update(self, vectors: np.ndarray, weight: float) -> None:
        """Take (n, dim) vectors from one utterance, or from the time before it. ``weight``, 0 to 1: how surely the
        person was at rest."""
        if not len(vectors) or weight <= 0:
            return
        kept = min(1.0, (MOST - weight) / self._weight) if self._weight > 0 else 0.0
        self._sum = kept * self._sum + weight * vectors.mean(axis=0)
        self._weight = kept * self._weight + weight

    @property
    def rest(self) -> tuple[np.ndarray, float] | None:
        """Mean vector (dim,) and weight (in utterances) of what was taken; None if nothing was."""
        return (self._sum / self._weight, self._weight) if self._weight > 0 else None

    @rest.setter
    def rest(self, rest: tuple[np.ndarray, float]) -> None:
        mean, self._weight = rest
        self._sum = mean.astype(np.float64) * self._weight

    def parted(self, other: Baseline) -> Baseline:
        """This baseline, or a copy if ``other`` is the same object."""
        return copy.deepcopy(self) if self is other else self

    @property
    def known(self) -> float:
        """How much of the difference is corrected, 0 to 1."""
        return self._weight / (self._weight + ENOUGH)

    def correct(self, vectors: np.ndarray) -> np.ndarray:
        """Shift (n, dim) vectors by this person's difference from everyone's rest: float32."""
        if self._weight <= 0:
            return vectors
        off = self.known * (self._sum / self._weight - self._everyone)
        return vectors - off.astype(np.float32)


class Adaptation:
    """What is known about the people of one stream: a baseline for each voice by name, for each face by number, and one
    for all voices together, used for voices that are not told apart.

    ``everyone``: by modality, the vector to which everybody's rest is shifted; ``alone``: all faces and voices of the
    stream belong to one person. ``first``: by modality, the baseline of all voices and that of the first face.
    """

    def __init__(self, everyone: Mapping[str, np.ndarray], forget_ns: int | None, alone: bool) -> None:
        self._everyone, self._forget_ns, self._alone = everyone, forget_ns, alone
        self.first = {m: Baseline(vector, forget_ns) for m, vector in everyone.items()}
        self._faces: dict[int, Baseline] = {}
        self._voices: dict[str, Baseline] = {}

    def voice(self, speaker: str | None) -> Baseline | None:
        """A voice's baseline. The stream's for None, and until voices have been told apart; None for a voice about
        which nothing has been learnt, and if voices are not adapted to."""
        if speaker is None or self._alone or not self._voices:
            return self.first.get("audio")
        return self._voices.get(speaker)

    def heard(self, speaker: str | None, start_ns: int, end_ns: int) -> None:
        """Somebody spoke between these media times. Forgets whoever was away too long; for a voice this is judged by
        the start, which stays the same however often an utterance is evaluated."""
        if (stream := self.first.get("audio")) is not None:
            stream.seen(end_ns)
        if speaker in self._voices:
            self._voices[speaker].seen(start_ns)

    def learn_voice(self, speaker: str | None, vectors: np.ndarray, weight: float, end_ns: int) -> None:
        """Add an utterance that ended at this media time to the baseline of all voices and, if the speaker is known, to
        theirs (see ``Baseline.update``). The first voice shares the stream's baseline, and gets its own as soon as
        there is a second voice."""
        if (stream := self.first.get("audio")) is None:
            return
        if speaker is not None and not self._alone:
            if speaker not in self._voices:
                self._voices = {name: voice.parted(stream) for name, voice in self._voices.items()}
                new = Baseline(self._everyone["audio"], self._forget_ns)
                self._voices[speaker] = new if self._voices else stream
            if (voice := self._voices[speaker]) is not stream:
                voice.seen(end_ns)
                voice.update(vectors, weight)
        stream.update(vectors, weight)

    def keep_voices(self, speakers: Collection[str]) -> None:
        """Forget all voices but these."""
        self._voices = {name: voice for name, voice in self._voices.items() if name in speakers}

    def face(self, person: int | None) -> Baseline | None:
        """The baseline of a person's face; None for no person, and if faces are not adapted to."""
        first = self.first.get("video")
        if first is None or person is None or self._alone:
            return first if person is not None else None
        if person not in self._faces:
            new = first if not self._faces else Baseline(self._everyone["video"], self._forget_ns)
            self._faces[person] = new
            if len(self._faces) > MOST_FACES:
                self._faces.pop(next(iter(self._faces)))
        return self._faces[person]

    def known(self, modalities: Collection[str], person: int | None, speaker: str | None) -> float:
        """How much is corrected, 0 to 1, in the modality about which more is known."""
        baselines = {"audio": self.voice(speaker), "video": self.face(person)}
        return max((b.known for m, b in baselines.items() if b is not None and m in modalities), default=0.0)
