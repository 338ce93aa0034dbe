"""Labels at a real MQTT broker: mosquitto."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest

from emostream.errors import ConfigError
from emostream.stream.mqtt import Bridge
from emostream.stream.status import Status, StreamStatus
from tests.emotions import emotion_message
from tests.processes import BIN, Pipeline, command, environment, free_port

MOSQUITTO = shutil.which("mosquitto") or next((p for p in ("/usr/sbin/mosquitto",) if Path(p).exists()), None)
pytestmark = [pytest.mark.process, pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")]


class Broker:
    def __init__(self, folder: Path, access: str = "allow_anonymous true") -> None:
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} 127.0.0.1\n{access}\npersistence false\nuser root\n")
        self.start()

    def start(self) -> None:
        assert MOSQUITTO is not None
        self.process = subprocess.Popen([MOSQUITTO, "-c", self._config], stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


class Reader:
    """Everything that a broker delivers, by topic."""

    def __init__(self, port: int) -> None:
        self.got: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_message = self._take
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()

    def _take(self, client, data, message) -> None:
        with self._lock:
            self.got.setdefault(message.topic, []).append(message.payload.decode())

    def last(self, topic: str, wanted: str | None = None, seconds: float = 10) -> str:
        until = time.monotonic() + seconds
        while True:
            with self._lock:
                found = self.got.get(topic, [])
                if found and wanted in (None, found[-1]):
                    return found[-1]
            assert time.monotonic() < until, (topic, wanted, self.got)
            time.sleep(0.02)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker(tmp_path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    yield broker
    broker.stop()


@pytest.fixture
def reader(broker) -> Iterator[Reader]:
    reader = Reader(broker.port)
    yield reader
    reader.close()


def test_labels_states_and_discovery(broker, reader):
    bridge = Bridge(f"mqtt://127.0.0.1:{broker.port}", "home/emostream", words=False, discovery=True)
    bridge.set_status(Status(streams={"desk": StreamStatus(state="running")}))
    bridge.send(emotion_message(stream="desk"))
    assert reader.last("home/emostream/desk/label") == "joy"
    content = json.loads(reader.last("home/emostream/desk/utterance"))
    assert (content["label"], content["text"], content["words"]) == ("joy", "", [])  # words only if asked for
    assert (
        reader.last("home/emostream/availability") == "online" and reader.last("home/emostream/desk/state") == "running"
    )
    (found,) = [topic for topic in reader.got if topic.startswith("homeassistant/") and topic.endswith("_label/config")]
    announced = json.loads(reader.last(found))
    assert announced["state_topic"] == "home/emostream/desk/label" and announced["unique_id"] in found
    late = Reader(broker.port)  # a late reader gets the last label
    assert late.last("home/emostream/desk/label") == "joy"
    late.close()
    bridge.set_status(None)
    assert reader.last("home/emostream/availability", "offline")
    bridge.close()


def test_words_if_asked_for(broker, reader):
    bridge = Bridge(f"mqtt://127.0.0.1:{broker.port}", "e", words=True, discovery=False)
    bridge.send(emotion_message(stream="desk"))
    assert json.loads(reader.last("e/desk/utterance"))["text"] == "so happy"
    assert not any(topic.startswith("homeassistant") for topic in reader.got)
    bridge.close()


def send_many(bridge: Bridge) -> None:
    """A thousand labels, of which the last is different."""
    begun = time.monotonic()
    for number in range(999):
        bridge.send(emotion_message(stream="desk", utterance=number))
    bridge.send(emotion_message(stream="desk", utterance=999, label="anger"))
    assert time.monotonic() - begun < 2  # nobody waits for it


def test_a_broker_that_is_away_is_waited_for_and_told_the_newest(tmp_path, caplog):
    broker = Broker(tmp_path)
    broker.stop()
    bridge = Bridge(f"mqtt://127.0.0.1:{broker.port}", "e", words=False, discovery=True)
    bridge.set_status(Status(streams={"desk": StreamStatus(state="running")}))
    send_many(bridge)
    broker.start()
    reader = Reader(broker.port)
    assert reader.last("e/desk/label", "anger", seconds=20)
    assert json.loads(reader.last("e/desk/utterance"))["utterance"] == 999
    assert reader.last("e/desk/state", "running") and reader.last("e/availability", "online")
    assert any(topic.startswith("homeassistant/") for topic in reader.got)
    assert len(reader.got["e/desk/utterance"]) <= 100  # the older ones were dropped
    assert [record.message for record in caplog.records if "cannot be reached" in record.message] == [
        f"mqtt://127.0.0.1:{broker.port}: cannot be reached; trying again"
    ]
    reader.close()
    bridge.close()
    broker.stop()


def test_a_broker_that_stalls_is_told_the_newest(broker, reader):
    bridge = Bridge(f"mqtt://127.0.0.1:{broker.port}", "e", words=False, discovery=False)
    bridge.send(emotion_message(stream="desk", label="fear"))
    assert reader.last("e/desk/label", "fear")
    broker.process.send_signal(signal.SIGSTOP)
    send_many(bridge)
    broker.process.send_signal(signal.SIGCONT)
    until = time.monotonic() + 10
    while reader.got["e/desk/label"][-1] != "anger":
        assert time.monotonic() < until
        bridge.set_status(Status())  # as the run does, once a second
        time.sleep(0.02)
    bridge.close()
    assert reader.last("e/availability", "offline")
    assert len(reader.got["e/desk/label"]) < 300


@pytest.mark.skipif(shutil.which("mosquitto_passwd") is None, reason="mosquitto_passwd is not installed")
def test_a_broker_with_a_password(tmp_path, caplog, monkeypatch):
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "robot", "s3cret"], check=True, capture_output=True)
    broker = Broker(tmp_path, f"allow_anonymous false\npassword_file {passwords}")
    refused = Bridge(f"mqtt://robot:wr0ng@127.0.0.1:{broker.port}", "e", words=False, discovery=False)
    monkeypatch.setenv("EMOSTREAM_MQTT_PASSWORD", "s3cret")
    caplog.set_level("INFO")
    bridge = Bridge(f"mqtt://robot@127.0.0.1:{broker.port}", "e", words=False, discovery=False)
    until = time.monotonic() + 10
    while not ("does not let us in" in caplog.text and "connected" in caplog.text):
        assert time.monotonic() < until, caplog.text
        time.sleep(0.02)
    assert "wr0ng" not in caplog.text and "s3cret" not in caplog.text
    for one in (refused, bridge):
        one.close()
    broker.stop()


@pytest.mark.parametrize(
    "address", ["http://x", "mqtt://", "x", "mqtt://h:99999", "mqtt://u:secret@", "mqtt://:secret@h"]
)
def test_what_is_no_broker(address):
    with pytest.raises(ConfigError) as error:
        Bridge(address, "e", words=False, discovery=False)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:99999", "localhost:5556"])
def test_a_wrong_endpoint_is_one_line_and_a_code(endpoint):
    done = command("stream-mqtt", "mqtt://127.0.0.1:1", endpoint)
    errors = [line for line in done.stderr.splitlines() if "cannot be reached" not in line]
    assert done.returncode == 2 and len(errors) == 1
    assert errors[0].startswith(f"error: {endpoint}: not a valid endpoint")


@pytest.mark.long
def test_a_run_that_dies_shows_as_offline(broker, reader):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    bridge_command = [BIN / "stream-mqtt", f"mqtt://127.0.0.1:{broker.port}", endpoint]
    with subprocess.Popen(bridge_command, env=environment(), stderr=subprocess.DEVNULL) as bridge:
        with Pipeline("--config", "config.toml", endpoint=endpoint) as run:
            assert reader.last("emostream/availability", "online", 30)
            assert reader.last("emostream/demo/label", "joy", 30)
            run.interrupt()
        assert reader.last("emostream/availability", "offline", 15)
        bridge.send_signal(signal.SIGKILL)  # a bridge that dies is reported by its last will
        bridge.wait()
