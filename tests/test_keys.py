"""stream/keys.py, stream-keys"""

from __future__ import annotations

import os
import re
import shlex
import stat
import sys
import tomllib

import pytest
import zmq
from zmq.auth import load_certificate

from emostream.errors import ConfigError
from emostream.stream import cli
from emostream.stream.keys import KeyPair, Keys, read_client, read_pair
from emostream.stream.listen import listen


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
