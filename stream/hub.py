"""The command ``stream-hub``: the labels of many boxes."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec

from emostream.commands import make_parser, skip_shutdown, stop_by_signals
from emostream.errors import BusError, ConfigError
from emostream.stream import boxes
from emostream.stream.boxes import MOST_BOXES, Boxes, Delivery, UplinkState, key, load_zenoh, site_and_box
from emostream.stream.hub_store import HubStore, Kept
from emostream.stream.limits import allow_open_files, no_core_dumps
from emostream.stream.lines import LineWriter, log_to_stderr
from emostream.stream.view import plain_line

log = logging.getLogger(__name__)

_WAITING = 64  # deliveries that wait for the disk; beyond that, zenoh applies back-pressure to the network
_TICK_S = 0.05
_AGAIN_S = 5.0


def hub() -> int:
    """stream-hub: print and keep the labels of all boxes."""
    parser = make_parser("stream-hub", "Print, and keep, the labels that stream-uplink sends from many boxes.")
    parser.add_argument(
        "router", nargs="?", metavar="tls/HOST:PORT", help="address of a zenoh router; or tcp/HOST:PORT"
    )
    parser.add_argument(
        "--listen", action="append", default=[], metavar="tls/ADDRESS:PORT",
        help="instead, be the router and let boxes connect there; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="zenoh configuration (JSON5): certificates, access control"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="keep labels there, in files by day")
    parser.add_argument("--format", choices=("parquet", "jsonl"), default="parquet", help="(default: %(default)s)")
    parser.add_argument(
        "--part-labels", type=int, default=20_000, metavar="N", help="labels per file, at most (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--part-minutes", type=float, default=15, metavar="M", help="minutes per file, at most (default: %(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="print no labels")
    options = parser.parse_args()
    log_to_stderr()
    if bool(options.router) == bool(options.listen):
        raise ConfigError("name a router, or be one with --listen; not both")
    if not (options.part_labels > 0 and 0 < options.part_minutes < 1e6):
        raise ConfigError("--part-labels and --part-minutes must be above 0")
    no_core_dumps()
    skip_shutdown()
    allow_open_files()
    store = HubStore(options.out, options.format, options.part_labels, options.part_minutes * 60)
    config = boxes.make_session_config(options.config, [options.router] if options.router else [], options.listen)
    with closing(store), suppress(KeyboardInterrupt):
        stop_by_signals()
        Hub(store, quiet=options.quiet).run(config, options.router or " ".join(options.listen))
    return 0


class Hub:
    """Takes deliveries from boxes and confirms each once ``store`` has written it; prints each new label, unless
    ``quiet``; and says which box appeared, vanished, is behind or has lost labels."""

    def __init__(self, store: HubStore, quiet: bool = False) -> None:
        self._store = store
        self._boxes = Boxes()
        self._states: deque[tuple[str, str, UplinkState]] = deque(maxlen=MOST_BOXES)  # not compared with the store yet
        self._failing = False  # whether labels cannot be written
        self._out = None if quiet else LineWriter(sys.stdout, lambda text: log.warning("labels on stdout: %s", text))

    def run(self, config: Any, name: str) -> None:
        """Run until Ctrl-C. ``config``: from ``make_session_config``; ``name``: the router's, for the user. Raises
        BusError if an address to listen at is taken."""
        with self._open(config, name) as session:
            queries = session.declare_queryable(
                key("*", "*", "deliver"), load_zenoh().handlers.FifoChannel(_WAITING), complete=True
            )
            alive = session.liveliness().declare_subscriber(key("*", "*", "alive"), self._presence, history=True)
            states = session.declare_subscriber(key("*", "*", "uplink"), self._told_state)
            log.info("%s: waiting for boxes", name)
            try:
                while True:
                    if (query := queries.try_recv()) is None:
                        self._tick()
                        time.sleep(_TICK_S)
                        continue
                    waiting = [query]  # write all waiting deliveries at once
                    while len(waiting) < _WAITING and (query := queries.try_recv()) is not None:
                        waiting.append(query)
                    self._take(waiting)
                    self._tick()
            finally:
                for declared in (queries, alive, states):
                    declared.undeclare()
                if self._out is not None:
                    self._out.close()

    def _open(self, config: Any, name: str) -> Any:
        listens = config.get_json("mode") == '"router"'
        told = False
        while True:
            try:
                return boxes.open_session(config)
            except BusError as error:
                if listens:
                    raise BusError(f"{name}: cannot listen there ({error})") from error
                if not told:
                    log.warning("%s: cannot be reached, trying again (%s)", name, error)
                told = True
                time.sleep(_AGAIN_S)

    def _take(self, queries: list[Any]) -> None:
        """Store deliveries and answer them."""
        deliveries: list[tuple[Any, Delivery]] = []
        for query in queries:
            try:
                site, box = site_and_box(query.key_expr)
                if not self._boxes.has_room_for(site, box):
                    raise ValueError(f"more than {MOST_BOXES} boxes")
                delivery = boxes.decode_delivery(site, box, b"" if query.payload is None else query.payload.to_bytes())
                deliveries.append((query, delivery))
            except (msgspec.DecodeError, ValueError) as error:
                log.warning("%s: a delivery was refused (%s)", query.key_expr, error)
                _answer(query, f"refused: {error}")
        try:
            kept = self._store.add([delivery for _, delivery in deliveries])
        except OSError as error:
            self._tell_failing(error)
            for query, _ in deliveries:
                _answer(query, f"labels cannot be written ({error.strerror})")
            return
        self._failing = False
        for query, delivery in deliveries:
            _answer(query, None)
            self._tell(self._boxes.update(delivery.site, delivery.box, delivery.state, len(delivery.labels)))
            self._look_for_losses(delivery.site, delivery.box, delivery.state, len(delivery.labels))
        self._print(kept)

    def _print(self, labels: Iterable[Kept]) -> None:
        if self._out is not None:
            for label in labels:
                self._out.put(f"{label.site}/{label.box}  {plain_line(label.emotion)}")

    def _look_for_losses(self, site: str, box: str, state: UplinkState, taken: int = 0) -> None:
        """Say how many labels of a box will never come, if it has delivered all that it has."""
        if state.waiting > taken or not self._boxes.has_room_for(site, box):
            return
        for stream, more, missing in self._store.missing(site, box, state.published):
            fell_out = f"; {state.lost} have fallen out of its store so far" if state.lost else ""
            text = f"{site}/{box}: {more} labels of {stream} did not arrive, {missing} in this run{fell_out}"
            log.warning("%s", text)

    def _tick(self) -> None:
        while self._states:
            self._look_for_losses(*self._states.popleft())
        try:
            self._store.tick()
        except OSError as error:
            self._tell_failing(error)

    def _tell_failing(self, error: OSError) -> None:
        if not self._failing:
            where = error.filename or "--out"
            log.warning("%s: cannot be written (%s); boxes keep their labels", where, error.strerror)
        self._failing = True

    def _presence(self, sample: Any) -> None:
        """A box's token came or went; called by zenoh's thread."""
        is_there = sample.kind == load_zenoh().SampleKind.PUT
        with suppress(ValueError):
            self._tell(self._boxes.presence(*site_and_box(sample.key_expr), is_there))

    def _told_state(self, sample: Any) -> None:
        """A box reports its state; called by zenoh's thread."""
        with suppress(msgspec.DecodeError, ValueError):  # a box may send anything
            site, box = site_and_box(sample.key_expr)
            state = boxes.decode_state(sample.payload.to_bytes())
            self._tell(self._boxes.update(site, box, state))
            self._states.append((site, box, state))

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            log.info("%s", line)


def _answer(query: Any, refused: str | None) -> None:
    """Answer a delivery: confirm it, or say why it was refused."""
    with query:
        if refused is None:
            query.reply(query.key_expr, boxes.STORED)
        else:
            query.reply_err(refused)
