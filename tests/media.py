"""Media files for tests, written by PyAV when needed: ordinary, odd and damaged ones.

Every maker writes to the given path, whose suffix chooses container and codecs, and returns it. Speech and face come
from the demo clip, so no test needs a speech synthesiser, a download or the ffmpeg program.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np

DEMO = Path(__file__).parent.parent / "stream" / "sources" / "demo.mp4"
RATE_HZ = 16_000
FPS = 25

_AUDIO_CODECS = {
    ".wav": "pcm_s16le", ".avi": "pcm_s16le", ".flac": "flac", ".mkv": "flac", ".mp4": "aac", ".ts": "mp2",
    ".mp3": "libmp3lame", ".ogg": "libopus", ".webm": "libopus",
}  # fmt: skip
_FORMATS = {".mkv": "matroska", ".ts": "mpegts"}  # where FFmpeg's name differs from the suffix
_PIECE = 1024  # samples


# Real material


@cache
def _demo_samples() -> np.ndarray:
    resampler = av.AudioResampler("s16", "mono", RATE_HZ)
    with av.open(str(DEMO)) as container:
        pieces = [part.to_ndarray()[0] for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    samples = np.concatenate(pieces)
    samples.flags.writeable = False
    return samples


@cache
def speech_samples(seconds: float = 4.0) -> np.ndarray:
    """The first seconds of the demo clip's sound, (n,) int16 at 16 kHz, read-only: 0.5 s of silence, a sentence from
    0.5 to 3.2 s, silence until 5.2 s, the next sentence until 9.2 s, … (stream/sources/demo.json has all times)."""
    samples = _demo_samples()[: round(seconds * RATE_HZ)]
    if len(samples) < round(seconds * RATE_HZ):
        raise ValueError(f"the demo clip is shorter than {seconds} s")
    return samples


@cache
def face_frames(n: int = 50) -> tuple[np.ndarray, ...]:
    """The demo clip's first ``n`` frames, each (360, 480, 3) BGR uint8, read-only: 25 a second, a face in each."""
    images = []
    with av.open(str(DEMO)) as container:
        for frame in container.decode(video=0):
            if len(images) == n:
                break
            images.append(frame.to_ndarray(format="bgr24"))
            images[-1].flags.writeable = False
    if len(images) < n:
        raise ValueError(f"the demo clip has only {len(images)} frames, not {n}")
    return tuple(images)


def gray(image: np.ndarray) -> np.ndarray:
    """(height, width, 3) BGR → (height, width), as sources deliver frames."""
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def faceless_frames(n: int = 50, width: int = 320, height: int = 240) -> list[np.ndarray]:
    """A drifting gradient with noise: images without a face."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, width, dtype=np.float32)[None, :, None] * np.ones((height, 1, 3), np.float32)
    noise = rng.integers(0, 40, (n, height, width, 1))
    return [(np.roll(ramp, 5 * i, axis=1) + noise[i]).astype(np.uint8) for i in range(n)]


# The general maker


def write_media(
    path: Path,
    *,
    speech: np.ndarray | None = None,
    rate: int = RATE_HZ,
    layout: str = "mono",
    frames: Iterable[np.ndarray] | None = None,
    fps: int = FPS,
    vfr: bool = False,
    faststart: bool = False,
) -> Path:
    """Write sound, frames, or both.

    ``speech``: (n,) int16 at ``rate``, put on every channel of ``layout`` ("mono", "stereo", "7.1", …).
    ``frames``: BGR uint8 images, all of one even size. ``vfr`` spaces them unevenly: 1/fps, 3/fps, 1/fps, 2/fps, …
    ``faststart`` puts an MP4's index at the front. Suffixes: .avi .mkv .mp4 .ts, and
    for sound alone .flac .mp3 .ogg .wav .webm too.
    """
    suffix = path.suffix
    options = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(path), "w", format=_FORMATS.get(suffix, suffix[1:]), options=options) as container:
        audio = video = None
        images = list(frames) if frames is not None else []
        if speech is not None:
            audio = container.add_stream(_AUDIO_CODECS[suffix], rate=rate, layout=layout)
            audio.time_base = Fraction(1, rate)
        if images:
            video = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "threads": "1"})
            video.height, video.width = images[0].shape[:2]
            video.pix_fmt = "yuv420p"
            video.gop_size = fps
            video.max_b_frames = 0
            video.codec_context.time_base = Fraction(1, fps)
        container.start_encoding()  # writes the header even if no frame follows
        sound = _sound(speech, rate, layout) if speech is not None else []
        for frame in sorted([*sound, *_pictures(images, fps, vfr)], key=lambda frame: frame.pts * frame.time_base):
            stream = audio if isinstance(frame, av.AudioFrame) else video
            container.mux(stream.encode(frame))
        for stream in (audio, video):
            if stream is not None:
                container.mux(stream.encode(None))
    return path


def _sound(samples: np.ndarray, rate: int, layout: str) -> list[av.AudioFrame]:
    channels = av.AudioLayout(layout).nb_channels
    pieces = []
    for start in range(0, len(samples), _PIECE):
        packed = np.repeat(samples[start : start + _PIECE], channels)[None]
        frame = av.AudioFrame.from_ndarray(packed.astype(np.int16), "s16", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        pieces.append(frame)
    return pieces


def _pictures(images: list[np.ndarray], fps: int, vfr: bool) -> list[av.VideoFrame]:
    pictures, pts = [], 0
    for i, image in enumerate(images):
        frame = av.VideoFrame.from_ndarray(image, "bgr24")
        frame.pts, frame.time_base = pts, Fraction(1, fps)
        pts += (1, 3, 1, 2)[i % 4] if vfr else 1
        pictures.append(frame)
    return pictures


def _at_rate(rate: int, seconds: float) -> np.ndarray:
    """Speech at another rate, by linear interpolation: good enough as the input of a test."""
    samples = speech_samples(seconds)
    times = np.arange(round(seconds * rate)) * (RATE_HZ / rate)
    return np.interp(times, np.arange(len(samples)), samples).astype(np.int16)


# Whole files


def talking_face(path: Path, seconds: float = 4.0) -> Path:
    return write_media(path, speech=speech_samples(seconds), frames=face_frames(round(seconds * FPS)))


def audio_only(path: Path, seconds: float = 4.0, rate: int = RATE_HZ, layout: str = "mono") -> Path:
    """Speech as .wav or .flac; also at 8 kHz (``rate=8000``), at 192 kHz, or in eight channels (``layout="7.1"``)."""
    return write_media(path, speech=_at_rate(rate, seconds), rate=rate, layout=layout)


def video_only(path: Path, n: int = 50) -> Path:
    return write_media(path, frames=face_frames(n))


# Odd files


def silent_audio(path: Path, seconds: float = 3.0) -> Path:
    """Digital zero throughout."""
    return write_media(path, speech=np.zeros(round(seconds * RATE_HZ), np.int16))


def undecodable(path: Path) -> Path:
    """A track of FLAC, of which no packet is FLAC."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("flac", rate=RATE_HZ, layout="mono")
        container.start_encoding()
        for n in range(20):
            packet = av.Packet(bytes(range(100, 200)))
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 10), n, n
            container.mux(packet)
    return path


def zero_length_audio(path: Path) -> Path:
    """A .wav file with a header and no samples."""
    return write_media(path, speech=np.zeros(0, np.int16))


def no_face(path: Path, n: int = 50) -> Path:
    """Speech, and frames without a face."""
    return write_media(path, speech=speech_samples(n / FPS), frames=faceless_frames(n))


def variable_frame_rate(path: Path, n: int = 40) -> Path:
    """Frames 40, 120, 40, 80 ms apart and so on, with speech of the same length; .mkv or .mp4."""
    return write_media(path, speech=speech_samples(round(n * 7 / 4 / FPS, 2)), frames=face_frames(n), vfr=True)


# Broken files


def truncated_mp4(path: Path, faststart: bool = True, keep: float = 0.5) -> Path:
    """The first half of an .mp4. With its index in front, it opens and ends early; otherwise the index is lost."""
    write_media(path, speech=speech_samples(4.0), frames=face_frames(100), faststart=faststart)
    whole = path.read_bytes()
    path.write_bytes(whole[: round(len(whole) * keep)])
    return path


def corrupt_middle(path: Path, share: float = 0.2) -> Path:
    """A .ts, .mkv or .mp4 file whose middle ``share`` is overwritten with random bytes; both ends are intact."""
    talking_face(path)
    data = bytearray(path.read_bytes())
    length = round(len(data) * share)
    start = (len(data) - length) // 2
    data[start : start + length] = np.random.default_rng(0).bytes(length)
    path.write_bytes(data)
    return path


def damaged(path: Path, data: bytes, seed: int) -> Path:
    """``data`` cut off, with bits flipped or with blocks zeroed, anywhere or near the start, as ``seed`` chooses."""
    rng = np.random.default_rng(seed)
    values = np.frombuffer(data, np.uint8).copy()
    within = len(values) if rng.random() < 0.5 else min(len(values), 2000)
    match rng.integers(3):
        case 0:
            values = values[: rng.integers(1, within)]
        case 1:
            places = rng.integers(0, within, 2 ** rng.integers(0, 9))
            values[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
        case _:
            for start in rng.integers(0, within, rng.integers(1, 5)):
                values[start : start + rng.integers(1, within)] = 0
    path.write_bytes(values.tobytes())
    return path


def text_file(path: Path) -> Path:
    """Text under the name of a media file."""
    path.write_text("This is a letter, not a film.\n" * 200, encoding="utf-8")
    return path


def empty_file(path: Path) -> Path:
    """A file without a single byte."""
    path.write_bytes(b"")
    return path
