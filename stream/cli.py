"""The commands ``stream-listen``, ``stream-health``, ``stream-doctor``, ``stream-models`` and ``stream-keys``, and
options that commands share."""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from emostream.commands import make_parser, skip_shutdown
from emostream.errors import ConfigError
from emostream.stream.config import load_config

if TYPE_CHECKING:
    from emostream.stream.keys import Keys


def add_config_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (default: built-in settings)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change one setting; may be repeated"
    )


def _add_key_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", type=Path, metavar="FILE", help="made by stream-keys new client; for a remote run")


def listen() -> int:
    """stream-listen: print what a running pipeline publishes."""
    from emostream.stream.listen import DEFAULT_ENDPOINT, listen_raw, listen_status
    from emostream.stream.listen_boxes import BoxEmotion, is_router
    from emostream.stream.view import plain_line

    parser = make_parser("stream-listen", "Print the labels that stream-run publishes.")
    parser.add_argument(
        "endpoint", nargs="?", default=DEFAULT_ENDPOINT,
        help=f"default: {DEFAULT_ENDPOINT}; for boxes: zenoh[+tls]://HOST:PORT[/SITE[/BOX[/STREAM]]], * matches any",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the messages unchanged, one per line")
    parser.add_argument("--windows", action="store_true", help="print running estimates too")
    parser.add_argument("--status", action="store_true", help="print the status messages alone, as they are")
    parser.add_argument("--stream", metavar="NAME", help="of this stream alone (default: of all)")
    _add_key_option(parser)
    parser.add_argument("--config", type=Path, metavar="FILE", help="zenoh configuration (JSON5), for certificates")
    options = parser.parse_args()
    where = {"key": options.key, "config": options.config, "stream": options.stream}
    if is_router(options.endpoint):
        skip_shutdown()
        logging.basicConfig(level="INFO", format="%(levelname)s: %(message)s", stream=sys.stderr)
    elif not (options.status or options.key):
        threading.Thread(target=_tell_presence, args=(options.endpoint, options.stream), daemon=True).start()
    try:
        if options.status:
            for payload, _ in listen_status(options.endpoint, **where):
                print(payload.decode(), flush=True)
            return 0
        for payload, emotion in listen_raw(options.endpoint, **where, estimates=options.windows):
            whose = f"{emotion.site}/{emotion.box}  " if isinstance(emotion, BoxEmotion) else ""
            print(payload.decode() if options.json else f"{whose}{plain_line(emotion)}", flush=True)
    except KeyboardInterrupt:
        pass
    return 0


def _tell_presence(endpoint: str, stream: str | None) -> None:
    """Say on stderr when a pipeline is not there, went away, or is there (again); and when it has no such stream."""
    from emostream.stream.listen import listen_status

    there: bool | None = None
    missed = False
    while True:
        for _, status in listen_status(endpoint, timeout_s=3.5):
            if there is False:
                print(f"{endpoint}: a pipeline is there (run {status.run})", file=sys.stderr)
            there = True
            if stream is not None and stream not in status.streams and not missed:
                print(f"{endpoint}: no stream {stream} yet; there are {', '.join(status.streams)}", file=sys.stderr)
            missed = stream is not None and stream not in status.streams
        if there is not False:
            gone = "no pipeline is there yet; waiting" if there is None else "the pipeline went away; waiting"
            print(f"{endpoint}: {gone}", file=sys.stderr)
        there = False


def health() -> int:
    """stream-health: can the pipeline label what is said?"""
    from emostream.stream.listen import DEFAULT_ENDPOINT, listen_status
    from emostream.stream.status import stream_line

    parser = make_parser("stream-health", "Exit with 0 while stream-run can label what is said, else with 1.")
    parser.add_argument("endpoint", nargs="?", default=DEFAULT_ENDPOINT, help=f"default: {DEFAULT_ENDPOINT}")
    parser.add_argument(
        "--timeout", type=float, default=5, metavar="S", help="how long to wait for its status (default: 5)"
    )
    parser.add_argument("--all", action="store_true", help="require this of every stream, not just of one")
    _add_key_option(parser)
    options = parser.parse_args()
    if not 0 < options.timeout < 1e6:
        raise ConfigError("--timeout must be above 0")
    for _, status in listen_status(options.endpoint, key=options.key, timeout_s=options.timeout):
        print(f"run {status.run}: {status.state}, up for {status.uptime_s:.0f} s")
        for name, stream in status.streams.items():
            print(stream_line(name, stream))
        can = all if options.all else any
        return 0 if can(stream.can_label for stream in status.streams.values()) else 1
    print(f"{options.endpoint}: no status came in {options.timeout:g} s", file=sys.stderr)
    return 1


def doctor() -> int:
    """stream-doctor: devices, models, backends, versions, and how to get what is missing."""
    parser = make_parser("stream-doctor", "Show what this machine has for a run, and how to get what is missing.")
    parser.add_argument(
        "--microphone", nargs="?", const="microphone", metavar="SOURCE",
        help="instead, record for some seconds and say what was heard (default: the system's microphone)",
    )  # fmt: skip
    parser.add_argument(
        "--camera", nargs="?", const="camera:0", metavar="SOURCE",
        help="instead, look for some seconds and say where a face is (default: camera:0)",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=3, help="(default: %(default)s)")
    add_config_options(parser)
    options = parser.parse_args()
    if options.microphone or options.camera:
        from emostream.stream.device_check import hear, see

        if not 0 < options.seconds <= 60:
            raise ConfigError("--seconds must be above 0, and at most 60")
        config = load_config(options.config, options.set)
        for try_it, source in ((hear, options.microphone), (see, options.camera)):
            for said in try_it(source, options.seconds, config) if source else ():
                print(said, flush=True)
        return 0

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


def models() -> int:
    """stream-models: third-party models."""
    from emostream.stream import models as table

    parser = make_parser("stream-models", "Third-party models: list, fetch, verify.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show which models there are, where they were found, how to get the others")
    pull = commands.add_parser("pull", help="download a model into the user's cache and check its hash")
    pull.add_argument(
        "--sha256", metavar="HEX", help="expected hash of the download, for a model whose hash is not known here"
    )
    pull.add_argument("name", choices=sorted(name for name, model in table.MODELS.items() if model.url))
    commands.add_parser("verify", help="compare the models found with the table of hashes")
    options = parser.parse_args()
    if options.command == "pull":
        return _pull(options.name, options.sha256)
    bad = 0
    for name, model in table.MODELS.items():
        path = table.locate(name)
        if options.command == "list":
            where = str(path) if path else f"not found → {table.how_to_get(name)}"
            print(f"{name:12} {model.what} [{model.licence}]\n{'':12} {where}")
        elif path is not None:
            verdict = table.verify(name, path)
            bad += verdict is False
            words = {True: "ok", False: "WRONG HASH", None: "found; the table has no hash for it"}[verdict]
            print(f"{name:12} {words}  {path}")
    return 1 if bad else 0


def _pull(name: str, sha256: str | None) -> int:
    from rich.progress import Progress

    from emostream.stream import models as table

    with Progress(transient=True) as progress:
        task = progress.add_task(name, total=None)
        path = table.pull(name, lambda done, total: progress.update(task, completed=done, total=total), sha256)
    print(path)
    return 0


def keys() -> int:
    """stream-keys: who may receive the labels on another machine."""
    from emostream.stream.keys import Keys

    parser = make_parser("stream-keys", "Keys for labels that leave this machine: make, show, allow, revoke.")
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("new", help="make the keys of a pipeline (server) or of a listener (client)")
    new.add_argument("side", choices=("server", "client"))
    new.add_argument("--server", default="", metavar="KEY", help="client: public key of the pipeline to trust")
    show = commands.add_parser("show", help="print the public keys of this machine and what to type with them")
    allow = commands.add_parser("allow", help="let a client in, at once, by its public key")
    allow.add_argument("public_key", metavar="PUBLIC_KEY")
    allow.add_argument("name", nargs="?", default="", metavar="NAME", help="to tell clients apart (default: client-N)")
    revoke = commands.add_parser("revoke", help="no longer let a client in, and disconnect it")
    revoke.add_argument("client", metavar="NAME_OR_KEY")
    listed = commands.add_parser("list", help="print who is allowed")
    for command in (new, show, allow, revoke, listed):
        add_config_options(command)
    options = parser.parse_args()
    folder = Keys(load_config(options.config, options.set).bus.keys)
    if options.command == "allow":
        print(f"{folder.allow(options.public_key, options.name)} may listen")
    elif options.command == "revoke":
        print(f"{folder.revoke(options.client)} may listen no longer")
    elif options.command == "list":
        for name, key in folder.allowed().items():
            print(f"{name:16} {key}")
    elif options.command == "show":
        _show_keys(folder, server=folder.server_file.exists(), client=folder.client_file.exists())
    elif options.side == "server":
        if options.server:
            raise ConfigError("--server KEY is for stream-keys new client")
        folder.new_server()
        _show_keys(folder, server=True)
    else:
        folder.new_client(options.server)
        _show_keys(folder, client=True)
    return 0


def _show_keys(folder: Keys, server: bool = False, client: bool = False) -> None:
    """Print public keys and what to do with them on the other machine."""
    import platform

    from emostream.stream.keys import read_pair

    if not (server or client):
        raise ConfigError(f"{folder.folder}: no keys; see {folder.command('new server')} and new client")
    if server:
        pair = read_pair(folder.server_file)
        print(f"{folder.server_file}\npublic key of this machine's pipeline: {pair.public}")
        print(f"on each machine that listens:\n    stream-keys new client --server '{pair.public}'")
    if client:
        pair = read_pair(folder.client_file)
        name = re.sub(r"[^A-Za-z0-9_-].*", "", platform.node())[:64]
        print(f"{folder.client_file}\npublic key of this machine as a listener: {pair.public}")
        print(f"on the machine of the pipeline:\n    stream-keys allow '{pair.public}' {name}".rstrip())
        if pair.server:
            print(f"then here:\n    stream-listen tcp://HOST:5556 --key {shlex.quote(str(folder.client_file))}")
        else:
            print("and here, with what stream-keys show prints there:")
            print(f"    {folder.command('new client --server PUBLIC_KEY')}")
