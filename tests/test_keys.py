"""stream/keys.py, stream-keys, and labels on another machine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import zmq
from zmq.auth import load_certificate

from emostream.errors import ConfigError
from emostream.stream import cli
from emostream.stream.bus import bind_xpub
from emostream.stream.clock import SystemClock
from emostream.stream.config import load_config
from emostream.stream.emotion import Emotion
from emostream.stream.keys import KeyPair, Keys, read_client, read_pair
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


# Files


def test_files_are_the_owners_alone(keys):
    before = os.umask(0)
    try:
        server, client = keys.new_server(), keys.new_client()
        keys.allow(client.public)
        keys.allow(_public(), "other")
    finally:
        os.umask(before)
    assert sorted(path.name for path in keys.folder.iterdir()) == ["allowed.toml", "client.key", "server.key"]
    assert stat.S_IMODE(keys.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys.folder.iterdir()} == {0o600}
    assert zmq.curve_public(server.secret.encode()).decode() == server.public != client.public
    assert read_pair(keys.server_file) == server


def test_the_folder_is_the_users_own_unless_another_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Keys().folder == tmp_path / "emostream" / "keys"
    assert Keys("~/k").folder == tmp_path / "home" / "k"
    assert Keys().command("list") == "stream-keys list"
    assert shlex.split(Keys("my keys").command("list")) == ["stream-keys", "list", "--set", "bus.keys=my keys"]


def test_other_programs_can_read_a_key_file(keys):
    pair = keys.new_client(_public())
    assert load_certificate(keys.client_file) == (pair.public.encode(), pair.secret.encode())
    lines = dict(re.findall(r'(\w+)-key = "(.{40})"', keys.client_file.read_text()))
    assert lines == {"public": pair.public, "secret": pair.secret, "server": pair.server}
    assert tomllib.loads(keys.client_file.read_text()).keys() == {"public-key", "secret-key", "server-key"}


def test_keys_are_never_replaced_unasked(keys):
    server, client = keys.new_server(), keys.new_client()
    for again in (keys.new_server, keys.new_client):
        with pytest.raises(ConfigError, match="is there already"):
            again()
    pipeline = _public()
    assert keys.new_client(pipeline) == KeyPair(client.public, client.secret, pipeline)
    assert read_client(keys.client_file).server == pipeline
    assert read_pair(keys.server_file) == server


def test_a_public_key_never_looks_like_an_option(keys, monkeypatch):
    pairs = iter([(b"-" + b"a" * 39, b"x"), (b"--" + b"a" * 38, b"x"), zmq.curve_keypair()])
    monkeypatch.setattr(zmq, "curve_keypair", lambda: next(pairs))
    assert not keys.new_server().public.startswith("-")


def test_the_secret_is_not_in_what_is_shown(keys):
    pair = keys.new_client()
    assert pair.secret not in repr(pair) and pair.secret not in str([pair])
    text = keys.client_file.read_text()
    for damaged in (text.replace('secret-key = "', "secret-key = "), text.replace(pair.public, _public())):
        keys.client_file.write_text(damaged)
        with pytest.raises(ConfigError) as caught:
            read_pair(keys.client_file)
        assert pair.secret not in str(caught.value) and pair.secret[:12] not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o644, 0o666])
def test_files_that_others_can_read_or_write_are_refused(keys, mode):
    keys.new_server()
    keys.allow(_public())
    for path, read in ((keys.server_file, lambda: keys.need_server("")), (keys.allowed_file, keys.allowed)):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"others can read it, so it is not used. Type: chmod 600 {path}"):
            read()
        path.chmod(0o600)
        read()


def test_a_folder_in_which_others_can_write_is_refused(keys):
    keys.new_server()
    keys.folder.chmod(0o770)
    for use in (lambda: keys.need_server(""), keys.new_client):
        with pytest.raises(ConfigError, match="chmod 700"):
            use()
    keys.folder.chmod(0o1777)  # as /tmp
    keys.need_server("")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(keys):
    keys.new_server()
    os.chown(keys.server_file, 1234, 1234)
    with pytest.raises(ConfigError, match="belongs to another user"):
        keys.need_server("")


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "\xff\xfe", 'public-key = "x"', "public-key = 1\nsecret-key = 2", "[public-key]",
        'public-key = "{p}"', 'public-key = "{p}"\nsecret-key = "short"', 'public-key = "{p}"\nsecret-key = "{p}"',
        'public-key = "{p}"\nsecret-key = "{s}"\nserver-key = "x"', 'public-key = "{p}"\nsecret-key = "{s}"\nx = "y"',
        'public-key = "{p}"\nsecret-key = "{s}"\nserver-key = 1',
    ],
)  # fmt: skip
def test_a_damaged_key_file_is_an_error(keys, text):
    pair = keys.new_server()
    keys.server_file.write_bytes(text.replace("{p}", pair.public).replace("{s}", pair.secret).encode("latin-1"))
    with pytest.raises(ConfigError):
        keys.need_server("")


def test_what_is_no_file_is_an_error(keys, tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_pair(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        Keys(str(tmp_path / "file")).new_server()


# Who is allowed


def test_allow_and_revoke(keys):
    assert keys.allowed() == {}
    one, two, three = _public(), _public(), _public()
    assert keys.allow(one) == "client-1"
    assert keys.allow(two, "desk") == "desk"
    assert keys.allow(three) == "client-2"
    assert keys.allow(one) == "client-1"  # again: nothing changes
    assert keys.allow(one, "kitchen") == "kitchen"  # renamed
    assert keys.allowed() == {"kitchen": one, "desk": two, "client-2": three}
    with pytest.raises(ConfigError, match="desk is the name of another key"):
        keys.allow(one, "desk")
    assert keys.revoke("desk") == "desk" and keys.revoke(three) == "client-2"
    assert keys.allowed() == {"kitchen": one}
    for gone in ("desk", three, ""):
        with pytest.raises(ConfigError, match="nobody of that name or key"):
            keys.revoke(gone)


@pytest.mark.parametrize("name", ["a b", "a.b", 'a"', "x" * 65, "a\n", "ä"])
def test_a_name_that_is_none(keys, name):
    with pytest.raises(ConfigError, match="is no name"):
        keys.allow(_public(), name)


@pytest.mark.parametrize("key", ["", "x", "a" * 39, "a" * 41, "'" * 40, '"' * 40, "ä" * 40, "#" * 40, " " * 40])
def test_a_key_that_is_none(keys, key):
    """``#`` may occur in keys, but forty of them encode more than 32 bytes."""
    with pytest.raises(ConfigError, match="is no public key"):
        keys.allow(key)
    assert not keys.folder.exists()


def test_the_pipelines_own_key_is_not_a_clients(keys):
    with pytest.raises(ConfigError, match="public key of this pipeline"):
        keys.allow(keys.new_server().public)


@pytest.mark.parametrize("text", ["x = 1", 'x = "short"', '"a b" = "{p}"', "x", '[x]\ny = "{p}"'])
def test_a_damaged_list_is_an_error(keys, text):
    keys.allow(_public())
    keys.allowed_file.write_text(text.replace("{p}", _public()))
    with pytest.raises(ConfigError, match=r"allowed\.toml"):
        keys.allowed()


# Commands


def _typed(capsys, monkeypatch, line: str) -> str:
    """The commands that a command prints for copying."""
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    assert cli.keys() == 0
    return capsys.readouterr().out


def _commands(out: str) -> list[str]:
    return re.findall(r"stream-\w+ .*", out)


def test_following_what_the_commands_print_leads_to_labels(capsys, monkeypatch, tmp_path):
    """Two machines, each with a folder of its own. What one prints is typed on the other."""
    secrets = []

    def at(machine: str, line: str) -> str:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / machine))
        out = _typed(capsys, monkeypatch, line)
        secrets.extend(read_pair(path).secret for path in tmp_path.rglob("*.key"))
        assert not any(secret in out for secret in secrets)
        return out

    (for_laptop,) = _commands(at("box", "stream-keys new server"))
    assert at("box", "stream-keys show").endswith(for_laptop + "\n")
    for_box, then = _commands(at("laptop", for_laptop))
    assert re.fullmatch(r"\S+ may listen\n", at("box", for_box))
    assert len(at("box", "stream-keys list").splitlines()) == 1
    *_, file = shlex.split(then)
    assert then.startswith("stream-listen tcp://HOST:5556 --key ")

    key = read_client(file).public
    assert re.fullmatch(r"\S+ may listen no longer\n", at("box", f"stream-keys revoke '{key}'"))
    assert at("box", "stream-keys list") == ""
    assert read_client(file).server == Keys().need_server("").public


def test_a_client_made_first_is_told_what_it_lacks(capsys, monkeypatch, tmp_path):
    folder = f"--set bus.keys={tmp_path}/k"
    out = _typed(capsys, monkeypatch, f"stream-keys new client {folder}")
    assert f"stream-keys new client --server PUBLIC_KEY {folder}" in out
    with pytest.raises(ConfigError, match="stream-keys new client --server 'PUBLIC_KEY'"):
        next(listen(key=tmp_path / "k" / "client.key"))
    server = _public()
    _typed(capsys, monkeypatch, f"stream-keys new client --server={shlex.quote(server)} {folder}")
    assert read_client(tmp_path / "k" / "client.key").server == server


def test_nothing_to_show_is_an_error(capsys, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="stream-keys new server"):
        _typed(capsys, monkeypatch, f"stream-keys show --set bus.keys={tmp_path}")
    with pytest.raises(ConfigError, match="is for stream-keys new client"):
        _typed(capsys, monkeypatch, f"stream-keys new server --server x --set bus.keys={tmp_path}")


# A pipeline


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
