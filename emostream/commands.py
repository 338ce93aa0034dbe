"""The console scripts, and what all commands share: ``--version``, and one place that turns errors into a line for the
user and an exit code.

This module imports little: each script imports its command only where errors and Ctrl-C already become exit codes.

Exit codes: 0 done; 1 it could not run, or found faults; 2 wrong usage or configuration; 130 stopped by Ctrl-C before it
was done (``stream-run`` and ``stream-listen`` normally end that way, so theirs is 0).
``stream-engines`` also has 3: this machine lacks what the command needs.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from emostream import __version__
from emostream.errors import EmostreamError

STOPPED = 130  # 128 + SIGINT, as in shells
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # for linear algebra; read when NumPy is imported


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A command's parser, with ``--version``."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _take_one_thread() -> None:
    """Use one thread for linear algebra, unless the user says otherwise: matrices are small here, and a second thread
    mostly waits (with two, ``stream-label`` took 1.8 times the CPU time and was no faster)."""
    for name in THREADS:
        os.environ.setdefault(name, "1")


def _script(module: str, function: str, is_service: bool = False) -> Callable[[], None]:
    """A console script: import a module of emostream and run its function, which returns an exit code.

    ``is_service``: SIGTERM and SIGHUP are its normal end; once it has begun, it handles them itself."""

    def command() -> int:
        if module.startswith("stream."):
            _take_one_thread()
        code: int = getattr(importlib.import_module(f"emostream.{module}"), function)()
        return code

    def script() -> None:
        global _ends_itself
        _ends_itself = False
        _fill_standard_streams()
        _note_ctrl_c()
        if is_service:
            _end_at_once()
        _print_anything()
        code = exit_code(command)
        if callable(signal.getsignal(signal.SIGINT)):  # during Python's exit, Ctrl-C would print a traceback
            signal.signal(signal.SIGINT, lambda number, frame: os._exit(code))
        if _ends_itself:
            _end_before_python_does(code)
        sys.exit(code)

    return script


stream_run = _script("stream.run_command", "run", is_service=True)
stream_listen = _script("stream.cli", "listen")
stream_health = _script("stream.cli", "health")
stream_label = _script("stream.label_command", "label")
stream_doctor = _script("stream.cli", "doctor")
stream_models = _script("stream.cli", "models")
stream_keys = _script("stream.cli", "keys")
stream_ctl = _script("stream.ctl", "ctl")
stream_mqtt = _script("stream.mqtt", "mqtt", is_service=True)
stream_lsl = _script("stream.lsl", "lsl", is_service=True)
stream_uplink = _script("stream.uplink", "uplink", is_service=True)
stream_hub = _script("stream.hub", "hub", is_service=True)
stream_fusion = _script("stream.remote.command", "fusion")
stream_replay = _script("stream.replay_command", "replay")
stream_engines = _script("engines.commands.main", "main")
stream_train = _script("train.commands.main", "main")


def _fill_standard_streams() -> None:
    """Put the null device in place of standard streams that are closed (a daemon's, ``>&-``, pythonw). Otherwise a
    socket or a file gets their number, and what some library prints goes into it."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _print_anything() -> None:
    """Replace characters that the terminal's encoding lacks (mostly in file names) instead of failing."""
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):  # None without a terminal
            output.reconfigure(errors="replace")


_ends_itself = False


def skip_shutdown() -> None:
    """This command has closed all that it opened when it returns, so it exits before Python shuts down. That takes some
    tenths of a second on a busy machine; and a thread of a foreign library such as zenoh that still releases one of our
    objects then is ended by Python in a way that Rust takes for a crash ("FATAL: exception not rethrown", SIGABRT; one
    exit in eighteen)."""
    global _ends_itself
    _ends_itself = True


def _end_before_python_does(code: int) -> None:
    import logging

    logging.shutdown()  # writes the last lines
    with contextlib.suppress(OSError, ValueError):  # stdout was flushed earlier, where errors are still reported
        sys.stderr.flush()
    os._exit(code)


_stopped = False  # whether Ctrl-C came


def _note_ctrl_c() -> None:
    """Let Ctrl-C raise KeyboardInterrupt as usual, but remember it: NumPy turns it into an ImportError during
    import."""

    def note(number: int, frame: FrameType | None) -> None:
        global _stopped
        _stopped = True
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
        signal.signal(signal.SIGINT, note)


def _end_at_once() -> None:
    """Before anything has begun, let SIGTERM or the terminal's end exit the command with 0, as it does later."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, frame: os._exit(0))


def stop_by_signals() -> None:
    """From now on SIGTERM, and the terminal's end (unless nohup has seen to that), are a KeyboardInterrupt, as Ctrl-C
    is: a service that has something to hand on, or to say goodbye to, does so."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def exit_code(body: Callable[[], int]) -> int:
    """Run a command. An expected error becomes one line on stderr and its exit code, never a traceback; argparse's exit
    becomes its code."""
    try:
        try:
            code = body()
        except SystemExit as end:  # after --help, --version and wrong usage
            if not isinstance(end.code, int):
                raise
            code = end.code
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk or a closed pipe is still reported as an error
        return code
    except EmostreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader closed the pipe
        _leave_unwritten()
        return 0
    except MemoryError as error:
        print(f"error: out of memory {error}".rstrip(), file=sys.stderr)
        return 1
    except OSError as error:
        if error.strerror is None:
            raise
        if error.errno in (errno.EMFILE, errno.ENFILE):
            print("error: too many open files; raise the limit (ulimit -n, LimitNOFILE=)", file=sys.stderr)
            return 1
        where = error.filename or "the output"
        print(f"error: {where}: cannot be read or written ({error.strerror})", file=sys.stderr)
        if error.filename is None:
            _leave_unwritten()
        return 1
    except (KeyboardInterrupt, Exception) as error:
        if not (_stopped or isinstance(error, KeyboardInterrupt)):
            raise
        print("stopped", file=sys.stderr)
        return STOPPED


def _leave_unwritten() -> None:
    """Keep Python's flush at exit from failing again on what cannot be written."""
    if sys.stdout is not None:
        with contextlib.suppress(io.UnsupportedOperation):  # stdout is an in-memory object without a descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
