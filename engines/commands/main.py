"""``stream-engines``: build, inspect and compare engines; check them on a GPU."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Sequence

from emostream.commands import exit_code, make_parser
from emostream.errors import BackendError

COMMANDS = {
    "build": "compile a bundle's graphs for TensorRT or TensorRT-RTX",
    "inspect": "show what is in a bundle's graphs, and their engines",
    "compare": "compare every backend that works here with ONNX Runtime",
    "gpu-check": "on a machine with a GPU: check TensorRT's results and speed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; 3: the machine lacks what the command needs."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = make_parser("stream-engines", "Build, inspect and compare engines; check them on a GPU.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, what in COMMANDS.items():
        added = commands.add_parser(name, help=what)
        try:
            command = importlib.import_module(f"emostream.engines.commands.{name.replace('-', '_')}")
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("emostream"):
                raise
            added.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
            added.set_defaults(run=_fail(f"{error.name} is not installed: pip install 'emostream[engines]'"))
            continue
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    code: int = args.run(args)
    return code


def _fail(reason: str) -> Callable[[argparse.Namespace], int]:
    def run(_: argparse.Namespace) -> int:
        raise BackendError(reason)

    return run
