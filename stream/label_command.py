"""The command ``stream-label``: label files as fast as the machine goes."""

from __future__ import annotations

import argparse
import contextlib
import glob
import logging
import mimetypes
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from emostream.commands import make_parser
from emostream.errors import ConfigError, EmostreamError
from emostream.files import printable
from emostream.stream.cli import add_config_options
from emostream.stream.config import Config, check_tracks, load_config
from emostream.stream.export import WRITERS, Export, form_of
from emostream.stream.sheet.folder import Sheets

# what mimetypes does not know everywhere
_SUFFIXES = {".mkv", ".mka", ".flac", ".opus", ".m4a", ".webm", ".ts", ".mts", ".m2ts", ".caf", ".amr", ".mxf", ".3gp"}


def label() -> int:
    """stream-label: label files."""
    from emostream.stream.output import open_labels, resume_labels

    parser = make_parser("stream-label", "Label the utterances of media files, as fast as the machine goes.")
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="a file, a folder (its media files, and those below it) or a pattern"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="LABELS.jsonl",
        help="write labels into a file, in place of what is there: .jsonl, .csv, .parquet, and for one recording .vtt, "
        ".eaf (ELAN) or .TextGrid (Praat); or, with --format, a file for each recording into a folder",
    )
    parser.add_argument("--format", choices=WRITERS, help="of --out, if its name does not say so")
    parser.add_argument(
        "--sheets",
        type=Path,
        metavar="DIR",
        help="draw a contact sheet of each recording into a folder, NAME.png: its sound, its utterances with their "
        "labels, words and faces, and how probable each label was",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the file that --out names: leave out recordings (told apart by their path as given) that it "
        "has labels of, but for the last of these; and with --sheets: draw those that are missing",
    )
    parser.add_argument(
        "--tracks", default="", metavar="TRACKS", help='of several: "audio:2,video:1", or by language: "audio:deu"'
    )
    add_config_options(parser)
    options = parser.parse_args()
    if options.resume and not (options.out or options.sheets):
        parser.error("--resume is for what --out and --sheets name")
    form = options.format or (form_of(options.out) if options.out else "jsonl")
    if options.resume and form != "jsonl":
        parser.error("--resume is for JSON lines")
    config = load_config(options.config, options.set)
    check_tracks(options.tracks)
    logging.basicConfig(level=config.log.level.upper(), format="%(levelname)s: %(message)s", stream=sys.stderr)
    files = named_files(options.files)
    with contextlib.ExitStack() as stack:
        outputs = _Outputs()
        if options.sheets:
            outputs.sheets = Sheets(options.sheets, files)
        if form != "jsonl" and options.out:
            outputs.export = Export(options.out, form, files)
        elif options.resume and options.out:
            outputs.lines, done = resume_labels(options.out, [printable(path) for path in files])
            outputs.written = {path for path in files if printable(path) in done}
        elif options.out:
            outputs.lines = open_labels(options.out)
        if outputs.lines is not None:
            stack.enter_context(outputs.lines)
        if options.resume:
            files = _left(files, outputs, options)
        failed = _label_files(config, files, outputs, options.tracks)
    return 1 if failed else 0


@dataclass
class _Outputs:
    """Where labels go, besides the terminal. ``written``: the recordings of which ``lines`` has all labels already,
    ``drawn``: those that have a sheet."""

    lines: BinaryIO | None = None
    export: Export | None = None
    sheets: Sheets | None = None
    written: set[Path] = field(default_factory=set)
    drawn: set[Path] = field(default_factory=set)


def _left(files: list[Path], outputs: _Outputs, options: argparse.Namespace) -> list[Path]:
    """The recordings of which something is missing yet, where a call goes on with what another one left."""
    if outputs.written:
        print(f"note: {options.out} has the labels of {len(outputs.written)} of them already", file=sys.stderr)
    if outputs.sheets is not None:
        outputs.drawn = {path for path in files if outputs.sheets.path(path).exists()}
    if outputs.drawn:
        print(f"note: {options.sheets} has the sheets of {len(outputs.drawn)} of them already", file=sys.stderr)
    done = [each for each, there in ((outputs.written, options.out), (outputs.drawn, options.sheets)) if there]
    return [path for path in files if not all(path in each for each in done)]


def named_files(names: Sequence[str]) -> list[Path]:
    """The files that are meant: as named, those in a folder, those that a pattern fits. Each once.

    Raises ConfigError for a folder without media and a pattern that nothing fits."""
    found: dict[Path, None] = {}
    for name in names:
        if os.path.isdir(name):
            inside = [path for path in sorted(Path(name).rglob("*")) if is_media(path) and os.path.isfile(path)]
            if not inside:
                raise ConfigError(f"{printable(name)}: no media files in this folder")
            found |= dict.fromkeys(inside)
        elif not os.path.lexists(name) and glob.has_magic(name):
            fitting = sorted(Path(path) for path in glob.glob(name, recursive=True) if os.path.isfile(path))
            if not fitting:
                raise ConfigError(f"{printable(name)}: no file fits this pattern")
            found |= dict.fromkeys(fitting)
        else:
            found[Path(name)] = None
    return list(found)


def is_media(path: Path) -> bool:
    """Whether a file's name says that it holds sound or moving pictures."""
    kind, _ = mimetypes.guess_type(path.name)
    return path.suffix.lower() in _SUFFIXES or (kind or "").startswith(("audio/", "video/"))


def _label_files(config: Config, files: list[Path], outputs: _Outputs, tracks: str) -> int:
    """Label files one after another, whatever happens to one of them; returns how many could not be read or drawn."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from emostream.stream.label import Labeller
    from emostream.stream.messages import Emotion, encode_emotion
    from emostream.stream.sheet.collect import Sheet
    from emostream.stream.view import plain_line

    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    failed = 0
    with (
        Labeller(config) as labeller,
        Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress,
    ):
        task = progress.add_task("labelling", total=len(files))

        def labels_of(path: Path, done: int, sheet: Sheet | None) -> Iterator[Emotion | Exception]:
            """The labels of a file, and at last why there are no more, or no sheet, if something went wrong."""

            def show(part: float) -> None:
                progress.update(task, completed=done + part)

            try:
                yield from labeller.label(path, show, tracks=tracks, sheet=sheet)
                if sheet is not None and outputs.sheets is not None:
                    outputs.sheets.write(path, sheet)
            except Exception as error:
                yield error

        for done, path in enumerate(files):
            progress.update(task, description=printable(path.name), completed=done)
            sheet = Sheet(path.name) if outputs.sheets is not None and path not in outputs.drawn else None
            lines = outputs.lines if path not in outputs.written else None
            labels = 0
            error: Exception | None = None
            for emotion in labels_of(path, done, sheet):
                if isinstance(emotion, Exception):
                    error = emotion
                    break
                labels += 1
                if lines is not None:
                    lines.write(encode_emotion(emotion) + b"\n")
                if outputs.export is not None:
                    outputs.export.add(emotion)
                print(plain_line(emotion), flush=True)
            if lines is not None:
                lines.flush()
            if outputs.export is not None:
                outputs.export.end_recording(path)
            if error is not None:
                failed += 1
                text = str(error) if isinstance(error, EmostreamError) else f"{path}: {type(error).__name__}: {error}"
                logging.debug("%s", text, exc_info=error)
                print(f"error: {printable(text)}", file=sys.stderr)
            elif not labels:
                print(f"note: {printable(path)}: no utterance in it", file=sys.stderr)
    if outputs.export is not None:
        outputs.export.close()
    return failed
