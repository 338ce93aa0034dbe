"""Starts the processes of a run, watches their heartbeats, starts crashed ones again, ends them in order."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import zmq

from emostream.engines.bundle import open_bundle
from emostream.errors import RunError
from emostream.stream import models
from emostream.stream.bus import Inbox, Publisher, bind, ipc, make_run_dir
from emostream.stream.clock import SystemClock
from emostream.stream.config import Config, Stream, is_live
from emostream.stream.messages import Control, Emotion, Health, Log, decode_emotion
from emostream.stream.nodes.runtime import CANNOT_RUN, CONTROL, NodeSpec, run_node
from emostream.stream.sources import file_path

_READY_TIMEOUT_NS = 60_000_000_000  # of a start: a large recogniser's model takes its time
_SILENT_NS = 15_000_000_000  # without a heartbeat: hangs
_STOP_NS = 2_600_000_000  # from the word stop to killing what is left; Ctrl-C is to end within 3 s
_BACKOFF_NS = (0, 500_000_000, 2_000_000_000, 5_000_000_000, 10_000_000_000)
_GO_DELAY_NS = 50_000_000
_EXIT_S = 1.0
_LOOK_MS = 100  # between two looks at the processes, while nothing is heard from them


@dataclass
class _Node:
    spec: NodeSpec
    process: BaseProcess | None = None
    ready: bool = False
    done: bool = False
    cannot_run: bool = False
    crashes: int = 0
    start_again_ns: int = 0
    seen_ns: int = 0
    health: Health | None = None


@dataclass
class Plan:
    """What a configuration asks for, after a look at its files: the nodes, and lines worth telling."""

    specs: list[NodeSpec] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_plan(config: Config, run_dir: Path, clock: SystemClock) -> Plan:
    """Nodes for each stream, and fusion. Opens files and the bundle, so that what cannot run is told at once.

    Raises RunError, BundleError, ModelError, BusError or SourceError.
    """
    open_bundle(config.fusion.bundle)
    _try_endpoint(config.bus.emotion)
    plan = Plan()
    expected: list[tuple[str, frozenset[str]]] = []

    def spec(kind, name, stream, **more) -> None:
        plan.specs.append(NodeSpec(kind, name, stream, config, str(run_dir), clock.offset_ns, **more))

    for stream in config.streams:
        captures = _captures(stream, plan.notes)
        has: set[str] = set()
        for name, (source, media) in captures.items():
            spec("capture", f"{name}.{stream.name}", stream.name, source=source, media=media)
            has |= media
        if "video" in has and config.video.detector == "yunet":
            models.need("yunet", config.video.yunet_model)
        if "audio" in has:
            models.need("silero-vad", config.speech.vad_model)
            sound = next(f"{name}.{stream.name}" for name, (_, media) in captures.items() if "audio" in media)
            spec("speech", f"speech.{stream.name}", stream.name, inputs=(sound,))
            has.add("speech")
        expected.append((stream.name, frozenset(has)))
    producers = tuple(node.name for node in plan.specs)
    spec("fusion", "fusion", "", inputs=producers, streams=tuple(expected))
    return plan


def _captures(stream: Stream, notes: list[str]) -> dict[str, tuple[str, frozenset[str]]]:
    """Capture processes of a stream: name → source and media. Sound and picture of a file or of two sources are
    read by two processes; a network source is opened once, so one process reads both."""
    wanted = [("audio", stream.audio or stream.source), ("video", stream.video or stream.source)]
    if stream.source and stream.source.startswith("microphone"):
        wanted = [("audio", stream.source)]
    elif stream.source and stream.source.startswith("camera"):
        wanted = [("video", stream.source)]
    elif stream.source and is_live(stream.source):
        return {"capture": (stream.source, frozenset({"audio", "video"}))}
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for medium, source in wanted:
        if source is None:
            continue
        if not is_live(source) and medium not in file_tracks(source):
            notes.append(f"{stream.name}: {source} has no {medium} track; going on without {medium}")
            continue
        found[medium] = (source, frozenset({medium}))
    if not found:
        raise RunError(f"{stream.name}: {stream.source or stream.audio or stream.video} has neither sound nor picture")
    return found


def file_tracks(source: str) -> frozenset[str]:
    """Media of a file source. Raises SourceError if it cannot be opened."""
    from emostream.stream.sources.file import FileSource

    file = FileSource(file_path(source), frozenset(), 1.0)
    file.open()
    try:
        return file.tracks()
    finally:
        file.close()


def _try_endpoint(endpoint: str) -> None:
    """Bind and let go, so that a port in use is told before anything starts. Raises BusError."""
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        bind(socket, endpoint)
        socket.unbind(socket.getsockopt_string(zmq.LAST_ENDPOINT))


class Supervisor:
    """One run. ``on_emotion``, ``on_health`` and ``on_log`` are called with what the nodes publish."""

    def __init__(
        self,
        config: Config,
        on_emotion: Callable[[Emotion], None],
        on_health: Callable[[Health], None],
        on_log: Callable[[str, str, str], None],
    ) -> None:
        self._config = config
        self._on_emotion, self._on_health, self._on_log = on_emotion, on_health, on_log
        self._clock = SystemClock()
        self._run_dir = make_run_dir(config.bus.run_dir)
        self._nodes: dict[str, _Node] = {}
        self._t0_ns: int | None = None
        self._stop_by_ns: int | None = None
        self._fatal = ""

    def run(self) -> None:
        """Run until every stream has ended or ``stop`` was called. Raises RunError where nothing can run, and what
        ``make_plan`` raises."""
        try:
            plan = make_plan(self._config, self._run_dir, self._clock)
            for note in plan.notes:
                self._on_log("run", "warning", note)
            self._nodes = {spec.name: _Node(spec) for spec in plan.specs}
            self._serve()
        finally:
            for node in self._nodes.values():
                if node.process is not None and node.process.is_alive():
                    node.process.kill()
                    node.process.join()
            shutil.rmtree(self._run_dir, ignore_errors=True)

    @property
    def nothing_ran(self) -> bool:
        """Whether there were sources and none of them could be opened."""
        captures = [node for node in self._nodes.values() if node.spec.kind == "capture"]
        return bool(captures) and all(node.cannot_run for node in captures)

    def stop(self) -> None:
        """Sources stop, queues drain, last labels go out; what has not ended by then is killed."""
        if self._stop_by_ns is None:
            self._stop_by_ns = self._clock.now_ns() + _STOP_NS

    def _serve(self) -> None:
        with zmq.Context() as context:
            control = Publisher(context, ipc(self._run_dir, CONTROL), self._clock, 100, lossless=False)
            inbox = Inbox(context, 10_000, lossless=False)
            labels = context.socket(zmq.SUB)
            labels.setsockopt(zmq.LINGER, 0)
            labels.setsockopt(zmq.RECONNECT_IVL, 50)
            labels.setsockopt(zmq.SUBSCRIBE, b"emotion.")
            labels.connect(self._config.bus.emotion)
            inbox.wake_on(labels)
            try:
                for name, node in self._nodes.items():
                    inbox.connect(ipc(self._run_dir, name), [f"health.{name}", f"log.{name}"])
                    self._start(node)
                while True:
                    self._take_labels(labels)
                    message = inbox.receive(_LOOK_MS)
                    while message is not None:  # then only what is there already: many nodes never stop talking
                        self._take(message)
                        message = inbox.receive(0)
                    self._take_labels(labels)
                    if self._stop_by_ns is not None:
                        control.send(self._control("stop"))  # again and again: some may not listen yet
                    if self._look_after(control) or self._out_of_time() or self._fatal:
                        break
                while (message := inbox.receive(50)) is not None:  # last words
                    self._take(message)
                self._take_labels(labels)
                if self._fatal:
                    raise RunError(self._fatal)
            finally:
                labels.close()
                inbox.close()
                control.close()

    def _take_labels(self, labels: zmq.Socket) -> None:
        while labels.poll(0):
            self._on_emotion(decode_emotion(labels.recv_multipart()[1]))

    def _take(self, message) -> None:
        if isinstance(message, Health):
            node = self._nodes[message.node]
            node.seen_ns = self._clock.now_ns()
            node.health = message
            node.ready = node.ready or message.state != "starting"
            self._on_health(message)
        elif isinstance(message, Log):
            self._on_log(message.node, message.level, message.text)

    def _start(self, node: _Node) -> None:
        context = multiprocessing.get_context("spawn")
        spec = replace(node.spec, t0_ns=self._t0_ns)
        # one thread per numeric library in each process: several processes share few cores
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        os.environ["EMOSTREAM_NODE"] = spec.name  # tells processes apart in a process list (ps e)
        node.process = context.Process(target=run_node, args=(spec,), name=spec.name, daemon=True)
        node.process.start()
        node.ready = False
        node.seen_ns = self._clock.now_ns()

    def _look_after(self, control: Publisher) -> bool:
        """Says go, notices who ended, crashed or hangs. True when the run is over."""
        now_ns = self._clock.now_ns()
        for node in self._nodes.values():
            if node.done or node.process is None:
                if not node.done and now_ns >= node.start_again_ns and self._stop_by_ns is None:
                    self._start(node)
                continue
            limit_ns = _SILENT_NS if node.ready else _READY_TIMEOUT_NS
            if node.process.exitcode is None and now_ns - node.seen_ns > limit_ns:
                self._on_log(node.spec.name, "error", "gives no sign of life; killed")
                node.process.kill()
                node.process.join()
            if node.process.exitcode is not None:
                self._on_exit(node, node.process.exitcode)
        waiting = [node for node in self._nodes.values() if not node.done]
        if not waiting:
            return True
        if self._t0_ns is None and all(node.ready or node.cannot_run for node in self._nodes.values()):
            self._t0_ns = now_ns + _GO_DELAY_NS
        if self._t0_ns is not None and any(node.health and node.health.state == "ready" for node in waiting):
            control.send(self._control("go"))  # again until all have heard it
        if not self._nodes["fusion"].done:
            return False
        for node in waiting:  # they have told fusion their ends, and are on their way out: how they exit counts
            if node.process is not None and self._stop_by_ns is None and not self._fatal:
                node.process.join(_EXIT_S)
                if node.process.exitcode is not None:
                    self._on_exit(node, node.process.exitcode)
        return True

    def _on_exit(self, node: _Node, code: int) -> None:
        name = node.spec.name
        if code == 0 or self._stop_by_ns is not None:
            node.done = True
            return
        if code == CANNOT_RUN:
            node.done = node.cannot_run = True
            if node.spec.kind != "capture":
                self._fatal = f"{name} cannot run, see above"
            return
        if self._config.pace == "fast":
            self._fatal = f"{name} crashed (exit code {code}); at fast pace nothing may be lost, so the run ends here"
            node.done = True
            return
        wait_ns = _BACKOFF_NS[min(node.crashes, len(_BACKOFF_NS) - 1)]
        node.crashes += 1
        self._on_log(name, "error", f"crashed (exit code {code}); starting it again in {wait_ns / 1e9:g} s")
        node.process, node.start_again_ns = None, self._clock.now_ns() + wait_ns

    def _out_of_time(self) -> bool:
        if self._stop_by_ns is None or self._clock.now_ns() < self._stop_by_ns:
            return False
        late = [name for name, node in self._nodes.items() if not node.done]
        self._on_log("run", "warning", f"killed, since they did not stop in time: {', '.join(late)}")
        return True

    def _control(self, command) -> Control:
        return Control(
            stream="", media_start_ns=0, media_end_ns=0, captured_ns=0, command=command, at_ns=self._t0_ns or 0
        )
