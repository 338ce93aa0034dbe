"""The stream-* commands. Exit codes: 0 done, 1 it could not run or found faults, 2 wrong usage or configuration."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from emostream.errors import ConfigError
from emostream.stream.config import SOURCE_HELP, Config, load

_DEFAULT_ENDPOINT = "tcp://127.0.0.1:5556"


def _command(body: Callable[[], int]) -> Callable[[], None]:
    """A console script: prints one line for each expected error, never a traceback."""

    @wraps(body)
    def run() -> None:
        from emostream.errors import BackendError, BundleError, BusError, ModelError, RunError, SourceError

        try:
            code = body()
        except ConfigError as error:
            print(error, file=sys.stderr)
            code = 2
        except (BackendError, BundleError, BusError, ModelError, RunError, SourceError) as error:
            print(f"error: {error}", file=sys.stderr)
            code = 1
        except BrokenPipeError:  # the reader of a pipe had enough
            sys.stderr.close()
            code = 0
        sys.exit(code)

    return run


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (default: built-in settings)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change one setting; may be repeated"
    )


@_command
def run() -> int:
    """stream-run: the live pipeline."""
    parser = argparse.ArgumentParser(prog="stream-run", description="Label utterances of live streams or files.")
    _config_arguments(parser)
    parser.add_argument(
        "--stream",
        action="append",
        default=[],
        metavar="[NAME=]SOURCE",
        help=f"instead of the configured streams; SOURCE is {SOURCE_HELP}, or AUDIO,VIDEO; may be repeated",
    )
    parser.add_argument("--pace", choices=("realtime", "fast"), help="files: at their own pace or at full speed")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="write each utterance's label to FILE as well")
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    given = parser.parse_args()
    config = load(given.config, given.set, given.stream, given.pace)
    return _run(config, given.jsonl, given.quiet)


def _run(config: Config, jsonl: Path | None, quiet: bool) -> int:
    from rich.console import Console

    from emostream.stream.messages import Emotion, encode_emotion
    from emostream.stream.summary import Summary
    from emostream.stream.supervisor import Supervisor
    from emostream.stream.view import LiveView, PlainView, View

    console, errors = Console(), Console(stderr=True)
    summary = Summary()
    view: View
    if console.is_terminal and not quiet:
        view = LiveView(console, [stream.name for stream in config.streams], "emostream")
    else:
        view = PlainView(console, errors, quiet)
    out = _open_output(jsonl) if jsonl else None

    def on_emotion(message: Emotion) -> None:
        summary.add(message)
        if out is not None and message.kind == "utterance":
            out.write(encode_emotion(message) + b"\n")
            out.flush()
        view.emotion(message)

    def on_health(message) -> None:
        summary.add_health(message)
        view.health(message)

    supervisor = Supervisor(config, on_emotion, on_health, view.log)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: supervisor.stop())
    try:
        supervisor.run()
    finally:
        view.close()
        if out is not None:
            out.close()
    if not quiet:
        for line in summary.lines():
            console.print(line, highlight=False, markup=False)
    if supervisor.nothing_ran:
        print("error: no source could be opened", file=sys.stderr)
        return 1
    return 0


def _open_output(path: Path):
    try:
        return path.open("wb")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error


@_command
def listen() -> int:
    """stream-listen: print what a running pipeline publishes."""
    parser = argparse.ArgumentParser(prog="stream-listen", description="Print the labels that stream-run publishes.")
    parser.add_argument("endpoint", nargs="?", default=_DEFAULT_ENDPOINT, help=f"default: {_DEFAULT_ENDPOINT}")
    parser.add_argument("--json", action="store_true", help="the messages as they are, one a line")
    parser.add_argument("--windows", action="store_true", help="running estimates too")
    given = parser.parse_args()

    import zmq

    from emostream.stream.messages import decode_emotion
    from emostream.stream.view import plain_line

    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SUBSCRIBE, b"emotion." if given.windows else b"emotion.utterance.")
        try:
            socket.connect(given.endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"{given.endpoint}: is no endpoint ({error.strerror})") from error
        try:
            while True:
                _, payload = socket.recv_multipart()
                print(payload.decode() if given.json else plain_line(decode_emotion(payload)), flush=True)
        except KeyboardInterrupt:
            return 0


@_command
def label() -> int:
    """stream-label: label files as fast as the machine goes."""
    parser = argparse.ArgumentParser(
        prog="stream-label", description="Label the utterances of media files, as fast as the machine goes."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="LABELS.jsonl", help="write labels as JSON lines")
    _config_arguments(parser)
    given = parser.parse_args()
    config = load(given.config, given.set)

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from emostream.errors import SourceError
    from emostream.stream.label import Labeller
    from emostream.stream.messages import encode_emotion
    from emostream.stream.view import plain_line

    errors = Console(stderr=True)
    logging.basicConfig(level=config.log.level.upper(), format="%(levelname)s: %(message)s", stream=sys.stderr)
    labeller = Labeller(config)
    out = _open_output(given.out) if given.out else None
    failed = 0
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
            task = progress.add_task("labelling", total=len(given.files))
            for done, path in enumerate(given.files):
                progress.update(task, description=path.name, completed=done)

                def of_this(part: float, done: int = done) -> None:
                    progress.update(task, completed=done + part)

                found = 0
                try:
                    for emotion in labeller.label(path, of_this):
                        found += 1
                        if out is not None:
                            out.write(encode_emotion(emotion) + b"\n")
                        print(plain_line(emotion), flush=True)
                    if not found:
                        print(f"note: {path}: no utterance in it", file=sys.stderr)
                except SourceError as error:
                    failed += 1
                    print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 1
    finally:
        if out is not None:
            out.close()
    return 1 if failed else 0


@_command
def doctor() -> int:
    """stream-doctor: devices, models, backends, versions, and what mends what is missing."""
    argparse.ArgumentParser(prog="stream-doctor", description="Tell what this machine has for a run.").parse_args()

    from rich.console import Console
    from rich.text import Text

    from emostream.stream.doctor import examine

    console = Console()
    marks = {True: ("ok     ", "green"), False: ("missing", "bold red"), None: ("absent ", "yellow")}
    findings = examine()
    width = max(len(finding.name) for finding in findings)
    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            console.print(Text(area, style="bold"))
        mend = f"  → {finding.mend}" if finding.mend else ""
        line = Text.assemble("  ", marks[finding.ok], f"  {finding.name:{width}}  {finding.detail}", (mend, "bold"))
        console.print(line, soft_wrap=True)
    return 1 if any(finding.ok is False for finding in findings) else 0


@_command
def models() -> int:
    """stream-models: third-party models."""
    from emostream.stream import models as table

    parser = argparse.ArgumentParser(prog="stream-models", description="Third-party models: list, fetch, verify.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what there is, what is found where, how to get the rest")
    pull = commands.add_parser("pull", help="download into the user's cache and check the hash")
    pull.add_argument("name", choices=sorted(n for n, model in table.MODELS.items() if model.url))
    commands.add_parser("verify", help="hold the files found against the table of hashes")
    given = parser.parse_args()
    if given.command == "pull":
        return _pull(given.name)
    bad = 0
    for name, model in table.MODELS.items():
        path = table.find(name)
        if given.command == "list":
            where = str(path) if path else f"not found → {table.how_to_get(name)}"
            print(f"{name:12} {model.what} [{model.licence}]\n{'':12} {where}")
        elif path is not None:
            verdict = table.verify(name, path)
            bad += verdict is False
            said = {True: "ok", False: "WRONG HASH", None: "found; no hash in the table to hold it against"}[verdict]
            print(f"{name:12} {said}  {path}")
    return 1 if bad else 0


def _pull(name: str) -> int:
    from rich.progress import Progress

    from emostream.stream import models as table

    with Progress(transient=True) as progress:
        task = progress.add_task(name, total=None)
        path = table.pull(name, lambda done, total: progress.update(task, completed=done, total=total))
    print(path)
    return 0
