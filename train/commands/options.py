"""Options that several commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import platformdirs

from emostream.errors import ConfigError


def add_data(parser: argparse.ArgumentParser, metavar: str, help: str) -> None:
    """``--data``, by default from EMOSTREAM_DATA; see ``need_data``."""
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("EMOSTREAM_DATA"), metavar=metavar,
        help=f"{help} (or set EMOSTREAM_DATA)",
    )  # fmt: skip


def need_data(data: Path | None, question: str, metavar: str) -> Path:
    """The value of ``--data``. Raises ConfigError if neither the option nor EMOSTREAM_DATA was given."""
    if data is None:
        raise ConfigError(f"{question}? give --data {metavar} or set EMOSTREAM_DATA")
    return data


def add_cache(parser: argparse.ArgumentParser, kept: str) -> None:
    """``--cache``, the folder for what is ``kept``."""
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", default=Path(platformdirs.user_cache_dir("emostream")) / "train",
        help=f"folder where {kept} are kept (default: %(default)s)",
    )  # fmt: skip


def add_encoders(parser: argparse.ArgumentParser) -> None:
    """``--bundle``, whose encoders make features."""
    parser.add_argument("--bundle", default="ekman7", help="whose face network and word vectors (default: ekman7)")
