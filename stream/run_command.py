"""The command ``stream-run``: the live pipeline."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import ExitStack, closing
from pathlib import Path

from emostream.commands import make_parser, skip_shutdown
from emostream.errors import ConfigError, EmostreamError
from emostream.stream.cli import add_config_options
from emostream.stream.config import Config, load_config
from emostream.stream.limits import no_core_dumps
from emostream.stream.problem_report import ProblemReport
from emostream.stream.report_media import ReportMedia
from emostream.stream.source_spec import SOURCE_HELP


def run() -> int:
    """stream-run: the live pipeline."""
    parser = make_parser("stream-run", "Label utterances of live streams or files.")
    add_config_options(parser)
    parser.add_argument(
        "--stream",
        action="append",
        default=[],
        metavar="[NAME=]SOURCE",
        help=f"instead of the configured streams; SOURCE is {SOURCE_HELP}, or AUDIO,VIDEO; may be repeated",
    )
    parser.add_argument("--pace", choices=("realtime", "fast"), help="files: at their own pace or at full speed")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="append each utterance's label to FILE as well")
    parser.add_argument(
        "--jsonl-mb",
        type=float,
        default=100,
        metavar="MB",
        help="begin a new FILE beyond this size and keep five old ones, FILE.1 to FILE.5; 0: never (default: 100)",
    )
    parser.add_argument(
        "--profile", metavar="FILE", help="keep what it learns of the person in FILE, from run to run (fusion.profile)"
    )
    parser.add_argument(
        "--log-format", choices=("text", "json"), help="log and labels as text or as lines of JSON (log.format)"
    )
    parser.add_argument("--page", action="store_true", help="serve a live page on this machine; its address is printed")
    parser.add_argument(
        "--record",
        metavar="DIR",
        help="keep sound, faces, words and labels in DIR (record.folder); --stream replay:FILE",
    )
    parser.add_argument(
        "--identity", metavar="FILE", help="secret key for an encrypted replay:FILE, of age-keygen (record.identity)"
    )
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE.zip",
        help="write what happened into FILE, to send with a report of a problem: settings, versions, log and counters; "
        "no sound, no picture, no words",
    )
    parser.add_argument(
        "--report-media",
        type=float,
        nargs="?",
        const=10,
        metavar="SECONDS",
        help="with --report: put the last seconds of sound and pictures into FILE, too (default: none; 10 where no "
        "number follows; 60 at most). Until the run ends they are kept in a folder that you alone can read",
    )
    options = parser.parse_args()
    changes = list(options.set)
    if options.profile is not None:
        changes.append(f"fusion.profile={json.dumps(options.profile)}")
    if options.log_format is not None:
        changes.append(f"log.format={options.log_format}")
    if options.record is not None:
        changes.append(f"record.folder={json.dumps(str(Path(options.record).absolute()))}")
    if options.identity is not None:
        changes.append(f"record.identity={json.dumps(options.identity)}")
    if options.page:
        changes.append("page.on=true")
    no_core_dumps()
    log_format = options.log_format
    try:
        config = load_config(options.config, changes, options.stream, options.pace)
        log_format = config.log.format
        if options.jsonl_mb < 0:
            raise ConfigError("--jsonl-mb must be at least 0")
        with ExitStack() as stack:
            media = None
            if options.report_media is not None:
                if not options.report:
                    raise ConfigError("--report-media is for --report FILE")
                media = stack.enter_context(closing(ReportMedia(config, options.report_media)))
            report = ProblemReport(options.report, config, media) if options.report else None
            config = media.config if media is not None else config
            in_time = _run(config, options.jsonl, int(options.jsonl_mb * 1e6), options.quiet, report)
        if not in_time:  # the terminal or pipe is stuck, and Python would wait for it at exit
            os._exit(0)
        skip_shutdown()
        return 0
    except EmostreamError as error:
        if log_format != "json":
            raise
        from emostream.stream.view import JsonView

        JsonView(sys.stdout, sys.stderr).log("run", "error", str(error))
        return error.exit_code


def _run(config: Config, jsonl: Path | None, jsonl_bytes: int, quiet: bool, report: ProblemReport | None) -> bool:
    """Run until it ends or is stopped. Returns whether the display showed everything in time."""
    from emostream.stream.emotion import Emotion
    from emostream.stream.notify import Notifier
    from emostream.stream.output import Background, LabelFile
    from emostream.stream.run import run as run_pipeline
    from emostream.stream.status import Status
    from emostream.stream.view import JsonView, LiveView, PlainView, Terminal, View

    stop = threading.Event()
    _stop_by_signals(stop)
    console = Terminal()
    view: View
    if config.log.format == "json":
        view = JsonView(sys.stdout, sys.stderr, quiet)
    elif console.is_terminal and not quiet:
        view = LiveView(console, [stream.name for stream in config.streams], "emostream")
    else:
        view = PlainView(console, Terminal(stderr=True), quiet)

    shown = Background(view)
    try:
        file = LabelFile(jsonl, jsonl_bytes, lambda text: shown.log("run", "warning", text)) if jsonl else None
    except ConfigError:
        shown.close()
        raise

    def on_emotion(message: Emotion) -> None:
        if file is not None and message.kind == "utterance":
            file.add(message)
        shown.emotion(message)

    def on_log(node: str, level: str, text: str) -> None:
        if report is not None:
            report.log(node, level, text)
        shown.log(node, level, text)

    def on_status(status: Status) -> None:
        if report is not None:
            report.tick(status)
        shown.status(status)

    lines: list[str] = []

    try:
        with closing(Notifier()) as notifier:
            summary = run_pipeline(
                config,
                on_emotion=on_emotion,
                on_health=shown.health,
                on_log=on_log,
                on_status=on_status,
                stop=stop,
                notifier=notifier,
            )
        if report is not None:
            report.status = summary.status
        if not quiet:
            lines = summary.lines()
        if file is not None and file.lost:
            lines.append(f"labels not written to {jsonl}: {file.lost}")
    except EmostreamError as error:
        if report is not None:
            report.log("run", "error", str(error))
        raise
    finally:
        if report is not None:
            lines.append(report.write())
        if file is not None:
            file.close()
        in_time = shown.close(last=lambda: view.summary(lines))
    if in_time and shown.error is not None:
        raise shown.error
    return in_time


def _stop_by_signals(stop: threading.Event) -> None:
    """Let Ctrl-C, SIGTERM and the terminal's end (except under nohup) stop the run in an orderly way."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            signal.signal(number, lambda *_: stop.set())
