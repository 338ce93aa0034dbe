"""Joins a Ray cluster for a while. Ray sends nothing to its makers and prints nothing; its errors become ours."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, TextIO

from emostream.errors import ClusterError, ConfigError

OBJECT_STORE_BYTES = 256 * 1024**2  # for a Ray started here; more spills to disk
_PROBE_S = 5.0  # Ray itself would wait for a minute at an address where nobody answers
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d{1,5}")

log = logging.getLogger(__name__)


@contextlib.contextmanager
def joined(address: str, cpus: int) -> Iterator[ModuleType]:
    """The ray module, connected. ``address``: "local" (starts a cluster here with ``cpus`` CPUs, and ends it again),
    "auto" (the cluster that this machine belongs to) or HOST:PORT.

    Meanwhile, Ray's own output goes to the log at level debug. A Ray started here requires a token that only its own
    processes know, since Ray listens on all addresses of a machine. Raises ConfigError for an invalid address, and
    ClusterError if Ray is not installed or the cluster cannot be reached.
    """
    _check(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import: emostream sends nothing anywhere
    if address != "local":
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # default: 20, of up to 40 s each
    elif "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        if "ray" not in sys.modules:  # read on import; from 2.60 on, token is the default
            os.environ["RAY_AUTH_MODE"] = "token"
    try:
        import ray
    except ImportError as error:
        raise ClusterError("Ray is not installed; get it with: pip install 'emostream[ray]'") from error
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {"num_cpus": cpus, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    # Ray prints messages about workers and machines that died, whatever its options say
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(_WithoutRay(sys.stdout)))
        if address == "local":
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="er-", ignore_cleanup_errors=True))
            options["_temp_dir"] = f"{folder}/ray"  # Ray makes it accessible to all users; its parent folder is private
        try:
            with _nothing_printed(), _no_dashboard():
                ray.init(address, **options)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise ClusterError(f"Ray cannot be reached at {address!r} ({_why(error)})") from error
        try:
            if address != "local" and _sends_statistics():
                print(
                    "note: this Ray cluster sends usage statistics to its makers; start its head with "
                    "RAY_USAGE_STATS_ENABLED=0",
                    file=sys.stderr,
                )
            with _orderly_end():
                yield ray
        finally:
            with _nothing_printed():
                ray.shutdown()


def _check(address: str) -> None:
    if address in ("local", "auto"):
        return
    if not _ADDRESS.fullmatch(address):
        raise ConfigError(f'Ray\'s address {address!r} is neither "local" nor "auto" nor HOST:PORT')
    if not reachable(address):
        raise ClusterError(f"Ray cannot be reached at {address!r}; start it with: ray start --head")


def reachable(address: str) -> bool:
    """Whether somebody answers at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PROBE_S).close()
    except (OSError, OverflowError):
        return False
    return True


def _why(error: BaseException) -> str:
    """The decisive line of Ray's long error messages."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    if any("InvalidAuthToken" in line or "uthentication" in line for line in lines):
        return "it wants another token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
    return (lines or [type(error).__name__])[-1].strip()


def _sends_statistics() -> bool:
    """Whether the cluster's head was started with usage statistics on; it then stores more metadata, to be sent."""
    from ray.experimental.internal_kv import _internal_kv_get

    return b"session_start_timestamp_ms" in (_internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster") or b"")


@contextlib.contextmanager
def _nothing_printed() -> Iterator[None]:
    """Silence stderr, including Ray's C++ code: errors come as exceptions anyway."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _no_dashboard() -> Iterator[None]:
    """Keep a Ray started here from starting its dashboard process. Without web pages, that only serves usage
    statistics, and it asks three cloud providers whether the machine is theirs, even if statistics are off."""
    from ray._private import services

    before = services.start_api_server
    services.start_api_server = lambda *args, **kwargs: (None, None)
    try:
        yield
    finally:
        services.start_api_server = before


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """Let SIGTERM end the work like Ctrl-C; Ray's own handler would print a stack trace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _WithoutRay:
    """Standard output, except that lines from Ray's threads go to the log."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._output, name)

    def write(self, text: str) -> int:
        if not threading.current_thread().name.startswith("ray_"):
            return self._output.write(text)
        for line in filter(str.strip, text.splitlines()):
            log.debug("Ray: %s", line)
        return len(text)
