"""Turns requests during a run into orders for its nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from emostream.engines.bundle import open_bundle
from emostream.errors import ConfigError
from emostream.stream.config import Config, Stream, changed, parse_stream
from emostream.stream.control import Request
from emostream.stream.messages import Expected, Orders, Spans, within
from emostream.stream.prior import log_ratios
from emostream.stream.source_spec import described

SETTABLE = (
    "speech.threshold", "speech.min_speech_ms", "speech.pause_ms", "speech.hangover_ms", "speech.min_hangover_ms",
    "fusion.prior",
)  # fmt: skip
OPEN_NS = 1 << 62  # the end of an open span
_LONGEST_S = 1_000_000
_KEPT = 8  # spans per stream; sound of the last ones may still be on its way


class Steering:
    """The orders so far. Times are Unix times of the run's clock. Each method makes the next ``orders`` (and perhaps
    the next ``config``), and raises ConfigError, with one line, if something cannot be done."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.orders = Orders()
        self._streams = {stream.name: stream for stream in config.streams}

    def obey(self, request: Request, at_ns: int, add: Callable[[str], str]) -> str:
        """Turn a request into orders. ``add`` begins another stream and returns its name. Returns a line for the
        user."""
        if request.for_s is not None and not 0 < request.for_s < _LONGEST_S:
            raise ConfigError(f"a time to be muted is above 0 s and below {_LONGEST_S:,} s")
        match request.command:
            case "mute":
                names = self.mute(request.streams, at_ns, request.for_s)
                return f"muted{'' if request.for_s is None else f' for {request.for_s:g} s'}: {', '.join(names)}"
            case "unmute":
                return f"heard again: {', '.join(self.unmute(request.streams, at_ns))}"
            case "pause":
                return f"paused: {', '.join(self.pause(request.streams, at_ns))}"
            case "resume":
                return f"resumed: {', '.join(self.resume(request.streams, at_ns))}"
            case "add":
                return f"added: {add(request.value)}"
            case "remove":
                if len(request.streams) != 1:
                    raise ConfigError("name the stream to remove")
                self.remove(request.streams[0])
                return f"removed: {request.streams[0]}"
            case "set":
                self.set(request.value)
                return f"set: {request.value}"
            case "status":
                return ""

    def mute(self, streams: Sequence[str], at_ns: int, for_s: float | None = None) -> list[str]:
        """Ignore sound from ``at_ns`` on, for ``for_s`` seconds or until ``unmute``. Returns the streams' names."""
        names = self._named(streams)
        if deaf := [name for name in names if streams and not self._hears(name)]:
            raise ConfigError(f"{deaf[0]} has no sound")
        end_ns = OPEN_NS if for_s is None else at_ns + int(for_s * 1e9)
        self._next(muted=_begun(self.orders.muted, names, at_ns, end_ns))
        return names

    def unmute(self, streams: Sequence[str], at_ns: int) -> list[str]:
        """Hear sound again."""
        names = self._named(streams)
        self._next(muted=_ended(self.orders.muted, names, at_ns))
        return names

    def pause(self, streams: Sequence[str], at_ns: int) -> list[str]:
        """Ignore sound and pictures until ``resume``."""
        names = self._named(streams)
        self._next(paused=_begun(self.orders.paused, names, at_ns, OPEN_NS))
        return names

    def resume(self, streams: Sequence[str], at_ns: int) -> list[str]:
        """Go on after ``pause``."""
        names = self._named(streams)
        self._next(paused=_ended(self.orders.paused, names, at_ns))
        return names

    def set(self, change: str) -> None:
        """Change one of the settings in SETTABLE: SECTION.KEY=VALUE."""
        key = change.partition("=")[0].strip()
        config = changed(self.config, [change])
        if key not in SETTABLE:
            raise ConfigError(f"{key} cannot be changed while a run goes on; what can be: {', '.join(SETTABLE)}")
        if key == "fusion.prior":
            log_ratios(config.fusion.prior, open_bundle(config.fusion.bundle).manifest)
        self.config = config
        earlier = [setting for setting in self.orders.settings if setting.partition("=")[0].strip() != key]
        self._next(settings=[*earlier, change])

    def add(self, text: str) -> Stream:
        """Parse and check another stream, [NAME=]SOURCE. Call ``joined`` once its nodes are planned."""
        stream = parse_stream(text)
        if stream.name in self._streams:
            raise ConfigError(f"there is a stream {stream.name} already; give this one another name: NAME=SOURCE")
        self._with([*self._streams.values(), stream])
        return stream

    def joined(self, stream: Stream, inputs: Iterable[str], modalities: Iterable[str], first: int) -> None:
        """The nodes of a new stream have been planned; the arguments are the fields of ``Expected``."""
        self._streams[stream.name] = stream
        self.config = self._with(self._streams.values())
        sources = described(source for _, source in stream.sources)
        expected = Expected(list(inputs), sorted(modalities), first, self.orders.serial + 1, sources)
        self._next(
            added=self.orders.added | {stream.name: expected},
            removed=[name for name in self.orders.removed if name != stream.name],
            ended=[name for name in self.orders.ended if name not in expected.inputs],
            muted=_without(self.orders.muted, stream.name),
            paused=_without(self.orders.paused, stream.name),
        )

    def remove(self, name: str) -> None:
        """End a stream; the last one stays, since a run without streams is over."""
        self._named([name])
        if len(self._streams) == 1:
            raise ConfigError(f"{name} is the only stream: end the run, or add another one first")
        del self._streams[name]
        self.config = self._with(self._streams.values())
        self._next(removed=[*self.orders.removed, name])

    def ended(self, nodes: Iterable[str]) -> None:
        """Tell a restarted fusion not to wait for the End messages of these nodes."""
        if new := [name for name in nodes if name not in self.orders.ended]:
            self._next(ended=[*self.orders.ended, *new])

    def is_muted(self, name: str, now_ns: int) -> bool:
        """Whether sound captured now is ignored."""
        return within(self.orders.muted.get(name, ()), now_ns) or self.is_paused(name, now_ns)

    def is_paused(self, name: str, now_ns: int) -> bool:
        """Whether sound and pictures captured now are ignored."""
        return within(self.orders.paused.get(name, ()), now_ns)

    def _named(self, streams: Sequence[str]) -> list[str]:
        """The named streams; all if none is named."""
        if unknown := [name for name in streams if name not in self._streams]:
            raise ConfigError(f"there is no stream {unknown[0]!r}; there is {', '.join(self._streams)}")
        return list(dict.fromkeys(streams)) or list(self._streams)

    def _hears(self, name: str) -> bool:
        return any(medium == "audio" for medium, _ in self._streams[name].sources)

    def _with(self, streams: Iterable[Stream]) -> Config:
        return Config(**self.config.model_dump(exclude={"streams"}), streams=list(streams))

    def _next(self, **fields: object) -> None:
        self.orders = msgspec.structs.replace(self.orders, serial=self.orders.serial + 1, **fields)


def _begun(spans: Spans, names: Sequence[str], at_ns: int, end_ns: int) -> Spans:
    """The spans plus one from ``at_ns`` on, for the named streams; an open span ends at ``at_ns``."""
    cut = _ended(spans, names, at_ns)
    return cut | {name: [*cut.get(name, []), (at_ns, end_ns)][-_KEPT:] for name in names}


def _ended(spans: Spans, names: Sequence[str], at_ns: int) -> Spans:
    """The spans of the named streams, cut off at ``at_ns``."""
    cut = dict(spans)
    for name in names:
        earlier = [(start_ns, min(end_ns, at_ns)) for start_ns, end_ns in spans.get(name, []) if start_ns < at_ns]
        cut[name] = earlier
    return cut


def _without(spans: Spans, name: str) -> Spans:
    return {other: list(parts) for other, parts in spans.items() if other != name}
