"""What all commands share: ``--version``, and one place that turns errors into a line for the user and an exit code.

Exit codes: 0 done; 1 it could not run, or found faults; 2 wrong usage or configuration; 130 stopped by Ctrl-C before it
was done (``stream-run`` and ``stream-listen`` have no other end, so theirs is 0).
``stream-engines`` also has 3: this machine lacks what the command needs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable

from emostream import __version__
from emostream.errors import EmostreamError

STOPPED = 130  # 128 + SIGINT, as shells have it


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A command's parser, with ``--version``."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def exit_code(body: Callable[[], int]) -> int:
    """Run a command. An expected error becomes one line on stderr and its exit code, never a traceback."""
    try:
        code = body()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk or a closed pipe is still an error of the command
        return code
    except EmostreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of a pipe had enough
        _leave_unwritten()
        return 0
    except OSError as error:
        if error.strerror is None:
            raise
        where = error.filename or "the output"
        print(f"error: {where}: cannot be read or written ({error.strerror})", file=sys.stderr)
        if error.filename is None:
            _leave_unwritten()
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED


def _leave_unwritten() -> None:
    """Let Python's own flush at exit not fail again on what cannot be written."""
    if sys.stdout is not None:
        with contextlib.suppress(io.UnsupportedOperation):  # replaced by an object in memory, which has no descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
