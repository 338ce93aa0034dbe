"""The two libraries that share TensorRT's API: importing them, and their messages."""

from __future__ import annotations

import importlib
import logging
import re
from functools import cache
from types import ModuleType
from typing import Any

from emostream.engines.options import RUNTIMES
from emostream.errors import BackendError

_EXTRAS = {"tensorrt": "gpu", "tensorrt_rtx": "rtx"}
_EXPECTED = (
    "cudaError 35",  # no driver: logged at each build ahead of time, where none is needed
    "Int64 binding",  # a warning about an int64 input, which does get int64
)

_log = logging.getLogger(__name__)


def load_module(runtime: str) -> ModuleType:
    """Import ``tensorrt`` or ``tensorrt_rtx``. Raises BackendError if it is not installed or cannot be loaded."""
    if runtime not in RUNTIMES:
        raise BackendError(f"runtime {runtime!r} is unknown; choose one of: {', '.join(RUNTIMES)}")
    try:
        return importlib.import_module(runtime)
    except (ImportError, OSError) as error:
        mend = f"pip install 'emostream[{_EXTRAS[runtime]}]'"
        raise BackendError(f"{runtime} cannot be imported ({error}); {mend}") from error


@cache  # TensorRT keeps a bare pointer to its first logger, which must live as long as the process
def logger(trt: Any) -> Any:
    """The logger of a library, an ILogger. ``messages``: its errors, since a failed call returns only False or None;
    clear them before a call whose errors are wanted."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the module is only known at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # the binding does not support super()
            self.messages: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.messages.append(msg)
            elif severity == trt.ILogger.WARNING and not _expected(msg):
                _log.warning("%s: %s", trt.__name__, plain(msg))

    return Logger()


def reasons(trt: Any) -> str:
    """The errors since ``messages`` was cleared."""
    errors = dict.fromkeys(plain(message) for message in logger(trt).messages if not _expected(message))
    return "; ".join(errors) or f"{trt.__name__} gives no reason"


def _expected(message: str) -> bool:
    return any(part in message for part in _EXPECTED)


def plain(message: str) -> str:
    """A message on one line, without its location in TensorRT's source."""
    return " ".join(re.sub(r"\s*In \w+ at /_src\S*?(?=\)|$)", "", message).split())
