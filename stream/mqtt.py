"""The command ``stream-mqtt``: labels to an MQTT broker, with discovery for Home Assistant.

A process of its own beside the run, which it listens to as anybody does: if the broker is slow or away, that costs
nobody else anything.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from emostream import __version__
from emostream.commands import make_parser
from emostream.errors import ConfigError
from emostream.stream.listen import DEFAULT_ENDPOINT, listen_raw, listen_status
from emostream.stream.messages import Emotion, encode_emotion
from emostream.stream.source_spec import masked
from emostream.stream.status import Status

log = logging.getLogger(__name__)

_QUEUED = 200  # messages that wait for a broker that is away; then the oldest go
_RETRY_S = (1, 30)


def mqtt() -> int:
    """stream-mqtt: labels to a broker."""
    parser = make_parser("stream-mqtt", "Send the labels that stream-run publishes to an MQTT broker.")
    parser.add_argument(
        "broker",
        metavar="mqtt://[USER[:PASSWORD]@]HOST[:PORT]",
        help="or mqtts:// for TLS; the password may be in the environment, EMOSTREAM_MQTT_PASSWORD",
    )
    parser.add_argument(
        "endpoint", nargs="?", default=DEFAULT_ENDPOINT, help=f"of the run (default: {DEFAULT_ENDPOINT})"
    )
    parser.add_argument("--prefix", default="emostream", help="of its topics (default: %(default)s)")
    parser.add_argument("--words", action="store_true", help="send what was said, too; without this, labels alone")
    parser.add_argument("--windows", action="store_true", help="send running estimates, too")
    parser.add_argument("--no-discovery", action="store_true", help="do not announce the streams to Home Assistant")
    parser.add_argument("--key", type=Path, metavar="FILE", help="of stream-keys new client, for another machine's run")
    options = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(levelname)s: %(message)s", stream=sys.stderr)
    if not re.fullmatch(r"[^#+\0/]+(/[^#+\0/]+)*", options.prefix):
        raise ConfigError(f"--prefix {options.prefix!r}: a topic without #, + and empty parts")
    bridge = Bridge(options.broker, options.prefix, options.words, not options.no_discovery)
    try:
        threading.Thread(target=_follow_status, args=(bridge, options.endpoint, options.key), daemon=True).start()
        for _, emotion in listen_raw(options.endpoint, key=options.key, estimates=options.windows):
            bridge.send(emotion)
    except KeyboardInterrupt:
        pass
    finally:
        bridge.close()
    return 0


def _follow_status(bridge: Bridge, endpoint: str, key: Path | None) -> None:
    while True:
        for _, status in listen_status(endpoint, key=key, timeout_s=5):
            bridge.set_status(status)
        bridge.set_status(None)


class Bridge:
    """A connection to a broker, which is made again whenever it is lost. Topics, below ``prefix``:

        availability              online while labels can come, else offline; retained
        STREAM/label              the last label; retained
        STREAM/utterance          its message, as JSON; retained. Without ``words``, text and words are empty
        STREAM/window             running estimates, as JSON
        STREAM/state              of the stream: running, away, …; retained

    Raises ConfigError if the address cannot be one, or the package for it is missing."""

    def __init__(self, broker: str, prefix: str, words: bool, discovery: bool) -> None:
        try:
            import paho.mqtt.client as paho
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as error:
            raise ConfigError("this needs a package: pip install 'emostream[mqtt]'") from error
        self._prefix, self._words, self._discovery = prefix, words, discovery
        self._announced: set[str] = set()
        self._states: dict[str, str] = {}
        self._lock = threading.Lock()
        parts = _split(broker)
        self._name = masked(broker)
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.max_queued_messages_set(_QUEUED)
        self._client.reconnect_delay_set(*_RETRY_S)
        password = unquote(parts.password) if parts.password is not None else os.environ.get("EMOSTREAM_MQTT_PASSWORD")
        if parts.username:
            self._client.username_pw_set(unquote(parts.username), password)
        if parts.scheme == "mqtts":
            self._client.tls_set()
        self._client.will_set(f"{prefix}/availability", "offline", qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        assert parts.hostname is not None
        self._client.connect_async(
            parts.hostname, parts.port or (8883 if parts.scheme == "mqtts" else 1883), keepalive=30
        )
        self._client.loop_start()

    def send(self, emotion: Emotion) -> None:
        """A label or a running estimate."""
        self._announce(emotion.stream)
        content = json.loads(encode_emotion(emotion))
        if not self._words:
            content |= {"text": "", "words": []}
        utterance = emotion.kind == "utterance"
        self._publish(f"{emotion.stream}/{emotion.kind}", json.dumps(content), retain=utterance)
        if utterance:
            self._publish(f"{emotion.stream}/label", emotion.label, retain=True)

    def set_status(self, status: Status | None) -> None:
        """The state of the run; None: it is not there."""
        streams = {} if status is None else status.streams
        states: dict[str, str] = {name: stream.state for name, stream in streams.items()}
        states["availability"] = "online" if any(stream.can_label for stream in streams.values()) else "offline"
        with self._lock:
            news = {name: state for name, state in states.items() if self._states.get(name) != state}
            self._states |= states
        for name, state in news.items():
            if name == "availability":
                self._publish("availability", state, retain=True)
            else:
                self._announce(name)
                self._publish(f"{name}/state", state, retain=True)

    def close(self) -> None:
        """Say goodbye."""
        info = self._publish("availability", "offline", retain=True)
        if self._client.is_connected():
            with contextlib.suppress(ValueError, RuntimeError):  # a queue that is full takes no goodbye
                info.wait_for_publish(1)
        self._client.disconnect()
        self._client.loop_stop()

    def _publish(self, topic: str, content: str, retain: bool = False) -> Any:
        return self._client.publish(f"{self._prefix}/{topic}", content, qos=1 if retain else 0, retain=retain)

    def _announce(self, stream: str) -> None:
        """Tell Home Assistant of a stream, once."""
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
            topic = f"homeassistant/sensor/{name}_{kind}/config"
            self._client.publish(topic, json.dumps(content), qos=1, retain=True)

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            log.warning("%s: does not let us in (%s)", self._name, reason)
            return
        log.info("%s: connected", self._name)
        with self._lock:
            self._announced.clear()  # a broker that was started again may have forgotten
            states, self._states = self._states, {}
        for name, state in states.items():
            self._publish("availability" if name == "availability" else f"{name}/state", state, retain=True)
        with self._lock:
            self._states = states | self._states

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
    return parts
