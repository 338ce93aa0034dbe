"""Show a recording of `stream-run --record` in Rerun: sound, faces, pictures, estimates, labels, words and the log.

    pip install rerun-sdk==0.41.0 mcap zstandard
    python view.py recordings/emostream-….mcap                  # opens the viewer
    python view.py recordings/*.mcap --save talk.rrd            # or writes a file for it

Files of one run are shown on one time line. Encrypted ones are decrypted first, by age:

    age -d -i me.key -o talk.mcap recordings/emostream-….mcap.age
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import wave
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rerun as rr
from mcap.reader import make_reader

TIME = "time"
PER_S = 100  # points of the sound's curve a second
LEVELS = {1: "DEBUG", 2: "INFO", 3: "WARN", 4: "ERROR", 5: "CRITICAL"}  # of foxglove.Log


def messages(paths: list[Path]) -> Iterator[tuple[str, str, int, Any]]:
    """Stream, kind, Unix time in ns and content of each message; the stream of ``/status`` and ``/log`` is empty."""
    for path in paths:
        with path.open("rb") as file:
            for _, channel, message in make_reader(file).iter_messages():
                stream, _, kind = channel.topic.strip("/").rpartition("/")
                yield stream, kind, message.log_time, json.loads(message.data)


def data_of(content: dict[str, Any]) -> bytes:
    return base64.b64decode(content["data"])


class Sound:
    """The sound of a stream: a curve of its loudest samples, and audio to listen to, from gap to gap."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, list[np.ndarray]]] = []  # from which Unix time (ns), samples
        self.ends_ns, self.rate = 0, 16_000

    def add(self, at_ns: int, samples: np.ndarray, rate: int) -> None:
        """``at_ns``: of the last sample, as the messages have it."""
        self.rate = rate
        length_ns = len(samples) * 1_000_000_000 // rate
        if not self.pieces or abs(at_ns - length_ns - self.ends_ns) > 60_000_000:
            self.pieces.append((at_ns - length_ns, []))
            self.ends_ns = at_ns - length_ns
        self.pieces[-1][1].append(samples)
        self.ends_ns += length_ns

    def log(self, place: str) -> None:
        for start_ns, blocks in self.pieces:
            samples = np.concatenate(blocks)
            step = self.rate // PER_S
            whole = samples[: len(samples) // step * step].astype(np.float32).reshape(-1, step)
            peaks = np.abs(whole).max(1) / 32768
            times = (start_ns + np.arange(len(peaks)) * (1_000_000_000 // PER_S)).astype("datetime64[ns]")
            rr.send_columns(f"{place}/peak", [rr.TimeColumn(TIME, timestamp=times)], rr.Scalars.columns(scalars=peaks))
            rr.set_time(TIME, timestamp=np.datetime64(start_ns, "ns"))
            rr.log(f"{place}/audio", rr.AssetAudio(contents=wav(samples, self.rate), media_type="audio/wav"))


def wav(samples: np.ndarray, rate: int) -> bytes:
    """``samples``: (n,) int16."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def log_message(stream: str, kind: str, content: Any) -> None:
    """All but sound, at the time that was set."""
    if kind == "face":
        size = content["height"], content["width"]
        rr.log(f"{stream}/face", rr.Image(np.frombuffer(data_of(content), np.uint8).reshape(size), color_model="L"))
    elif kind == "picture":
        rr.log(f"{stream}/picture", rr.EncodedImage(contents=data_of(content), media_type="image/jpeg"))
    elif kind == "boxes":
        corners = np.array([[[at["x"], at["y"]] for at in one["points"]] for one in content["points"]]).reshape(
            -1, 4, 2
        )
        low, names = corners.min(1), [text["text"] for text in content["texts"]]
        rr.log(f"{stream}/picture/boxes", rr.Boxes2D(mins=low, sizes=corners.max(1) - low, labels=names))
    elif kind in ("window", "utterance"):
        for name, value in content["probabilities"].items():
            rr.log(f"{stream}/{kind}/{name}", rr.Scalars(value))
        if kind == "utterance":
            rr.log(f"{stream}/label", rr.StateChange(state=content["label"]))
            rr.log(f"{stream}/said", rr.TextLog(f"{content['label']} {content['confidence']:.0%}: {content['text']}"))
    elif kind == "speech":
        rr.log(f"{stream}/speech", rr.StateChange(state=content["event"]))
        words = " ".join(word["word"] for word in content["words"])
        if words:
            rr.log(f"{stream}/words", rr.TextDocument(words))
    elif kind == "log":
        rr.log("log", rr.TextLog(f"{content['name']}: {content['message']}", level=LEVELS.get(content["level"])))


def show(paths: list[Path]) -> None:
    """Log recordings into Rerun's current stream of data."""
    sounds: dict[str, Sound] = defaultdict(Sound)
    for stream, kind, at_ns, content in messages(paths):
        rr.set_time(TIME, timestamp=np.datetime64(at_ns, "ns"))
        if kind == "sound":
            sounds[stream].add(at_ns, np.frombuffer(data_of(content), "<i2"), content["sample_rate"])
        else:
            log_message(stream, kind, content)
    for stream, sound in sounds.items():
        sound.log(f"{stream}/sound")


def main() -> None:
    parser = argparse.ArgumentParser(description="Show recordings of stream-run --record in Rerun.")
    parser.add_argument("recording", nargs="+", type=Path, metavar="FILE.mcap")
    parser.add_argument("--save", type=Path, metavar="FILE.rrd", help="write a file in place of opening the viewer")
    options = parser.parse_args()
    rr.init("emostream", spawn=options.save is None)
    if options.save is not None:
        rr.save(options.save)
    show(sorted(options.recording))


if __name__ == "__main__":
    main()
