"""The command ``stream-ctl``: steer a run of this user on this machine."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from emostream.commands import make_parser
from emostream.stream.control import Control
from emostream.stream.listen import DEFAULT_ENDPOINT
from emostream.stream.source_spec import SOURCE_HELP
from emostream.stream.status import stream_line
from emostream.stream.steering import SETTABLE

_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "": 1.0}


def seconds(text: str) -> float:
    """A time such as 2s, 500ms or 1min, in seconds. Raises ArgumentTypeError."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(ms|s|min|)", text.strip())
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 2s, 500ms or 1min")
    return float(match[1]) * _UNITS[match[2]]


def ctl() -> int:
    """stream-ctl: steer a running pipeline."""
    parser = make_parser("stream-ctl", "Steer a stream-run of yours on this machine while it goes on.")
    parser.add_argument(
        "--endpoint", default=DEFAULT_ENDPOINT, help=f"where it publishes its labels (default: {DEFAULT_ENDPOINT})"
    )
    parser.add_argument("--control", type=Path, metavar="PATH", help="its control socket, if bus.control names one")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="print how it is going")
    for name, what in (
        ("mute", "hear nothing from now on, as while a robot speaks itself; what was said before is labelled"),
        ("unmute", "hear again"),
        ("pause", "hear and see nothing until resume (devices stay open)"),
        ("resume", "go on after pause"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("streams", nargs="*", metavar="STREAM", help="names (default: all)")
        if name == "mute":
            command.add_argument("--for", dest="for_s", type=seconds, metavar="TIME", help="2s, 500ms, 1min …")
    add = commands.add_parser("add", help="begin a further stream")
    add.add_argument("stream", metavar="[NAME=]SOURCE", help=SOURCE_HELP)
    commands.add_parser("remove", help="end a stream, after its last label").add_argument("stream", metavar="STREAM")
    change = commands.add_parser("set", help="change a setting until the run ends")
    change.add_argument("change", metavar="KEY=VALUE", help=f"one of {', '.join(SETTABLE)}")
    options = parser.parse_args()
    with Control(options.endpoint, path=options.control) as control:
        match options.command:
            case "status":
                status = control.status()
                print(f"run {status.run}: {status.state}, up for {status.uptime_s:.0f} s")
                for name, stream in status.streams.items():
                    print(stream_line(name, stream))
            case "mute":
                print(control.mute(*options.streams, for_s=options.for_s))
            case "add":
                print(control.add(options.stream))
            case "remove":
                print(control.remove(options.stream))
            case "set":
                print(control.set(options.change))
            case name:
                print(getattr(control, name)(*options.streams))
    return 0
