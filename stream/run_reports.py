"""What a run says of itself: its status, for subscribers and the service manager, and log lines, for the user and the
recording."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from emostream.stream.bus import Publisher
from emostream.stream.clock import Clock
from emostream.stream.messages import Log, StatusReport
from emostream.stream.notify import Notifier
from emostream.stream.status import Status, encode_status, stream_line

_STATUS_NS = 1_000_000_000
_LINES, _LINES_AT_ONCE = 1000, 20  # log lines that may wait for a recording; lines sent per round of the loop


class RunReports:
    """``on_log`` (node, level, text) and ``on_status`` are the user's. ``recorded``: keep log lines for a recording,
    until it takes them. ``notifier`` tells the service manager, if there is one."""

    def __init__(
        self,
        clock: Clock,
        on_log: Callable[[str, str, str], None],
        on_status: Callable[[Status], None],
        recorded: bool,
        notifier: Notifier | None,
    ) -> None:
        self._clock, self._on_log, self._on_status, self._notifier = clock, on_log, on_status, notifier
        self._recorded = recorded
        self._lines: deque[Log] = deque(maxlen=_LINES)  # on their way into a recording
        self._next_ns = 0
        self._states: tuple[str, ...] = ()  # when the status was last published
        self._line = ""

    def log(self, node: str, level: str, text: str) -> None:
        """Pass a log line to the user and to the recording."""
        self._on_log(node, level, text)
        if self._recorded:
            self._lines.append(Log(node=node, level=level, text=text, at_ns=self._clock.now_ns()))

    def pass_on(self, control: Publisher) -> None:
        """Send log lines to a recording that runs. Lines wait for it at the start, and after a crash."""
        for _ in range(min(_LINES_AT_ONCE, len(self._lines))):
            control.send(self._lines.popleft())

    def hurry(self) -> None:
        """The status has changed: publish it with the next ``tell``."""
        self._next_ns = 0

    def is_due(self, states: tuple[str, ...]) -> bool:
        """Whether to publish a status: once a second, and when a state has changed."""
        return self._clock.now_ns() >= self._next_ns or states != self._states

    def tell(self, status: Status, states: tuple[str, ...], control: Publisher) -> None:
        """Publish the run's status."""
        self._states, self._next_ns = states, self._clock.now_ns() + _STATUS_NS
        control.send(StatusReport(payload=encode_status(status).decode()))
        self._line = "; ".join(stream_line(name, stream) for name, stream in status.streams.items())
        self._on_status(status)

    def notify(self, begun: bool, stopping: bool) -> None:
        """Tell the service manager that the run has begun, is ending or goes on, and what it has done so far."""
        if self._notifier is None:
            return
        if stopping:
            self._notifier.stopping()
        elif begun:
            self._notifier.ready()
        self._notifier.tick(self._clock.now_ns(), self._line)

    def notify_end(self) -> None:
        if self._notifier is not None:
            self._notifier.stopping()
