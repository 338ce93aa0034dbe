"""``stream-train``: make and evaluate bundles; extract features of corpora and compare models on them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence

import platformdirs

from emostream.commands import exit_code, make_parser
from emostream.errors import EmostreamError

COMMANDS = {
    "fit": "make a bundle, from the corpora or from your own recordings",
    "evaluate": "compare bundles on your own recordings",
    "voice": "train the voice encoder alone, and judge it in noise, rooms and on the phone",
    "score": "labels that stream-label wrote, against a corpus's held-out recordings",
    "card": "write a bundle's model card to the output",
    "features": "extract the features of a corpus with sound, picture or words",
    "crossval": "compare systems by cross-validation and write the report",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return exit_code(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = make_parser("stream-train", "Train bundles and compare models.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in COMMANDS.items():
        command = importlib.import_module(f"emostream.train.commands.{name}")
        added = commands.add_parser(name, help=what)
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    arguments = parser.parse_args(argv)
    # torch's optimisers make this folder, by default one in /tmp whose name others can guess
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(platformdirs.user_cache_path("emostream") / "torch"))
    try:
        code: int = arguments.run(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("emostream"):
            raise
        raise EmostreamError(f"{error.name} is not installed: pip install 'emostream[train]'") from error
    return code
