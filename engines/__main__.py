"""``python -m engines``: build, inspect and compare engines; check them on a GPU."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Sequence

from engines.backend import BackendError
from engines.bundle import BundleError

COMMANDS = {
    "build": ("engines.build_command", "compile a bundle's graphs for TensorRT or TensorRT-RTX"),
    "inspect": ("engines.inspect_command", "show what is in a bundle's graphs, and their engines"),
    "compare": ("engines.compare_command", "hold every backend that works here against ONNX Runtime"),
    "gpu-check": ("engines.gpu_check", "on a machine with a GPU: is TensorRT right there, and how fast?"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0: done. 1: it failed. 2: wrong usage. 3: the machine lacks something. 130: Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m engines", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, what) in COMMANDS.items():
        try:
            command = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("engines"):
                raise
            missing = f"{error.name} is not installed: pip install 'emostream[engines]'"
            made = commands.add_parser(name, help=what)
            made.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
            made.set_defaults(run=_cannot(missing))
            continue
        made = commands.add_parser(name, help=what)
        command.add_arguments(made)
        made.set_defaults(run=command.run)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return args.run(args)
    except (BackendError, BundleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename}: cannot be written ({error.strerror})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _cannot(why: str) -> Callable[[argparse.Namespace], int]:
    def run(_: argparse.Namespace) -> int:
        print(f"error: {why}", file=sys.stderr)
        return 1

    return run


if __name__ == "__main__":  # processes that are spawned import this module too
    sys.exit(main())
