"""Reads ``http://`` and ``https://`` sources, and refuses to follow them to other hosts.

FFmpeg itself would follow a redirect or a playlist to any address, even to services of this machine or its network. So
this module does the fetching for it.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import ssl
import time
import urllib.request
from collections.abc import Collection
from email.message import Message
from socket import create_connection, socket
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from emostream import __version__
from emostream.errors import SourceError

_PORTS = {"http": 80, "https": 443}
_MAX_REDIRECTS = 8
_MAX_PLAYLIST_BYTES = 4_000_000
_FORMATS = {  # by content type; FFmpeg would look at the file name's extension or the first bytes instead
    "multipart/x-mixed-replace": "mpjpeg",
    "application/vnd.apple.mpegurl": "hls",
    "application/x-mpegurl": "hls",
    "audio/mpegurl": "hls",
    "audio/x-mpegurl": "hls",
}


class Body:
    """The content of an address, as a file that PyAV can read. ``name``: the address after redirects. It is seekable if
    the server supports ranges. Its methods do not raise: an error ends the file, and ``Web.failure`` has the reason."""

    def __init__(self, web: Web, url: str, first: int = 0, end: int | None = None) -> None:
        """Raises SourceError or OSError if the address is not allowed or cannot be fetched."""
        self._web, self._first, self._end = web, first, end
        self._position = 0  # relative to ``first``
        self._peeked = b""
        self._response = self._ask(url)
        self.name: str = self._response.geturl()
        headers = self._response.headers
        self.content_type: str = headers.get_content_type()
        length = headers.get("Content-Length", "")
        self._length = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
        self._seekable = self._length is not None and headers.get("Accept-Ranges") == "bytes" and end is None
        self._is_playlist = False
        is_stream = any(name.lower().startswith("icy-") for name in headers)
        self.is_file = self._length is not None and not is_stream  # has an end, unlike a live stream

    def read(self, size: int) -> bytes:
        """The next bytes, at most ``size``; waits for at least one. Empty at the end."""
        try:
            self._web.check_time()
            data: bytes = self._peeked[:size] or self._response.read1(size)
            self._peeked = self._peeked[size:]
            self._is_playlist |= self._position == 0 and data.startswith(b"#EXT")
            self._position += len(data)
            if self._is_playlist and self._position > _MAX_PLAYLIST_BYTES:
                raise SourceError(f"{self._web.name}: a playlist is larger than {_MAX_PLAYLIST_BYTES} bytes")
            return data
        except (http.client.HTTPException, ValueError) as error:
            self._web.failure = OSError(None, f"the connection broke off: {type(error).__name__}")
        except (OSError, SourceError) as error:
            self._web.failure = error
        return b""

    def peek(self, size: int) -> bytes:
        """The first bytes, which stay; call it before all else."""
        data = b""
        while len(data) < size and (more := self.read(size - len(data))):
            data += more
        self._peeked, self._position = data, 0
        return data

    @property
    def length(self) -> int:
        """In bytes; 0 if it is not known."""
        return self._length or 0

    def seekable(self) -> bool:
        return self._seekable

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Returns the new position, or -1 if it cannot be reached."""
        target = offset + (0, self._position, self._length or 0)[whence]
        if not 0 <= target <= (self._length or 0):
            return -1
        if target != self._position:
            self._response.close()
            self._position, self._peeked = target, b""
            try:
                self._response = self._ask(self.name)
            except (OSError, SourceError) as error:
                self._web.failure = error
                return -1
        return target

    def close(self) -> None:
        self._response.close()

    def _ask(self, url: str) -> Any:
        begin, headers = self._first + self._position, {}
        if begin or self._end is not None:
            headers["Range"] = f"bytes={begin}-{'' if self._end is None else self._end - 1}"
        response = self._web.get(url, headers)
        if headers and response.status != http.client.PARTIAL_CONTENT:
            response.close()
            raise OSError(None, "the server gives no part of a file")
        return response


class Web:
    """Fetches what the source at ``url`` leads to: addresses on its own host and port, and on ``allowed_hosts``, each
    ``HOST`` or ``HOST:PORT``. A source on the internet may not lead to an address of this machine or its network,
    whatever its name resolves to later.

    ``name`` is for messages; ``timeout_s`` limits each step of a connection. ``failure``: the last error.
    """

    def __init__(self, url: str, name: str, allowed_hosts: Collection[str], timeout_s: float) -> None:
        self.name, self._timeout_s = name, timeout_s
        parts = _split(url)
        self.url = _without_user(parts)
        self._own = _endpoint(parts)
        self._allowed = {host.lower() for host in allowed_hosts}
        self._is_public: bool | None = None  # whether the first connection went to the internet
        self._until: float | None = None
        self.failure: OSError | SourceError | None = None
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        if parts.username is not None:
            user, password = unquote(parts.username), unquote(parts.password or "")
            passwords.add_password(None, urljoin(self.url, "/"), user, password)
        self._opener = urllib.request.OpenerDirector()
        self._opener.addheaders = [("User-Agent", f"emostream/{__version__}"), ("Accept", "*/*")]
        for handler in (
            urllib.request.ProxyHandler(),
            _Connections(self._connect),
            _Redirects(),
            urllib.request.HTTPDigestAuthHandler(passwords),
            urllib.request.HTTPBasicAuthHandler(passwords),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
            _Check(self.check),
        ):
            self._opener.add_handler(handler)

    def limit_time(self, timeout_s: float | None) -> None:
        """Limit the total time of everything fetched from now on; None: no limit."""
        self._until = None if timeout_s is None else time.monotonic() + timeout_s

    def check_time(self) -> None:
        """Raises TimeoutError once the time is over."""
        if self._until is not None and time.monotonic() > self._until:
            raise TimeoutError(None, "it takes too long")

    def open(self, url: str, flags: int, options: dict[str, str]) -> Body | io.BytesIO:
        """Fetch what FFmpeg asks for, as PyAV's ``io_open``; the options say which part of it.

        The result is empty if that is not allowed or fails, and ``failure`` has the reason: an exception would end
        everything in PyAV, while FFmpeg can do without a segment.
        """
        try:
            end = options.get("end_offset", "0")
            return Body(self, url, int(options.get("offset", 0)), int(end) if end != "0" else None)
        except (OSError, SourceError) as error:
            self.failure = error
            return io.BytesIO()

    def get(self, url: str, headers: dict[str, str]) -> Any:
        """The response to a request, after redirects. Raises SourceError if it is not allowed, OSError if it fails."""
        self.check_time()
        self.check(url)
        try:
            return self._opener.open(urllib.request.Request(url, headers=headers), timeout=self._timeout_s)
        except HTTPError as error:
            error.close()
            raise OSError(None, f"HTTP status {error.code}") from error
        except URLError as error:
            raise OSError(None, getattr(error.reason, "strerror", None) or str(error.reason)) from error
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(None, f"the server's answer is not HTTP ({type(error).__name__})") from error

    def check(self, url: str) -> None:
        """Raises SourceError if ``url`` is not allowed."""
        try:
            scheme, host, port = _endpoint(_split(url))
        except ValueError as error:
            raise SourceError(f"{self.name}: leads to an address that is not read ({error})") from error
        _, own_host, own_port = self._own
        on_usual_ports = {port, own_port} <= set(_PORTS.values())  # a redirect to https, as a rule
        if host == own_host and (port == own_port or on_usual_ports):
            return
        if not {host, f"{host}:{port}"} & self._allowed:
            raise SourceError(
                f"{self.name}: leads to {scheme}://{host}:{port}, another server, which is refused; "
                f"to allow it: --set 'network.allowed_hosts=[\"{host}:{port}\"]'"
            )

    def _connect(self, address: tuple[str, int], timeout: float, source_address: Any = None) -> socket:
        """Connect. Unless allowed, a source on the internet may not lead to this machine or its network."""
        connection = create_connection(address, timeout, source_address)
        host, port = address
        is_public = _is_public(connection.getpeername()[0])
        if self._is_public is None:
            self._is_public = is_public
        if self._is_public and not is_public and not {host, f"{host}:{port}"} & self._allowed:
            connection.close()
            raise SourceError(f"{self.name}: {host} is now an address of this machine or its network; refused")
        return connection


def format_of(body: Body) -> str | None:
    """The format by the server's content type, for formats that FFmpeg does not detect by itself."""
    return _FORMATS.get(body.content_type)


class _Check(urllib.request.BaseHandler):
    """Checks the address of each request, including redirects."""

    handler_order = 100

    def __init__(self, check: Any) -> None:
        self._check = check

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        self._check(request.full_url)
        return request

    https_request = http_request


class _Redirects(urllib.request.BaseHandler):
    """Follows redirects without reading their bodies, which may have no end."""

    def http_error_302(
        self, request: urllib.request.Request, body: IO[bytes], code: int, reason: str, headers: Message
    ) -> Any:
        body.close()
        count = getattr(request, "redirects", 0) + 1
        location = headers.get("Location")
        if location is None or count > _MAX_REDIRECTS:
            raise URLError("too many redirects, or one without an address")
        following = urllib.request.Request(urljoin(request.full_url, location), headers=dict(request.headers))
        following.redirects = count  # type: ignore[attr-defined]
        return self.parent.open(following, timeout=request.timeout)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Connections(urllib.request.AbstractHTTPHandler):
    """Opens connections with ``connect``."""

    def __init__(self, connect: Any) -> None:
        super().__init__()
        self._connect = connect

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._plain, request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._encrypted, request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def _plain(self, host: str, **arguments: Any) -> http.client.HTTPConnection:
        return self._by_connect(http.client.HTTPConnection(host, **arguments))

    def _encrypted(self, host: str, **arguments: Any) -> http.client.HTTPConnection:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # cameras have self-signed certificates
        return self._by_connect(http.client.HTTPSConnection(host, context=context, **arguments))

    def _by_connect(self, connection: http.client.HTTPConnection) -> http.client.HTTPConnection:
        connection._create_connection = self._connect  # type: ignore[attr-defined]
        return connection


def _split(url: str) -> SplitResult:
    """Raises ValueError if it is not an http or https URL."""
    if any(ord(character) <= 32 or ord(character) == 127 for character in url):
        raise ValueError("it holds a space or a control character")
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("neither http nor https")
    return parts


def _endpoint(parts: SplitResult) -> tuple[str, str, int]:
    """Scheme, host and port. Raises ValueError if the port is not valid."""
    return parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme]


def _without_user(parts: SplitResult) -> str:
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_global
