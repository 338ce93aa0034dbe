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
from collections.abc import Callable
from pathlib import Path

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


TARGETS = {name.removeprefix("target_"): make for name, make in list(globals().items()) if name.startswith("target_")}


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends."""
    import atheris

    with atheris.instrument_imports(include=["emostream", "zipfile"]):
        read, seeds = TARGETS[name]()
    import msgspec

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
