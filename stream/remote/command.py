"""The command ``stream-fusion``: runs the networks of many boxes on a Ray cluster."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from emostream.commands import make_parser
from emostream.errors import BusError, ClusterError, ConfigError
from emostream.stream.cluster.connect import joined
from emostream.stream.config import Config, load_config
from emostream.stream.keys import Keys
from emostream.stream.limits import allow_open_files, no_core_dumps
from emostream.stream.lines import log_to_stderr
from emostream.stream.remote import wire
from emostream.stream.remote.door import Door
from emostream.stream.remote.replica import Replica
from emostream.stream.remote.wire import Place, Places, Where

log = logging.getLogger(__name__)

_NAMESPACE = "emostream"
_LOOK_S, _HUNG_S = 1.0, 10.0
_WAITS_S = 30.0  # for Ray to start a replica, before a log line mentions it
_AGAIN_S = 5.0
_TICK_MS = 100


def fusion() -> int:
    """stream-fusion: run the networks of many boxes."""
    parser = make_parser(
        "stream-fusion", "Run the networks of many boxes (stream-run --set fusion.remote=…) on a Ray cluster."
    )
    parser.add_argument("--ray", default="local", metavar="ADDRESS", help="local, auto or HOST:PORT (default: local)")
    parser.add_argument(
        "--listen", default="tcp://127.0.0.1:5570", metavar="tcp://ADDRESS:PORT",
        help="where boxes ask for a replica (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs that a replica requests from Ray (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="and GPUs, such as 0.5 (default: 0)")
    parser.add_argument("--streams", type=int, default=32, metavar="N", help="per replica, at most (default: 32)")
    parser.add_argument(
        "--wait-ms", type=float, default=4, help="how long a call waits for calls of other boxes (default: %(default)s)"
    )
    parser.add_argument(
        "--host",
        default="",
        metavar="ADDRESS",
        help="at which boxes reach the replicas (default: the address that Ray uses)",
    )
    parser.add_argument("--ports", default="0-0", metavar="FROM-TO", help="for the replicas (default: any)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration; only [fusion] and bus.keys count")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="changes")
    options = parser.parse_args()
    log_to_stderr()
    _check(options)
    config = load_config(options.config, options.changes)
    no_core_dumps()
    allow_open_files()
    keys = Keys(config.bus.keys)
    pair, allowed = keys.need_server(options.listen), frozenset(keys.allowed().values())
    if not allowed:
        log.warning("no box may come in yet; type %s", keys.command("allow PUBLIC_KEY NAME"))
    cpus = max(1, round(options.cpus * options.replicas + 0.5))
    with closing(Door(options.listen, pair, allowed)) as door, joined(options.ray, cpus) as ray:
        fleet = Fleet(ray, config, options)
        try:
            log.info("%s: waiting for boxes", options.listen)
            _serve(door, fleet, keys, allowed)
        except KeyboardInterrupt:
            pass
        finally:
            fleet.end()
    return 0


def _check(options: argparse.Namespace) -> None:
    if not re.fullmatch(r"tcp://.+:[0-9]{1,5}", options.listen):
        raise ConfigError(f"--listen {options.listen}: write it as tcp://ADDRESS:PORT")
    ports = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", options.ports)
    if ports is None or not int(ports[1]) <= int(ports[2]) <= 65_535:
        raise ConfigError(f"--ports {options.ports}: write it as FROM-TO")
    options.ports = int(ports[1]), int(ports[2])
    if not (0 < options.replicas <= 1000 and 0 < options.streams <= 10_000 and 0 <= options.wait_ms <= 1000):
        raise ConfigError("--replicas, --streams and --wait-ms: up to 1000, 10000 and 1000")
    if not (0 <= options.cpus <= 1000 and 0 <= options.gpus <= 1000):
        raise ConfigError("--cpus and --gpus: up to 1000")


def _serve(door: Door, fleet: Fleet, keys: Keys, allowed: frozenset[str]) -> None:
    """Tell boxes where the replicas are, until Ctrl-C."""
    looked_s = 0.0
    while True:
        if time.monotonic() > looked_s + _LOOK_S:
            looked_s = time.monotonic()
            try:
                now_allowed = frozenset(keys.allowed().values())
            except ConfigError as error:
                log.warning("%s; the keys allowed before still are", error)
                now_allowed = allowed
            if now_allowed != allowed:
                allowed = now_allowed
                try:
                    door.allow(allowed)
                except BusError as error:
                    raise ClusterError(str(error)) from error
            fleet.look(sorted(allowed))
        door.socket.poll(_TICK_MS)
        while (message := door.receive()) is not None:
            try:
                wanted = wire.decode_to_replica(message[1] if len(message) > 1 else b"")
            except msgspec.DecodeError:
                continue
            if isinstance(wanted, Where):
                door.send(message[0], wire.encode(Places(fleet.places())))


@dataclass(eq=False)
class _Member:
    """A replica, as the command sees it. ``look``: Ray's reference to the pending call of ``Replica.look``."""

    number: int
    actor: Any
    look: Any = None
    asked_s: float = field(default_factory=time.monotonic)
    place: Place | None = None
    counters: dict[str, int] = field(default_factory=dict)
    waits_told: bool = False


class Fleet:
    """The replicas on a cluster, as many as asked for. Ray places them and restarts those that die. Replicas left by a
    killed command are taken over if they were made with the same settings."""

    def __init__(self, ray: Any, config: Config, options: argparse.Namespace) -> None:
        self._ray, self._options = ray, options
        self._settings = config.model_dump(include={"fusion", "log"}, exclude_none=True)
        made_with = [self._settings, options.streams, options.wait_ms, options.host, options.ports, options.cpus]
        digest = hashlib.sha256(json.dumps([*made_with, options.gpus]).encode()).hexdigest()[:12]
        self._prefix = f"fusion-{digest}-"
        names = [f"{self._prefix}{n}" for n in range(options.replicas)]
        for other in ray.util.list_named_actors(all_namespaces=True):
            if other["namespace"] == _NAMESPACE and other["name"] not in names:
                log.info("%s, of another call of this command, ends", other["name"])
                ray.kill(ray.get_actor(other["name"], _NAMESPACE))
        self._members: list[_Member] = []
        self._failed_s: dict[int, float] = {}
        self._allowed: list[str] = []
        self._ever = False

    def places(self) -> list[Place]:
        """The replicas that can be called."""
        return [member.place for member in self._members if member.place is not None]

    def look(self, allowed: Sequence[str]) -> None:
        """Start missing replicas, and ask each for its place. Raises ClusterError if no replica can be started."""
        self._allowed = [*allowed]
        there = {member.number for member in self._members}
        for number in range(self._options.replicas):
            if number not in there and time.monotonic() > self._failed_s.get(number, 0.0) + _AGAIN_S:
                self._members.append(_Member(number, self._start(number)))
        for member in [*self._members]:
            self._ask(member)

    def _start(self, number: int) -> Any:
        options = self._options
        remote = self._ray.remote(Replica).options(
            name=f"{self._prefix}{number}", namespace=_NAMESPACE, get_if_exists=True, lifetime="detached",
            num_cpus=options.cpus, num_gpus=options.gpus, max_restarts=-1, max_task_retries=0,
            scheduling_strategy="SPREAD",
        )  # fmt: skip
        return remote.remote(
            self._settings, options.streams, options.wait_ms, options.host, options.ports, self._allowed
        )

    def _ask(self, member: _Member) -> None:
        now_s = time.monotonic()
        if member.look is None:
            member.look, member.asked_s = member.actor.look.remote(self._allowed), now_s
            return
        if not self._ray.wait([member.look], timeout=0)[0]:
            if member.place is not None and now_s > member.asked_s + _HUNG_S:
                log.warning("replica %d does not answer", member.number)
                member.place = None
            elif member.place is None and not member.waits_told and now_s > member.asked_s + _WAITS_S:
                member.waits_told = True
                log.warning(
                    "replica %d waits for a machine with %g CPU and %g GPU to spare",
                    member.number, self._options.cpus, self._options.gpus,
                )  # fmt: skip
            return
        before, look, member.look = member.place, member.look, None
        errors = self._ray.exceptions
        try:
            member.place, member.counters = self._ray.get(look)
        except errors.ActorDiedError as error:  # permanently: it could not even begin, or somebody killed it
            member.place = None
            self._members.remove(member)
            self._failed_s[member.number] = now_s
            why = (str(error).strip().splitlines() or [""])[-1].strip()
            if not self._ever:
                raise ClusterError(f"a replica cannot start: {why}") from error
            log.error("replica %d ended (%s); starting another in %g s", member.number, why, _AGAIN_S)
            return
        except errors.RayError:
            member.place = None
            if before is not None:
                log.warning("replica %d died; Ray starts it again", member.number)
            return
        self._ever = True
        assert member.place is not None
        if before is None or before.address != member.place.address:
            log.info("replica %d: ready at %s", member.number, member.place.address)

    def end(self) -> None:
        """End all replicas."""
        total: Counter[str] = Counter()
        for member in self._members:
            total.update(member.counters)
            self._ray.kill(member.actor)
        if total["calls"]:
            log.info(
                "%d calls in %d batches, %.1f in each; %d streams refused",
                total["calls"], total["batches"], total["calls"] / total["batches"], total["streams_refused"],
            )  # fmt: skip
