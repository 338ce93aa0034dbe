"""Coverage-guided fuzzing of everything that reads bytes from elsewhere: only emostream's own errors may come out.

    python tools/fuzz.py [--seconds S] [TARGET ...]

Each target runs in a process of its own. Exits with 1 at the first input that causes another error, hangs for 10 s or
needs 2 GB; the input is left in the current folder. Needs atheris, which has wheels for Linux on x86 only: where it
cannot be imported, a line says so, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path

import msgspec

from emostream.errors import ConfigError

SCRATCH = Path(tempfile.gettempdir())


def target_messages() -> tuple[Callable[[bytes], object], list[bytes]]:
    import numpy as np

    from emostream.stream.messages import Codec, Pcm

    codec = Codec()
    pcm = Pcm(stream="a", seq=1, media_start_ns=0, media_end_ns=10, captured_ns=5, samples=np.zeros(4, np.int16))
    parts = codec.encode(pcm)
    mark = b"\x00--\x00"
    return lambda data: codec.decode(data.split(mark)), [mark.join(bytes(part) for part in parts)]


def target_labels() -> tuple[Callable[[bytes], object], list[bytes]]:
    from emostream.stream.emotion import decode_emotion

    return decode_emotion, [b'{"schema":"emostream/1","kind":"utterance","stream":"a","label":"joy"}']


def target_status() -> tuple[Callable[[bytes], object], list[bytes]]:
    from emostream.stream.status import Status, StreamStatus, decode_status, encode_status

    status = Status(run="1", state="running", uptime_s=1.0, streams={"a": StreamStatus()}, nodes={})
    return decode_status, [encode_status(status)]


def target_config() -> tuple[Callable[[bytes], object], list[bytes]]:
    from emostream.stream.config import load_config

    def read(data: bytes) -> None:
        (path := SCRATCH / "config.toml").write_bytes(data)
        load_config(path, [])

    return read, [Path("config.toml").read_bytes(), b'[streams]\na = "rtsp://u:p@h/x"\n']


def target_settings() -> tuple[Callable[[bytes], object], list[bytes]]:
    from emostream.stream.config import load_config
    from emostream.stream.source_spec import masked

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        masked(text)
        load_config(None, [text])

    return read, [b"speech.hangover_ms=200", b'streams={a="file:x"}', b"bus.emotion=tcp://0.0.0.0:1"]


def target_sources() -> tuple[Callable[[bytes], object], list[bytes]]:
    from emostream.stream.config import parse_stream
    from emostream.stream.source_spec import masked

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        masked(text)
        parse_stream(text)

    return read, [
        b"file:/a/b",
        b"a=file:b,camera:1",
        b"rtsp://u:p@h:554/x?key=1",
        b"camera:0",
        b"microphone:USB",
        b"https://h/p#f",
    ]


def target_manifests() -> tuple[Callable[[bytes], object], list[bytes]]:
    from emostream.engines.bundle import BUNDLES, open_bundle

    folder = SCRATCH / "bundle"
    folder.mkdir(exist_ok=True)

    def read(data: bytes) -> None:
        (folder / "manifest.json").write_bytes(data)
        open_bundle(str(folder))

    return read, [(BUNDLES / "ekman7" / "manifest.json").read_bytes()]


def target_profiles() -> tuple[Callable[[bytes], object], list[bytes]]:
    from emostream.engines.bundle import open_bundle
    from emostream.stream.profile import Profile

    bundle = open_bundle("ekman7")

    def read(data: bytes) -> None:
        (path := SCRATCH / "profile").write_bytes(data)
        Profile(path, bundle)

    return read, [json.dumps({"bundle": bundle.id, "streams": {}}).encode()]


def target_archives() -> tuple[Callable[[bytes], object], list[bytes]]:
    import io
    import shutil
    import zipfile

    from emostream.stream.archives import unpack_zip

    seed = io.BytesIO()
    with zipfile.ZipFile(seed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("voice/am/final.mdl", b"am" * 40)
        archive.writestr("voice/conf", b"conf")

    def read(data: bytes) -> None:
        (path := SCRATCH / "archive.zip").write_bytes(data)
        shutil.rmtree(SCRATCH / "unpacked", ignore_errors=True)
        unpack_zip(path, SCRATCH / "unpacked", max_bytes=1 << 20, max_entries=20)

    return read, [seed.getvalue()]


def target_control() -> tuple[Callable[[bytes], object], list[bytes]]:
    """Requests, one a line, to one run; what it then sends its nodes and answers."""
    from emostream.stream.config import Config
    from emostream.stream.control import Reply, decode_request
    from emostream.stream.messages import Codec
    from emostream.stream.steering import Steering

    codec, answer = Codec(), msgspec.json.Encoder()
    config = Config(streams=[{"name": "a", "source": "demo"}, {"name": "b", "source": "file:x"}])

    def read(data: bytes) -> None:
        steering = Steering(config)

        def add(text: str) -> str:
            stream = steering.add(text)
            steering.joined(stream, ["audio.x"], ["audio"], 0)
            return stream.name

        for i, line in enumerate(data.split(b"\n")):
            ok, text = True, ""
            try:
                text = steering.obey(decode_request([line]), 1 << 60, add)
            except (msgspec.DecodeError, ConfigError) as error:
                ok, text = False, str(error)
            codec.decode(codec.encode(steering.orders))
            answer.encode(Reply(ok=ok, text=text))
            steering.is_muted("a", (1 << 60) + i)

    return read, [
        b'{"command":"mute","streams":["a"],"for_s":2.5,"sent_ns":7}\n{"command":"unmute"}',
        b'{"command":"add","value":"c=file:y"}\n{"command":"remove","streams":["c"]}\n{"command":"pause"}',
        b'{"command":"set","value":"speech.threshold=0.6"}\n{"command":"set","value":"x=1"}',
    ]


def target_producers() -> tuple[Callable[[bytes], object], list[bytes]]:
    """Messages of another program (``zmq:``), frames between marks; then what the cores make of them."""
    from emostream.stream.clock import VirtualClock
    from emostream.stream.messages import Codec, Health, Words
    from emostream.stream.nodes.capture import Cores, _on_timeline
    from emostream.stream.source_spec import SourceSpec
    from emostream.stream.sources import external
    from emostream.stream.sources.base import HeardWords

    now_s = 1_790_000_000
    external.time = types.SimpleNamespace(time_ns=lambda: now_s * 1_000_000_000)
    both, codec, mark = frozenset({"audio", "video"}), Codec(), b"\x00--\x00"
    spec = SourceSpec.parse("zmq:ipc:///tmp/x")

    def read(data: bytes) -> None:
        source = external.ExternalSource(spec, both, 10, VirtualClock())
        cores = Cores("a", frozenset({"audio"}), None, 0, "auto")
        frames = data.split(mark)
        for i in range(0, len(frames), 2):
            try:
                item = source._read(frames[i : i + 2] if frames[i + 1 : i + 2] != [b""] else frames[i : i + 1], 10**9)
            except external.Refused:
                continue
            if isinstance(item, HeardWords):
                codec.encode(Words(stream="a", words=_on_timeline(item.words, 0)))
            elif item is not None:
                for message in cores.push(item, 0):
                    codec.encode(message)
        codec.encode(Health(stream="a", node="audio.a", state="running", counters=dict(source.counters)))

    sound = b'{"type":"audio","rate":16000,"channels":2,"seq":1}' + mark + bytes(64)
    timed = b'{"type":"audio","time":1790000000.1,"format":"f32le","seq":2}' + mark + bytes(64)
    words = b'{"type":"words","words":[{"word":"so","start":1790000000,"end":1790000000.5}]}' + mark
    gray = b'{"type":"video","format":"gray8","width":4,"height":4}' + mark + bytes(16)
    jpeg = b'{"type":"video","format":"jpeg"}' + mark + b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\xff\xd9"
    return read, [mark.join((sound, timed)), mark.join((words, gray)), mark.join((jpeg, sound)), b'{"type":"end"}']


def _replayer() -> Callable[[Path], None]:
    """A function that reads a recording as ``replay:`` does, and makes messages of it."""
    from emostream.stream import recorded
    from emostream.stream.messages import Codec
    from emostream.stream.nodes.capture import Cores
    from emostream.stream.sources.base import AudioChunk, SeenFaces
    from emostream.stream.sources.replay import ReplaySource

    codec = Codec()
    Cores("a", frozenset({"audio"}), None, 0, "auto")  # imports, to be instrumented

    def play(path: Path) -> None:
        for name in recorded.Recording.of(path).streams:
            source = ReplaySource(f"{path}#{name}", frozenset({"audio", "video"}))
            source.open()
            cores = Cores("a", frozenset({"audio"}), None, 0, "auto")
            for item in source.items():
                if isinstance(item, AudioChunk):
                    for message in cores.push(item, 0):
                        codec.encode(message)
                elif isinstance(item, SeenFaces):
                    codec.encode(item.face)
            recorded.labels(path, name)
            for _ in recorded.pictures(path, name):
                pass

    return play


def _recording(path: Path, messages: list[tuple[str, bytes]]) -> bytes:
    """A recording of these messages (channel and JSON), neither compressed nor with checksums."""
    from mcap.writer import CompressionType, Writer

    with path.open("wb") as file:
        writer = Writer(file, compression=CompressionType.NONE, enable_crcs=False)
        writer.start("emostream-recording/1", "fuzz")
        writer.add_metadata("emostream", {"run": "r"})
        schema = writer.register_schema("x", "jsonschema", b"{}")
        channels: dict[str, int] = {}
        for topic, content in messages:
            if topic not in channels:
                channels[topic] = writer.register_channel(topic, "json", schema)
            writer.add_message(channels[topic], 0, content, 0)
        writer.finish()
    return path.read_bytes()


def _recorded_messages() -> list[tuple[str, bytes]]:
    import base64

    from emostream.stream.emotion import Emotion, Latency, encode_emotion

    label = Emotion(
        kind="utterance", stream="a", seq=3, utterance=4, start_s=0.5, end_s=3.0, label="joy", confidence=0.7,
        uncertain=False, probabilities={"joy": 1.0}, text="so", words=[], modalities={}, captured_ns=1, published_ns=2,
        latency_ms=Latency(4.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0), bundle="b@0", backend="cpu",
    )  # fmt: skip
    crop, sound = (base64.b64encode(bytes(size)).decode() for size in (48 * 48, 1024))
    person = f'{{"id":1,"crop":"{crop}","box":[0.1,0.1,0.2,0.2],"score":0.9}}'
    return [
        ("/a/sound", f'{{"media_ns":0,"data":"{sound}","sample_rate":16000}}'.encode()),
        ("/a/faces", f'{{"media_ns":100,"faces":1,"people":[{person}]}}'.encode()),
        ("/a/utterance", encode_emotion(label)),
        ("/a/picture", b'{"media_ns":100,"data":"/9j/"}'),
    ]


def target_recordings() -> tuple[Callable[[bytes], object], list[bytes]]:
    """MCAP files."""
    path, play = SCRATCH / "run.mcap", _replayer()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        play(path)

    return read, [_recording(path, _recorded_messages())]


def target_recorded() -> tuple[Callable[[bytes], object], list[bytes]]:
    """What is in the messages of an MCAP file that is sound as such: a channel and its JSON on each line."""
    path, play = SCRATCH / "run.mcap", _replayer()

    def read(data: bytes) -> None:
        lines = [line.partition(b" ") for line in data.split(b"\n")]
        messages = [(topic.decode("ascii", "replace"), content) for topic, _, content in lines]
        _recording(path, messages)
        play(path)

    seeds = [topic.encode() + b" " + content for topic, content in _recorded_messages()]
    return read, [b"\n".join(seeds), *seeds]


TARGETS = {name.removeprefix("target_"): make for name, make in list(globals().items()) if name.startswith("target_")}


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends."""
    import atheris

    with atheris.instrument_imports(include=["emostream", "mcap", "zipfile"]):
        read, seeds = TARGETS[name]()
    from emostream.errors import EmostreamError

    logging.disable()
    corpus = SCRATCH / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(seeds):
        (corpus / str(i)).write_bytes(seed)

    def one(data: bytes) -> None:
        with contextlib.suppress(EmostreamError, msgspec.DecodeError):
            read(data)

    limits = [
        f"-max_total_time={seconds}",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-max_len=20000",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz what reads bytes from elsewhere.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: %(default)s)")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("skipped: atheris is not installed (pip install atheris; it has wheels for Linux on x86 only)")
        return 0
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}")
    if arguments.in_process:
        global SCRATCH
        with tempfile.TemporaryDirectory() as folder:
            SCRATCH = Path(folder)
            fuzz(arguments.targets[0], arguments.seconds)
        return 0
    for name in arguments.targets or TARGETS:
        command = [sys.executable, __file__, "--in-process", "--seconds", str(arguments.seconds), name]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        lines = done.stderr.splitlines()
        executed = next((line.split()[-1] for line in lines if "number_of_executed_units" in line), "?")
        print(f"{name}: {executed} inputs in {arguments.seconds} s, exit code {done.returncode}", flush=True)
        if done.returncode:
            print("\n".join([*done.stdout.splitlines()[-20:], *lines[-20:]]))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
