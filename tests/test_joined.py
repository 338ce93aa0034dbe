"""stream/sources/joined.py: recordings that were glued together, of which FFmpeg reads the first alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from emostream.stream.sources import DEMO
from emostream.stream.sources.base import AudioChunk, VideoFrame
from emostream.stream.sources.file import FileSource
from emostream.stream.sources.joined import parts_of

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
    """Where its sound is, in seconds, and its pitch there in Hz, by half-seconds of sound."""
    source = FileSource(path, frozenset({"audio"}), 10)
    source.open()
    if from_s is not None:
        source.seek(round(from_s * 1e9))
    found = []
    for item in source.items():
        if isinstance(item, AudioChunk) and len(item.samples) > 200:
            power = np.abs(np.fft.rfft(item.samples[:, 0] * np.hanning(len(item.samples)), 32_768))
            found.append((item.media_ns / 1e9, float(power.argmax() * item.rate_hz / 32_768)))
    source.close()
    return found


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
