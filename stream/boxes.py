"""What a box and a hub share: keys, the state of a box, a delivery, and how to open a zenoh session.

Keys are ``emostream/SITE/BOX/…``: ``STREAM/utterance`` and ``STREAM/window`` (the messages as published), ``status``,
``uplink`` (an ``UplinkState``), ``alive`` (a liveliness token) and ``deliver`` (a query with labels for the hub to
keep; the answer confirms that it has them). A query of ``STREAM/utterance``, ``status`` or ``uplink`` is answered with
the last value. ``Uplink`` explains why labels are both published and delivered.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from emostream.errors import BusError, ConfigError
from emostream.stream.emotion import Emotion, decode_emotion, decode_public

PREFIX = "emostream"
NAME = r"[A-Za-z0-9_.-]{1,64}"  # of a site and of a box
BATCH_LABELS, BATCH_BYTES = 200, 64 << 10  # at most in a delivery; its first label may be larger
MOST_DELIVERY_BYTES = 4 << 20  # a hub refuses larger ones
MOST_BOXES = 20_000  # per hub
BEHIND_S = 15.0  # a box whose oldest waiting label is older is reported as behind
STORED = b"stored"
ANY_LABEL = "*/utterance"  # below a box's key: labels of any stream
_ENDPOINT = re.compile(r"(tcp|tls|quic|ws|wss)/(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_CONNECT_MS = 3000


class UplinkState(msgspec.Struct, kw_only=True):
    """The state of a box's uplink. ``waiting`` and ``waiting_bytes``: labels that the hub has not confirmed;
    ``behind_s``: the age of the oldest of them; ``lost``: labels dropped from the full store since it was created;
    ``run_there``: whether a run is publishing on the box; ``published``: by run and stream, how many labels the newest
    runs have published."""

    schema: str = "emostream-uplink/1"
    waiting: int = 0
    waiting_bytes: int = 0
    behind_s: float = 0.0
    lost: int = 0
    run_there: bool = False
    published: dict[str, dict[str, int]] = {}


class Delivery(NamedTuple):
    """What a box delivers: labels, each as the original JSON and decoded."""

    site: str
    box: str
    state: UplinkState
    labels: list[tuple[bytes, Emotion]]


_encoder = msgspec.json.Encoder()
_state_decoder = msgspec.json.Decoder(UplinkState)


def key(site: str, box: str, *parts: str) -> str:
    """A box's key; ``*`` stands for any site or box."""
    return "/".join((PREFIX, site, box, *parts))


def site_and_box(of: object) -> tuple[str, str]:
    """The site and box that a zenoh key names. Raises ValueError if it names none, since a key may hold wildcards."""
    match = re.match(rf"{PREFIX}/({NAME})/({NAME})/", str(of))
    if not match:
        raise ValueError(f"{of}: no key of a box")
    return match[1], match[2]


def check_name(option: str, name: str) -> None:
    """Raises ConfigError if this is not a valid name of a site or a box."""
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"{option} {name!r}: up to 64 letters, digits, dots, - and _")


def encode_state(state: UplinkState) -> bytes:
    """UTF-8 JSON of a state."""
    return _encoder.encode(state)


def decode_state(data: bytes) -> UplinkState:
    """A state from its JSON. Raises msgspec.DecodeError if that is not one."""
    return decode_public(_state_decoder, data)


def encode_delivery(state: UplinkState, labels: Sequence[bytes]) -> bytes:
    """A delivery: a line with the state, then a line for each label, JSON as published."""
    return b"\n".join((encode_state(state), *labels))


def decode_delivery(site: str, box: str, data: bytes) -> Delivery:
    """Decode a delivery. Raises msgspec.DecodeError if it is not one, and ValueError if it holds a running estimate or
    a number of more than 64 bits."""
    if len(data) > MOST_DELIVERY_BYTES:
        raise msgspec.DecodeError(f"more than {MOST_DELIVERY_BYTES} bytes")
    first, *labels = data.split(b"\n")
    emotions = [(label, decode_emotion(label)) for label in labels]
    for _, emotion in emotions:
        numbers = (emotion.seq, emotion.utterance, emotion.captured_ns, emotion.published_ns, emotion.face or 0)
        if emotion.kind != "utterance" or not all(-(1 << 63) <= number < 1 << 63 for number in numbers):
            raise ValueError("no label, or a number that is too large")
    return Delivery(site, box, decode_state(first), emotions)


class _Box(msgspec.Struct):
    is_there: bool = False
    behind: bool = False
    lost: int | None = None  # None: not reported yet
    run_there: bool | None = None


class Boxes:
    """What is known about each box, at most ``MOST_BOXES``; methods return news for the user, one line each.
    Thread-safe."""

    def __init__(self) -> None:
        self._boxes: dict[tuple[str, str], _Box] = {}
        self._lock = threading.Lock()

    def has_room_for(self, site: str, box: str) -> bool:
        """Whether this box is known or can be added."""
        return (site, box) in self._boxes or len(self._boxes) < MOST_BOXES

    def presence(self, site: str, box: str, is_there: bool) -> list[str]:
        """A box's uplink became reachable, or no longer is."""
        with self._lock:
            known = self._get(site, box)
            if known is None or known.is_there == is_there:
                return []
            known.is_there = is_there
            there = sum(other.is_there for other in self._boxes.values())
        return [f"{site}/{box}: {'appeared' if is_there else 'vanished'}; {there} there"]

    def update(self, site: str, box: str, state: UplinkState, taken: int = 0) -> list[str]:
        """A box reported its state. ``taken``: how many of the labels that it reports as waiting have arrived here."""
        news = []
        with self._lock:
            known = self._get(site, box)
            if known is None:
                return []
            behind = state.waiting > taken and state.behind_s >= BEHIND_S
            if behind and not known.behind:
                news.append(f"behind, {state.waiting - taken} labels wait, the oldest for {state.behind_s:.0f} s")
            elif known.behind and state.waiting <= taken:
                news.append("has caught up")
            known.behind = behind or (known.behind and state.waiting > taken)
            # where labels are counted, these are among those that the hub reports as missing
            if state.lost > (known.lost or 0) and not state.published:
                news.append(f"{state.lost} labels fell out of its store and are lost")
            if state.run_there != known.run_there and (known.run_there is not None or not state.run_there):
                news.append("a run is there" if state.run_there else "no run is there")
            known.lost, known.run_there = state.lost, state.run_there
        return [f"{site}/{box}: {line}" for line in news]

    def _get(self, site: str, box: str) -> _Box | None:
        if not self.has_room_for(site, box):
            return None
        return self._boxes.setdefault((site, box), _Box())


def load_zenoh() -> Any:
    """The zenoh module. Raises ConfigError if it is missing."""
    try:
        import zenoh
    except ImportError as error:
        raise ConfigError("this needs a package: pip install 'emostream[zenoh]'") from error
    return zenoh


def make_session_config(path: Path | None, connect: Sequence[str], listen: Sequence[str] = ()) -> Any:
    """A zenoh configuration that connects to ``connect`` and listens at ``listen`` and nowhere else: as a router if it
    listens, else as a client. ``path``: a zenoh configuration file (JSON5), for certificates and access control;
    scouting is off unless the file turns it on. The environment variable ``ZENOH_CONFIG`` is ignored.

    Raises ConfigError if an endpoint or the file cannot be used, or the package is missing."""
    zenoh = load_zenoh()
    for endpoint in (*connect, *listen):
        match = _ENDPOINT.fullmatch(endpoint)
        if not match or not 0 < int(match[3]) < 65536:
            raise ConfigError(f"{endpoint}: write it as tls/HOST:PORT or tcp/HOST:PORT")
    try:
        config = zenoh.Config() if path is None else zenoh.Config.from_file(path)
    except zenoh.ZError as error:
        raise ConfigError(f"{path}: not a configuration of zenoh ({_short(error)})") from error
    settings = {
        "mode": "router" if listen else "client",
        "connect/endpoints": list(connect),
        "connect/timeout_ms": -1 if listen else _CONNECT_MS,
        "connect/exit_on_failure": not listen,
        "listen/endpoints": list(listen),
        "listen/exit_on_failure": True,
        "transport/link/rx/max_message_size": 2 * MOST_DELIVERY_BYTES,  # by default, a box could send 1 GB
        "transport/shared_memory/enabled": False,  # it takes 16 MB in /dev/shm for each box on the same machine
        "transport/unicast/max_sessions": MOST_BOXES,  # default: 1000
    }
    for scouting in ("scouting/multicast/enabled", "scouting/gossip/enabled"):
        if config.get_json(scouting) == "null":
            settings[scouting] = False
    for name, value in settings.items():
        config.insert_json5(name, json.dumps(value))
    return config


def open_session(config: Any) -> Any:
    """Open a session. Raises BusError if its peer cannot be reached or refuses, or if an address to listen at is
    taken."""
    zenoh = load_zenoh()
    try:
        return zenoh.open(config)
    except zenoh.ZError as error:
        raise BusError(_short(error)) from error


def _short(error: Exception) -> str:
    """zenoh's message, without the locations in its source code."""
    return re.sub(r"\s+at /\S+\.rs:\d+\.?", "", str(error)).strip().rstrip(".")
