"""Resource limits of a run's processes: the least they need, and no core dumps."""

from __future__ import annotations

import os

from emostream.errors import RunError

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

# Measured on the demo: with less, libraries in the supervisor or in fusion die by a signal instead of raising an error.
_LEAST_ADDRESS_SPACE = 650_000_000
_LEAST_FILES = 24  # for the supervisor, plus those for each node
_FILES_OF_A_NODE = 3


def no_core_dumps() -> None:
    """Disable core dumps of this process and its children, which would contain what people said and looked like, unless
    ``EMOSTREAM_CORE_DUMPS`` is set."""
    if resource is not None and not os.environ.get("EMOSTREAM_CORE_DUMPS"):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def allow_open_files() -> None:
    """Raise the limit of open files and connections to the hard limit, which is far above the usual 1024."""
    if resource is not None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_address_space() -> None:
    """Raises RunError if the address space is limited to too little for any run."""
    if resource is not None:
        _check(resource.RLIMIT_AS, _LEAST_ADDRESS_SPACE, "bytes of address space", "ulimit -v, LimitAS=")


def check_files(nodes: int) -> None:
    """Raises RunError if the limit of open files and sockets is too low for this many nodes."""
    if resource is not None:
        _check(resource.RLIMIT_NOFILE, _LEAST_FILES + _FILES_OF_A_NODE * nodes, "open files", "ulimit -n, LimitNOFILE=")


def _check(limit: int, least: int, what: str, remedy: str) -> None:
    granted = resource.getrlimit(limit)[0]
    if granted != resource.RLIM_INFINITY and granted < least:
        raise RunError(f"{granted} {what} are too few for this run, which needs {least} ({remedy})")
