"""The networks elsewhere against those here: processor time and round trips of simulated boxes on one Ray actor.

    python -m benchmarks.remote [--boxes 1 8] [--seconds 10] [--rounds 2]

Each box has one stream on which somebody speaks without end, as a live run calls the networks then: four times a
second the faces, sound and words since the last time are encoded, and then the window of 5 s is classified; at every
tenth, with the contribution of each modality, as a label is. In each round the boxes take turns with the same calls
computed by a ``Classifier`` in this process. Counted is processor time of this process and of the actor's, per call.
All is on one machine: the round trip has no network in it. Exit code 1: a call had no answer within 5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack, closing, suppress
from statistics import median
from typing import Any

import numpy as np
import psutil
import zmq

from benchmarks import common
from emostream.commands import exit_code
from emostream.engines.bundle import open_bundle
from emostream.stream.cluster.connect import joined
from emostream.stream.config import Config
from emostream.stream.cores.classifier import Classifier, Classify, Encode, Features, Head
from emostream.stream.cores.runs import Call, GaveUp
from emostream.stream.keys import KeyPair
from emostream.stream.remote import wire
from emostream.stream.remote.door import Door
from emostream.stream.remote.link import Link, Ticket
from emostream.stream.remote.replica import Replica
from emostream.stream.remote.wire import Places

HOP_S = 0.25
LABEL_EVERY = 10  # hops
FACES, ROWS, PIECES = 3, 24, 6  # of a hop: faces at ten a second, sound at 10 ms, pieces of the last words


def calls(rng: np.random.Generator, dims: tuple[int, int, int], label: bool) -> list[Call]:
    """Those of one hop."""
    window = Features(
        *(rng.normal(size=(n, dim)).astype(np.float32) for n, dim in zip((62, 50, 12), dims, strict=True))
    )
    crops = rng.integers(0, 256, (FACES, 48, 48), dtype=np.uint8)
    rows = rng.normal(8, 1, (1, ROWS, 32)).astype(np.float32)
    return [Encode(crops, [rows], [np.full((1, PIECES), 50, np.int64)]), Classify([window], [label])]


def pair(server: str = "") -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode(), server)


class Box:
    """A link, and its calls when they are due: the second of a hop once the first is answered."""

    def __init__(self, directory: Door, keys: KeyPair, head: Head, poller: zmq.Poller, number: int, boxes: int) -> None:
        self.context = zmq.Context()
        self.link = Link(
            self.context,
            directory.endpoint,
            keys,
            head,
            lambda socket: poller.register(socket, zmq.POLLIN),
            poller.unregister,
        )
        self.link.add(["a"])
        self._rng, self._dims = np.random.default_rng(number), head.dims
        self._first_s = HOP_S * number / boxes
        self._hops = self.answers = 0
        self._waiting: list[Call] = []
        self._ticket: Ticket | None = None

    def tick(self, passed_s: float) -> None:
        self.link.tick()
        if self._ticket is not None and self._ticket.done:
            with suppress(GaveUp):  # which the link counts
                self._ticket.answer()
                self.answers += 1
            self._ticket = None
        if not self._waiting and self._ticket is None and passed_s >= self._first_s + HOP_S * self._hops:
            self._hops += 1
            self._waiting = calls(self._rng, self._dims, self._hops % LABEL_EVERY == 0)
        if self._waiting and self._ticket is None:
            self._ticket = self.link.submit("a", self._waiting.pop(0))

    def left_s(self, passed_s: float) -> float:
        """Until it has something to do, if no answer comes."""
        return HOP_S if self._ticket is not None else max(0.0, self._first_s + HOP_S * self._hops - passed_s)

    def close(self) -> None:
        self.link.close()
        self.context.destroy(0)


def elsewhere(ray: Any, boxes: int, seconds: float, head: Head) -> common.Figures:
    """Processor milliseconds per call, round trips and batches."""
    box_keys, directory_keys = pair(), pair()
    settings = Config().model_dump(exclude_none=True)
    actor = ray.remote(Replica).options(num_cpus=1, max_concurrency=2).remote(
        settings, boxes, 4.0, "127.0.0.1", (0, 0), [box_keys.public]
    )  # fmt: skip
    with ExitStack() as stack:
        stack.callback(ray.kill, actor)
        place, _ = ray.get(actor.look.remote([box_keys.public]))
        process = psutil.Process(ray.get(actor.__ray_call__.remote(lambda replica: os.getpid())))
        directory = stack.enter_context(
            closing(Door("tcp://127.0.0.1:*", directory_keys, frozenset([box_keys.public])))
        )
        keys = KeyPair(box_keys.public, box_keys.secret, directory_keys.public)
        poller = zmq.Poller()
        clients = [stack.enter_context(closing(Box(directory, keys, head, poller, n, boxes))) for n in range(boxes)]

        def serve() -> None:
            while (message := directory.receive()) is not None:
                directory.send(message[0], wire.encode(Places([place])))

        until_s = time.monotonic() + 60
        while not all(box.link.settled for box in clients):
            if time.monotonic() > until_s:
                raise TimeoutError("the boxes found no replica")
            serve()
            for box in clients:
                box.link.tick()
            time.sleep(0.002)
        before, spent_s, begun_s = process.cpu_times(), time.process_time(), time.monotonic()
        while (passed_s := time.monotonic() - begun_s) < seconds:
            serve()
            for box in clients:
                box.tick(passed_s)
            poller.poll(int(min(100.0, *(1 + 1000 * box.left_s(passed_s) for box in clients))))
        after, spent_s = process.cpu_times(), time.process_time() - spent_s
        counters = ray.get(actor.look.remote([box_keys.public]))[1]
        answers = sum(box.answers for box in clients)
        trips = [trip for box in clients for trip in box.link.times_ms["trip"]]
        waits = [wait for box in clients for wait in box.link.times_ms["queue"]]
        given_up = sum(box.link.counters["remote_given_up"] for box in clients)
    there_s = after.user + after.system - before.user - before.system
    return {
        "calls": answers, "given up": given_up, "actor, ms of CPU": there_s / answers * 1000,
        "boxes, ms of CPU": spent_s / answers * 1000,
        "calls per batch": counters["calls"] / max(1, counters["batches"]),
        "round trip p50, ms": float(np.percentile(trips, 50)), "p99": float(np.percentile(trips, 99)),
        "queue p50, ms": median(waits),
    }  # fmt: skip


def here(classifier: Classifier, count: int) -> float:
    """Processor milliseconds of a call without a replica, waiting as long between calls as a live run does."""
    rng = np.random.default_rng(0)
    spent_s = 0.0
    for hop in range(count // 2):
        todo = calls(rng, classifier.dims, (hop + 1) % LABEL_EVERY == 0)
        begun_s = time.process_time()
        for call in todo:
            classifier.run(call)
        spent_s += time.process_time() - begun_s
        time.sleep(0.02)
    return spent_s / (count // 2 * 2) * 1000


def _run(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(arguments)
    rows, faults = [], 0
    bundle = open_bundle("ekman7")
    with closing(Classifier(bundle)) as classifier, joined("local", 1) as ray:
        classifier.warm_up()
        for number in range(options.rounds):
            for boxes in options.boxes:
                local_ms = here(classifier, 80)
                found = elsewhere(ray, boxes, options.seconds, Head(bundle))
                faults += found["given up"]
                rows.append([f"{number + 1}", f"{boxes}", f"{local_ms:.1f}", *(
                    f"{value:.1f}" if isinstance(value, float) else f"{value}" for value in found.values()
                )])  # fmt: skip
    print(json.dumps({"machine": common.machine(), "versions": common.versions()}))
    print(common.table(("round", "boxes", "here, ms of CPU", *found), rows))
    return int(faults > 0)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
