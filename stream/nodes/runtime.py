"""What every node process has around its core: sockets, heartbeats, log lines, and the commands ``go`` and ``stop``."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import psutil
import zmq

from emostream.stream import bus
from emostream.stream.bus import LINGER_MS, SEND_TIMEOUT_MS, Context, Inbox, Publisher
from emostream.stream.clock import SystemClock
from emostream.stream.handover import Handover, HandoverInbox
from emostream.stream.messages import Control, End, Health, Log, Message, Orders, StatusReport
from emostream.stream.nodes.spec import NodeSpec, ipc_of
from emostream.stream.status import BEHIND_S
from emostream.stream.topics import (
    BESIDE,
    CONTROL,
    FUSION,
    LOGS,
    RECORD,
    STATUS,
    health_topic,
    log_topic,
)  # fmt: skip

_HEARTBEAT_NS = 1_000_000_000
_DUTIES_NS = 50_000_000
_AGAIN_NS = 500_000_000
_NEVER_NS = 1 << 62
_STAY_S = 1.0
REST_S = 0.16  # between two looks, at rest; less than min_hangover_ms: the label of a short utterance is not delayed
_CAUGHT_UP_S = 0.5
LIGHTER = "this machine is too slow for so much: fewer streams, a lower video.fps or speech.recognizer=none help"


class Stopped(Exception):
    """The command ``stop`` came while the node was waiting."""


class _LogQueue(logging.Handler):
    """Queues log lines for the node's own thread, since sockets are not thread-safe."""

    def __init__(self, belongs: Callable[[logging.LogRecord], bool]) -> None:
        super().__init__()
        self.lines: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self.addFilter(belongs)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.put((record.levelname.lower(), record.getMessage()))


class NodeRuntime:
    """Sockets and duties of a node. It calls ``counters``, ``senses`` and ``by_stream`` for each heartbeat,
    ``on_orders`` with all new orders, ``on_status`` with each status of the run (in fusion and in nodes beside the
    run), and ``on_log`` with each log line for the user (in a recording node). ``heard_ns``: when a live source last
    delivered something; None without one.

    Raises BusError if its endpoint cannot be bound.
    """

    def __init__(
        self,
        spec: NodeSpec,
        context: Context | None = None,
        outlet: Handover | None = None,
        inlet: Handover | None = None,
    ) -> None:
        self.spec = spec
        self._outlet, self._inlet, self._owns_context = outlet, inlet, context is None
        self.clock = SystemClock(spec.clock_offset_ns)
        self.stop_event = threading.Event()
        self.counters: Callable[[], Mapping[str, int]] = dict
        self.by_stream: Callable[[], dict[str, dict[str, int]]] = dict
        self.senses: Callable[[], dict[str, float]] = dict
        self.on_status: Callable[[str], object] = lambda payload: None
        self.on_log: Callable[[Log], object] = lambda line: None
        self.on_orders: Callable[[Orders], object] = lambda orders: None
        self.orders = spec.orders
        self.heard_ns: int | None = None
        self.peak_dbfs = -120.0  # of a speech node: the loudest sample so far
        self.helpers: list[int] = []  # processes of this node's own, whose time and memory are its own
        self._told_behind = False
        self._stood_s, self._used_s = 0.0, time.process_time()  # how long the process did not run, since it was behind
        self.observer = bus.observer
        self.inbox: Inbox | None = None
        self.t0_ns = spec.t0_ns
        self._process = psutil.Process()
        self._next_beat_ns = self._next_duties_ns = self._stopped_ns = 0
        self._spent_s = 0.0
        self._state: Literal["starting", "ready", "running", "done"] = "starting"
        config = spec.config
        self.context = context or zmq.Context()
        try:
            self.publisher = Publisher(
                self.context,
                ipc_of(spec, spec.name),
                self.clock,
                config.bus.queue,
                lossless=not spec.realtime,
                observer=self.observer,
            )
            self._control = Inbox(self.context, 100, lossless=False, observer=self.observer)
            news = [*([STATUS] if spec.kind in (FUSION, *BESIDE) else []), *([LOGS] if spec.kind == RECORD else [])]
            self._control.connect(ipc_of(spec, CONTROL), [CONTROL, *news])
        except BaseException:
            if context is None:
                self.context.destroy(0)
            raise
        if inlet is None:
            self._log = _LogQueue(lambda line: outlet is None or line.thread != outlet.thread)
            logging.basicConfig(level=config.log.level.upper(), handlers=[self._log], force=True)
        else:
            inlet.thread = threading.get_ident()
            self._log = _LogQueue(lambda line: line.thread == inlet.thread)
            logging.getLogger().addHandler(self._log)

    def open_inbox(self, topics: Mapping[str, Iterable[str]]) -> Inbox:
        """Subscribe to the topics of each node, by its name."""
        spec = self.spec
        if self._inlet is not None:
            self.inbox = HandoverInbox(self._inlet, self.context, spec.config.bus.queue, self.observer)
            return self.inbox
        self.inbox = Inbox(self.context, spec.config.bus.queue, lossless=not spec.realtime, observer=self.observer)
        for node, names in topics.items():
            self.inbox.connect(ipc_of(spec, node), names)
        return self.inbox

    @property
    def has_run(self) -> bool:
        """Whether the node got past loading."""
        return self._state != "starting"

    @property
    def has_ended(self) -> bool:
        """Whether the last message was handed over to the guest."""
        return self._outlet is not None and self._outlet.ended

    @property
    def stopping(self) -> bool:
        return self.stop_event.is_set()

    def stopping_for(self, seconds: float) -> bool:
        """Whether ``stop`` came more than this long ago; End messages still missing by then are not waited for."""
        return self.stopping and self.clock.now_ns() - self._stopped_ns > seconds * 1e9

    @property
    def at_rest(self) -> bool:
        """Whether several messages may be handed over at once, since nobody waits for the next one."""
        return self._outlet is not None and self._outlet.at_rest

    def flush(self) -> None:
        """Hand over the messages collected at rest. Messages are collected from the first call on."""
        if self._outlet is not None:
            self._outlet.bundling = True
            self._outlet.flush()

    def flush_seldom(self) -> None:
        """As ``flush``, for a live source, which is never waited for: at rest not after each block of its sound."""
        if self._outlet is not None:
            self._outlet.bundling = True
            self._outlet.flush_seldom(self.clock.now_ns(), int(REST_S * 1e9))

    def rest(self, resting: bool) -> None:
        """Say whether this node is at rest, that is, in no hurry for its next message. Several messages are then
        handled at once, which costs less than one by one."""
        if self._inlet is not None:
            self._inlet.at_rest = resting
        elif resting and self.inbox is not None and len(self.inbox) == 0:
            self.stop_event.wait(REST_S)

    def stop(self, *_: object) -> None:
        if not self.stopping:
            self._stopped_ns = self.clock.now_ns()
            self.stop_event.set()

    def wait_for_subscribers(self, topics: Iterable[str]) -> None:
        """Wait until each topic, and this node's heartbeats and log, have a subscriber. Raises Stopped."""
        by_socket = set(topics) - (self._outlet.topics if self._outlet is not None else set())
        wanted = [*by_socket, health_topic(self.spec.name), log_topic(self.spec.name)]
        while not self.publisher.has_subscribers(wanted):
            self.stop_event.wait(0.01)
            self.tick()
            if self.stopping:
                raise Stopped

    def wait_for_go(self) -> int | None:
        """Report ``ready`` and wait for the supervisor's ``go``. Returns the Unix time of media time 0, or None at fast
        pace, where nothing is captured live. Raises Stopped."""
        self._state = "ready"
        self._beat()
        while self.t0_ns is None:
            self.stop_event.wait(0.01)
            self.tick()
            if self.stopping:
                raise Stopped
        self._state = "running"
        self._beat()
        return self.t0_ns if self.spec.realtime else None

    def tick(self) -> None:
        """Do the node's duties if they are due. Call it often; that costs next to nothing."""
        if self.clock.now_ns() >= self._next_duties_ns:
            self._do_duties()

    def _do_duties(self) -> None:
        """Take control messages; send log lines and, each second, a heartbeat."""
        self._notice_suspension()
        self._next_duties_ns = self.clock.now_ns() + _DUTIES_NS
        while (message := self._control.receive(0)) is not None:
            if isinstance(message, StatusReport):
                self.on_status(message.payload)
            elif isinstance(message, Log):
                self.on_log(message)
            elif isinstance(message, Control):
                if message.command == "stop":
                    self.stop()
                elif self.t0_ns is None and message.stream in ("", self.spec.stream):
                    self.t0_ns = message.at_ns
            elif isinstance(message, Orders) and message.serial > self.orders.serial:
                self._follow(message)
        if self.spec.parent and os.getppid() != self.spec.parent:  # the supervisor died, and nobody else stops nodes
            self.stop()
        heard = self.publisher.has_subscribers([log_topic(self.spec.name)])  # until then, lines wait
        while heard and not self._log.lines.empty():
            level, text = self._log.lines.get()
            self.publisher.send(Log(stream=self.spec.stream, node=self.spec.name, level=level, text=text))
        if self.clock.now_ns() >= self._next_beat_ns:
            self._beat()

    def _follow(self, orders: Orders) -> None:
        """Carry out new orders and acknowledge them at once."""
        if self.spec.stream and self.spec.stream in orders.removed:
            self.stop()
        self.on_orders(orders)
        self.orders = orders
        self._beat()

    def send(self, message: Message) -> None:
        """Publish; at fast pace, wait for subscribers whose queues are full. Raises Stopped."""
        while not self._publish(message):
            self.tick()
            if self.stopping:
                raise Stopped

    def send_last(self, message: Message) -> None:
        """Publish a message that must not be lost: wait up to a second for full queues, even when stopping."""
        for _ in range(1000 // SEND_TIMEOUT_MS):
            if self._publish(message):
                return

    def _publish(self, message: Message) -> bool:
        if self._outlet is not None and message.topic in self._outlet.topics:
            self._outlet.put(message)
            if not self.publisher.is_wanted(message.topic):
                return True
        return self.publisher.send(message)

    def send_ends(self, ends: Iterable[End]) -> None:
        """Publish the last message of each topic and stay until all subscribers have it, since messages that they have
        not taken would be lost. When stopping, stay no longer than the others wait."""
        left = list(ends)
        self._state = "done"
        self._beat()
        again_ns = 0
        while left and not self.stopping_for(_STAY_S):
            if self.clock.now_ns() >= again_ns:  # in real time, it may have been dropped at a full queue
                for end in left:
                    self.send_last(end)
                again_ns = self.clock.now_ns() + _AGAIN_NS if self.spec.realtime else _NEVER_NS
            self._do_duties()
            self._control.wait(10)
            left = [end for end in left if not self.publisher.was_heard([end.topic])]

    def close(self) -> None:
        """Send the last log lines and a heartbeat, then close all sockets, whoever opened them."""
        self._state = "done"
        give_up_ns = self.clock.now_ns() + _AGAIN_NS
        self._do_duties()
        while not self._log.lines.empty() and self.clock.now_ns() < give_up_ns:  # the supervisor has not subscribed yet
            self._control.wait(10)
            self._do_duties()
        self._beat()
        for inbox in (self.inbox, self._control):
            if inbox is not None:
                inbox.close()
        self.publisher.close()
        if self._owns_context:
            self.context.destroy(LINGER_MS)  # not term(), which would wait for ever for a socket left open

    def _beat(self) -> None:
        self._next_beat_ns = self.clock.now_ns() + _HEARTBEAT_NS
        inbox = self.inbox
        behind_s = 0.0
        silent_ns = 0 if self.heard_ns is None else self.clock.now_ns() - self.heard_ns
        if inbox is not None:
            behind_s = inbox.behind_ns(self.clock.now_ns()) / 1e9
            self._tell_behind(behind_s, len(inbox))
            for topic, (start_ns, end_ns) in inbox.take_dropped_spans().items():
                span = f"from {start_ns / 1e9:.2f} to {end_ns / 1e9:.2f} s"
                slow = "suspended" if self._stood_s else "too slow"
                logging.warning("%s: some of %s %s was dropped; words or labels may lack it", slow, topic, span)
        counters = dict(self.counters())
        if self.observer is not None:
            counters |= self.observer.counters()
        self.publisher.send(
            Health(
                stream=self.spec.stream,
                node=self.spec.name,
                state=self._state,
                counters=counters,
                queued=0 if inbox is None else len(inbox),
                dropped=0 if inbox is None else inbox.dropped.total(),
                gaps=0 if inbox is None else inbox.missed.total(),
                behind_s=round(behind_s, 3),
                silent_s=round(silent_ns / 1e9, 3),
                by_stream=self.by_stream(),
                cpu_s=round(self._cpu_s(), 3),
                rss_bytes=self._process.memory_info().rss,
                orders=self.orders.serial,
                senses=self.senses(),
            )
        )

    def _cpu_s(self) -> float:
        """CPU time of the process; if two nodes share it, this node's part."""
        if self._inlet is not None:
            self._inlet.cpu_s = time.thread_time()
            return self._inlet.cpu_s + self._of_helpers_s()
        cpu = self._process.cpu_times()
        guest_s = self._outlet.cpu_s if self._outlet is not None else 0.0  # as of its last heartbeat
        self._spent_s = max(self._spent_s, cpu.user + cpu.system - guest_s)
        return self._spent_s

    def _notice_suspension(self) -> None:
        """A process that did not run (Ctrl-Z, a paused machine) is behind for that reason."""
        used_s, since_s = time.process_time(), (self.clock.now_ns() - self._next_duties_ns) / 1e9
        if self._next_duties_ns and since_s > BEHIND_S and used_s - self._used_s < since_s / 4:
            self._stood_s = since_s
        self._used_s = used_s

    def _of_helpers_s(self) -> float:
        spent_s = 0.0
        for pid in self.helpers:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = psutil.Process(pid).cpu_times()
                spent_s += times.user + times.system
        return spent_s

    def _tell_behind(self, behind_s: float, queued: int) -> None:
        if behind_s >= BEHIND_S and not self._told_behind:
            why = f"it was suspended, or had no processor, for {self._stood_s:.1f} s" if self._stood_s else LIGHTER
            waiting = "1 message waits" if queued == 1 else f"{queued} messages wait"
            logging.warning("running %.1f s behind: %s; %s", behind_s, waiting, why)
            self._told_behind = True
        elif behind_s < _CAUGHT_UP_S and self._told_behind:
            logging.warning("has caught up")
            self._told_behind = False
        if behind_s < _CAUGHT_UP_S:
            self._stood_s = 0.0
