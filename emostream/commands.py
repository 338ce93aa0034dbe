"""What all commands share: ``--version``, and one place that turns errors into a line for the user and an exit code.

Exit codes: 0 done; 1 it could not run, or found faults; 2 wrong usage or configuration; 130 stopped by Ctrl-C.
``stream-engines`` also has 3: this machine lacks what the command needs.
"""

from __future__ import annotations

import argparse
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
        return body()
    except EmostreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of a pipe had enough
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: cannot be read or written ({error.strerror})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED
