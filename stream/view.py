"""What a run shows: a live display in a terminal, plain lines on a pipe, or lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import textwrap
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from emostream.stream.emotion import Emotion
from emostream.stream.messages import Health
from emostream.stream.status import Status, StreamStatus, stream_line
from emostream.stream.topics import FUSION

_COLOURS = {
    "anger": "red", "disgust": "green", "fear": "magenta", "joy": "yellow",
    "neutral": "white", "sadness": "blue", "surprise": "cyan",
}  # fmt: skip
_BAR = 24
_STREAM_LINES = 12  # for a stream shown with all its bars
_LEVELS = {"warning": "yellow", "error": "bold red"}


class Terminal(Console):
    """A console that raises BrokenPipeError like print, while rich's own would end the program with code 1."""

    def on_broken_pipe(self) -> None:
        raise


class View(Protocol):
    """Shows a run. Health and status are for views that show more than lines."""

    def emotion(self, message: Emotion) -> None: ...
    def log(self, node: str, level: str, text: str) -> None: ...
    def summary(self, lines: list[str]) -> None: ...

    def health(self, message: Health) -> None:
        return

    def status(self, message: Status) -> None:
        return

    def close(self) -> None:
        return


def plain_line(message: Emotion, name: str = "") -> str:
    """A label as one line of text; it ends in … if the speaker may go on. ``name``: in place of the stream's."""
    late = f"{message.latency_ms.total:5.0f} ms" if message.latency_ms else "        "
    sure = "?" if message.uncertain else " "
    parts = "".join(
        letter if message.modalities[name].frames else "-"
        for letter, name in (("a", "audio"), ("v", "video"), ("t", "text"))
    )
    return (
        f"{name or message.stream}  {message.start_s:7.2f}-{message.end_s:6.2f} s  {message.label:8}{sure} "
        f"{message.confidence:4.0%}  {late}  [{parts}]  {message.text}"
    ).rstrip() + ("" if message.final else " …")


def now() -> str:
    """The time for a log line: ISO 8601 in UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


LEGEND = "[avt]: what a label rests on, sound (a), picture (v), text (t);  ?: not sure"
_INDENT = 41  # of the continuation of a plain line's text


def wrapped(line: str, width: int) -> str:
    """Wrap a plain line for a terminal of this width; continued words are aligned below the first."""
    if len(line) <= width or width < _INDENT + 20:
        return line
    return "\n".join(textwrap.wrap(line, width, subsequent_indent=" " * _INDENT))


def senses_line(stream: StreamStatus) -> str:
    """What a stream hears and sees at present, as text."""
    parts = []
    if stream.level_dbfs is not None:
        bar = "▁▂▃▄▅▆▇█"[min(7, max(0, int((stream.level_dbfs + 60) / 60 * 8)))]
        parts.append(f"level {bar} {stream.level_dbfs:.0f} dB")
    if stream.speech is not None:
        parts.append(f"speech {stream.speech:.0%}")
    if stream.face is not None:
        parts.append("a face" if stream.face >= 0.5 else "now and then a face" if stream.face > 0 else "no face")
    return "   ".join(parts)


class PlainView(View):
    """One line per label and per log message; log lines begin with the time unless they go to a terminal. With
    ``quiet``, only warnings and errors."""

    def __init__(self, console: Console, errors: Console, quiet: bool = False) -> None:
        self._console, self._errors, self._quiet = console, errors, quiet
        self._explained = False

    def emotion(self, message: Emotion) -> None:
        if message.kind == "utterance" and not self._quiet:
            line = plain_line(message)
            if self._console.is_terminal:
                line = wrapped(line, self._console.width)
                if not self._explained:
                    _print_line(self._console, LEGEND)
                    self._explained = True
            _print_line(self._console, line)

    def log(self, node: str, level: str, text: str) -> None:
        if level in _LEVELS or not self._quiet:
            stamp = "" if self._errors.is_terminal else f"{now()} "
            _print_line(self._errors, f"{stamp}{level}: {node}: {text}")

    def summary(self, lines: list[str]) -> None:
        for line in lines:
            _print_line(self._console, line)


class JsonView(View):
    """One JSON object per line: labels and the summary on ``output``, log messages on ``errors``; with ``quiet``, only
    warnings and errors. ``kind`` is "label", "summary" or "log"; ``message`` is the text of a plain line."""

    def __init__(self, output: TextIO, errors: TextIO, quiet: bool = False) -> None:
        self._output, self._errors, self._quiet = output, errors, quiet

    def emotion(self, message: Emotion) -> None:
        if message.kind == "utterance" and not self._quiet:
            facts = {name: getattr(message, name) for name in ("label", "confidence", "uncertain", "start_s", "end_s")}
            self._write(self._output, "label", "info", FUSION, message.stream, plain_line(message), **facts)

    def log(self, node: str, level: str, text: str) -> None:
        if level in _LEVELS or not self._quiet:
            _, _, stream = node.partition(".")
            self._write(self._errors, "log", level, node, stream, text)

    def summary(self, lines: list[str]) -> None:
        if lines:
            self._write(self._output, "summary", "info", "run", "", "\n".join(lines))

    @staticmethod
    def _write(
        file: TextIO, kind: str, level: str, node: str, stream: str, message: str, **facts: str | float | bool
    ) -> None:
        line = {"time": now(), "level": level, "kind": kind, "node": node, "stream": stream, "message": message}
        print(json.dumps(line | facts), file=file, flush=True)


class _Echo:
    """Keeps the terminal from printing ^C, and from dropping the output that waits when Ctrl-C comes, both of which
    would leave remains of the display behind."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None
        if not os.isatty(0) or os.name != "posix":
            return
        import termios

        with contextlib.suppress(termios.error):
            before, without = termios.tcgetattr(0), termios.tcgetattr(0)
            without[3] = without[3] & ~termios.ECHOCTL | termios.NOFLSH
            termios.tcsetattr(0, termios.TCSADRAIN, without)
            self._before = before

    def restore(self) -> None:
        if self._before is not None:
            import termios

            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, self._before)


class LiveView:
    """A display redrawn in place: for each stream, whether someone speaks, the words so far and a bar per emotion;
    below that, the nodes' health. Labels scroll by above it."""

    def __init__(self, console: Console, streams: list[str], title: str) -> None:
        self._console, self._title = console, title
        self._now: dict[str, Emotion | None] = dict.fromkeys(streams)
        self._health: dict[str, Health] = {}
        self._cpu: dict[str, float] = {}
        self._status = Status()
        self._echo = _Echo()
        self._live = Live(console=console, refresh_per_second=10, transient=True, get_renderable=self.render)
        self._live.start()

    def emotion(self, message: Emotion) -> None:
        self._now[message.stream] = message
        if message.kind == "utterance":
            self._live.console.print(self.label_line(message))

    def label_line(self, message: Emotion) -> Text:
        """A label as text, in its emotion's colour."""
        return Text(wrapped(plain_line(message), self._console.width), _COLOURS.get(message.label, "white"))

    def health(self, message: Health) -> None:
        last = self._health.get(message.node)
        if last is not None and message.sent_ns > last.sent_ns:
            self._cpu[message.node] = (message.cpu_s - last.cpu_s) / ((message.sent_ns - last.sent_ns) / 1e9)
        self._health[message.node] = message

    def status(self, message: Status) -> None:
        self._status = message

    def log(self, node: str, level: str, text: str) -> None:
        self._live.console.print(Text(f"{level}: {node}: {text}", style=_LEVELS.get(level, "dim")))

    def summary(self, lines: list[str]) -> None:
        for line in lines:
            _print_line(self._console, line)

    def close(self) -> None:
        self._live.stop()
        self._echo.restore()

    def render(self) -> Panel:
        """The display's current content."""
        names = list(dict.fromkeys([*self._now, *self._status.streams]))
        small = len(names) * _STREAM_LINES + 4 > self._console.height
        streams = [self._stream(name, self._now.get(name), small) for name in names]
        legend = Text(LEGEND, style="dim", overflow="ellipsis", no_wrap=True)
        recording = ("  ● recording", "bold red") if self._status.is_recorded else ""
        title = Text.assemble(self._title, recording)
        return Panel(Group(*streams, self._nodes(), legend), title=title, border_style="dim")

    def _stream(self, name: str, message: Emotion | None, small: bool) -> Group:
        status = self._status.streams.get(name, StreamStatus())
        style = "dim" if status.state == "running" else "yellow"
        senses = senses_line(status)
        state_line = Text(
            stream_line(name, status) + (f"   {senses}" if senses else ""), style, overflow="ellipsis", no_wrap=True
        )
        if message is None:
            what = "starting …" if status.state == "starting" else "listening …" if status.state == "running" else ""
            return Group(Text.assemble((f"{name}  ", "bold"), (what, "dim")), state_line)
        speaking = message.kind == "window"
        state = ("● speaking ", "bold red") if speaking else ("○ label    ", "bold green")
        span = f"{message.start_s:.1f}-{message.end_s:.1f} s"
        late = f"   {message.latency_ms.total:.0f} ms after the last word" if message.latency_ms else ""
        head = Text.assemble((f"{name}  ", "bold"), state, span, (late, "dim"))
        words = Text(message.text or "…", style="italic", overflow="ellipsis", no_wrap=True)
        if small:
            top = Text(f"  {message.label} {message.confidence:.0%}", _COLOURS.get(message.label, "white"))
            return Group(Text.assemble(head, top), words, state_line)
        bars = Table.grid(padding=(0, 1))
        for label, value in message.probabilities.items():
            full = round(value * _BAR)
            best = label == message.label
            bars.add_row(
                Text(label, style="bold" if best else "dim"),
                Text("█" * full + "·" * (_BAR - full), style=_COLOURS.get(label, "white") if best else "dim"),
                Text(f"{value:4.0%}", style="bold" if best else "dim"),
            )
        parts = [f"{name} {e.coverage:.0%}" for name, e in message.modalities.items()]
        if message.valence is not None and message.arousal is not None:
            parts.append(f"valence {message.valence:+.2f}  arousal {message.arousal:+.2f}")
        if message.adapted > 0:
            parts.append(f"adapted {message.adapted:.0%}")
        seen = Text("  ".join(parts), style="dim")
        return Group(head, words, bars, seen, state_line)

    def _nodes(self) -> Text:
        parts = []
        for name, health in sorted(self._health.items()):
            lost = f" lost {health.dropped + health.gaps}" if health.dropped or health.gaps else ""
            parts.append(f"{name} {self._cpu.get(name, 0):.0%} {health.rss_bytes / 2**20:.0f}M{lost}")
        return Text("  ".join(parts), style="dim", overflow="ellipsis", no_wrap=True)


def _print_line(console: Console, line: str) -> None:
    """Print a line unchanged. A line that a full disk refuses is lost; rich would keep it and print it twice."""
    with console.capture() as shown:
        console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)
    console.file.write(shown.get())
    console.file.flush()
