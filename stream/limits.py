"""Resource limits of the processes of a run: what they must have, and no core dumps."""

from __future__ import annotations

import os

from emostream.errors import RunError

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

# Measured on the demo: with less, libraries of the supervisor or of fusion end by a signal instead of an error.
_LEAST_ADDRESS_SPACE = 650_000_000
_LEAST_FILES = 24  # of the supervisor, and so many more for each node
_FILES_OF_A_NODE = 3


def no_core_dumps() -> None:
    """Let this process and its children leave no core dump, which would hold what people said and looked like, unless
    ``EMOSTREAM_CORE_DUMPS`` is set."""
    if resource is not None and not os.environ.get("EMOSTREAM_CORE_DUMPS"):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def allow_open_files() -> None:
    """Let this process open as many files and connections as it may at all, which is far above the usual 1024."""
    if resource is not None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_address_space() -> None:
    """Raises RunError if there is too little of it for any run."""
    if resource is not None:
        _check(resource.RLIMIT_AS, _LEAST_ADDRESS_SPACE, "bytes of address space", "ulimit -v, LimitAS=")


def check_files(nodes: int) -> None:
    """Raises RunError if a run of so many nodes may open too few files and sockets."""
    if resource is not None:
        _check(resource.RLIMIT_NOFILE, _LEAST_FILES + _FILES_OF_A_NODE * nodes, "open files", "ulimit -n, LimitNOFILE=")


def _check(limit: int, least: int, what: str, remedy: str) -> None:
    granted = resource.getrlimit(limit)[0]
    if granted != resource.RLIM_INFINITY and granted < least:
        raise RunError(f"{granted} {what} are too few for this run, which needs {least} ({remedy})")
