"""The page's certificate: checked before use, and reloaded when it is renewed."""

from __future__ import annotations

import ipaddress
import logging
import os
import ssl
import stat
import time
from pathlib import Path
from typing import Any

from emostream.errors import ConfigError
from emostream.files import user_path

log = logging.getLogger(__name__)

_LOOK_S = 60.0  # between two checks for renewed files
_TURNS = 10  # at most in a handshake; TLS 1.2 takes three


class Certificate:
    """A server's certificate and key (PEM files). Without ``key``, the certificate's file contains the key too.

    ``context``: for the server. ``names``: the hosts that it is valid for, as in an address: "box.local", "[::1]",
    "*.example.org". Raises ConfigError if the files cannot be read or do not belong together, if the certificate names
    no host, or if no browser would accept it today.
    """

    def __init__(self, certificate: str, key: str = "") -> None:
        self._certificate, self._key = user_path(certificate), user_path(key or certificate)
        self._seen = self._stamps()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.names = self._load(self.context)
        self._next_s = time.monotonic() + _LOOK_S

    def is_open(self) -> bool:
        """Whether every user of this machine can read the key."""
        return bool(self._key.stat().st_mode & stat.S_IROTH)

    def tick(self) -> None:
        """Check for renewed files once in a while. Files that cannot be used only cause a log line."""
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _LOOK_S
            self.renew()

    def renew(self) -> None:
        """If the files have changed, use them for new connections."""
        stamps = self._stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            self._load(self.context)
        except ConfigError as error:
            log.warning("%s; going on with the certificate of before", error)
        else:
            log.info("%s: renewed", self._certificate)

    def _stamps(self) -> tuple[tuple[int, int] | None, ...]:
        stamps: list[tuple[int, int] | None] = []
        for path in (self._certificate, self._key):
            try:
                found = os.stat(path)
            except OSError:
                stamps.append(None)
            else:
                stamps.append((found.st_ino, found.st_mtime_ns))
        return tuple(stamps)

    def _load(self, server: ssl.SSLContext) -> list[str]:
        """Load the files into a context, and check them by a handshake in memory. Returns the hosts."""
        for what, path in (("certificate", self._certificate), ("key", self._key)):
            _try_to_read(path, what)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # browsers judge who signed it
        try:
            client.load_verify_locations(self._certificate)
        except ssl.SSLError as error:
            raise ConfigError(f"{self._certificate}: is no certificate in PEM form ({error.reason})") from error
        try:
            server.load_cert_chain(self._certificate, self._key, password=self._refuse)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(f"{self._key}: is not the key of {self._certificate}") from error
            why = error.reason or "no PEM"
            raise ConfigError(f"{self._key}: cannot be used as key of {self._certificate} ({why})") from error
        try:
            facts = _handshake(server, client)
        except ssl.SSLCertVerificationError as error:
            raise ConfigError(f"{self._certificate}: {error.verify_message}; the page needs another one") from error
        except ssl.SSLError as error:
            raise ConfigError(f"{self._certificate}: no connection can be made with it ({error.reason})") from error
        names = [_host(kind, name) for kind, name in facts.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
        if not names:
            raise ConfigError(f"{self._certificate}: names no host (subjectAltName), so browsers refuse it")
        return names

    def _refuse(self) -> str:
        raise ConfigError(
            f"{self._key}: is locked by a pass phrase; openssl pkey -in {self._key} -out OPEN.pem opens it"
        )


def _try_to_read(path: Path, what: str) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: the page's {what} cannot be read ({why})") from error


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    """Do a handshake; returns the server's certificate as a client decodes it. Raises ssl.SSLError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)
    for _ in range(_TURNS):
        waiting = 0
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                waiting += 1
        if not waiting:
            break
    return dict(sides[0].getpeercert() or {})


def _host(kind: str, name: str) -> str:
    """A certificate's name as it appears in an address."""
    if kind == "DNS":
        return name.lower()
    address = ipaddress.ip_address(name)
    return f"[{address}]" if address.version == 6 else str(address)
