"""stream-train card BUNDLE: a bundle's model card."""

from __future__ import annotations

import argparse

from emostream.errors import BundleError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a shipped bundle's name or a folder")


def run(arguments: argparse.Namespace) -> int:
    """Print the card. Raises BundleError if there is no such bundle, or if its manifest has no figures."""
    from emostream.engines.bundle import open_bundle
    from emostream.train.bundle.card import card

    try:
        text = card(open_bundle(arguments.bundle))
    except KeyError as error:
        raise BundleError(
            f"the manifest of {arguments.bundle} has no {error}: was it made by `python -m train fit`?"
        ) from error
    print(text, end="")
    return 0
