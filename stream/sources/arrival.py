"""When the data of a live container was captured, and at which pace to deliver it."""

from __future__ import annotations

from collections import deque

from emostream.stream.clock import Clock


class Arrival:
    """Converts time stamps to capture times by adding the least delay seen so far.

    So data that comes in bursts (HLS: a segment at a time) keeps its own times, one segment late. If everything comes
    two seconds later than before for 10 s, the source itself is later now, and the delay is adjusted.
    """

    WINDOW_NS, LATER_NS = 10_000_000_000, 2_000_000_000

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_ns: int | None = None  # our clock minus the source's
        self._least_ns = 0  # in the window that began at ``_since_ns``
        self._since_ns = 0

    def media_ns(self, seconds: float | None) -> int:
        """Unix time of a stamp; the present for None."""
        now_ns = self._clock.now_ns()
        if seconds is None:
            return now_ns
        stamp_ns = round(seconds * 1e9)
        off_ns = now_ns - stamp_ns
        if self._offset_ns is None:
            self._offset_ns, self._least_ns, self._since_ns = off_ns, off_ns, now_ns
        self._offset_ns = min(self._offset_ns, off_ns)  # nothing arrives before it was captured
        self._least_ns = min(self._least_ns, off_ns)
        if now_ns - self._since_ns > self.WINDOW_NS:
            if self._least_ns > self._offset_ns + self.LATER_NS:
                self._offset_ns = self._least_ns
            self._least_ns, self._since_ns = off_ns, now_ns
        return stamp_ns + self._offset_ns

    def arrived(self, end_ns: int) -> None:
        """An item that ends at this time is here now."""
        if self._offset_ns is not None:  # without stamps there is nothing to correct
            self._offset_ns += min(0, self._clock.now_ns() - end_ns)


class Smoother:
    """How long to hold items back, so that bursts are delivered at an even pace: by the greatest delay of the last ten
    seconds, or not at all if that is short."""

    BUCKET_NS, BUCKETS, LEAST_NS, MOST_NS = 2_500_000_000, 4, 300_000_000, 15_000_000_000

    def __init__(self) -> None:
        self._latest: deque[int] = deque([0], maxlen=self.BUCKETS)  # greatest delay in each bucket of time
        self._since_ns = 0
        self.delay_ns = 0

    def push(self, late_ns: int, now_ns: int) -> None:
        """An item came with this delay."""
        if now_ns - self._since_ns > self.BUCKET_NS:
            self._since_ns = now_ns
            self._latest.append(0)
        self._latest[-1] = max(self._latest[-1], late_ns)
        most_ns = max(self._latest)
        self.delay_ns = min(most_ns, self.MOST_NS) if most_ns > self.LEAST_NS else 0
