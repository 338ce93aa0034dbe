"""A replica of the networks: a process (a Ray actor) that boxes call over encrypted sockets."""

from __future__ import annotations

import logging
import socket as sockets
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import zmq

from emostream.engines.bundle import open_bundle
from emostream.errors import BackendError, BusError, ClusterError
from emostream.stream.config import Config
from emostream.stream.cores.classifier import Classifier, Classify, Encode, Encoded
from emostream.stream.keys import KeyPair
from emostream.stream.limits import allow_open_files, no_core_dumps
from emostream.stream.remote import wire
from emostream.stream.remote.door import Door
from emostream.stream.remote.queue import Piece, Queue, Waiting
from emostream.stream.remote.wire import Answer, Ask, Failed, Join, Joined, Leave, Ping, Place, Refused

log = logging.getLogger(__name__)

_AT_ONCE = 64  # messages to read before doing anything else
_TICK_MS = 500


class Replica:
    """``config``: from ``model_dump``; only ``[fusion]`` counts. ``host``: the address at which boxes reach this
    machine, and the only one to listen on; empty: the address that Ray uses. ``ports``: the range to choose from; (0,
    0): any.

    Its key pair is made here and never leaves the process. Raises BundleError, BackendError or ClusterError.
    """

    def __init__(
        self, config: dict[str, Any], most: int, wait_ms: float, host: str, ports: tuple[int, int], allowed: list[str]
    ) -> None:
        no_core_dumps()
        allow_open_files()
        settings = Config(**config)
        logging.basicConfig(level=settings.log.level.upper(), format="%(levelname)s: %(message)s")
        bundle = open_bundle(settings.fusion.bundle)
        self._classifier = Classifier(bundle, settings.fusion.backend, settings.fusion.threads)
        self._classifier.warm_up()
        self._dims = self._classifier.dims
        if not host:
            import ray

            host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._backend = f"{self._classifier.backend} at {sockets.gethostname()}"
        self._queue, self._ready = Queue(most, wait_ms / 1000), threading.Condition()
        self.counters: Counter[str] = Counter()
        self._allowed = frozenset(allowed)
        public, secret = zmq.curve_keypair()
        self._pair = KeyPair(public.decode(), secret.decode())
        self._door = self._open(host, ports)
        self._done: deque[tuple[bytes, list[Any]]] = deque()  # answers on their way
        self._wake: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        self._woken: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        self._woken.bind(f"inproc://replica-{id(self)}")
        self._wake.connect(f"inproc://replica-{id(self)}")
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._serve, self._run)]
        for thread in self._threads:
            thread.start()

    def _open(self, host: str, ports: tuple[int, int]) -> Door:
        named = f"[{host}]" if ":" in host else host
        for port in range(ports[0], ports[1] + 1):
            with suppress(BusError):
                return Door(f"tcp://{named}:{port or '*'}", self._pair, self._allowed)
        raise ClusterError(f"{host} is no address of this machine, or no port of {ports[0]} to {ports[1]} is free")

    def look(self, allowed: list[str]) -> tuple[Place, dict[str, int]]:
        """Let in boxes with these keys from now on. Returns where to find this replica, and its counters."""
        if not all(thread.is_alive() for thread in self._threads):
            raise RuntimeError("a thread has died")
        self._allowed = frozenset(allowed)
        with self._ready:
            place = Place(self._door.endpoint, self._pair.public, len(self._queue), self._queue.most)
        return place, dict(self.counters + self._door.counters)

    def close(self) -> None:
        """End the threads. Under Ray, the process is killed instead."""
        self._stop.set()
        with self._ready:
            self._ready.notify()
        for thread in self._threads:
            thread.join()
        self._door.close()
        self._wake.close(0)
        self._woken.close(0)
        self._classifier.close()

    # The thread of the sockets

    def _serve(self) -> None:
        allowed, swept_s = self._allowed, 0.0
        while not self._stop.is_set():
            door = self._door.socket
            poller = zmq.Poller()
            poller.register(door, zmq.POLLIN)
            poller.register(self._woken, zmq.POLLIN)
            ready = dict(poller.poll(_TICK_MS))
            for _ in range(_AT_ONCE if door in ready else 0):
                if (message := self._door.receive()) is None:
                    break
                self._take(message[0], message[1:])
            while self._woken.poll(0):
                self._woken.recv()
            while self._done:
                self._door.send(*self._done.popleft())
            if time.monotonic() > swept_s + 1:
                swept_s = time.monotonic()
                with self._ready:
                    self._queue.forget(swept_s)
            if allowed != self._allowed:
                allowed = self._allowed
                if self._door.allow(allowed):
                    log.warning("a key was revoked; all boxes were disconnected, those allowed come again")

    def _take(self, box: bytes, parts: list[bytes]) -> None:
        now_s = time.monotonic()
        try:
            message = wire.decode_to_replica(parts[0] if parts else b"")
        except msgspec.DecodeError:
            self.counters["nonsense"] += 1
            return
        with self._ready:
            self._queue.seen(box, now_s)
            if isinstance(message, Ask):
                self._ask(box, message, parts[1:], now_s)
            elif isinstance(message, Join):
                self._door.send(box, wire.encode(self._join((box, message.stream), message.bundle, now_s)))
            elif isinstance(message, Leave):
                self._queue.leave((box, message.stream))
            elif isinstance(message, Ping):
                self._door.send(box, wire.encode(message))

    def _join(self, stream: tuple[bytes, int], bundle: str, now_s: float) -> Joined | Refused:
        if bundle != self._classifier.bundle_id:
            return Refused(stream[1], f"it has the bundle {self._classifier.bundle_id}, not {wire.shortened(bundle)}")
        if not self._queue.admit(stream, now_s):
            self.counters["streams_refused"] += 1
            return Refused(stream[1], f"{len(self._queue)} of {self._queue.most} streams are taken", full=True)
        return Joined(stream[1], self._backend)

    def _ask(self, box: bytes, ask: Ask, parts: list[bytes], now_s: float) -> None:
        try:
            call = wire.decode_call(ask, parts, self._dims)
        except ValueError as error:
            self.counters["nonsense"] += 1
            self._door.send(box, wire.encode(Failed(ask.number, wire.shortened(str(error)))))
            return
        waiting = Waiting((box, ask.stream), ask.number, call, now_s, now_s + ask.budget_ms / 1000)
        if why := self._queue.push(waiting):
            self.counters["calls_refused"] += 1
            self._door.send(box, wire.encode(Failed(ask.number, why, rejoin=why == "not joined")))
            return
        self._ready.notify()

    # The thread of the networks

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._ready:
                batch = self._queue.take(time.monotonic())
                if not batch.pieces and not batch.expired:
                    self._ready.wait(batch.wait_s)
                    continue
            for call in batch.expired:
                self.counters["calls_late"] += 1
                self._done.append((call.stream[0], wire.encode(Failed(call.number, "it waited for too long"))))
            if batch.pieces:
                self._compute(batch.pieces)
            self._wake.send(b"")

    def _compute(self, pieces: list[Piece]) -> None:
        begun_s = time.monotonic()
        results = list(self._results(pieces))
        now_s = time.monotonic()
        for piece in pieces:
            piece.waiting.run_s += now_s - begun_s
        for call, result in results:
            if isinstance(result, str):
                self.counters["calls_failed"] += 1
                parts = wire.encode(Failed(call.number, wire.shortened(result)))
            else:
                queue_ms, run_ms = (now_s - call.since_s - call.run_s) * 1000, call.run_s * 1000
                parts = wire.encode_answer(Answer(call.number, queue_ms, run_ms, len(pieces)), result)
            self._done.append((call.stream[0], parts))
        with self._ready:
            self._queue.learn(pieces, now_s - begun_s)
            for call, result in results:
                if isinstance(result, str):
                    self._queue.drop(call)
        self.counters["batches"] += 1
        self.counters["calls"] += len(results)
        self.counters["calls_cut"] += sum(not piece.is_last for piece in pieces)

    def _results(self, pieces: list[Piece]) -> Iterator[tuple[Waiting, Encoded | np.ndarray | str]]:
        """Vectors or logits for each call that is complete with its piece, or why not: faces of all calls in one run,
        and fusion of all calls too."""
        encodes = [(piece, piece.waiting.call) for piece in pieces if isinstance(piece.waiting.call, Encode)]
        if encodes:
            counts = np.cumsum([len(call.crops[piece.part]) for piece, call in encodes])[:-1]
            try:
                crops = np.concatenate([call.crops[piece.part] for piece, call in encodes])
                all_faces = self._classifier.encode_faces(crops)
            except BackendError as error:
                yield from ((piece.waiting, str(error)) for piece, _ in encodes)
                encodes = []
                all_faces = np.zeros((0, self._dims[1]), np.float32)
            for (piece, call), faces in zip(encodes, np.split(all_faces, counts), strict=False):
                piece.waiting.done.append(faces)
                if not piece.is_last:
                    continue
                try:  # a call that is wrong costs no other one
                    rest = self._classifier.encode(Encode(call.crops[:0], call.rows, call.pieces))
                    yield piece.waiting, Encoded(np.concatenate(piece.waiting.done), rest.voices, rest.texts)
                except BackendError as error:
                    yield piece.waiting, str(error)
        fusions = [(piece, piece.waiting.call) for piece in pieces if isinstance(piece.waiting.call, Classify)]
        if fusions:
            parts = [call.rows()[piece.part] for piece, call in fusions]
            try:
                logits = self._classifier.logits([row for rows in parts for row in rows])
            except BackendError as error:
                yield from ((piece.waiting, str(error)) for piece, _ in fusions)
                return
            ends = np.cumsum([len(rows) for rows in parts])[:-1]
            for (piece, _), part in zip(fusions, np.split(logits, ends), strict=True):
                piece.waiting.done.append(part)
                if piece.is_last:
                    yield piece.waiting, np.concatenate(piece.waiting.done)
