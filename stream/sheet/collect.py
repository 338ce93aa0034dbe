"""Collects what a contact sheet shows while the recording is being labelled."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from emostream.files import printable
from emostream.stream.emotion import Emotion
from emostream.stream.messages import Face, Message, Pcm

_BINS = 4  # of the waveform per block of sound: 8 ms each in blocks of 32 ms
_CROPS = 4  # per utterance, at most
_ROW_S = 30.0  # length of a row, unless the recording is shorter; a second then has 26 points
_SCALES = (1, 2, 4, 8, 20, 60, 120, 240, 480)  # factors of _ROW_S, for recordings that would need too many rows


@dataclass(frozen=True)
class Said:
    """An utterance: its label, and some crops of the face that the label used, each (48, 48) uint8."""

    label: Emotion
    crops: list[np.ndarray]


@dataclass(frozen=True)
class Waveform:
    """Lowest and highest samples in bins of equal length within each block. ``edges_s``: (n, 2), ``peaks``: (n, 2)."""

    edges_s: np.ndarray
    peaks: np.ndarray

    def cut(self, start_s: float, end_s: float) -> Waveform:
        """The bins that begin in [start_s, end_s)."""
        first, last = np.searchsorted(self.edges_s[:, 0], [start_s, end_s])
        return Waveform(self.edges_s[first:last], self.peaks[first:last])


class Sheet:
    """What is shown of one recording, ``name``. Give it the messages that go to fusion, and fusion's results.

    ``said``: the utterances. ``estimates``: by utterance, each estimate's end and the probability of each label."""

    def __init__(self, name: str) -> None:
        self.name = " ".join(printable(name).split())
        self.said: list[Said] = []
        self.estimates: dict[int, list[tuple[float, list[float]]]] = {}
        self.has_sound = self.has_picture = False
        self.length_s = 0.0
        self._faces: deque[Face] = deque()
        self._edges_s, self._peaks = [np.zeros((0, 2))], [np.zeros((0, 2))]

    def take(self, message: Message) -> None:
        """Take sound and faces; other messages are ignored."""
        if isinstance(message, Pcm):
            self.has_sound = True
            self._reach(message.media_end_ns / 1e9)
            self._hear(message)
        elif isinstance(message, Face):
            self.has_picture = True
            self._reach(message.media_end_ns / 1e9)
            if message.found:
                self._faces.append(message)

    def add(self, emotion: Emotion) -> None:
        """Take a label or a running estimate."""
        if emotion.kind == "window":
            running = self.estimates.setdefault(emotion.utterance, [])
            running.append((emotion.end_s, list(emotion.probabilities.values())))
        else:
            self._reach(emotion.end_s)
            self.said.append(Said(emotion, self._crops(emotion)))

    def forget_before(self, time_ns: int) -> None:
        """Drop faces from before a media time, which no further label needs."""
        while self._faces and self._faces[0].media_start_ns < time_ns:
            self._faces.popleft()

    @property
    def labels(self) -> list[str]:
        """The names of the bundle's labels, in its order; empty if nothing was labelled."""
        return list(self.said[0].label.probabilities) if self.said else []

    def waveform(self) -> Waveform:
        """The waveform of the whole recording."""
        return Waveform(np.concatenate(self._edges_s), np.concatenate(self._peaks))

    def rows(self, most: int) -> tuple[float, list[tuple[float, float]]]:
        """Cut the recording into rows of the same scale, at most ``most`` if a scale allows that. Returns the length of
        a full row, and (start, end) of each row. No utterance is cut in two unless it is longer than a row."""
        if self.length_s <= _ROW_S:
            return max(self.length_s, 1.0), [(0.0, self.length_s)]
        for scale in _SCALES:
            row_s = _ROW_S * scale
            rows = self._rows(row_s)
            if len(rows) <= most:
                break
        return row_s, rows

    def _rows(self, row_s: float) -> list[tuple[float, float]]:
        rows, start_s, last_s = [], 0.0, 0.0
        said = iter(self.said)
        label = next(said, None)
        while start_s < self.length_s:
            end_s = start_s + row_s
            while label is not None and label.label.end_s <= end_s:
                last_s = label.label.end_s
                label = next(said, None)
            if label is not None and start_s < label.label.start_s < end_s:
                end_s = max(last_s, label.label.start_s - row_s / 100)
            rows.append((start_s, min(end_s, self.length_s)))
            start_s = end_s
        return rows

    def _reach(self, time_s: float) -> None:
        self.length_s = max(self.length_s, time_s)

    def _hear(self, block: Pcm) -> None:
        if not len(block.samples):
            return
        bins = np.array_split(block.samples, min(_BINS, len(block.samples)))
        edges_s = np.linspace(block.media_start_ns / 1e9, block.media_end_ns / 1e9, len(bins) + 1)
        self._edges_s.append(np.stack([edges_s[:-1], edges_s[1:]], axis=1))
        self._peaks.append(np.array([(part.min(), part.max()) for part in bins]) / 32768)

    def _crops(self, label: Emotion) -> list[np.ndarray]:
        """Crops of the label's face during the utterance, evenly spaced."""
        crops = [
            person.crop
            for face in self._faces
            if label.start_s <= face.media_start_ns / 1e9 < label.end_s
            for person in face.people
            if person.person == label.face
        ]
        parts = np.linspace(0, len(crops), min(_CROPS, len(crops)) + 1)
        return [crops[int((first + last) / 2)] for first, last in pairwise(parts)]
