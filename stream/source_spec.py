"""How a source is named on the command line and in a configuration, and how secrets in such names are hidden."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from emostream.errors import SourceError
from emostream.stream.topics import Medium

SOURCE = re.compile(
    r"demo(:two)?|file:.+|replay:.+|microphone(:.+)?|camera(:.+)?|zmq:.+"
    r"|(?P<scheme>rtsps?|https?|udp|rtp|tcp|srt|rtmps?)://.+",
    re.DOTALL,
)
_PATH = re.compile(r"(?!.*://)(?:.*/.*|.+\.[A-Za-z0-9]{2,4})", re.DOTALL)
SOURCE_HELP = (
    "demo[:two], file:PATH, replay:RECORDING, microphone[:NAME or INDEX], camera[:N], zmq:ENDPOINT or a URL (rtsp://, "
    "http://, udp://, …)"
)


_USER = re.compile(r"(://)([^/?#\s]*)@")
_SECRET = re.compile(  # in linear time: each name is scanned once for its =, then once for one of these words
    r"([?&](?=[^=&?\s]*+=)[^=&?\s]*?(?:key|pass|pwd|secret|token|auth|sig)[^=&?\s]*+=)[^&\s#]*", re.IGNORECASE
)
_AGE_KEY = re.compile(r"AGE-SECRET-KEY-[0-9A-Z]+", re.IGNORECASE)
_VARIABLE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def is_plain_path(text: str, folder: str | os.PathLike[str] = "") -> bool:
    """Whether a source is just a path: it looks like one, or is that of a file in ``folder``."""
    if SOURCE.fullmatch(text):
        return False
    return bool(_PATH.fullmatch(text)) or os.path.isfile(os.path.join(folder, text))


def split_sources(text: str) -> tuple[str, str] | None:
    """The sources of sound and picture, if the text names two (AUDIO,VIDEO); None if the comma belongs to a file name
    or a URL."""
    audio, comma, video = text.rpartition(",")
    may_be_plain = is_plain_path(text) and not os.path.isfile(text)
    two = comma and all(SOURCE.fullmatch(part) or (may_be_plain and is_plain_path(part)) for part in (audio, video))
    return (audio, video) if two else None


def masked(text: str) -> str:
    """The text with ``***`` for passwords and tokens in URLs, and for secret age keys."""
    text = _USER.sub(lambda match: f"{match[1]}{match[2].partition(':')[0]}{':***' if ':' in match[2] else ''}@", text)
    return _AGE_KEY.sub("AGE-SECRET-KEY-***", _SECRET.sub(r"\1***", text))


@dataclass(frozen=True, repr=False)
class SourceSpec:
    """A source as it is named in a configuration or on the command line.

    ``location``: the path of a file, the name or index of a device (empty: the default device), a ZeroMQ endpoint, a
    URL, or the name of a demo clip (empty: the one with one person).
    """

    text: str
    kind: Literal["demo", "file", "replay", "microphone", "camera", "zmq", "url"]
    location: str
    scheme: str = ""  # of a URL

    @classmethod
    def parse(cls, text: str) -> SourceSpec:
        """Raises ValueError if ``text`` does not name a source."""
        match = SOURCE.fullmatch(text)
        if is_plain_path(text):
            return cls(text, "file", text)
        if match is None:
            raise ValueError(f"is no source; use {SOURCE_HELP}")
        if match["scheme"]:
            return cls(text, "url", text, match["scheme"])
        kind, _, location = text.partition(":")
        return cls(text, kind, location)  # type: ignore[arg-type]  # one of those in SOURCE

    @property
    def is_live(self) -> bool:
        """Whether it delivers at its own pace: a device or the network."""
        return self.kind not in ("demo", "file", "replay")

    @property
    def media(self) -> frozenset[Medium]:
        """The media that a source of this kind may have."""
        if self.kind == "microphone":
            return frozenset({"audio"})
        if self.kind == "camera":
            return frozenset({"video"})
        return frozenset({"audio", "video"})

    @property
    def address(self) -> str:
        """``location`` with each ``{NAME}`` replaced by the environment variable, so that secrets need not be in a
        command line or a file. Raises SourceError if a variable is not set."""

        def value(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                raise SourceError(f"{self}: the environment has no {match[1]}")
            return os.environ[match[1]]

        return _VARIABLE.sub(value, self.location)

    def __str__(self) -> str:
        return masked(self.text)

    __repr__ = __str__


def described(sources: Iterable[SourceSpec]) -> str:
    """Sources in words, each once, without passwords and tokens."""
    return ", ".join(dict.fromkeys(map(str, sources)))
