"""A node's process, from start to end.

Exit codes: 0: it came to its end; 3: it cannot run at all (its log line says why); 4: somebody else than the supervisor
sent it SIGTERM; 5: nothing in its source can be decoded; any other: it crashed. Two nodes may share a process: see
``code_of``.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import NoReturn

import zmq

from emostream.commands import THREADS
from emostream.errors import EmostreamError, UnreadableError
from emostream.stream.bus import LINGER_MS, Context
from emostream.stream.handover import Handover
from emostream.stream.limits import no_core_dumps
from emostream.stream.nodes.runtime import NodeRuntime, Stopped
from emostream.stream.nodes.spec import NodeSpec
from emostream.stream.nodes.tether import TetheredProcess
from emostream.stream.topics import HEARD, stream_topic

CANNOT_RUN = 3
TERMINATED = 4
UNREADABLE = 5
GUEST = 16  # added to the code of a node that shares another one's process
_OF_TERMINAL = [getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]
_ORPHAN_S = 1.5  # from the supervisor's death to the end of a node that does not end by itself
_LOOK_S = 0.1
_STOP_COMES_S = 1.0  # stopping a service sends SIGTERM to all its processes; the supervisor's ``stop`` then follows


def start_node(spec: NodeSpec, guest: NodeSpec | None = None) -> BaseProcess:
    """Start a node's process; ``guest`` shares it."""
    names = spec.name if guest is None else f"{spec.name} {guest.name}"
    # one thread per numeric library and process, since several processes share few cores
    threads = {name: os.environ.get(name, "1") for name in THREADS}
    process = TetheredProcess(target=run_node, args=(spec, guest), name=names, daemon=True)
    # the environment tells processes apart in a process list (ps e)
    with _environment(threads | {"EMOSTREAM_NODE": names}), _blocked_signals():
        process.start()
    return process


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Change the environment for a child that inherits it, then restore it."""
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


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """A child that starts meanwhile does not receive what the terminal sends to all processes until it has decided how
    to handle it (``run_node``); it would end with a traceback while it imports."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # or ``start`` would do it, and unblock these signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_node(spec: NodeSpec, guest: NodeSpec | None = None) -> None:
    """A node process from start to end; the target that multiprocessing starts. ``guest`` runs in one of its threads
    and receives what ``spec`` publishes of the guest's stream without a socket."""
    for number in _OF_TERMINAL:  # which sends them to all processes; the supervisor decides
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_TERMINAL)
    logging.basicConfig(format=f"error: {spec.name}: %(message)s", level="ERROR")  # until its runtime sends its lines
    no_core_dumps()
    runtimes: list[NodeRuntime] = []
    _watch_signals(runtimes, spec.parent)
    if guest is None:
        _end(_run(spec, partial(NodeRuntime, spec), runtimes))
    handover = Handover(stream_topic(content, guest.stream) for content in HEARD)
    context: Context = zmq.Context()
    beside = partial(_run_guest, guest, partial(NodeRuntime, guest, context, inlet=handover), runtimes)
    thread = threading.Thread(target=beside, name=guest.name, daemon=True)

    def make_runtime() -> NodeRuntime:
        runtime = NodeRuntime(spec, context, outlet=handover)  # sets up the log before the guest writes any lines
        thread.start()
        return runtime

    def wait_for_guest(runtime: NodeRuntime) -> None:
        while thread.is_alive():
            thread.join(_LOOK_S)
            runtime.tick()

    code = _run(spec, make_runtime, runtimes, wait_for_guest)
    if thread.is_alive():  # the guest still uses its sockets
        time.sleep(_LOOK_S)
    else:
        context.destroy(LINGER_MS)
    _end(code)


def _run(
    spec: NodeSpec,
    make_runtime: Callable[[], NodeRuntime],
    runtimes: list[NodeRuntime],
    at_end: Callable[[NodeRuntime], None] | None = None,
) -> int:
    """A node from start to end. Returns its exit code. ``at_end``: called before it closes, unless it failed."""
    code = 0
    runtime: NodeRuntime | None = None
    try:
        runtime = make_runtime()
        runtimes.append(runtime)
        _main(spec.kind)(runtime)
    except Stopped:
        pass
    except EmostreamError as error:
        logging.error("%s", error)
        code = UNREADABLE if isinstance(error, UnreadableError) else CANNOT_RUN
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
            if at_end is not None and (code == 0 or runtime.has_ended):
                at_end(runtime)
            runtime.close()
    return code


def _run_guest(spec: NodeSpec, make_runtime: Callable[[], NodeRuntime], runtimes: list[NodeRuntime]) -> None:
    """A guest that fails ends the process, just as its host would."""
    if code := _run(spec, make_runtime, runtimes):
        time.sleep(_LOOK_S)  # for its last lines to be sent
        _end(GUEST + code)


def _end(code: int) -> NoReturn:
    for output in (sys.stdout, sys.stderr):
        if output is not None:  # None in a program without a terminal
            output.flush()
    os._exit(code)  # without waiting for a thread that is blocked in a read


def code_of(code: int, is_guest: bool) -> int:
    """One node's exit code, from the exit code of a process that two nodes share. A crash counts as a crash of both; if
    one node cannot run, the other one has ended normally."""
    if code >= 2 * GUEST:  # none of ours, such as 255 of an interpreter that this user may not run
        return code
    if code <= 0 or code == TERMINATED or code % GUEST == 1:
        return code % GUEST if code > 0 else code
    return code % GUEST if is_guest == (code >= GUEST) else 0


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{os.path.basename(frame.filename)}:{frame.lineno}"


def _watch_signals(runtimes: Sequence[NodeRuntime], parent: int) -> None:
    """Handle SIGTERM in a thread, which runs even while a node is blocked in a read."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)

    def watch() -> None:
        while os.read(reading, 1) != bytes([signal.SIGTERM]):
            pass
        if os.getppid() != parent:  # nobody else would stop this node
            for runtime in runtimes:
                runtime.stop()
            time.sleep(_ORPHAN_S)
        elif runtimes and runtimes[0].stop_event.wait(_STOP_COMES_S):
            return
        os._exit(TERMINATED)

    threading.Thread(target=watch, name="signals", daemon=True).start()


def _main(kind: str) -> Callable[[NodeRuntime], None]:
    """The main function of a kind of node, imported only by the node that runs it."""
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
