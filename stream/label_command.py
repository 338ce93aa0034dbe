"""The command ``stream-label``: label files as fast as the machine goes."""

from __future__ import annotations

import argparse
import contextlib
import glob
import logging
import mimetypes
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from emostream.commands import make_parser
from emostream.errors import ConfigError
from emostream.files import printable
from emostream.stream.cli import add_config_options
from emostream.stream.config import Config, check_tracks, load_config
from emostream.stream.export import OF_ONE, WRITERS, Export, form_of
from emostream.stream.sheet.folder import Sheets

if TYPE_CHECKING:
    from rich.progress import Progress

    from emostream.stream.emotion import Emotion
    from emostream.stream.sheet.collect import Sheet

_ESTIMATE_S = 600.0  # the remaining time is estimated over this period, since a recording may take minutes
# suffixes that mimetypes does not know on every system
_SUFFIXES = {
    ".mkv", ".mka", ".flac", ".opus", ".m4a", ".m4b", ".webm", ".weba", ".ts", ".mts", ".m2ts", ".trp", ".tod",
    ".caf", ".amr", ".awb", ".gsm", ".mxf", ".3gp", ".f4v", ".asf", ".vob", ".divx", ".dav", ".w64", ".voc", ".wv",
    ".tta", ".ape", ".eac3", ".h264", ".264", ".hevc", ".h265", ".265", ".mjpeg", ".mjpg", ".ivf", ".y4m",
}  # fmt: skip


def label() -> int:
    """stream-label: label files."""
    parser = make_parser("stream-label", "Label the utterances of media files, as fast as the machine goes.")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="a file, a folder (all media files in and below it), a pattern, or - for standard input",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="LABELS.jsonl",
        help="write labels into a file, replacing its content: .jsonl, .csv, .parquet, and for one recording .vtt, "
        ".eaf (ELAN) or .TextGrid (Praat); or, with --format, a file for each recording into a folder",
    )
    parser.add_argument("--format", choices=WRITERS, help="format of --out, if its name does not say")
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
        help="go on with the JSON lines or table that --out names: leave out recordings (told apart by their path as "
        "given) that it has labels of, but for the last of these; and with --sheets: draw those that are missing",
    )
    parser.add_argument(
        "--tracks",
        default="",
        metavar="TRACKS",
        help='which tracks, if there are several: "audio:2,video:1", or by language: "audio:deu"',
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help='label on this Ray cluster: HOST:PORT, "auto" for the one of this machine; "local" starts one here '
        "(docs/scale.md)",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="with --ray: files at a time (default: its number of CPUs)"
    )
    add_config_options(parser)
    options = parser.parse_args()
    if options.jobs is not None and (options.ray is None or options.jobs < 1):
        parser.error("--jobs is for --ray, and at least 1")
    if options.ray is not None and options.sheets:
        parser.error("--sheets are drawn where the labels are made: leave out --ray")
    if options.resume and not (options.out or options.sheets):
        parser.error("--resume is for what --out and --sheets name")
    form = options.format or (form_of(options.out) if options.out else "jsonl")
    if options.resume and form in OF_ONE:
        parser.error("--resume is for JSON lines and tables")
    config = load_config(options.config, options.set)
    check_tracks(options.tracks)
    logging.basicConfig(level=config.log.level.upper(), format="%(levelname)s: %(message)s", stream=sys.stderr)
    files, unmatched = named_files(options.files)
    for name in unmatched:
        print(f"error: {name}", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        outputs = _open_outputs(options, form, files, stack)
        if options.resume:
            files = _left(files, outputs, options)
        labels = _Labels(outputs, files)
        if options.ray is None:
            _label_files(config, files, labels, outputs, options.tracks)
        else:
            _label_on_cluster(config, files, labels, options.tracks, options.ray, options.jobs)
    if outputs.export is not None and outputs.export.journal is not None:  # all is done, and written
        outputs.export.journal.unlink(missing_ok=True)
    return 1 if labels.failed or unmatched else 0


@dataclass
class _Outputs:
    """Where labels go besides the terminal. ``written``: recordings whose labels are all in ``lines`` already;
    ``drawn``: recordings that have a sheet."""

    lines: BinaryIO | None = None
    export: Export | None = None
    sheets: Sheets | None = None
    written: set[Path] = field(default_factory=set)
    drawn: set[Path] = field(default_factory=set)


def _open_outputs(options: argparse.Namespace, form: str, files: list[Path], stack: contextlib.ExitStack) -> _Outputs:
    """Open what labels go to, with what an interrupted call left there. ``stack`` closes it."""
    from emostream.stream.emotion import decode_emotion
    from emostream.stream.output import open_labels, resume_labels

    outputs, lines = _Outputs(), options.out
    if options.sheets:
        outputs.sheets = Sheets(options.sheets, files)
    if form != "jsonl" and options.out:
        outputs.export = Export(options.out, form, files)
        stack.callback(outputs.export.close)  # when it is interrupted, too: with the labels so far
        lines = outputs.export.journal
        if options.resume and lines is not None and options.out.exists() and not lines.exists():
            raise ConfigError(f"{options.out}: is done; what --resume could go on with would be {lines}")
    if lines is None:
        return outputs
    if options.resume:
        outputs.lines, done = resume_labels(lines, [printable(path) for path in files])
        outputs.written = {path for path in files if printable(path) in done}
    else:
        outputs.lines = open_labels(lines)
    stack.enter_context(outputs.lines)
    if outputs.export is not None:
        for line in lines.read_bytes().splitlines():
            outputs.export.add(decode_emotion(line))
    return outputs


def _left(files: list[Path], outputs: _Outputs, options: argparse.Namespace) -> list[Path]:
    """The recordings that are not complete yet, when resuming an earlier call."""
    if outputs.written:
        print(f"note: {options.out} has the labels of {len(outputs.written)} of them already", file=sys.stderr)
    if outputs.sheets is not None:
        outputs.drawn = {path for path in files if outputs.sheets.path(path).exists()}
    if outputs.drawn:
        print(f"note: {options.sheets} has the sheets of {len(outputs.drawn)} of them already", file=sys.stderr)
    done = [each for each, there in ((outputs.written, options.out), (outputs.drawn, options.sheets)) if there]
    return [path for path in files if not all(path in each for each in done)]


def named_files(names: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files that these names stand for: files, media files in folders, and matches of patterns, each once. Also an
    error line for each folder without media and each pattern without a match.

    Raises ConfigError if there is no file at all."""
    found: dict[Path, None] = {}
    unmatched = []
    for name in names:
        if os.path.isdir(name):
            inside = [path for path in sorted(Path(name).rglob("*")) if is_media(path) and os.path.isfile(path)]
            if not inside:
                unmatched.append(f"{printable(name)}: no media files in this folder")
            found |= dict.fromkeys(inside)
        elif not os.path.lexists(name) and glob.has_magic(name):
            fitting = sorted(Path(path) for path in glob.glob(name, recursive=True) if os.path.isfile(path))
            if not fitting:
                unmatched.append(f"{printable(name)}: no file fits this pattern")
            found |= dict.fromkeys(fitting)
        else:
            found[Path("/dev/stdin" if name == "-" else name)] = None
    if not found:
        raise ConfigError("\n".join(unmatched))
    return list(found), unmatched


def is_media(path: Path) -> bool:
    """Whether a file's name suggests that it holds sound or moving pictures."""
    kind, _ = mimetypes.guess_type(path.name)
    return path.suffix.lower() in _SUFFIXES or (kind or "").startswith(("audio/", "video/"))


class _Labels:
    """Writes labels to standard output and to what --out names. ``failed``: how many recordings had an error."""

    def __init__(self, outputs: _Outputs, files: Sequence[Path]) -> None:
        from emostream.stream.emotion import encode_emotion
        from emostream.stream.view import plain_line

        self.failed = 0
        counts = Counter(path.name for path in files)
        self._alike = {path for path in files if counts[path.name] > 1}  # told apart by their folders alone
        self._outputs, self._labels = outputs, 0
        self._encode, self._line = encode_emotion, plain_line

    def add(self, path: Path, emotion: Emotion) -> None:
        """The next label of a recording."""
        self._labels += 1
        is_new = path not in self._outputs.written
        if self._outputs.lines is not None and is_new:
            self._outputs.lines.write(self._encode(emotion) + b"\n")
            self._outputs.lines.flush()  # whatever ends the command, it is in the file
        if self._outputs.export is not None and is_new:
            self._outputs.export.add(emotion)
        print(self._line(emotion, printable(path) if path in self._alike else ""), flush=True)

    def end(self, path: Path, error: str) -> None:
        """A recording is done. ``error``: why it has no more labels, if something went wrong."""
        if self._outputs.export is not None:
            self._outputs.export.end_recording(path)
        if error:
            self.failed += 1
            print(f"error: {error}", file=sys.stderr)
        elif not self._labels:
            print(f"note: {printable(path)}: no utterance in it", file=sys.stderr)
        self._labels = 0


def _progress() -> Progress:
    """A progress bar on stderr with the remaining time; nothing if stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(
        *columns, console=errors, transient=True, disable=not errors.is_terminal, speed_estimate_period=_ESTIMATE_S
    )


def _label_files(config: Config, files: list[Path], labels: _Labels, outputs: _Outputs, tracks: str) -> None:
    """Label files one after another; an error in one does not stop the others."""
    from emostream.stream.label import Labeller, error_line
    from emostream.stream.sheet.collect import Sheet

    with Labeller(config) as labeller, _progress() as progress:
        task = progress.add_task("labelling", total=len(files))

        def labels_of(path: Path, done: int, sheet: Sheet | None) -> Iterator[Emotion | Exception]:
            """A file's labels and, if something went wrong, finally the exception."""

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
            error = ""
            for emotion in labels_of(path, done, sheet):
                if isinstance(emotion, Exception):
                    error = error_line(path, emotion)
                    break
                labels.add(path, emotion)
            labels.end(path, error)


def _label_on_cluster(
    config: Config, files: list[Path], labels: _Labels, tracks: str, address: str, jobs: int | None
) -> None:
    """Label files on a Ray cluster. Progress is by file size, since lengths are not known before files are read."""
    from emostream.stream.cluster.label import ClusterLabeller
    from emostream.stream.emotion import decode_emotion

    sizes = {path: _size(path) for path in files}
    with _progress() as progress:
        task = progress.add_task(f"labelling {len(files):,} files", total=sum(sizes.values()))
        labeller = ClusterLabeller(config, address, jobs, lambda path: progress.advance(task, sizes[path]))
        for path, outcome in labeller.label(files, tracks):
            for name, level, text in outcome.records:
                logging.getLogger(name).log(level, "%s", text)
            for label in outcome.labels:
                labels.add(path, decode_emotion(label))
            labels.end(path, outcome.error)
    print(f"note: {labeller.tally.line(len(files))}", file=sys.stderr)


def _size(path: Path) -> int:
    """Size in bytes; 1 for a missing or empty file."""
    with contextlib.suppress(OSError, ValueError):
        return max(1, path.stat().st_size)
    return 1
