"""The command ``stream-mqtt``: labels to an MQTT broker, with discovery for Home Assistant."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
from collections import deque
from typing import Any
from urllib.parse import unquote, urlsplit

from emostream import __version__
from emostream.commands import make_parser
from emostream.errors import ConfigError
from emostream.stream.emotion import Emotion
from emostream.stream.sink import message_json, run_sink, sink_options
from emostream.stream.source_spec import masked
from emostream.stream.status import Status

log = logging.getLogger(__name__)

_WAITING = 200  # messages that wait for a broker that is away or slow; beyond that, the oldest are dropped
_UNCONFIRMED = 200  # messages passed to paho that the broker has not confirmed; with more, the broker is slow
_RETRY_S = (1, 30)
_GOODBYE_S = 1.0


def mqtt() -> int:
    """stream-mqtt: labels to a broker."""
    parser = make_parser("stream-mqtt", "Send the labels that stream-run publishes to an MQTT broker.")
    parser.add_argument(
        "broker",
        metavar="mqtt://[USER[:PASSWORD]@]HOST[:PORT]",
        help="or mqtts:// for TLS; the password may be in the environment, EMOSTREAM_MQTT_PASSWORD",
    )
    parser.add_argument("--prefix", default="emostream", help="prefix of its topics (default: %(default)s)")
    parser.add_argument("--windows", action="store_true", help="also send running estimates")
    parser.add_argument("--no-discovery", action="store_true", help="do not announce the streams to Home Assistant")
    options = sink_options(parser)
    if not re.fullmatch(r"[^#+\0/]+(/[^#+\0/]+)*", options.prefix):
        raise ConfigError(f"--prefix {options.prefix!r}: a topic without #, + and empty parts")
    bridge = Bridge(options.broker, options.prefix, options.words, not options.no_discovery)
    run_sink(bridge, options.endpoint, options.key, estimates=options.windows)
    return 0


class Bridge:
    """A sink: a connection to a broker, re-established whenever it is lost. Topics, below ``prefix``:

        availability              online while labels can come, else offline; retained
        STREAM/label              the last label; retained
        STREAM/utterance          its message as JSON; retained. Without ``words``, text and words are empty
        STREAM/window             running estimates as JSON
        STREAM/state              the stream's state: running, away, …; retained

    While the broker is away or slow, the newest 200 retained messages wait for it, and running estimates are left out.

    Raises ConfigError if the address is not valid, or the package is missing."""

    def __init__(self, broker: str, prefix: str, words: bool, discovery: bool) -> None:
        try:
            import paho.mqtt.client as paho
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as error:
            raise ConfigError("this needs a package: pip install 'emostream[mqtt]'") from error
        self._prefix, self._words, self._discovery = prefix, words, discovery
        self._announced: set[str] = set()
        self._states: dict[str, str] = {}
        self._waiting: deque[tuple[str, str]] = deque(maxlen=_WAITING)  # topic and content, oldest first
        self._sent: deque[Any] = deque()  # messages passed to paho, which may not be confirmed yet
        self._lock = threading.RLock()  # paho's thread calls us, holding none of its own locks
        self._told_away = False
        parts = _split(broker)
        self._name = masked(broker)
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.reconnect_delay_set(*_RETRY_S)
        password = unquote(parts.password) if parts.password is not None else os.environ.get("EMOSTREAM_MQTT_PASSWORD")
        if parts.username:
            self._client.username_pw_set(unquote(parts.username), password)
        if parts.scheme == "mqtts":
            self._client.tls_set()
        self._client.will_set(f"{prefix}/availability", "offline", qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_disconnect = self._on_disconnect
        assert parts.hostname is not None
        self._client.connect_async(
            parts.hostname, parts.port or (8883 if parts.scheme == "mqtts" else 1883), keepalive=30
        )
        self._client.loop_start()

    def send(self, emotion: Emotion) -> None:
        """A label or a running estimate."""
        self._announce(emotion.stream)
        topic, content = f"{self._prefix}/{emotion.stream}/{emotion.kind}", message_json(emotion, self._words)
        if emotion.kind == "utterance":
            self._retain(topic, content)
            self._retain(f"{self._prefix}/{emotion.stream}/label", emotion.label)
        else:
            with self._lock:
                if self._has_room() and (info := self._client.publish(topic, content)).rc == 0:
                    self._sent.append(info)
        self._flush()

    def set_status(self, status: Status | None) -> None:
        """The state of the run; None if there is no run."""
        streams = {} if status is None else status.streams
        states: dict[str, str] = {name: stream.state for name, stream in streams.items()}
        states["availability"] = "online" if any(stream.can_label for stream in streams.values()) else "offline"
        with self._lock:
            news = {name: state for name, state in states.items() if self._states.get(name) != state}
            self._states |= states
            self._retain_states(news)
        self._flush()

    def close(self) -> None:
        """Publish "offline" and disconnect."""
        self._retain(f"{self._prefix}/availability", "offline")
        until_s = time.monotonic() + _GOODBYE_S
        while self._client.is_connected() and not self._flush() and time.monotonic() < until_s:
            time.sleep(0.01)
        self._client.disconnect()
        self._client.loop_stop()

    def _retain_states(self, states: dict[str, str]) -> None:
        for name, state in states.items():
            if name == "availability":
                self._retain(f"{self._prefix}/availability", state)
            else:
                self._announce(name)
                self._retain(f"{self._prefix}/{name}/state", state)

    def _retain(self, topic: str, content: str) -> None:
        with self._lock:
            self._waiting.append((topic, content))

    def _flush(self) -> bool:
        """Send waiting messages, as far as the broker keeps up. Returns whether all are confirmed."""
        with self._lock:
            while self._has_room() and self._waiting:
                topic, content = self._waiting.popleft()
                info: Any = self._client.publish(topic, content, qos=1, retain=True)
                info.rc = 0  # if the connection has just been lost, paho keeps the message for the next one
                self._sent.append(info)
            return not self._waiting and not self._sent

    def _has_room(self) -> bool:
        """Whether to pass more to paho, which with too many messages would keep the oldest and refuse the newest."""
        self._sent = deque(info for info in self._sent if not info.is_published())
        return self._client.is_connected() and len(self._sent) < _UNCONFIRMED

    def _announce(self, stream: str) -> None:
        """Announce a stream to Home Assistant, once."""
        with self._lock:
            if not self._discovery or stream in self._announced:
                return
            self._announced.add(stream)
        host = re.sub(r"[^a-zA-Z0-9_-]", "_", socket.gethostname())
        name = f"emostream_{host}_{stream}"
        common = {
            "availability_topic": f"{self._prefix}/availability",
            "device": {"identifiers": [f"emostream_{host}"], "name": f"emostream on {host}", "sw_version": __version__},
        }
        label = common | {
            "name": f"{stream} emotion", "unique_id": f"{name}_label", "icon": "mdi:emoticon-outline",
            "state_topic": f"{self._prefix}/{stream}/label",
            "json_attributes_topic": f"{self._prefix}/{stream}/utterance",
        }  # fmt: skip
        state = common | {
            "name": f"{stream} state", "unique_id": f"{name}_state", "entity_category": "diagnostic",
            "state_topic": f"{self._prefix}/{stream}/state",
        }  # fmt: skip
        for kind, content in (("label", label), ("state", state)):
            self._retain(f"homeassistant/sensor/{name}_{kind}/config", json.dumps(content))

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            log.warning("%s: does not let us in (%s)", self._name, reason)
            return
        log.info("%s: connected", self._name)
        self._told_away = False
        with self._lock:
            self._announced.clear()  # a restarted broker may have forgotten
            self._retain_states(self._states)
            if not self._sent:  # otherwise paho resends these after this call, and older would overwrite newer
                self._flush()

    def _on_connect_fail(self, client: Any, data: Any) -> None:
        if not self._told_away:
            self._told_away = True
            log.warning("%s: cannot be reached; trying again", self._name)

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            log.warning("%s: the connection was lost (%s); trying again", self._name, reason)


def _split(broker: str) -> Any:
    try:
        parts = urlsplit(broker)
        fine = parts.scheme in ("mqtt", "mqtts") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise ConfigError(f"{masked(broker)}: write the broker as mqtt://HOST[:PORT] or mqtts://HOST[:PORT]")
    if parts.password and not parts.username:
        raise ConfigError(f"{masked(broker)}: a password, but no user; write mqtt://USER@HOST")
    return parts
