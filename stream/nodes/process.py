"""A node's process, from start to end.

Exit codes: 0: it came to its end; 3: it cannot run at all (its log line says why); 4: somebody else than the supervisor
sent it SIGTERM; any other: it crashed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

from emostream.commands import THREADS
from emostream.errors import EmostreamError
from emostream.stream.limits import no_core_dumps
from emostream.stream.nodes.runtime import NodeRuntime, NodeSpec, Stopped
from emostream.stream.nodes.tether import TetheredProcess

CANNOT_RUN = 3
TERMINATED = 4
_ORPHAN_S = 1.5  # from the supervisor's death to the end of a node that does not end by itself
_STOP_COMES_S = 1.0  # whoever ends a service sends SIGTERM to all its processes: the supervisor's ``stop`` follows


def start_node(spec: NodeSpec) -> BaseProcess:
    """Start a node's process."""
    # one thread per numeric library and process, since several processes share few cores
    threads = {name: os.environ.get(name, "1") for name in THREADS}
    process = TetheredProcess(target=run_node, args=(spec,), name=spec.name, daemon=True)
    with _environment(threads | {"EMOSTREAM_NODE": spec.name}):  # tells processes apart in a process list (ps e)
        process.start()
    return process


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """The environment with these changes, for a child that inherits it; the caller's own is left as it was."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run_node(spec: NodeSpec) -> None:
    """A node process from start to end; the target that multiprocessing starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends both to all; the supervisor decides
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    no_core_dumps()
    code = 0
    runtime: NodeRuntime | None = None
    try:
        runtime = NodeRuntime(spec)
        _watch_signals(runtime)
        _main(spec.kind)(runtime)
    except Stopped:
        pass
    except EmostreamError as error:
        logging.error("%s", error)
        code = CANNOT_RUN
    except Exception as error:
        logging.debug("%s", traceback.format_exc())
        if runtime is not None and not runtime.has_run and spec.t0_ns is None:  # it would fail again
            logging.error("cannot begin: %s: %s", type(error).__name__, error)
            code = CANNOT_RUN
        else:
            logging.error("crashed: %s: %s (at %s)", type(error).__name__, error, _place(error))
            code = 1
    finally:
        if runtime is not None:
            runtime.close()
    for output in (sys.stdout, sys.stderr):
        if output is not None:  # of a program without a terminal
            output.flush()
    os._exit(code)  # without waiting for a thread that is blocked in a read


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{os.path.basename(frame.filename)}:{frame.lineno}"


def _watch_signals(runtime: NodeRuntime) -> None:
    """Handle SIGTERM in a thread, which runs even while the node is blocked in a read."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)

    def watch() -> None:
        while os.read(reading, 1) != bytes([signal.SIGTERM]):
            pass
        if os.getppid() != runtime.spec.parent:  # nobody else would stop this node
            runtime.stop()
            time.sleep(_ORPHAN_S)
        elif runtime.stop_event.wait(_STOP_COMES_S):
            return
        os._exit(TERMINATED)

    threading.Thread(target=watch, name="signals", daemon=True).start()


def _main(kind: str) -> Callable[[NodeRuntime], None]:
    """The main function of a kind of node, imported by the node that runs it alone."""
    if kind == "capture":
        from emostream.stream.nodes.capture import main
    elif kind == "speech":
        from emostream.stream.nodes.speech import main
    elif kind == "page":
        from emostream.stream.nodes.page import main
    elif kind == "record":
        from emostream.stream.nodes.record import main
    else:
        from emostream.stream.nodes.fusion import main
    return main
