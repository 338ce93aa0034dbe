"""Draw the terminal's live view as an SVG, from the messages of a real run.

    stream-listen --json --windows > run.jsonl      (in another terminal, while stream-run runs)
    python tools/make_picture.py run.jsonl 13.3 docs/live.svg

The picture shows the view at a media time, here 13.3 s.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from rich.console import Console

from emostream.stream.emotion import decode_emotion
from emostream.stream.status import Status, StreamStatus
from emostream.stream.view import LiveView


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("messages", type=Path)
    parser.add_argument("time_s", type=float)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    messages = [decode_emotion(line) for line in options.messages.read_bytes().splitlines()]
    shown = [message for message in messages if message.end_s <= options.time_s]
    picture = Console(record=True, width=104, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    view = LiveView(Console(file=io.StringIO()), list(dict.fromkeys(message.stream for message in shown)), "emostream")
    for message in shown:
        view.emotion(message)
        if message.kind == "utterance":
            picture.print(view.label_line(message))
    streams = {
        name: StreamStatus(state="running", heard=of[-1].utterance, labelled=sum(m.kind == "utterance" for m in of))
        for name in dict.fromkeys(message.stream for message in shown)
        for of in [[message for message in shown if message.stream == name]]
    }
    view.status(Status(state="running", streams=streams))
    view.close()
    picture.print(view.render())
    picture.save_svg(str(options.out), title="stream-run --config config.toml")


if __name__ == "__main__":
    main()
