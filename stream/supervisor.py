"""Starts a run's processes, watches their heartbeats, restarts crashed ones and ends them in order."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from multiprocessing import resource_tracker

import zmq

from emostream.errors import ConfigError, EmostreamError, RunError
from emostream.stream.bus import Inbox, Publisher
from emostream.stream.clock import SystemClock
from emostream.stream.config import Config
from emostream.stream.control import Request, Waiting, open_server, sent_at
from emostream.stream.emotion import Emotion, decode_emotion
from emostream.stream.exits import judge
from emostream.stream.limits import check_address_space, check_files
from emostream.stream.messages import Control, Health, Label, Log, Message
from emostream.stream.nodes.process import code_of, start_node
from emostream.stream.nodes.spec import NodeSpec
from emostream.stream.notify import Notifier
from emostream.stream.plan import Plan, make_plan, plan_stream
from emostream.stream.run_folder import RunFolder, ipc
from emostream.stream.run_reports import RunReports
from emostream.stream.status import Status, StatusBoard, encode_status
from emostream.stream.steering import Steering
from emostream.stream.topics import BESIDE, CONTROL, FUSION, LABEL, RECORD, health_topic, log_topic
from emostream.stream.watched import Watched, kill

_STOP_NS = 1_800_000_000  # from ``stop`` to killing the remaining nodes: with a busy machine, Ctrl-C takes up to 3 s
_LAST_NS = 200_000_000  # for the last messages, when stopping
_GO_DELAY_NS = 50_000_000
_EXIT_S = 1.0
_RECORD_NS = 2_000_000_000  # for a recording to be finished once all else is over …
_RECORD_STOP_NS = 200_000_000  # … but no longer after all others had to stop
_SUSPENDED_NS = 2_000_000_000
_POLL_MS = 100  # between two checks of the processes, while no message comes


class Supervisor:
    """One run. ``on_emotion``, ``on_health`` and ``on_log`` (node, level, text) are called with what the nodes publish,
    ``on_status`` with each status of the run, once a second and at each change of a state.
    Once ``stop`` is set, sources stop, queues drain and the last labels go out; nodes that take too long are killed.
    ``notifier`` tells the service manager, if there is one.

    Raises BusError if the run's folder of sockets cannot be made.
    """

    def __init__(
        self,
        config: Config,
        on_emotion: Callable[[Emotion], None],
        on_health: Callable[[Health], None],
        on_log: Callable[[str, str, str], None],
        on_status: Callable[[Status], None],
        stop: threading.Event,
        notifier: Notifier | None = None,
    ) -> None:
        self._config, self._stop = config, stop
        self._on_emotion, self._on_health = on_emotion, on_health
        self._clock = SystemClock()
        self._reports = RunReports(self._clock, on_log, on_status, bool(config.record.folder), notifier)
        self._folder = RunFolder(config.bus.run_dir)
        self._nodes: dict[str, Watched] = {}
        self._inbox: Inbox | None = None
        self._steering = Steering(config)
        self._run_id = secrets.token_hex(4)
        self._board = StatusBoard(self._run_id, [])
        self._last_number = 0  # the highest of fusion's numbers
        self._looked_ns = 0
        self._t0_ns: int | None = None
        self._stop_by_ns: int | None = None
        self._fatal = ""
        self._fatal_code = RunError.exit_code
        self._fatal_node: Watched | None = None  # whose error is the reason

    def run(self) -> None:
        """Run until every stream has ended or ``stop`` is set. Raises RunError if the run cannot begin or go on, and
        what ``make_plan`` raises."""
        try:
            check_address_space()
            plan = make_plan(self._config, self._folder.path, self._clock)
            for note in plan.notes:
                self._reports.log("run", "warning", note)
            self._nodes = {spec.name: Watched(spec) for spec in plan.specs}
            check_files(len(self._nodes))
            self._board = StatusBoard(self._run_id, list(self._nodes), plan.labels)
            resource_tracker.ensure_running()  # start multiprocessing's helper now, so that it gets no node's name
            self._serve()
        finally:
            kill(self._nodes.values())
            self._folder.remove()

    @property
    def unopened(self) -> list[str]:
        """Why sources could not be opened or decoded, if none could; empty otherwise."""
        captures = [node for node in self._nodes.values() if node.spec.kind == "capture"]
        return [node.error for node in captures] if all(node.cannot_run for node in captures) else []

    def _serve(self) -> None:
        with ExitStack() as stack:
            context = stack.enter_context(zmq.Context())
            endpoint = ipc(self._folder.path, CONTROL)
            control = stack.enter_context(closing(Publisher(context, endpoint, self._clock, 100, lossless=False)))
            inbox = self._inbox = stack.enter_context(closing(Inbox(context, 10_000, lossless=False)))
            for node in self._nodes.values():
                self._begin(node)
            waiting = self._open_control(stack, context)
            while True:
                message = inbox.receive(_POLL_MS)
                while message is not None:  # then only queued ones, since many nodes never stop sending
                    self._take(message)
                    message = inbox.receive(0)
                if self._stop.is_set() and self._t0_ns is None:  # nothing has been heard yet that could be lost
                    break
                if self._stop.is_set():
                    self._stop_by_ns = self._stop_by_ns or self._clock.now_ns() + _STOP_NS
                    control.send(Control(command="stop"))  # repeatedly, since some may not have subscribed yet
                self._notice_suspension()
                if waiting is not None:
                    waiting.tick(self._clock.now_ns())
                if self._unfollowed(self._steering.orders.serial):
                    control.send(self._steering.orders)  # repeatedly, as with ``stop``
                self._report(control)
                self._pass_on(control)
                self._reports.notify(self._t0_ns is not None, self._stop.is_set())
                if self._look_after(control) or self._out_of_time() or self._fatal:
                    break
            self._reports.notify_end()
            self._finish_recording(control)
            self._tell_late()
            until_ns = None if self._stop_by_ns is None else self._clock.now_ns() + _LAST_NS
            while (message := inbox.receive(50)) is not None:  # last log lines, and labels that a callback delayed
                self._take(message)
                if until_ns is not None and self._clock.now_ns() >= until_ns:
                    break
            kill(self._nodes.values())  # before closing the sockets, which would wait for nodes that hang
            if self._fatal:
                reasons = [node.error for node in self._nodes.values() if node is self._fatal_node and node.error]
                failure = RunError(": ".join([self._fatal, *reasons]))
                failure.exit_code = self._fatal_code
                raise failure

    def _finish_recording(self, control: Publisher) -> None:
        """Let a recording finish, including the last labels."""
        process = self._nodes[RECORD].process if RECORD in self._nodes else None
        until_ns = self._clock.now_ns() + _RECORD_NS
        if self._stop_by_ns is not None:
            until_ns = min(until_ns, self._stop_by_ns + _RECORD_STOP_NS)
        while process is not None and process.exitcode is None and self._clock.now_ns() < until_ns:
            self._pass_on(control)
            control.send(Control(command="stop"))
            process.join(0.05)

    def _begin(self, node: Watched) -> None:
        """Listen to a node, and start it."""
        assert self._inbox is not None
        name = node.spec.name
        topics = [health_topic(name), log_topic(name), *([LABEL] if name == FUSION else [])]
        self._inbox.connect(ipc(self._folder.path, name), topics)
        if not node.spec.host:
            self._start(node)

    def _open_control(self, stack: ExitStack, context: zmq.Context[zmq.Socket[bytes]]) -> Waiting | None:
        """Let the user's other programs steer the run."""
        assert self._inbox is not None
        server = open_server(context, self._config, lambda text: self._reports.log("run", "warning", text))
        if server is None:
            return None
        stack.enter_context(closing(server))
        self._inbox.wake_on(server.socket)
        waiting = Waiting(server, self._obey, self._unfollowed, lambda: encode_status(self.status()).decode())
        stack.callback(waiting.close)
        return waiting

    def _obey(self, request: Request) -> tuple[str, int]:
        if request.command != "status" and (self._t0_ns is None or self._stop.is_set()):
            raise ConfigError("the run has not begun yet" if self._t0_ns is None else "the run is ending")
        text = self._steering.obey(request, sent_at(request, self._clock.now_ns()), self._add)
        if request.command == "status":
            return text, 0
        self._reports.log("run", "info", text)
        self._reports.hurry()
        return text, self._steering.orders.serial

    def _add(self, text: str) -> str:
        """Plan and start the nodes of a further stream. Returns its name."""
        stream = self._steering.add(text)
        plan = Plan()
        try:
            modalities = plan_stream(plan, stream, self._config, self._folder.path, self._clock)
        except EmostreamError as error:
            raise ConfigError(str(error)) from error
        names = [spec.name for spec in plan.specs]
        if busy := [name for name in names if name in self._nodes and not self._nodes[name].done]:
            raise ConfigError(f"the last stream {stream.name} is still ending ({', '.join(busy)}); try again")
        for note in plan.notes:
            self._reports.log("run", "warning", note)
        check_files(len(self._nodes) + len(names))
        again = stream.name in self._board.streams
        self._steering.joined(stream, names, modalities, self._first_number() if again else 0)
        self._board.add(names)
        fusion = self._nodes[FUSION]
        fusion.spec = replace(
            fusion.spec,
            inputs=(*(name for name in fusion.spec.inputs if name not in names), *names),
            streams=(*(each for each in fusion.spec.streams if each[0] != stream.name), (stream.name, modalities)),
        )
        self._nodes |= {spec.name: Watched(spec) for spec in plan.specs}
        for name in names:
            self._begin(self._nodes[name])
        return stream.name

    def _unfollowed(self, serial: int) -> list[str]:
        """The running nodes that have not carried out these orders yet."""
        running = [node for node in self._nodes.values() if not node.done and node.process is not None]
        return [node.spec.name for node in running if node.orders < serial]

    def _first_number(self) -> int:
        """A number that fusion has not used. Its last labels may not have arrived, but never as many as a thousand."""
        return (self._last_number // 1000 + 2) * 1000

    def _take(self, message: Message) -> None:
        if isinstance(message, Label):
            emotion = decode_emotion(message.payload.encode())
            self._board.add_label(emotion)
            self._last_number = max(self._last_number, emotion.utterance, emotion.seq)
            self._on_emotion(emotion)
        elif isinstance(message, Health):
            node = self._nodes[message.node]
            node.take(message, self._clock.now_ns())
            self._board.add_health(message, node.seen_ns)
            if message.state == "running" and (text := node.take_absence(self._clock.now_ns())):
                self._reports.log(node.spec.name, "warning", text)
            self._on_health(message)
        elif isinstance(message, Log):
            if message.level == "error":
                self._nodes[message.node].error = message.text
            self._reports.log(message.node, message.level, message.text)

    def _pass_on(self, control: Publisher) -> None:
        node = self._nodes.get(RECORD)
        if node is not None and node.process is not None and node.ready:
            self._reports.pass_on(control)

    def _start(self, node: Watched) -> None:
        """Start a node's process, together with a node that shares it."""
        nodes = [node, *(other for other in self._nodes.values() if other.spec.host == node.spec.name)]
        process = start_node(*map(self._starting, nodes))
        for each in nodes:
            each.process, each.ready, each.seen_ns = process, False, self._clock.now_ns()

    def _starting(self, node: Watched) -> NodeSpec:
        """The specification for a node's process that starts now."""
        first = self._first_number() if node.starts else 0
        if node.spec.name == FUSION and node.starts:
            self._steering.ended(name for name, other in self._nodes.items() if other.done and other.spec.stream)
        node.starts += 1
        self._board.started(node.spec.name)
        node.orders = self._steering.orders.serial
        return replace(
            node.spec, t0_ns=node.t0_ns, run=self._run_id, first=first, parent=os.getpid(), orders=self._steering.orders
        )

    def _notice_suspension(self) -> None:
        """Do not blame nodes for silence while the supervisor itself was suspended (Ctrl-Z, a closed laptop)."""
        now_ns = self._clock.now_ns()
        away_ns = now_ns - self._looked_ns if self._looked_ns else 0
        self._looked_ns = now_ns
        if away_ns < _SUSPENDED_NS:
            return
        self._reports.log("run", "warning", f"was suspended, or had no processor, for {away_ns / 1e9:.1f} s")
        for node in self._nodes.values():
            node.seen_ns += away_ns
        if self._stop_by_ns is not None:
            self._stop_by_ns += away_ns

    def _look_after(self, control: Publisher) -> bool:
        """Send ``go``; handle nodes that ended, crashed or hang. Returns whether the run is over."""
        now_ns = self._clock.now_ns()
        for node in self._nodes.values():
            if node.done or node.process is None:
                due = now_ns >= node.restart_ns and self._stop_by_ns is None
                if due and not node.done and not node.spec.host:
                    self._start(node)
                continue
            if node.hangs(now_ns):
                self._reports.log(node.spec.name, "error", "sent no heartbeat; killed")
                kill([node])
            self._follow_process(node)
        waiting = [node for node in self._nodes.values() if not node.done and node.spec.kind not in BESIDE]
        if not waiting:
            return True
        self._go(control)
        if not self._nodes[FUSION].done:
            return False
        for node in waiting:  # fusion has their ends, so they are about to exit; their exit codes count
            if node.process is not None and self._stop_by_ns is None and not self._fatal:
                node.process.join(_EXIT_S)
                self._follow_process(node)
        return True

    def _follow_process(self, node: Watched) -> None:
        """Check whether a node's process has ended; if two nodes share it, the host is handled first."""
        assert node.process is not None
        host = self._nodes.get(node.spec.host)
        if node.process.exitcode is None or (host is not None and not host.done and host.process is node.process):
            return
        self._on_exit(node, code_of(node.process.exitcode, is_guest=host is not None))

    def _go(self, control: Publisher) -> None:
        """Once nodes are ready, set the time at which their media begin (for all nodes at the start, later for each
        added stream), and keep sending it until all have it."""
        at_ns = self._clock.now_ns() + _GO_DELAY_NS
        streams = dict.fromkeys(node.spec.stream for node in self._nodes.values() if node.t0_ns is None)
        for stream in [""] if self._t0_ns is None else streams:
            group = [node for node in self._nodes.values() if stream in ("", node.spec.stream)]
            if not all(node.spec.kind in BESIDE or node.ready or node.cannot_run for node in group):
                continue
            if self._t0_ns is None:
                self._t0_ns = at_ns
                self._board.begun(at_ns)
            for node in group:
                node.t0_ns = at_ns
        for node in self._nodes.values():
            if not node.done and node.t0_ns is not None and node.health is not None and node.health.state == "ready":
                control.send(Control(command="go", at_ns=node.t0_ns, stream=node.spec.stream))

    def status(self, over: bool = False) -> Status:
        """The state of the run. ``over``: no more labels will come."""
        now_ns = self._clock.now_ns()
        status = self._board.status(now_ns, self._clock.wall_ns(now_ns), self._stop.is_set(), over)
        for name, stream in status.streams.items():
            stream.muted = self._steering.is_muted(name, now_ns)
            stream.paused = self._steering.is_paused(name, now_ns)
        return status

    def _report(self, control: Publisher) -> None:
        """Publish the status if it is due; then say if somebody has removed the run's sockets."""
        states = self._board.states
        if not self._reports.is_due(states):
            return
        self._reports.tell(self.status(), states, control)
        running = [name for name, node in self._nodes.items() if node.health and node.health.state == "running"]
        if self._folder.notice_removal([CONTROL, *running], self._clock.now_ns()):
            text = f"{self._folder.path}: sockets in it were removed; no node can be started again"
            self._reports.log("run", "warning", text)

    def _on_exit(self, node: Watched, code: int) -> None:
        self._follow_exit(node, code)
        if not node.done:
            self._board.away(node.spec.name, node.gone_ns or self._clock.now_ns())
            return
        self._board.ended(node.spec.name, failed=node.cannot_run or self._fatal_node is node)
        # fusion must not wait for ever for the End messages of a removed stream
        removed = node.spec.stream in self._steering.orders.removed
        if node.spec.stream and (removed or self._nodes[FUSION].starts > 1):
            self._steering.ended([node.spec.name])

    def _follow_exit(self, node: Watched, code: int) -> None:
        name, now_ns, rules = node.spec.name, self._clock.now_ns(), self._config.supervisor
        end = node.end(code, now_ns, rules.within_s)
        verdict = judge(end, rules, lossless=self._config.pace == "fast", stopping=self._stop_by_ns is not None)
        if verdict.wait_ns is not None and not self._folder.can_be_joined(CONTROL):
            why = f"{name} ended and cannot be started again, since {self._folder.path} was removed"
            verdict = replace(verdict, wait_ns=None, line=None, fatal=why)
        node.away += verdict.away
        node.cannot_run = node.cannot_run or verdict.cannot_run
        if verdict.crashed:
            node.crashed_ns.append(now_ns)
        if verdict.line is not None:
            self._reports.log(name, *verdict.line)
        if verdict.fatal:
            self._fatal, self._fatal_code = verdict.fatal, verdict.fatal_code
            self._fatal_node = node if verdict.reason else self._fatal_node
        host = self._nodes.get(node.spec.host)
        if host is not None and not host.done:
            node.process = None  # it will be started with its host
        elif verdict.wait_ns is None:
            node.done = True
        else:
            node.process, node.restart_ns = None, now_ns + verdict.wait_ns

    def _out_of_time(self) -> bool:
        return self._stop_by_ns is not None and self._clock.now_ns() >= self._stop_by_ns

    def _tell_late(self) -> None:
        """Say which nodes do not end though they were told to, once the time for that is over. What they had not worked
        off is lost: they count as away since their last sign of life."""
        if self._stop_by_ns is None:
            return
        late = []
        for name, node in self._nodes.items():
            if not node.done and not node.ends_within((self._stop_by_ns - self._clock.now_ns()) / 1e9):
                late.append(name)
                self._board.away(name, node.seen_ns)
        if late:
            self._reports.log("run", "warning", f"killed because they did not stop in time: {', '.join(late)}")
