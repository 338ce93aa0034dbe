"""Runs whose public socket is for those with keys, also on another machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import zmq

from emostream.errors import ConfigError
from emostream.stream.bus import bind_xpub
from emostream.stream.clock import SystemClock
from emostream.stream.config import load_config
from emostream.stream.emotion import Emotion
from emostream.stream.keys import Keys
from emostream.stream.listen import listen
from emostream.stream.plan import make_plan
from emostream.stream.public import EmotionPublisher
from tests.emotions import emotion_message
from tests.processes import BIN, Pipeline, environment, free_port

SAID = emotion_message().text


@pytest.fixture
def keys(tmp_path) -> Keys:
    return Keys(str(tmp_path / "conf" / "keys"))


def _public() -> str:
    return zmq.curve_keypair()[0].decode()


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "eth0", "[::]", "192.168.1.2"])
def test_without_keys_a_public_endpoint_ends_the_run_with_what_to_type(short_path, tmp_path, host):
    config = load_config(None, [f"bus.emotion=tcp://{host}:5556", f"bus.keys={tmp_path}"])
    with pytest.raises(ConfigError) as caught:
        make_plan(config, short_path, SystemClock())
    said = str(caught.value)
    option = f"--set bus.keys={tmp_path}"
    assert len(said.splitlines()) == 1
    assert f"Type: stream-keys new server {option}, and" in said
    assert f"stream-keys allow PUBLIC_KEY NAME {option}" in said


def test_with_keys_and_nobody_allowed_it_runs_and_says_so(short_path, keys):
    config = load_config(None, [f"bus.emotion=tcp://0.0.0.0:{free_port()}", f"bus.keys={keys.folder}"])
    keys.new_server()
    (note,) = make_plan(config, short_path, SystemClock()).notes
    assert "nobody may listen yet; type stream-keys allow PUBLIC_KEY NAME" in note
    keys.allow(_public())
    assert make_plan(config, short_path, SystemClock()).notes == []
    keys.server_file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        make_plan(config, short_path, SystemClock())


def test_a_client_that_waits_for_the_pipeline_survives_its_look_at_the_port(short_path, keys, monkeypatch):
    """ZeroMQ gives up for good if a client with a key connects to a socket without keys."""
    pair = keys.new_client(keys.new_server().public)
    keys.allow(pair.public)
    port = free_port()
    config = load_config(None, [f"bus.emotion=tcp://0.0.0.0:{port}", f"bus.keys={keys.folder}"])
    with zmq.Context() as context, context.socket(zmq.SUB) as client:
        client.linger, client.reconnect_ivl = 0, 20
        client.curve_publickey, client.curve_secretkey = pair.public.encode(), pair.secret.encode()
        client.curve_serverkey = pair.server.encode()
        client.subscribe(b"emotion.")
        client.connect(f"tcp://127.0.0.1:{port}")

        def bind_slowly(*arguments) -> zmq.Socket:
            socket = bind_xpub(*arguments)
            time.sleep(0.2)  # the client connects
            return socket

        monkeypatch.setattr("emostream.stream.plan.bind_xpub", bind_slowly)
        make_plan(config, short_path, SystemClock())
        publisher = EmotionPublisher(context, config.bus.emotion, keys=keys)
        until = time.monotonic() + 5
        while not client.poll(10):
            assert time.monotonic() < until
            publisher.send(emotion_message())
        publisher.close()


def test_ipv6_endpoints_can_be_bound(keys):
    server = keys.new_server()
    keys.allow(keys.new_client(server.public).public)
    endpoint = f"tcp://[::1]:{free_port()}"
    with zmq.Context() as context:
        try:
            publisher = EmotionPublisher(context, endpoint, keys=keys)
        except Exception as error:
            pytest.skip(f"no IPv6 here: {error}")
        heard: list[Emotion] = []
        listener = listen(endpoint, key=keys.client_file, timeout_s=5)
        thread = threading.Thread(target=lambda: heard.append(next(listener)))
        thread.start()
        while thread.is_alive():
            publisher.send(emotion_message())
            time.sleep(0.01)
        publisher.close()
    assert heard == [emotion_message()]


class Listener:
    """A command that listens. A context manager; ``said``: what it has printed."""

    def __init__(self, out: Path, *command: object) -> None:
        self._out, self._command = out, [str(word) for word in command]

    def __enter__(self) -> Listener:
        with self._out.open("w") as out:
            self._process = subprocess.Popen(self._command, stdout=out, stderr=out, env=environment())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def said(self) -> str:
        return self._out.read_text()

    def wait_for(self, text: str, meanwhile: Callable[[], object], count: int = 1, seconds: float = 15) -> None:
        """Wait until it has printed ``text`` ``count`` times."""
        until = time.monotonic() + seconds
        while self.said.count(text) < count:
            assert time.monotonic() < until and self._process.poll() is None, self.said
            meanwhile()
            time.sleep(0.02)


@pytest.mark.process
def test_a_listener_in_another_process_is_refused_then_allowed_then_revoked(keys, tmp_path):
    server = keys.new_server()
    laptop = Keys(str(tmp_path / "laptop"))
    public = laptop.new_client(server.public).public
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with zmq.Context() as context:
        publisher = EmotionPublisher(context, endpoint, keys=keys)
        publish = partial(publisher.send, emotion_message())
        with Listener(tmp_path / "out", BIN / "stream-listen", endpoint, "--key", laptop.client_file) as listener:
            refused = f"does not allow this key; type there: stream-keys allow '{public}' NAME"
            listener.wait_for(refused, publish)
            assert SAID not in listener.said
            keys.allow(public, "laptop")
            listener.wait_for(SAID, publish, seconds=5)
            keys.revoke("laptop")
            listener.wait_for(refused, publish, count=2, seconds=5)
            heard = listener.said.count(SAID)
            for _ in range(20):
                publish()
                time.sleep(0.02)
            assert listener.said.count(SAID) == heard
        publisher.close()


@pytest.fixture
def other_network():
    """A second network namespace, connected to this one: its name, this side's address."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and ip (iproute2) for a second network")
    name, ours = f"emo{os.getpid()}", f"emo{os.getpid()}a"

    def ip(*words: str, check: bool = True) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if check and done.returncode:
            pytest.skip(f"ip {' '.join(words)}: {done.stderr.strip()}")

    try:
        ip("netns", "add", name)
        ip("link", "add", ours, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("addr", "add", "10.213.7.1/30", "dev", ours)
        ip("link", "set", ours, "up")
        for words in ("addr add 10.213.7.2/30 dev eth0", "link set eth0 up"):
            ip("-n", name, *words.split())
        yield name, "10.213.7.1"
    finally:
        ip("link", "del", ours, check=False)
        ip("netns", "del", name, check=False)


@pytest.mark.process
@pytest.mark.long
def test_labels_cross_a_network_for_those_allowed_alone(keys, tmp_path, other_network):
    name, address = other_network
    server = keys.new_server()
    keys.allow(keys.new_client(server.public).public)
    port = free_port()
    with zmq.Context() as context:
        publisher = EmotionPublisher(context, f"tcp://*:{port}", keys=keys)
        publish = partial(publisher.send, emotion_message())
        command = ("ip", "netns", "exec", name, BIN / "stream-listen", f"tcp://{address}:{port}")
        with (
            Listener(tmp_path / "with", *command, "--key", keys.client_file) as with_key,
            Listener(tmp_path / "without", *command) as without,
        ):
            with_key.wait_for(SAID, publish)
            without.wait_for("a key", publish)
            assert SAID not in without.said
        publisher.close()


@pytest.mark.process
@pytest.mark.long
def test_a_whole_run_for_another_network(keys, tmp_path, other_network):
    """Without keys the run ends at once; with them, labels cross, and strangers are counted in the heartbeats."""
    name, address = other_network
    arguments = ("--config", "config.toml", "--set", "speech.recognizer=none", "--set", f"bus.keys={keys.folder}")
    port = free_port()
    with Pipeline(*arguments, endpoint=f"tcp://0.0.0.0:{port}") as run:
        assert run.finish(20) == 2
        assert run.output.startswith("error: bus.emotion") and len(run.output.splitlines()) == 1, run.output
    server = keys.new_server()
    public = keys.new_client(server.public).public
    with Pipeline(*arguments, endpoint=f"tcp://0.0.0.0:{port}") as run:
        command = ("ip", "netns", "exec", name, BIN / "stream-listen", f"tcp://{address}:{port}", "--windows")
        with Listener(tmp_path / "out", *command, "--key", keys.client_file) as listener:
            listener.wait_for("does not allow this key", lambda: None, seconds=30)
            keys.allow(public, "laptop")
            assert run.finish(60) == 0, run.output
        heard = listener.said
    assert heard.count("demo ") >= 3, heard
    refused = f"its key is not allowed; to let it in: stream-keys allow '{public}' NAME"
    assert f"warning: fusion: 10.213.7.2 was not let in to the labels: {refused}" in run.output
    assert run.subscriber.messages == []  # without a key
    assert server.secret not in run.output and server.secret not in heard
