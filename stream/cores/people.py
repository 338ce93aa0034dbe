"""Chooses whose face is used to label an utterance: keeps the faces of a stream and finds the one that speaks.

A single face is taken to be the speaker's unless there is evidence against it. Among several, the speaker is the one
whose mouth moves with the sound. If none clearly does, no face is used: a wrong face is worse than none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from emostream.stream.config import Who
from emostream.stream.cores.window import SlidingWindow
from emostream.stream.emotion import SeenFace
from emostream.stream.features.face import CROP
from emostream.stream.features.mouth import LAGS_MS, LEAST_MS, MEASURES, USUAL_LAG_MS, agreement, match
from emostream.stream.messages import Face

MATCH = 0.325  # least match of the speaker's face over two seconds; higher over less time, where chance matters more
LEAST_MATCH, MOST_MATCH = 0.18, 0.42  # bounds of that threshold for other lengths
CLEARER = 0.08  # margin by which the best of several faces must beat the next
STILL = 0.006  # a mouth whose darkness varies less does not move: a listener's, or a photograph's
BEFORE_NS, AFTER_NS = 200_000_000, 200_000_000  # around an utterance, compared too: how mouth and voice begin and end
_LEAST_FRAMES = 3  # a face seen in fewer frames does not count as in view
_LAG_DECAY = 0.95  # per utterance, of what was learnt about the camera's lag
_ENOUGH_MATCHES, _MATCHES_PER_MISS = 3, 2  # before an unmatched mouth is evidence that the face is not the speaker's
_PRIOR_WEIGHT, _PRIOR_MS = 1.0, 100.0  # strength and width of the prior around the usual lag


@dataclass
class Person:
    """What is kept for one face."""

    crops: SlidingWindow  # not encoded yet
    video: SlidingWindow  # vectors
    mouths: SlidingWindow  # measures of the mouth, the box, and whether this is the main face


@dataclass(frozen=True)
class Choice:
    """``face``: whose vectors are used; ``speaking``: who certainly speaks; ``seen``: all in view, the main one first;
    ``faces``: the most in one frame."""

    face: int | None = None
    speaking: int | None = None
    seen: list[SeenFace] = field(default_factory=list)
    faces: int = 0


class CameraLag:
    """How far a camera lags behind its microphone, learnt from utterance to utterance."""

    def __init__(self) -> None:
        self._expected = _PRIOR_WEIGHT * np.exp(-(((LAGS_MS - USUAL_LAG_MS) / _PRIOR_MS) ** 2) / 2)
        self._sum = np.zeros(len(LAGS_MS))
        self._matched = self._missed = 0

    @property
    def ms(self) -> float:
        total = self._sum + self._expected
        best_ms = float(LAGS_MS[total.argmax()])
        return USUAL_LAG_MS if abs(best_ms - USUAL_LAG_MS) <= 10 else best_ms  # it lies between two of the lags

    @property
    def known(self) -> bool:
        """Whether mouths have matched the sound so often that one that does not match is not the speaker's."""
        return self._matched >= _ENOUGH_MATCHES and self._matched > _MATCHES_PER_MISS * self._missed

    def learn(self, curve: np.ndarray, matched: bool) -> None:
        """Take the agreement curve, over the lags, of an utterance and its presumed speaker's face."""
        self._sum = _LAG_DECAY * self._sum + curve
        self._matched += matched
        self._missed += not matched


class People:
    """The faces of one stream: crops not encoded yet, vectors, mouths. ``dim``: length of a vector."""

    def __init__(self, dim: int, who: Who) -> None:
        self._dim, self._who = dim, who
        self._people: dict[int, Person] = {}
        self._faces = SlidingWindow((1,), np.int32)  # how many were in each frame
        self._curves: dict[int, np.ndarray] = {}  # agreement curves of the last choice, by face
        self.lag = CameraLag()

    def push(self, face: Face) -> None:
        """Take what a frame shows. Raises ValueError for a frame that is not later than the last one."""
        self._faces.append(np.array([face.media_start_ns]), np.array([[face.faces]]))
        for i, each in enumerate(face.people):
            if each.person not in self._people:
                self._people[each.person] = Person(
                    SlidingWindow((CROP, CROP), np.uint8),
                    SlidingWindow((self._dim,), np.float32),
                    SlidingWindow((MEASURES + 5,), np.float32),
                )
            person, at_ns = self._people[each.person], np.array([face.media_start_ns])
            person.crops.append(at_ns, each.crop[None])
            mouth, box = each.mouth or (0.0,) * MEASURES, each.box or (0.0,) * 4
            person.mouths.append(at_ns, np.array([[*mouth, *box, i == 0]], np.float32))

    def forget_before(self, time_ns: int) -> None:
        """Drop everything older, and people of whom nothing is left."""
        self._faces.forget_before(time_ns)
        for person in self._people.values():
            for window in (person.crops, person.video, person.mouths):
                window.forget_before(time_ns)
        self._people = {id_: person for id_, person in self._people.items() if len(person.mouths)}

    def __contains__(self, id_: int) -> bool:
        return id_ in self._people

    def __getitem__(self, id_: int) -> Person:
        return self._people[id_]

    def in_view(self, start_ns: int, end_ns: int) -> Iterator[int]:
        """Whose faces were seen between two times, sorted by how often each was the main face, then seen at all."""
        seen = {id_: person.mouths.cut(start_ns, end_ns) for id_, person in self._people.items()}
        order = {id_: (-rows[:, -1].sum(), -len(rows), id_) for id_, rows in seen.items() if len(rows)}
        yield from sorted(order, key=order.__getitem__)

    def choose(self, start_ns: int, end_ns: int, first_row_ns: int, rows: np.ndarray, final: bool = True) -> Choice:
        """Choose the face for what was said from ``start_ns`` to ``end_ns``. ``rows``: log-mel rows of about that time,
        the first of which begins at ``first_row_ns``; empty if there is no sound. For a running estimate (not
        ``final``), the mouth of somebody alone in view is not checked until the lag is known."""
        ids = list(self.in_view(start_ns, end_ns))
        frames = self._faces.cut(start_ns, end_ns)
        if not ids:
            return Choice(faces=int(frames.max(initial=0)))
        self._curves, scores = {}, {}
        closely = len(rows) > 0 and self._who != "largest" and (final or len(ids) > 1 or self.lag.known)
        for id_ in ids if closely else ():
            mouths = self._people[id_].mouths
            span = (start_ns - BEFORE_NS, end_ns + AFTER_NS)
            times, measures = mouths.times(*span), mouths.cut(*span)[:, :MEASURES]
            curve = agreement(times, measures, first_row_ns, rows)
            if len(curve):
                moves = measures[:, 0].std() >= STILL
                self._curves[id_], scores[id_] = curve, match(curve, self.lag.ms) if moves else 0.0
        speaking = self._speaking(scores, (end_ns - start_ns + BEFORE_NS + AFTER_NS) / 1e9)
        shown = [id_ for id_ in ids if len(self._people[id_].mouths.times(start_ns, end_ns)) >= _LEAST_FRAMES] or ids[
            :1
        ]
        seen = [self._seen(id_, start_ns, end_ns, len(frames), scores.get(id_)) for id_ in shown]
        face = self._face(shown, scores, speaking) if len(rows) else shown[0]
        return Choice(face, speaking, seen, int(frames.max(initial=0)))

    def learn(self, choice: Choice) -> None:
        """At an utterance's end: learn the camera's lag from its choice."""
        id_ = choice.speaking or choice.face
        if id_ in self._curves:
            self.lag.learn(self._curves[id_], choice.speaking is not None)

    def _face(self, shown: list[int], scores: dict[int, float], speaking: int | None) -> int | None:
        if self._who == "largest":
            return shown[0]
        if speaking is not None or len(shown) > 1:
            return speaking
        judged = shown[0] in scores
        return None if judged and self.lag.known else shown[0]

    @staticmethod
    def _speaking(scores: dict[int, float], seconds: float) -> int | None:
        if not scores:
            return None
        best, *others = sorted(scores, key=lambda id_: -scores[id_])
        enough = min(max(MATCH * math.sqrt(2 / max(seconds, LEAST_MS / 1000)), LEAST_MATCH), MOST_MATCH)
        clear = not others or scores[best] >= scores[others[0]] + CLEARER
        return best if scores[best] >= enough and clear else None

    def _seen(self, id_: int, start_ns: int, end_ns: int, frames: int, score: float | None) -> SeenFace:
        mouths = self._people[id_].mouths.cut(start_ns, end_ns)
        x, y, width, height = (round(float(value), 4) for value in mouths[-1, MEASURES:-1])
        return SeenFace(
            id=id_,
            box=(x, y, width, height),
            share=round(min(1.0, len(mouths) / max(frames, 1)), 3),
            moves=None if score is None else round(score, 3),
        )
