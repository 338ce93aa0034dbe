"""Keys of the public socket: who publishes labels, and who may receive them on another machine (ZeroMQ's CURVE).

A folder of mode 0700 holds up to three TOML files of mode 0600: ``server.key`` (the pipeline's pair), ``client.key``
(a listener's pair, and the public key of the pipeline that it trusts) and ``allowed.toml`` (the public keys that the
pipeline lets in, by name). Keys are written in Z85, as in ZeroMQ: 40 characters.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from emostream.errors import ConfigError
from emostream.files import config_folder, user_path, write_atomically

_OWNER_ONLY = 0o600
_OTHERS = 0o077
_OTHERS_WRITE = 0o022
_NAME = r"[A-Za-z0-9_-]{1,64}"
_PAIR = {"public-key", "secret-key", "server-key"}


@dataclass(frozen=True)
class KeyPair:
    """A key pair and, in a client's file, the pipeline's public key once it is known."""

    public: str
    secret: str = field(repr=False)
    server: str = ""


class Keys:
    """A folder of keys. ``configured``: the setting ``bus.keys``; if empty, the user's configuration folder.

    Methods raise ConfigError, with the command that helps.
    """

    def __init__(self, configured: str = "") -> None:
        self.folder = user_path(configured) if configured else config_folder() / "keys"
        self._option = f" --set {shlex.quote(f'bus.keys={configured}')}" if configured else ""

    @property
    def server_file(self) -> Path:
        return self.folder / "server.key"

    @property
    def client_file(self) -> Path:
        return self.folder / "client.key"

    @property
    def allowed_file(self) -> Path:
        return self.folder / "allowed.toml"

    def command(self, text: str) -> str:
        """A command about this folder, as the user has to type it."""
        return f"stream-keys {text}{self._option}"

    def need_server(self, endpoint: str) -> KeyPair:
        """The pipeline's pair. ``endpoint``: what needs it."""
        if not self.server_file.exists():
            raise ConfigError(
                f"bus.emotion = {endpoint!r} can be reached from other machines, so it needs keys. Type: "
                f"{self.command('new server')}, and for each who may listen: "
                f"{self.command('allow PUBLIC_KEY NAME')}"
            )
        return read_pair(self.server_file)

    def new_server(self) -> KeyPair:
        """Make the pipeline's pair."""
        return self._new(self.server_file)

    def new_client(self, server: str = "") -> KeyPair:
        """Make a pair to listen with. With ``server``, the pipeline's public key, an existing pair is kept and trusts
        that pipeline from now on."""
        server = server and check_public(server)
        if not (server and self.client_file.exists()):
            return self._new(self.client_file, server)
        pair = read_pair(self.client_file)
        pair = KeyPair(pair.public, pair.secret, server)
        self._write(self.client_file, _text(pair))
        return pair

    def allowed(self) -> dict[str, str]:
        """The public keys that are let in, by name."""
        if not self.allowed_file.exists():
            return {}
        entries = _read(self.allowed_file)
        for name, key in entries.items():
            if not re.fullmatch(_NAME, name):
                raise ConfigError(f"{self.allowed_file}: {name!r} is no name (letters, digits, - and _)")
            try:
                check_public(key)
            except ConfigError as error:
                raise ConfigError(f"{self.allowed_file}: {name}: {error}") from error
        return entries

    def allow(self, public: str, name: str = "") -> str:
        """Let a client in, from now on; returns its name."""
        check_public(public)
        if name and not re.fullmatch(_NAME, name):
            raise ConfigError(f"{name!r} is no name: use up to 64 letters, digits, - and _")
        if self.server_file.exists() and read_pair(self.server_file).public == public:
            raise ConfigError("that is the public key of this pipeline; allow the one of the machine that listens")
        allowed = self.allowed()
        known = next((other for other, key in allowed.items() if key == public), "")
        name = name or known or next(f"client-{n}" for n in range(1, 1 << 30) if f"client-{n}" not in allowed)
        if allowed.get(name, public) != public:
            raise ConfigError(f"{name} is the name of another key: choose another, or {self.command(f'revoke {name}')}")
        allowed.pop(known, None)
        self._write_allowed(allowed | {name: public})
        return name

    def revoke(self, name_or_key: str) -> str:
        """No longer let a client in; returns its name."""
        allowed = self.allowed()
        for name, key in allowed.items():
            if name_or_key in (name, key):
                del allowed[name]
                self._write_allowed(allowed)
                return name
        raise ConfigError(f"{name_or_key}: nobody of that name or key is allowed; see: {self.command('list')}")

    def _new(self, path: Path, server: str = "") -> KeyPair:
        if path.exists():
            raise ConfigError(f"{path}: is there already; remove it first if it shall be replaced")
        public = b"-"
        while public.startswith(b"-"):  # a command line would take it for an option
            public, secret = zmq.curve_keypair()
        pair = KeyPair(public.decode(), secret.decode(), server)
        self._write(path, _text(pair))
        return pair

    def _write_allowed(self, allowed: Mapping[str, str]) -> None:
        lines = [f'{name} = "{key}"\n' for name, key in sorted(allowed.items())]
        self._write(self.allowed_file, "# Who may hear the labels, by public key (stream-keys)\n" + "".join(lines))

    def _write(self, path: Path, text: str) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_folder(self.folder)
            write_atomically(path, text, _OWNER_ONLY)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error


def check_public(key: object) -> str:
    """Return a public key unchanged. Raises ConfigError if it is not valid."""
    try:
        if isinstance(key, str) and len(key) == 40 and len(z85.decode(key.encode())) == 32:
            return key
    except Exception:  # what z85 raises depends on the fault
        pass
    raise ConfigError(f"{key!r} is no public key: it has 40 characters, and stands in single quotes on a command line")


def read_pair(path: Path) -> KeyPair:
    """The pair in a key file. Raises ConfigError if the file cannot be read, others can read it, or it has no pair."""
    entries = _read(path)
    public, secret, server = (entries.get(name, "") for name in ("public-key", "secret-key", "server-key"))
    try:
        whole = entries.keys() <= _PAIR and zmq.curve_public(secret.encode()).decode() == public
    except (AttributeError, ValueError, zmq.ZMQError):  # wrong length, or not text
        whole = False
    if not whole:
        raise ConfigError(f"{path}: is no key file, or damaged; see stream-keys new")
    return KeyPair(public, secret, server and check_public(server))


def read_client(path: str | Path) -> KeyPair:
    """The pair in a client's key file, with the pipeline's public key. Raises ConfigError."""
    pair = read_pair(user_path(path))
    if not pair.server:
        raise ConfigError(
            f"{path}: lacks the pipeline's public key, which stream-keys show prints there; type here: "
            "stream-keys new client --server 'PUBLIC_KEY'"
        )
    return pair


def _text(pair: KeyPair) -> str:
    server = f'server-key = "{pair.server}"\n' if pair.server else ""
    return (
        "# Made by stream-keys. Whoever has the secret key can pretend to be you: keep this file to yourself.\n"
        f'public-key = "{pair.public}"\nsecret-key = "{pair.secret}"\n{server}'
    )


def _read(path: Path) -> dict[str, str]:
    """Read a TOML file; it must be one that only its owner can read or replace."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path}: is no file")
            if status.st_uid not in (os.geteuid(), 0):
                raise ConfigError(f"{path}: belongs to another user")
            if status.st_mode & _OTHERS:
                raise ConfigError(f"{path}: others can read it, so it is not used. Type: chmod 600 {path}")
            _check_folder(path.parent)
            return tomllib.loads(file.read().decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:  # not TOML, not text, or larger numbers or nesting than Python takes
        raise ConfigError(f"{path}: is damaged ({type(error).__name__})") from error  # its text may hold a secret


def _check_folder(folder: Path) -> None:
    mode = folder.stat().st_mode
    if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
        raise ConfigError(f"{folder}: others can write in it, so its keys are not used. Type: chmod 700 {folder}")
