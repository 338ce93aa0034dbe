"""Getting to know the person: separates how this person always looks or sounds from what they feel.

People differ more at rest than most moods do. A baseline is the mean of one person's vectors when nothing is felt;
what follows is moved by its difference from a vector that all people share. It grows slowly: the first utterance is not
corrected, the tenth mostly. Where everything is said in one mood, little counts as rest, so the mood is not taken for
the person. Networks know some voices well as they are, so a voice is moved only where that has made answers surer.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence

import numpy as np

ENOUGH = 2.0  # utterances: after so many, half of the difference is corrected
MOST_FACES = 16  # of a stream
MOST = 20.0  # utterances that are remembered; older ones count less and less
SURER = 0.02  # by which moving a voice must raise the best label's probability, on average; .01 to .03 gain alike


class Baseline:
    """One person's vector at rest, in one modality. ``everyone``: the shared vector to which everybody's rest is
    shifted, (dim,); ``forget_ns``: how long the person may be away before being forgotten, None for ever."""

    def __init__(self, everyone: np.ndarray, forget_ns: int | None) -> None:
        self._everyone, self._forget_ns = everyone.astype(np.float32), forget_ns
        self._seen_ns = 0
        self.forget()

    def forget(self) -> None:
        """Nothing is known from now on."""
        self._sum = np.zeros(len(self._everyone))
        self._weight = 0.0

    def seen(self, at_ns: int) -> None:
        """Somebody is there at this media time. Forgets the previous person if they have been away too long."""
        if self._forget_ns is not None and at_ns - self._seen_ns > self._forget_ns:
            self.forget()
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

    @property
    def known(self) -> float:
        """How much of the difference is corrected, 0 to 1."""
        return self._weight / (self._weight + ENOUGH)

    def correct(self, vectors: np.ndarray) -> np.ndarray:
        """(n, dim) vectors as if everyone's rest were this person's: float32."""
        return self.moved(vectors)

    def moved(self, vectors: np.ndarray) -> np.ndarray:
        """(n, dim) vectors less what is known of the difference: float32."""
        if self._weight <= 0:
            return vectors
        off = self._weight / (self._weight + ENOUGH) * (self._sum / self._weight - self._everyone)
        return vectors - off.astype(np.float32)


class VoiceBaseline(Baseline):
    """The rest of one person's voice, which corrects only where that has helped. Each utterance is tried both ways, by
    its sound alone, and the voice is moved while the answers of what was moved have been surer on average, by
    ``SURER``. Without that, adaptation cost up to .06 on voices that training knows well."""

    def forget(self) -> None:
        super().forget()
        self.tried = 0.0  # utterances
        self.surer = 0.0  # by how much in sum

    def judge(self, as_it_is: float, moved: float) -> None:
        """Take the best label's probability for an utterance as it is and moved; of the last ``MOST``, as with rest."""
        if np.isfinite(surer := moved - as_it_is):
            kept = min(1.0, (MOST - 1) / self.tried) if self.tried > 0 else 0.0
            self.tried, self.surer = kept * self.tried + 1, kept * self.surer + surer

    @property
    def helps(self) -> bool:
        """Whether moving this voice has made answers surer."""
        return self.surer > SURER * self.tried

    def parted(self, other: VoiceBaseline) -> VoiceBaseline:
        """This one, or a copy of it if it is also the other's."""
        return copy.deepcopy(self) if self is other else self

    @property
    def known(self) -> float:
        """How much of the difference is corrected, 0 to 1."""
        return super().known if self.helps else 0.0

    def correct(self, vectors: np.ndarray) -> np.ndarray:
        """(n, dim) vectors as if everyone's rest were this person's, where that helps: float32."""
        return self.moved(vectors) if self.helps else vectors


class Adaptation:
    """What is known about the people of one stream: a baseline for each voice by name, for each face by number, and one
    for all voices together, used for voices that are not told apart.

    ``everyone``: by modality, the vector to which everybody's rest is shifted; ``alone``: all faces and voices of the
    stream belong to one person. ``first``: by modality, the baseline of all voices and that of the first face.
    """

    def __init__(self, everyone: Mapping[str, np.ndarray], forget_ns: int | None, alone: bool) -> None:
        self._everyone, self._forget_ns, self._alone = everyone, forget_ns, alone
        self.first: dict[str, Baseline] = {
            m: (VoiceBaseline if m == "audio" else Baseline)(vector, forget_ns) for m, vector in everyone.items()
        }
        self._faces: dict[int, Baseline] = {}
        self._voices: dict[str, VoiceBaseline] = {}

    @property
    def _stream_voice(self) -> VoiceBaseline | None:
        """Of all voices."""
        baseline = self.first.get("audio")
        assert baseline is None or isinstance(baseline, VoiceBaseline)
        return baseline

    def voice(self, speaker: str | None) -> VoiceBaseline | None:
        """Of a voice; the stream's for None and as long as no voice was told from another; None for a voice of which
        nothing has been learnt, and where voices are not adapted to."""
        if speaker is None or self._alone or not self._voices:
            return self._stream_voice
        return self._voices.get(speaker)

    def heard(self, speaker: str | None, start_ns: int, end_ns: int) -> None:
        """Somebody spoke between these media times. Forgets whoever was away too long; for a voice this is judged by
        the start, which stays the same however often an utterance is evaluated."""
        if (stream := self.first.get("audio")) is not None:
            stream.seen(end_ns)
        if speaker in self._voices:
            self._voices[speaker].seen(start_ns)

    def trial(self, speaker: str | None, vectors: np.ndarray) -> list[np.ndarray]:
        """An utterance's vectors, (n, dim), as they are and moved, for ``learn_voice`` to be told what came of it;
        nothing where nothing is known of the voice."""
        voice = self.voice(speaker)
        return [vectors, voice.moved(vectors)] if voice is not None and voice.rest and len(vectors) else []

    def learn_voice(
        self, speaker: str | None, vectors: np.ndarray, weight: float, end_ns: int, tried: Sequence[float] = ()
    ) -> None:
        """Take an utterance that ended at this media time, as ``Baseline.update`` does: of all voices and, if it is
        told whose it is, of that one. The first voice has the stream's baseline, and one of its own once there is
        another. ``tried``: the best label's probability for each of ``trial``."""
        if (stream := self._stream_voice) is None:
            return
        if tried and (judged := self.voice(speaker)) is not None:
            judged.judge(*tried)
        if speaker is not None and not self._alone:
            if speaker not in self._voices:
                self._voices = {name: voice.parted(stream) for name, voice in self._voices.items()}
                new = VoiceBaseline(self._everyone["audio"], self._forget_ns)
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
        """How much is corrected, 0 to 1: of the modality of which more is known."""
        baselines: dict[str, Baseline | None] = {"audio": self.voice(speaker), "video": self.face(person)}
        return max((b.known for m, b in baselines.items() if b is not None and m in modalities), default=0.0)
