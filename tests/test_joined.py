"""stream/sources/joined.py: joined recordings, of which FFmpeg reads only the first."""

from __future__ import annotations

import http.server
import io
import itertools
import os
import random
import re
import threading
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.stream.clock import SystemClock
from emostream.stream.source_spec import SourceSpec
from emostream.stream.sources import DEMO
from emostream.stream.sources.base import AudioChunk, Source, VideoFrame
from emostream.stream.sources.file import FileSource
from emostream.stream.sources.joined import Splitter, parts_of, wav_goes_on
from emostream.stream.sources.network import LiveSource, Pipe
from tests.media import face_frames

pytestmark = pytest.mark.slow  # all of them together

RATE_HZ = 16_000
CODECS = {
    "wav": "pcm_s16le", "aiff": "pcm_s16be", "caf": "pcm_s16be", "flv": "adpcm_swf", "wmv": "wmav2", "mp4": "aac",
    "mov": "pcm_s16le", "3gp": "aac", "ogg": "libopus", "flac": "flac", "mkv": "pcm_s16le",
    "mp3": "libmp3lame", "aac": "aac", "avi": "pcm_s16le",
}  # fmt: skip


def tone(path: Path, hz: float, seconds: float, rate_hz: int = RATE_HZ, codec: str = "", **options: str) -> bytes:
    rate_hz = 22_050 if path.suffix == ".flv" else rate_hz
    samples = (9000 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.int16)
    with av.open(str(path), "w", options=options) as out:
        track = out.add_stream(codec or CODECS[path.suffix[1:]], rate=rate_hz, layout="mono")
        track.bit_rate = 64_000
        for at in range(0, len(samples), 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, at : at + 1024], format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate_hz, at
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
    return path.read_bytes()


def heard(path: Path, from_s: float | None = None) -> list[tuple[float, float]]:
    """Time in seconds and pitch in Hz of each half-second of sound."""
    source = FileSource(path, frozenset({"audio"}), 10)
    source.open()
    if from_s is not None:
        source.seek(round(from_s * 1e9))
    return pitches(source)


def pitches(source: Source) -> list[tuple[float, float]]:
    found = []
    for item in source.items():
        if isinstance(item, AudioChunk) and len(item.samples) > 200:
            power = np.abs(np.fft.rfft(item.samples[:, 0] * np.hanning(len(item.samples)), 32_768))
            found.append((item.media_ns / 1e9, float(power.argmax() * item.rate_hz / 32_768)))
    source.close()
    return found


def heard_in_pipe(path: Path, fifo: Path, live: bool = True) -> list[tuple[float, float]]:
    """What is heard of a file that somebody writes into a FIFO, in pieces of any size: by a run (``live``), or by
    ``stream-label``."""
    os.mkfifo(fifo)

    def write() -> None:
        data, rng = path.read_bytes(), random.Random(len(str(path)))
        with suppress(BrokenPipeError), fifo.open("wb", buffering=0) as pipe:
            while data:
                count = rng.choice((1, 50, 4000, 70_000))
                data = data[pipe.write(data[:count]) :]

    threading.Thread(target=write, daemon=True).start()
    if not live:
        return heard(fifo)
    source = Pipe(fifo, frozenset({"audio"}), 10, SystemClock())
    source.open()
    return pitches(source)


def heard_at_url(path: Path, ranges: bool) -> tuple[list[tuple[float, float]], int]:
    """What is heard of a file on a server, with or without ranges, and how many bytes that server sent."""
    sent = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            data = path.read_bytes()
            span = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if ranges else None
            begin, end = (int(span[1]), int(span[2] or len(data) - 1) + 1) if span else (0, len(data))
            self.send_response(206 if span else 200)
            if ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(end - begin))
            self.end_headers()
            with suppress(OSError):
                for at in range(begin, end, 4096):
                    sent.append(self.wfile.write(data[at : min(end, at + 4096)]))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/joined{path.suffix}"
        source = LiveSource(SourceSpec.parse(url), frozenset({"audio"}), 10, SystemClock(), 5)
        source.open()
        assert not source.live
        sound = pitches(source)
        server.shutdown()
    return sound, sum(sent)


GLUED = [suffix for suffix in CODECS if suffix not in ("mp3", "aac")]


@pytest.mark.parametrize("suffix", GLUED)
def test_all_recordings_of_a_file_are_read_on_one_timeline(tmp_path, caplog, suffix):
    caplog.set_level("INFO")
    content = [tone(tmp_path / f"{n}.{suffix}", 400 * n, 1.0 + n / 10) for n in (1, 2, 3)]
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(content))
    sound = heard(joined)
    times = [at_s for at_s, _ in sound]
    assert times == sorted(times) and max(np.diff(times)) < 0.4
    for at_s, hz in ((0.6, 400), (1.7, 800), (3.0, 1200)):  # from 0, 1.1 and 2.3 s on
        near = min(sound, key=lambda each, at_s=at_s: abs(each[0] - at_s))
        assert near[1] == pytest.approx(hz, rel=0.05), (at_s, sound)
    assert "holds 3 recordings, one after another; all are read" in caplog.text
    assert "WARNING" not in {record.levelname for record in caplog.records}
    late = heard(joined, from_s=2.6)
    assert late and late[-1][0] == pytest.approx(times[-1], abs=0.1)


PIPED = {"mp4": {"movflags": "faststart"}, "mov": {"movflags": "faststart"}, "3gp": {"movflags": "faststart"}}


@pytest.mark.parametrize(
    "suffix", [each if each in ("wav", "ogg", "mp4") else pytest.param(each, marks=pytest.mark.long) for each in GLUED]
)
@pytest.mark.parametrize("where", ["pipe", "label", "url", "url without ranges"])
def test_a_pipe_and_a_url_give_what_the_file_gives(tmp_path, caplog, suffix, where):
    caplog.set_level("INFO")
    content = [tone(tmp_path / f"{n}.{suffix}", 400 * n, 1.0 + n / 10, **PIPED.get(suffix, {})) for n in (1, 2, 3)]
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(content))
    if where in ("pipe", "label"):
        sound = heard_in_pipe(joined, tmp_path / "pipe", live=where == "pipe")
    else:
        sound, sent = heard_at_url(joined, ranges=where == "url")
        assert sent < 2.5 * joined.stat().st_size or joined.stat().st_size < 1 << 19
    expected = heard(joined)
    assert len(sound) == pytest.approx(len(expected), abs=3)
    for at_s, hz in ((0.6, 400), (1.7, 800), (3.0, 1200)):
        near = min(sound, key=lambda each, at_s=at_s: abs(each[0] - at_s))
        assert near[0] == pytest.approx(at_s, abs=0.2) and near[1] == pytest.approx(hz, rel=0.05), (at_s, sound)
    assert caplog.text.count("another recording follows") == (0 if where == "label" else 2)


def test_wav_that_was_written_into_a_pipe_has_no_lengths(tmp_path):
    content = [bytearray(tone(tmp_path / f"{n}.wav", 400 * n, 1.0)) for n in (1, 2)]
    for one in content:
        one[4:8] = b"\xff\xff\xff\xff"
        at = one.index(b"data") + 4
        one[at : at + 4] = b"\xff\xff\xff\xff"
    joined = tmp_path / "joined.wav"
    joined.write_bytes(b"".join(content))
    sound = heard_in_pipe(joined, tmp_path / "pipe")
    assert {round(hz, -1) for at_s, hz in sound if 0.3 < at_s % 1 < 0.7} == {400, 800}


@given(st.lists(st.binary(max_size=900), min_size=1, max_size=4), st.lists(st.integers(1, 900), min_size=1))
def test_no_byte_is_lost_or_changed_wherever_recordings_begin(parts, sizes):
    """FLAC is found by its beginning; whatever lies between is passed on."""
    content = [b"fLaC\0\0\0\x22" + part for part in parts]
    splitter = Splitter(io.BytesIO(b"".join(content)), "x")
    found, take = [], itertools.cycle(sizes)
    while True:
        found.append(b"".join(iter(lambda: splitter.read(next(take)), b"")))
        if not splitter.next():
            break
    assert found == content


@pytest.mark.parametrize("suffix", ["wav", "caf", "mov", "flac", "mkv", "mp3", "aac", "avi"])
@pytest.mark.parametrize("rates_hz", [(16_000, 48_000), (48_000, 16_000)])
def test_the_second_may_have_another_rate(tmp_path, caplog, suffix, rates_hz):
    content = [tone(tmp_path / f"{n}.{suffix}", 400 * (n + 1), 2.0, rate) for n, rate in enumerate(rates_hz)]
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(content))
    sound = heard(joined)
    assert sound[-1][0] == pytest.approx(4.0, abs=0.3)
    for at_s, hz in ((1.0, 400), (3.0, 800)):
        near = min(sound, key=lambda each, at_s=at_s: abs(each[0] - at_s))
        assert near[0] == pytest.approx(at_s, abs=0.2) and near[1] == pytest.approx(hz, rel=0.05)
    assert "missing" not in caplog.text and "cut short" not in caplog.text


def test_a_part_without_the_track_is_passed_over_in_silence(tmp_path, caplog):
    path = tmp_path / "joined.mp4"
    sound = tone(tmp_path / "a.mp4", 400, 1.0)
    path.write_bytes(DEMO.read_bytes() + sound + DEMO.read_bytes())
    source = FileSource(path, frozenset({"video"}), 10)
    source.open()
    times = [item.media_ns / 1e9 for item in source.items() if isinstance(item, VideoFrame)]
    source.close()
    with av.open(str(DEMO)) as clip:
        length_s = clip.duration / av.time_base
    (gap,) = [(a, b) for a, b in pairwise(times) if b - a > 0.5]
    assert gap == pytest.approx((length_s, length_s + 1.0), abs=0.15)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_the_second_may_have_another_codec(tmp_path):
    path = tmp_path / "joined.mkv"
    path.write_bytes(tone(tmp_path / "a.mkv", 400, 1.0) + tone(tmp_path / "b.mkv", 800, 1.0, codec="libmp3lame"))
    assert {round(hz, -2) for at_s, hz in heard(path) if 0.4 < at_s % 1 < 0.6} == {400, 800}


@pytest.mark.parametrize("suffix", CODECS)
def test_one_recording_is_one(tmp_path, suffix):
    path = tmp_path / f"one.{suffix}"
    tone(path, 400, 1.0)
    with av.open(str(path)) as container:
        assert parts_of(path, container.format.name) == []


@pytest.mark.parametrize("codecs", [("mp2", "aac"), ("aac", "mp2"), ("mp2", "ac3"), ("ac3", "aac"), ("mp2", "mp2")])
def test_a_track_of_mpeg_ts_may_go_on_with_another_codec_and_rate(tmp_path, caplog, codecs):
    caplog.set_level("INFO")
    rates_hz = (48_000, 32_000)
    joined = tmp_path / "joined.ts"
    content = [tone(tmp_path / f"{n}.ts", 400 * (n + 1), 2.0, rates_hz[n], codec) for n, codec in enumerate(codecs)]
    joined.write_bytes(b"".join(content))
    for sound in (heard(joined), heard_in_pipe(joined, tmp_path / "pipe")):
        assert sound[-1][0] == pytest.approx(4.0, abs=0.15)
        for at_s, hz in ((1.0, 400), (2.4, 800), (3.6, 800)):
            near = min(sound, key=lambda each, at_s=at_s: abs(each[0] - at_s))
            assert near[0] == pytest.approx(at_s, abs=0.1) and near[1] == pytest.approx(hz, rel=0.05), (at_s, sound)
    assert "damaged" not in caplog.text
    assert caplog.text.count(f"its audio goes on as {codecs[1]}") == 2 * (codecs[0] != codecs[1])


@pytest.mark.parametrize("codecs", [("mpeg2video", "libx264"), ("libx264", "mpeg2video"), ("libx265", "libx264")])
def test_so_may_its_pictures(tmp_path, codecs):
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(pictures(tmp_path / f"{n}.ts", codec) for n, codec in enumerate(codecs)))
    source = FileSource(joined, frozenset({"video"}), 10)
    source.open()
    times = [item.media_ns / 1e9 for item in source.items() if isinstance(item, VideoFrame)]
    source.close()
    assert times[-1] == pytest.approx(4.0, abs=0.2) and max(np.diff(times)) < 0.6, times


def pictures(path: Path, codec: str) -> bytes:
    """Two seconds of them."""
    with av.open(str(path), "w") as out:
        track = out.add_stream(codec, rate=25, options={"x265-params": "log-level=none"})
        track.width, track.height, track.pix_fmt = 480, 360, "yuv420p"
        for n, image in enumerate(face_frames(50)):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(format="yuv420p")
            frame.pts = n
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
    return path.read_bytes()


def test_what_follows_may_be_cut_short_or_nonsense(tmp_path, caplog):
    first = tone(tmp_path / "a.wav", 400, 1.0)
    path = tmp_path / "x.wav"
    for more in (b"RIFF", b"RIFF\xff\xff\xff\xffWAVE", b"\0" * 99, first[:60]):
        path.write_bytes(first + more)
        assert len({round(hz, -1) for _, hz in heard(path)}) == 1
    path.write_bytes(first + first[:20_000])
    assert heard(path)[-1][0] > 1.3


def test_fragments_are_left_to_ffmpeg(tmp_path):
    fragments = [
        tone(tmp_path / f"{n}.mp4", 400, 1.0, movflags="frag_keyframe+empty_moov+default_base_moof") for n in (1, 2)
    ]
    path = tmp_path / "joined.mp4"
    path.write_bytes(b"".join(fragments))
    assert parts_of(path, "mov,mp4,m4a,3gp,3g2,mj2") == []


@pytest.mark.parametrize("told", [0, 100, 32_000])
def test_a_wav_whose_header_is_behind_is_read_to_its_end(tmp_path, told, caplog):
    whole = tone(tmp_path / "a.wav", 440, 2.0)
    pitches = heard(tmp_path / "a.wav")
    at = whole.index(b"data") + 4
    (tmp_path / "a.wav").write_bytes(whole[:at] + told.to_bytes(4, "little") + whole[at + 4 :])
    assert heard(tmp_path / "a.wav") == pitches
    assert ("more sound follows" in caplog.text) == (told > 0)  # FFmpeg itself knows what 0 means


@pytest.mark.parametrize("after", [b"", b"LIST" + (9000).to_bytes(4, "little") + bytes(9000), bytes(4000)])
def test_what_follows_the_samples_of_a_wav_is_no_sound(tmp_path, after):
    path = tmp_path / "a.wav"
    path.write_bytes(tone(path, 440, 1.0) + after)
    assert not wav_goes_on(path)
