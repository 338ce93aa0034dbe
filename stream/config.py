"""config.toml as checked models. An error names each unknown key and bad value, and says what is allowed instead."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from emostream.engines.backend import BACKENDS
from emostream.errors import ConfigError
from emostream.stream import prior as priors
from emostream.stream.places import rebase
from emostream.stream.source_spec import SourceSpec, masked, split_sources
from emostream.stream.topics import STREAM_NAME, Medium

TRACK = r"(audio|video):([1-9][0-9]?|[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})?)"
TRACKS = rf"^({TRACK}(,\s*{TRACK})?)?$"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")  # hosts on which the page needs no TLS
_MOST_STREAMS = 256  # each has its own processes
_ENDPOINT = re.compile(r"ipc://.+|tcp://(?P<host>[^\s:;/\[\]]+|\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]):(?P<port>[0-9]+)")


def check_tracks(tracks: str) -> None:
    """Raises ConfigError if this is not a valid choice of tracks."""
    if not re.fullmatch(TRACKS, tracks):
        raise ConfigError(f'tracks are chosen as "audio:2,video:1" or by language, "audio:deu", not {tracks!r}')


Who = Literal["speaking", "largest", "all"]  # whose face to use: see cores/people.py


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Stream(_Section):
    """One stream: ``source`` names one source of sound and picture; or ``audio`` and ``video`` name one of each.
    ``tracks``: which tracks to use if there are several: "audio:2,video:1", or by language, "audio:deu"."""

    name: Annotated[str, Field(pattern=f"^{STREAM_NAME}$")] = "main"
    source: str | None = None
    audio: str | None = None
    video: str | None = None
    tracks: Annotated[str, Field(pattern=TRACKS)] | None = None

    @field_validator("source", "audio", "video")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None:
            SourceSpec.parse(value)
        return value

    @model_validator(mode="after")
    def _some(self) -> Self:
        if (self.source is None) == (self.audio is None and self.video is None):
            raise ValueError("give either source, or audio and/or video")
        if any(self.source is None and medium not in source.media for medium, source in self.sources):
            raise ValueError("a camera gives no audio and a microphone no video")
        return self

    @property
    def sources(self) -> list[tuple[Medium, SourceSpec]]:
        """The source of each medium. A source of both media is listed twice, a device once."""
        if self.source is not None:
            both = SourceSpec.parse(self.source)
            return [(medium, both) for medium in sorted(both.media)]
        named: list[tuple[Medium, str | None]] = [("audio", self.audio), ("video", self.video)]
        return [(medium, SourceSpec.parse(text)) for medium, text in named if text is not None]


class Audio(_Section):
    block_ms: Annotated[int, Field(ge=5, le=200)] = 32
    level: Literal["auto", "off"] = "auto"
    channels: Annotated[str, Field(pattern=r"^(auto|mean|[1-9][0-9]?(,[1-9][0-9]?)*)$")] = "auto"

    @field_validator("channels", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if type(value) is int else value


class Speech(_Section):
    recognizer: Literal["auto", "vosk", "moonshine", "pocketsphinx", "external", "none"] = "auto"
    language: Annotated[str, Field(pattern=r"^[a-z]{2}$")] = "en"
    vosk_model: str = ""
    vad_model: str = ""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    min_speech_ms: Annotated[int, Field(ge=32, le=2000)] = 96
    pause_ms: Annotated[int, Field(ge=32, le=5000)] = 128
    hangover_ms: Annotated[int, Field(ge=64, le=5000)] = 400
    min_hangover_ms: Annotated[int, Field(ge=64, le=5000)] = 192
    max_utterance_s: Annotated[float, Field(ge=1, le=15)] = 15
    process: Literal["auto", "own"] = "auto"
    speakers: Literal["auto", "off"] = "auto"
    speaker_s: Annotated[float, Field(gt=0, le=86_400)] = 600

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.pause_ms >= self.hangover_ms:
            raise ValueError(f"pause_ms ({self.pause_ms}) must be less than hangover_ms ({self.hangover_ms})")
        if self.min_speech_ms >= self.max_utterance_s * 1000:
            raise ValueError(f"min_speech_ms ({self.min_speech_ms}) must be less than max_utterance_s")
        return self


class Video(_Section):
    who: Who = "speaking"
    fps: Annotated[float, Field(gt=0, le=60)] = 10
    detector: Literal["auto", "yunet", "blazeface", "haar"] = "auto"
    yunet_model: str = ""
    blazeface_models: str = ""
    open_timeout_s: Annotated[float, Field(gt=0, le=60)] = 5


class Network(_Section):
    allowed_hosts: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]+$")]] = []


class Window(_Section):
    hop_ms: Annotated[int, Field(ge=50, le=10_000)] = 250
    length_s: Annotated[float, Field(ge=0.5, le=15)] = 5


class Fusion(_Section):
    bundle: str = "ekman7"
    backend: str = "auto"
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    wait_ms: Annotated[int, Field(ge=0, le=5000)] = 150
    early: bool = False
    prior: priors.PriorName | dict[str, float] = "training"
    adapt: bool = True
    adapt_s: Annotated[float, Field(gt=0, le=86_400)] = 120
    profile: str = ""
    remote: Annotated[str, Field(pattern=r"^(tcp://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5})?$")] = ""
    without: Literal["local", "late"] = "local"

    @model_validator(mode="after")
    def _profile_adapts(self) -> Self:
        if self.profile and not self.adapt:
            raise ValueError("profile keeps what adapt learns: set adapt = true, or leave out profile")
        return self

    @field_validator("prior", mode="before")
    @classmethod
    def _shares(cls, value: Any) -> priors.Prior:
        return priors.check(value)

    @field_validator("backend")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in BACKENDS:
            raise ValueError(f"is no backend; use one of: {', '.join(BACKENDS)}")
        return value


class Bus(_Section):
    emotion: str = "tcp://127.0.0.1:5556"
    keys: str = ""
    control: str = "auto"
    run_dir: str = ""
    queue: Annotated[int, Field(ge=8, le=100_000)] = 256

    @field_validator("emotion")
    @classmethod
    def _valid(cls, value: str) -> str:
        match = _ENDPOINT.fullmatch(value)
        if match is None or (match["port"] and not 0 < int(match["port"]) < 65536):
            raise ValueError(
                "must be ipc://PATH, tcp://127.0.0.1:PORT, or with keys tcp://ADDRESS:PORT (*: any address)"
            )
        return value

    @property
    def needs_keys(self) -> bool:
        """Whether other machines might reach the public endpoint, that is, unless it is ipc or certainly loopback."""
        match = _ENDPOINT.fullmatch(self.emotion)
        if match is None or match["host"] in (None, "localhost"):
            return match is None
        try:
            return not ipaddress.ip_address(match["host"].strip("[]")).is_loopback
        except ValueError:  # the name of a machine or of an interface, or *
            return True


class Supervision(_Section):
    failures: Annotated[int, Field(ge=1, le=1000)] = 5
    within_s: Annotated[float, Field(gt=0, le=86_400)] = 120


class Page(_Section):
    on: bool = False
    host: Annotated[str, Field(pattern=r"^([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]+\])$")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65_535)] = 8800
    token: Annotated[str, Field(pattern=r"^([A-Za-z0-9_-]{16,128})?$")] = ""
    certificate: str = ""
    key: str = ""
    picture: bool = False
    count_labels: bool = False

    @model_validator(mode="after")
    def _private(self) -> Self:
        if self.key and not self.certificate:
            raise ValueError("key goes with certificate; a file that holds both is named as certificate")
        if self.host not in LOOPBACK and not self.certificate:
            raise ValueError(
                f"host = {self.host!r}: what other machines can reach needs TLS, --set page.certificate=CERT.pem --set "
                f"page.key=KEY.pem (docs/page.md); or leave 127.0.0.1, and type there: "
                f"ssh -L {self.port}:127.0.0.1:{self.port} THIS_MACHINE"
            )
        return self


class Record(_Section):
    folder: str = ""
    video: bool = False
    public_key: str = ""
    identity: str = ""
    minutes: Annotated[float, Field(gt=0, le=1440)] = 10
    max_gb: Annotated[float, Field(gt=0, le=100_000)] = 10
    max_days: Annotated[float, Field(gt=0, le=3650)] = 30

    @field_validator("public_key")
    @classmethod
    def _public(cls, value: str) -> str:
        if value.upper().startswith("AGE-SECRET-KEY-"):
            raise ValueError("is a secret key; give the public one that belongs to it, age1…")
        return value


class Privacy(_Section):
    text: Literal["keep", "drop"] = "keep"


class Log(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Config(_Section):
    """All of config.toml. Sections may be given as mappings: ``Config(fusion={"adapt": False})``.

    Raises ConfigError with all problems, one per line; a section created separately raises pydantic.ValidationError.
    """

    streams: Annotated[list[Stream], Field(min_length=1, max_length=_MOST_STREAMS)] = [
        Stream(name="demo", source="demo")
    ]
    pace: Literal["realtime", "fast"] = "realtime"
    audio: Audio = Audio()
    speech: Speech = Speech()
    video: Video = Video()
    network: Network = Network()
    window: Window = Window()
    fusion: Fusion = Fusion()
    bus: Bus = Bus()
    page: Page = Page()
    record: Record = Record()
    supervisor: Supervision = Supervision()
    privacy: Privacy = Privacy()
    log: Log = Log()

    def __init__(self, **sections: Any) -> None:
        try:
            super().__init__(**sections)
        except ValidationError as error:
            raise ConfigError("\n".join(_lines(error))) from error

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [stream.name for stream in self.streams]
        if twice := sorted(name for name, count in Counter(names).items() if count > 1):
            raise ValueError(f"streams need different names; twice: {', '.join(twice)}")
        live = [source for stream in self.streams for _, source in stream.sources if source.is_live]
        if live and self.pace == "fast":
            raise ValueError(f'pace = "fast" is for files; {live[0]} is live')
        return self


def parse_stream(text: str) -> Stream:
    """A stream from the command line: ``[NAME=]SOURCE`` or ``[NAME=]AUDIO,VIDEO``. Raises ConfigError."""
    name, rest = "main", text
    if match := re.match(r"([A-Za-z0-9_-]+)=(.+)", text, re.DOTALL):
        name, rest = match.groups()
    try:
        if (two := split_sources(rest)) is not None:
            return Stream(name=name, audio=two[0], video=two[1])
        return Stream(name=name, source=rest)
    except ValidationError as error:
        raise ConfigError(f"--stream {masked(text)}: {_lines(error)[0]}") from error


def load_config(
    path: str | Path | None = None, changes: Sequence[str] = (), streams: Sequence[str] = (), pace: str | None = None
) -> Config:
    """Read a configuration file; without one, the built-in settings.

    ``changes``: each ``section.key=value``; ``streams``: each ``[NAME=]SOURCE``, in place of the file's; ``pace``: in
    place of the file's. Raises ConfigError with all problems, one per line.
    """
    changes, streams = ([values] if isinstance(values, str) else values for values in (changes, streams))
    data: dict[str, Any] = {}
    where = "configuration"
    if path is not None:
        where = str(path)
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
        except RecursionError as error:
            raise ConfigError(f"{path}: not valid TOML: nested too deeply") from error
        except (
            ValueError
        ) as error:  # TOMLDecodeError, bytes that are no UTF-8, a number of 5,000 digits, a NUL in the path
            raise ConfigError(f"{path}: not valid TOML: {error}") from error
        rebase(data, Path(path).parent)
    for change in changes:
        _set(data, change)
    if streams:
        data["streams"] = [parse_stream(text).model_dump(exclude_none=True) for text in streams]
    if pace is not None:
        data["pace"] = pace
    try:
        return Config(**data)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in str(error).splitlines())) from error


def changed(config: Config, changes: Sequence[str]) -> Config:
    """A configuration with changes, each SECTION.KEY=VALUE. Raises ConfigError."""
    data = config.model_dump(exclude_none=True)
    for change in changes:
        _set(data, change)
    return Config(**data)


def as_config(config: Config | str | Path | None) -> Config:
    """A configuration as it is, or read from its file; the built-in settings for None. Raises ConfigError, and
    TypeError for anything else."""
    if config is None or isinstance(config, Config):
        return config or Config()
    if isinstance(config, str | Path):
        return load_config(config)
    raise TypeError(f"a configuration is a Config or a path, not {type(config).__name__}")


def _set(data: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {change}: write it as section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word is a string
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(f"--set {masked(key)}: not a valid value ({reason})") from error
    *sections, last = key.strip().split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {change}: {section} is not a section")
    data[last] = parsed


def _lines(error: ValidationError) -> list[str]:
    """One line per problem."""
    lines = []
    for problem in error.errors():
        place = ""
        for part in problem["loc"]:
            place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
        if problem["type"] == "extra_forbidden":
            lines.append(f"{place} is no known key; known there: {', '.join(_keys(problem['loc'][:-1]))}")
            continue
        text = problem["msg"].removeprefix("Value error, ")
        value = problem["input"]
        shown = f" = {value!r}" if isinstance(value, str | int | float | bool) else ""
        lines.append(masked(f"{place}{shown}: {text}" if place else text))
    return lines


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at ``location``."""
    model: type[BaseModel] = Config
    for part in location:
        if part == "streams":
            model = Stream
        elif isinstance(part, str):
            model = model.model_fields[part].annotation  # type: ignore[assignment]
    return sorted(model.model_fields)
