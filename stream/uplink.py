"""The command ``stream-uplink``: labels to a zenoh router, where ``stream-hub`` keeps them."""

from __future__ import annotations

import logging
import random
import re
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from emostream.commands import make_parser, skip_shutdown
from emostream.errors import BusError, ConfigError
from emostream.stream import boxes
from emostream.stream.backlog import Backlog, Batch
from emostream.stream.boxes import UplinkState, key
from emostream.stream.emotion import Emotion, decode_emotion
from emostream.stream.limits import no_core_dumps
from emostream.stream.sink import message_json, run_sink, sink_options
from emostream.stream.status import Status, encode_status

log = logging.getLogger(__name__)

_KEPT, _KEPT_MB = 10_000, 20
_STATUS_S = 10.0  # between two statuses without a change; one a second would be most of a box's traffic
_ANSWER_S = 10.0  # how long the hub may take to answer
_RETRY_S = (0.5, 5.0)  # first and longest pause after a delivery that was not confirmed
_GOODBYE_S = 3.0
_RUNS = 4  # whose numbers of labels the hub is told
_STATUS, _STATE = "status", "uplink"  # keys below the box's


def uplink() -> int:
    """stream-uplink: labels to a hub of many boxes."""
    parser = make_parser("stream-uplink", "Send the labels that stream-run publishes to a zenoh router and stream-hub.")
    parser.add_argument("router", metavar="tls/HOST:PORT", help="or tcp/HOST:PORT, without encryption")
    parser.add_argument("--site", default="main", help="where this box stands (default: %(default)s)")
    parser.add_argument("--box", default=_host(), help="its name there (default: this machine's, %(default)s)")
    parser.add_argument(
        "--windows", action="store_true", help="also send running estimates, which are not kept for the hub"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="zenoh configuration (JSON5), for certificates")
    parser.add_argument(
        "--keep",
        type=int,
        default=_KEPT,
        metavar="N",
        help="most labels to keep for the hub (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-mb",
        type=float,
        default=_KEPT_MB,
        metavar="MB",
        help="and their greatest total size (default: %(default)s)",
    )
    parser.add_argument(
        "--store", type=Path, metavar="DIR", help="keep them there, not in memory, to survive a restart"
    )
    options = sink_options(parser)
    boxes.check_name("--site", options.site)
    boxes.check_name("--box", options.box)
    if not (options.keep > 0 and 0 < options.keep_mb <= 100_000):
        raise ConfigError("--keep and --keep-mb must be above 0, and --keep-mb at most 100000")
    no_core_dumps()
    skip_shutdown()
    config = boxes.make_session_config(options.config, [options.router])
    backlog = Backlog(options.store, options.keep, round(options.keep_mb * 1e6))
    sink = Uplink(options.router, options.site, options.box, config, options.words, backlog)
    run_sink(sink, options.endpoint, options.key, estimates=options.windows)
    return 0


class Uplink:
    """A sink that sends labels to the hub, keeping them in ``backlog`` until the hub has them. It also publishes all
    messages as they come, for whoever subscribes to their keys (zenoh sends nothing without a subscriber).

    Labels are delivered by queries, one batch at a time, oldest first; the hub answers once it has written them. So
    their order is kept, a hub gets no more than it can write, and a batch whose answer was lost is sent again; the hub
    recognises duplicates by ``run`` and ``seq``. zenoh's AdvancedPublisher also has a cache for late subscribers, but
    it is only bounded by number, is lost with the process, and does not know what a subscriber has received.

    ``config``: from ``make_session_config``."""

    def __init__(self, router: str, site: str, box: str, config: Any, words: bool, backlog: Backlog) -> None:
        self._router, self._site, self._box = router, site, box
        self._config, self._words, self._backlog = config, words, backlog
        self._session: Any = None
        self._publishers: dict[str, Any] = {}
        self._queryables: list[Any] = []
        self._last: dict[str, bytes] = {}  # the run's status, and the last label of each stream
        self._run = ""  # the run that they belong to
        self._published: dict[str, dict[str, int]] = {}  # by run and stream: labels, as the status counts them
        self._states: object = None  # in the last status sent
        self._sent_s = 0.0  # when it was sent
        self._run_there = False
        self._told: str | None = None  # the last warning about the way to the hub; None: all is well
        self._told_lost = backlog.lost
        self._news, self._stop = threading.Event(), threading.Event()
        if backlog.waiting:
            if not words:  # they may have been kept by an uplink that sends words
                backlog.rewrite(lambda label: message_json(decode_emotion(label), words=False).encode())
            log.info("%d labels of an earlier uplink wait for the hub", backlog.waiting)
        self._thread = threading.Thread(target=self._deliver_all, name="deliver", daemon=True)
        self._thread.start()

    def send(self, emotion: Emotion) -> None:
        """A label or a running estimate."""
        content = message_json(emotion, self._words).encode()
        name = f"{emotion.stream}/{emotion.kind}"
        if emotion.kind == "utterance":
            self._begin_run(emotion.run)
            self._last[name] = content
        self._publish(name, content)
        if emotion.kind == "utterance":
            try:
                self._backlog.add(content, emotion.published_ns)
            except sqlite3.Error as error:
                log.warning("a label cannot be kept for the hub, and is lost (%s)", error)
            # only now: whoever sees the count in ``_state`` then also sees that the label waits
            self._count(emotion.run, {emotion.stream: self._published.get(emotion.run, {}).get(emotion.stream, 0) + 1})
            self._tell_lost()
            self._news.set()

    def set_status(self, status: Status | None) -> None:
        """The state of the run; None if there is no run."""
        self._run_there = status is not None
        if status is None:
            self._last.pop(_STATUS, None)
        else:
            self._begin_run(status.run)
            self._last[_STATUS] = encode_status(status)
            self._published.setdefault(status.run, {})
            self._count(status.run, {name: stream.labelled for name, stream in status.streams.items()})
        if self._session is None:
            return
        states = status and (status.run, status.state, {name: s.state for name, s in status.streams.items()})
        if states != self._states or time.monotonic() - self._sent_s >= _STATUS_S:
            self._states, self._sent_s = states, time.monotonic()
            if status is not None:
                self._publish(_STATUS, self._last[_STATUS])
            self._publish(_STATE, boxes.encode_state(self._state()))

    def close(self) -> None:
        """Deliver what the hub takes within a few seconds, then disconnect. A store on disk keeps the rest."""
        self._stop.set()
        self._news.set()
        self._thread.join(_GOODBYE_S + 1)
        if self._backlog.waiting:
            log.warning("%d labels still wait for the hub; without --store they are lost now", self._backlog.waiting)
        if self._session is not None and not self._thread.is_alive():
            self._session.close()

    def _count(self, run: str, labels: dict[str, int]) -> None:
        """So many labels of each stream were published. A status comes after the labels that it counts: those that have
        not come by then never will. Labels count themselves too, since a status may be older; before the first status
        of a run there is nothing to count from."""
        known = self._published.get(run)
        if known is not None:
            counts = known | {name: max(count, known.get(name, 0)) for name, count in labels.items() if count}
            self._published = dict([*((k, v) for k, v in self._published.items() if k != run), (run, counts)][-_RUNS:])

    def _state(self) -> UplinkState:
        published = self._published  # before what waits: a label between the two is not taken for a lost one
        oldest_ns = self._backlog.oldest_ns()
        return UplinkState(
            waiting=self._backlog.waiting,
            waiting_bytes=self._backlog.waiting_bytes,
            behind_s=0.0 if oldest_ns is None else max(0.0, (time.time_ns() - oldest_ns) / 1e9),
            lost=self._backlog.lost,
            run_there=self._run_there,
            published={run: counts for run, counts in published.items() if counts},
        )

    def _publish(self, name: str, content: bytes) -> None:
        """Publish to present subscribers."""
        session = self._session
        if session is None:
            return
        if name not in self._publishers:
            self._publishers[name] = session.declare_publisher(key(self._site, self._box, name))
        self._publishers[name].put(content, encoding="application/json")

    def _begin_run(self, run: str) -> None:
        """Messages now belong to this run; forget the last values of another run."""
        if run != self._run:
            self._run = run
            self._last.clear()

    def _answer(self, query: Any) -> None:
        """Answer a new subscriber's query with the last values; called by zenoh's thread."""
        values = self._last | {_STATE: boxes.encode_state(self._state())}
        with query:
            for name, content in values.items():
                its_key = key(self._site, self._box, name)
                if query.key_expr.intersects(its_key):
                    query.reply(its_key, content, encoding="application/json")

    def _deliver_all(self) -> None:
        """The delivering thread: delivers labels whenever some are waiting."""
        if not self._connect():
            return
        pause_s = _RETRY_S[0]
        until_s = float("inf")
        while not self._stop.is_set() or (self._backlog.waiting and time.monotonic() < until_s):
            if self._stop.is_set() and until_s == float("inf"):
                until_s = time.monotonic() + _GOODBYE_S
            batch = self._backlog.first(boxes.BATCH_LABELS, boxes.BATCH_BYTES)
            if batch is None:
                self._news.wait()
                self._news.clear()
            elif self._deliver(batch):
                self._backlog.remove(batch)
                pause_s = _RETRY_S[0]
            else:  # a random pause, so that not all boxes come at once after the hub was away
                wait_s = pause_s * random.uniform(0.5, 1)
                self._stop.wait(wait_s) if not self._stop.is_set() else time.sleep(0.1)
                pause_s = min(pause_s * 2, _RETRY_S[1])

    def _connect(self) -> bool:
        """Open the session as soon as the router is there; from then on zenoh reconnects by itself. False if the sink
        was closed first."""
        while not self._stop.is_set():
            try:
                session = boxes.open_session(self._config)
            except BusError as error:
                self._tell(f"{self._router}: cannot be reached, trying again ({error})")
                self._stop.wait(random.uniform(1, 3))
                continue
            for name in (boxes.ANY_LABEL, _STATUS, _STATE):
                queryable = session.declare_queryable(key(self._site, self._box, name), self._answer)
                self._queryables.append(queryable)
            self._token = session.liveliness().declare_token(key(self._site, self._box, "alive"))
            self._session = session
            log.info("%s: connected, as %s/%s", self._router, self._site, self._box)
            return True
        return False

    def _deliver(self, batch: Batch) -> bool:
        """Deliver a batch. Returns whether the hub confirmed it."""
        content = boxes.encode_delivery(self._state(), batch.labels)
        why = "no hub is there"
        timeout_s = _GOODBYE_S if self._stop.is_set() else _ANSWER_S
        try:
            for reply in self._session.get(key(self._site, self._box, "deliver"), payload=content, timeout=timeout_s):
                if reply.ok is not None and bytes(reply.ok.payload) == boxes.STORED:
                    if self._told is not None:
                        log.info("the hub takes labels again")
                    self._told = None
                    return True
                why = f"the hub does not take them: {bytes(reply.err.payload).decode(errors='replace')}"
        except boxes.load_zenoh().ZError as error:
            why = str(error)
        self._tell(f"labels wait for the hub, {self._backlog.waiting} now ({why})", about=why)
        return False

    def _tell(self, text: str, about: str = "") -> None:
        """Warn, unless this was the last warning."""
        if self._told != (about or text):
            self._told = about or text
            log.warning(text)

    def _tell_lost(self) -> None:
        """Report how many labels were dropped: at the first, and whenever their number has doubled."""
        lost = self._backlog.lost
        if lost > self._told_lost and (lost >= 2 * self._told_lost or self._told_lost == 0):
            log.warning("the store is full: the oldest labels fall out before the hub has them, %d so far", lost)
            self._told_lost = lost


def _host() -> str:
    """This machine's name, as a box name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", socket.gethostname())[:64] or "box"
