"""What the page shows: the newest data of each kind and the last labels. Written by the node, read by the server."""

from __future__ import annotations

import base64
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np

from emostream.stream.emotion import Emotion, decode_emotion
from emostream.stream.messages import Face, Pcm, Picture
from emostream.stream.status import Status, decode_status

KEPT = 500  # labels
_ENVELOPE = 100  # values of the waveform: five seconds
_PER_VALUE = 800  # samples: 50 ms
_EXPECTED_S = 5.0  # within which a browser that was sent the page opens its socket


class Labelled(msgspec.Struct):
    """A label with its number in the order of the run, which has no gaps."""

    number: int
    payload: str
    emotion: Emotion


@dataclass
class Heard:
    """The last seconds of a stream's sound, the faces in its newest picture, and the picture if it is sent."""

    envelope: deque[int] = field(default_factory=lambda: deque(maxlen=_ENVELOPE))  # peaks, 0 to 100
    waiting: list[np.ndarray] = field(default_factory=list)
    waiting_samples: int = 0
    faces: list[dict[str, object]] = field(default_factory=list)  # id; box; crop: 48 x 48 gray pixels, base64
    picture: tuple[int, dict[str, object]] | None = None  # its version; width; height; jpeg, base64


class PageState:
    """Thread-safe. ``on_label`` is called with each label, in the thread that calls ``add``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._labels: deque[Labelled] = deque(maxlen=KEPT)
        self._windows: dict[str, tuple[int, str, Emotion]] = {}
        self._status: tuple[int, str, Status] | None = None
        self._heard: dict[str, Heard] = {}
        self._settings: tuple[int, dict[str, object]] = 0, {}
        self._sources: tuple[int, dict[str, str]] = 0, {}
        self._version = 0
        self.labelled = 0
        self.on_label: Callable[[Emotion], object] = lambda emotion: None
        self.viewers = 0  # browsers that want sound and faces
        self._expected_until_s = 0.0

    def add(self, payload: str) -> None:
        """Take a public message: a label or a running estimate."""
        emotion = decode_emotion(payload.encode())
        with self._lock:
            self._version += 1
            if emotion.kind == "utterance":
                self.labelled += 1
                self._labels.append(Labelled(self.labelled, payload, emotion))
                self._windows.pop(emotion.stream, None)
            else:
                self._windows[emotion.stream] = self._version, payload, emotion
        if emotion.kind == "utterance":
            self.on_label(emotion)

    def set_status(self, payload: str) -> None:
        status = decode_status(payload.encode())
        with self._lock:
            self._version += 1
            self._status = self._version, payload, status

    def set_settings(self, settings: dict[str, object]) -> None:
        """Set the present values of the settings that can be changed on the page."""
        with self._lock:
            if settings != self._settings[1]:
                self._version += 1
                self._settings = self._version, settings

    def set_sources(self, sources: dict[str, str]) -> None:
        """What each stream listens to and looks at, in words."""
        with self._lock:
            if sources != self._sources[1]:
                self._version += 1
                self._sources = self._version, sources

    def hear(self, pcm: Pcm) -> None:
        with self._lock:
            heard = self._heard.setdefault(pcm.stream, Heard())
            heard.waiting.append(pcm.samples)
            heard.waiting_samples += len(pcm.samples)
            while heard.waiting_samples >= _PER_VALUE:
                samples = np.concatenate(heard.waiting)
                peak = int(np.abs(samples[:_PER_VALUE].astype(np.int32)).max())
                heard.envelope.append(round(100 * (peak / 32768) ** 0.5))
                heard.waiting, heard.waiting_samples = [samples[_PER_VALUE:]], len(samples) - _PER_VALUE

    def see(self, face: Face) -> None:
        with self._lock:
            heard = self._heard.setdefault(face.stream, Heard())
            heard.faces = [
                {"id": each.person, "box": each.box, "crop": base64.b64encode(each.crop.tobytes()).decode()}
                for each in face.people
            ]

    def show(self, picture: Picture) -> None:
        shown = {
            "width": picture.width, "height": picture.height, "jpeg": base64.b64encode(picture.jpeg.tobytes()).decode(),
        }  # fmt: skip
        with self._lock:
            self._version += 1
            self._heard.setdefault(picture.stream, Heard()).picture = self._version, shown

    def forget_senses(self) -> None:
        """Nobody looks any more."""
        with self._lock:
            self._heard.clear()

    def labels(self, since: int = 0) -> list[Labelled]:
        """The labels with a higher number, among the last 500."""
        with self._lock:
            return [label for label in self._labels if label.number > since]

    def windows(self, since: int = 0) -> tuple[int, list[tuple[str, Emotion]]]:
        """The newest running estimate of each stream, if it is newer than ``since``; and the present version."""
        with self._lock:
            return self._version, [
                (text, emotion) for version, text, emotion in self._windows.values() if version > since
            ]

    def status(self, since: int = 0) -> tuple[str, Status] | None:
        """The newest status, if it is newer than ``since``."""
        with self._lock:
            return None if self._status is None or self._status[0] <= since else self._status[1:]

    def settings(self, since: int = 0) -> dict[str, object] | None:
        """The settings, if they were changed after ``since``."""
        with self._lock:
            return None if self._settings[0] <= since else self._settings[1]

    def sources(self, since: int = 0) -> dict[str, str] | None:
        """The sources by stream, if they were changed after ``since``."""
        with self._lock:
            return None if self._sources[0] <= since else self._sources[1]

    def senses(self) -> dict[str, dict[str, object]]:
        with self._lock:
            return {
                name: {"envelope": list(heard.envelope), "faces": heard.faces} for name, heard in self._heard.items()
            }

    def pictures(self, since: int = 0) -> dict[str, dict[str, object]]:
        """The newest picture of each stream, if it is newer than ``since``."""
        with self._lock:
            return {
                name: heard.picture[1]
                for name, heard in self._heard.items()
                if heard.picture is not None and heard.picture[0] > since
            }

    def look(self, by: int) -> None:
        """Change the number of browsers that want sound and faces."""
        with self._lock:
            self.viewers += by

    def expect(self) -> None:
        """A browser has asked for the page: sound and faces are fetched for it while it loads."""
        with self._lock:
            self._expected_until_s = time.monotonic() + _EXPECTED_S

    @property
    def is_watched(self) -> bool:
        """Whether a browser wants sound and faces now, or is about to."""
        return self.viewers > 0 or time.monotonic() < self._expected_until_s
