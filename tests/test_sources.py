"""stream/sources: files, ordinary, odd and broken. (Devices and the network need the real things.)"""

from __future__ import annotations

import struct
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from emostream.errors import SourceError
from emostream.stream.clock import VirtualClock
from emostream.stream.config import Config
from emostream.stream.source_spec import SourceSpec
from emostream.stream.sources import make_source
from emostream.stream.sources.base import AudioChunk, NoTrack, VideoFrame
from emostream.stream.sources.decode import Sampler
from emostream.stream.sources.file import FileSource
from tests import media

_S = 1_000_000_000
BOTH = frozenset({"audio", "video"})


class Read:
    """Everything that a file delivers."""

    def __init__(self, path: Path, wanted: frozenset[str] = BOTH, fps: float = 10) -> None:
        source = FileSource(path, wanted, fps)
        source.open()
        try:
            self.tracks = source.tracks()
            items = list(source.items())
        finally:
            source.close()
        self.audio = [item for item in items if isinstance(item, AudioChunk)]
        self.video = [item for item in items if isinstance(item, VideoFrame)]
        self.missing = {item.medium for item in items if isinstance(item, NoTrack)}
        for chunk in self.audio:
            assert chunk.samples.dtype == np.float32
            assert chunk.samples.ndim == 2
        for frame in self.video:
            assert frame.image.dtype == np.uint8
            assert frame.image.ndim == 2
            assert frame.image.flags.c_contiguous
        for some in (self.audio, self.video):
            times = [item.media_ns for item in some]  # type: ignore[attr-defined]
            assert times == sorted(set(times))
            assert not times or times[0] >= 0

    @property
    def sound(self) -> np.ndarray:
        """The first channel."""
        return np.concatenate([np.zeros(0, np.float32), *(chunk.samples[:, 0] for chunk in self.audio)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes each file once."""
    folder = tmp_path_factory.mktemp("media")
    files: dict[str, Path] = {}

    def make(maker: Callable[..., Path], name: str, **options) -> Path:
        if name not in files:
            files[name] = maker(folder / name, **options)
        return files[name]

    return make


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))


# Sound


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("16k.wav", {}),
        ("8k.wav", {"rate": 8000}),
        ("22k.flac", {"rate": 22_050}),
        ("192k.flac", {"rate": 192_000}),
        ("stereo.wav", {"layout": "stereo"}),
        ("eight.wav", {"layout": "7.1"}),
        ("eight.mkv", {"layout": "7.1", "rate": 48_000}),
    ],
)
def test_every_sample_comes_with_its_time(made, name, options):
    read = Read(made(media.audio_only, name, seconds=2.0, **options))
    rate = options.get("rate", 16_000)
    channels = {"stereo": 2, "7.1": 8}.get(options.get("layout", ""), 1)
    assert read.tracks == {"audio"}
    assert read.missing == {"video"}
    assert len(read.sound) == 2 * rate
    assert {(chunk.rate_hz, chunk.samples.shape[1]) for chunk in read.audio} == {(rate, channels)}
    position = 0
    for chunk in read.audio:
        assert chunk.media_ns == pytest.approx(position * _S / rate, abs=1_000_000)
        position += len(chunk.samples)
        assert chunk.media_end_ns == pytest.approx(position * _S / rate, abs=1_000_001)
    expected = _level(media.speech_samples(2.0)) / 32768
    assert _level(read.sound) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("kind", ["u8", "s16le", "s24le", "s32le", "s64le", "f32le", "f64le"])
def test_full_scale_is_one_in_every_sample_format(tmp_path, kind):
    path = _constant(tmp_path / "x.wav", f"pcm_{kind}")
    np.testing.assert_allclose(Read(path).sound, -0.5, atol=0.01)


def _constant(path: Path, codec: str) -> Path:
    """A tenth of a second of -1/2."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, 1600), -16384, np.int16), "s16", "mono")
        frame.sample_rate = 16_000
        resampler = av.AudioResampler(stream.codec_context.format, "mono", 16_000)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def test_a_file_in_which_nothing_can_be_decoded_is_no_silence(tmp_path):
    path = media.undecodable(tmp_path / "x.mkv")
    with pytest.raises(SourceError, match=r"x\.mkv: nothing in it can be decoded \(all 20 packets are damaged\)"):
        Read(path)


@pytest.mark.parametrize("channels", [3, 6, 8])
def test_channels_without_a_named_layout(tmp_path, channels):
    path = tmp_path / "x.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.tile(np.arange(channels, dtype=np.int16) * 1000, 1600).tobytes())
    chunk = Read(path).audio[0]
    np.testing.assert_allclose(chunk.samples[5], np.arange(channels) * 1000 / 32768, atol=1e-4)


@pytest.mark.parametrize("name", ["x.flac", "x.wav", "x.mp4"])
def test_channels_are_not_mixed_up(tmp_path, name):
    """Formats are planar or interleaved."""
    path, rate = tmp_path / name, 16_000
    left = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    packed = np.stack([0.5 * left, np.zeros(rate)], axis=1)
    codec = {".flac": "flac", ".wav": "pcm_s16le", ".mp4": "aac"}[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        samples = np.rint(packed * 32767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, "s16", "stereo")
        frame.sample_rate, frame.pts = rate, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    both = np.concatenate([chunk.samples for chunk in Read(path).audio])
    assert _level(both[2000:14_000, 0]) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    assert _level(both[2000:14_000, 1]) < 0.01


@pytest.mark.parametrize("name", ["late.ts", "late.mkv"])
def test_media_time_counts_from_the_start_of_the_file(made, name, tmp_path):
    """A recording that was cut out of a longer one keeps the time stamps of the longer one."""
    original = made(media.talking_face, "talk.mp4", seconds=2.0)
    path = tmp_path / name
    with av.open(str(original)) as source, av.open(str(path), "w") as target:
        copies = {stream: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                shift = round(1000 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copies[packet.stream]
                target.mux(packet)
    read, first = Read(path), Read(original)
    for items, before in ((read.audio, first.audio), (read.video, first.video)):
        assert items[0].media_ns == pytest.approx(before[0].media_ns, abs=0.15 * _S)  # type: ignore[attr-defined]
        assert items[-1].media_ns == pytest.approx(before[-1].media_ns, abs=0.15 * _S)  # type: ignore[attr-defined]


# Frames


def test_frames_are_sampled_and_gray(made):
    read = Read(made(media.talking_face, "talk.mp4", seconds=2.0))
    assert read.tracks == BOTH
    assert not read.missing
    times = np.array([frame.media_ns for frame in read.video]) / _S
    assert len(times) == 20
    assert (np.diff(times) < 0.1 + 0.041).all()
    originals = media.face_frames(50)
    for frame in read.video:
        original = media.gray(originals[round(frame.media_ns / _S * media.FPS)])
        assert np.abs(frame.image.astype(int) - original).mean() < 8


def _lossless(path: Path, codec: str, form: str, gray: np.ndarray, n: int = 1, levels: int = 0) -> Path:
    """``gray`` (height, width) uint8 as ``n`` pictures, 25 a second, in a pixel format; ``levels``: FFmpeg's number
    for the levels that the file declares."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = gray.shape
        stream.pix_fmt = form
        stream.codec_context.color_range = levels
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(np.repeat(gray[..., None], 3, axis=2), "bgr24")
            frame = frame.reformat(format=form, dst_color_range=levels)
            frame.pts, frame.time_base, frame.color_range = i, Fraction(1, 25), levels
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("codec", "form", "levels"),
    [
        ("ffv1", "yuv420p", 0), ("ffv1", "yuv420p", 1), ("ffv1", "yuv420p", 2), ("ffv1", "yuv444p", 0),
        ("ffv1", "gray", 0), ("ffv1", "bgr0", 0), ("ffv1", "yuv420p10le", 0), ("rawvideo", "yuyv422", 0),
        ("rawvideo", "nv12", 0), ("mjpeg", "yuvj422p", 2), ("libx264rgb", "bgr24", 0),
    ],
)  # fmt: skip
def test_black_is_0_and_white_255_in_every_pixel_format(tmp_path, codec, form, levels):
    """The width differs from the row length of any decoder's buffer."""
    ramp = np.tile(np.linspace(0, 255, 202).round().astype(np.uint8), (34, 1))
    pictures = 26 if codec == "mjpeg" else 1  # less than a second of these would be a cover
    image = Read(_lossless(tmp_path / "x.mkv", codec, form, ramp, pictures, levels)).video[0].image
    assert image.shape == ramp.shape
    assert np.abs(image.astype(int) - ramp).max() <= 4
    assert np.abs(image.astype(int) - ramp).mean() < 1.5


def test_frames_on_which_no_other_depends_are_decoded_only_if_chosen(tmp_path, monkeypatch):
    """A camera's MJPEG: the frames are the same as if all were decoded."""
    ramp = np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (32, 1))
    path = _lossless(tmp_path / "x.mkv", "mjpeg", "yuvj422p", ramp, n=50, levels=2)
    few = Read(path)
    with monkeypatch.context() as patch:
        patch.setattr("emostream.stream.sources.decode._skippable_s", lambda packet: None)
        assert [frame.media_ns for frame in Read(path).video] == [frame.media_ns for frame in few.video]
    asked = []
    wants = Sampler.wants
    monkeypatch.setattr(Sampler, "wants", lambda self, ns: (asked.append(ns), wants(self, ns))[1])
    Read(path)
    assert asked == [frame.media_ns for frame in few.video]


@pytest.mark.parametrize("name", ["vfr.mkv", "vfr.mp4"])
def test_unevenly_spaced_frames_keep_their_times(made, name):
    path = made(media.variable_frame_rate, name, n=20)
    read = Read(path, fps=60)
    true = np.cumsum([0, *([1, 3, 1, 2] * 5)])[:20] / media.FPS
    np.testing.assert_allclose([frame.media_ns / _S for frame in read.video], true, atol=0.0015)
    few = [frame.media_ns / _S for frame in Read(path, fps=5).video]
    assert set(few) <= {frame.media_ns / _S for frame in read.video}
    assert len(few) == len({int(t * 5 + 0.005) for t in true})  # each fifth of a second that has a picture


def test_a_video_recorded_sideways_is_turned_upright(tmp_path):
    """As on phones: the file says how far the frames are turned."""
    path = media.video_only(tmp_path / "lying.mp4", n=5)
    data = bytearray(path.read_bytes())
    offset = data.index(b"tkhd") + 4 + 4 + 36  # version 0: matrix after 36 bytes of other fields
    unity = struct.unpack(">9i", data[offset : offset + 36])
    assert unity == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    data[offset : offset + 36] = struct.pack(
        ">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30
    )  # a quarter turn to the right
    path.write_bytes(data)
    image = Read(path).video[0].image
    expected = cv2.rotate(media.gray(media.face_frames(1)[0]), cv2.ROTATE_90_CLOCKWISE)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 8


# Missing media


def test_only_requested_media_are_read(made):
    path = made(media.talking_face, "talk.mp4", seconds=2.0)
    sound, pictures = Read(path, frozenset({"audio"})), Read(path, frozenset({"video"}))
    assert sound.audio and not sound.video and not sound.missing
    assert pictures.video and not pictures.audio and not pictures.missing
    assert sound.tracks == BOTH


def test_a_file_without_sound(made):
    read = Read(made(media.video_only, "mute.mp4", n=25))
    assert (read.tracks, read.missing, read.audio) == ({"video"}, {"audio"}, [])
    assert len(read.video) == 10


def test_a_sound_file_without_samples(made, caplog):
    read = Read(made(media.zero_length_audio, "nothing.wav"))
    assert read.tracks == {"audio"}
    assert not read.audio
    assert "nothing.wav: its audio track is empty" in caplog.text


def test_a_track_of_an_unknown_codec_is_no_track(tmp_path):
    path = tmp_path / "odd.wav"
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 0x1234, 1, 16_000, 32_000, 2, 16)
    body = b"WAVE" + head + struct.pack("<4sI", b"data", 3200) + bytes(3200)
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(body)) + body)
    try:
        assert Read(path).missing == BOTH
    except SourceError as error:
        assert "odd.wav" in str(error)


# Damaged files


@pytest.mark.parametrize(
    ("maker", "name"),
    [
        (media.text_file, "letter.mp4"),
        (media.text_file, "letter.wav"),
        (media.empty_file, "empty.mp4"),
        (lambda path: media.truncated_mp4(path, faststart=False), "no-index.mp4"),
    ],
)
def test_other_files_than_media_are_reported_in_one_line(made, name, maker):
    source = FileSource(made(maker, name), BOTH, 10)
    with pytest.raises(SourceError, match=rf"{name}: not a media file that FFmpeg can read") as caught:
        source.open()
    assert "\n" not in str(caught.value)
    source.close()


def test_missing_files(tmp_path):
    with pytest.raises(SourceError, match=r"gone\.mp4: no such file"):
        FileSource(tmp_path / "gone.mp4", BOTH, 10).open()
    with pytest.raises(SourceError, match="is a folder, not a media file"):
        FileSource(tmp_path, BOTH, 10).open()


def test_a_file_that_was_cut_off_gives_its_first_half(made, caplog):
    read = Read(made(media.truncated_mp4, "half.mp4"))
    assert 1.5 < read.audio[-1].media_end_ns / _S < 2.5
    assert 1.5 < read.video[-1].media_ns / _S < 2.5
    assert "half.mp4" in caplog.text  # and it is logged


@pytest.mark.parametrize("name", ["hole.ts", "hole.mkv", "hole.mp4"])
def test_a_file_with_a_damaged_middle_gives_both_ends(made, name):
    read = Read(made(media.corrupt_middle, name))
    for items in (read.audio, read.video):
        times = np.array([item.media_ns for item in items]) / _S  # type: ignore[attr-defined]
        assert times[0] < 0.2
        assert times[-1] > 3.5
        assert ((times > 0.2) & (times < 1.2)).any()


# By name


def test_make_source_opens_nothing():
    clock, config = VirtualClock(), Config()
    files = {
        text: make_source(SourceSpec.parse(text), BOTH, clock, config)
        for text in ("demo", "file:/no/such.mp4", "microphone", "microphone:2", "camera:7", "rtsp://127.0.0.1:1/x")
    }
    assert {text: source.live for text, source in files.items()} == {
        "demo": False, "file:/no/such.mp4": False, "microphone": True, "microphone:2": True, "camera:7": True,
        "rtsp://127.0.0.1:1/x": True,
    }  # fmt: skip
    with pytest.raises(SourceError, match=r"/no/such\.mp4: no such file"):
        files["file:/no/such.mp4"].open()


def test_home_is_expanded(monkeypatch, made):
    path = made(media.audio_only, "16k.wav", seconds=2.0)
    monkeypatch.setenv("HOME", str(path.parent))
    source = make_source(SourceSpec.parse("file:~/16k.wav"), BOTH, VirtualClock(), Config())
    source.open()
    source.close()


def test_the_demo_has_sound_and_picture():
    source = make_source(SourceSpec.parse("demo"), BOTH, VirtualClock(), Config())
    source.open()
    assert isinstance(source, FileSource)
    assert source.tracks() == BOTH
    source.close()


@pytest.mark.parametrize("text", ["camera:87", "rtsp://127.0.0.1:9/x"])
def test_a_missing_live_source_suggests_a_remedy(text):
    with pytest.raises(SourceError, match=r"cannot be opened .*(stream-doctor|is its server running)"):
        make_source(SourceSpec.parse(text), BOTH, VirtualClock(), Config()).open()
