"""Recordings like those found in practice: joined, with bad times, mirrored, with many tracks; made here."""

from __future__ import annotations

import itertools
import shutil
import struct
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from emostream.stream.cores.audio import AudioCore
from emostream.stream.messages import Pcm
from emostream.stream.sources.base import AudioChunk, NoTrack, VideoFrame
from emostream.stream.sources.file import FileSource
from emostream.stream.sources.languages import is_language
from tests import media

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg program is not installed"),
]
BOTH = frozenset({"audio", "video"})
S = 1_000_000_000


def ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-loglevel", "error", "-y", *map(str, arguments)], check=True)


def items(path: Path, wanted=BOTH, fps: float = 10, tracks: str = ""):
    source = FileSource(path, frozenset(wanted), fps, tracks)
    source.open()
    try:
        return list(source.items())
    finally:
        source.close()


def sound_s(found) -> float:
    """The length of the sound, whose times must be continuous to 0.1 s."""
    chunks = [item for item in found if isinstance(item, AudioChunk)]
    for one, two in itertools.pairwise(chunks):
        assert abs(two.media_ns - one.media_end_ns) < S // 10, (one.media_end_ns, two.media_ns)
    return sum(len(chunk.samples) / chunk.rate_hz for chunk in chunks)


def pictures(found) -> list[VideoFrame]:
    return [item for item in found if isinstance(item, VideoFrame)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return media.talking_face(tmp_path_factory.mktemp("clip") / "clip.mp4", 4.0)


# Times


CODECS = {
    "ts": ("-c:v", "mpeg2video", "-c:a", "mp2"), "mpg": ("-c:v", "mpeg2video", "-c:a", "mp2"),
    "webm": ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-c:a", "libopus"),
    "ogg": ("-vn", "-c:a", "libopus"), "mkv": ("-c", "copy"),
    "flv": ("-c:v", "flv", "-c:a", "libmp3lame", "-ar", "44100"), "aac": ("-vn", "-c:a", "aac", "-f", "adts"),
    "mp3": ("-vn", "-c:a", "libmp3lame"),
    "mp4": ("-c:v", "copy", "-c:a", "aac", "-movflags", "empty_moov+frag_keyframe+default_base_moof"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["ts", "mpg", "ogg", "webm", "aac", "mp3", "mp4"])
def test_recordings_that_were_glued_together_are_read_whole(clip, tmp_path, suffix):
    part, joined = tmp_path / f"part.{suffix}", tmp_path / f"joined.{suffix}"
    ffmpeg("-i", clip, *CODECS[suffix], part)
    parts = 2 if suffix == "webm" else 3  # FFmpeg itself reads only two of a WebM
    joined.write_bytes(part.read_bytes() * parts)
    found = items(joined)
    assert sound_s(found) == pytest.approx(4.0 * parts, abs=0.5)
    if "-vn" not in CODECS[suffix]:
        times = [frame.media_ns / S for frame in pictures(found)]
        assert len(times) == pytest.approx(40 * parts, abs=6) and times == sorted(times)
        assert times[-1] == pytest.approx(4.0 * parts - 0.1, abs=0.4)


def pes_times(data: bytes, pid_of: str):
    """Offsets of the 5 bytes of each PES time stamp in an MPEG transport stream, of sound or picture."""
    for at in range(0, len(data) - 187, 188):
        packet = data[at : at + 188]
        if not packet[1] & 0x40:
            continue
        begin = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
        if packet[begin : begin + 3] != b"\0\0\1":
            continue
        kind = packet[begin + 3]
        if (0xC0 <= kind < 0xE0) == (pid_of == "audio") and packet[begin + 7] & 0x80:
            yield at + begin + 9, 2 if packet[begin + 7] & 0x40 else 1


def moved(data: bytes, pid_of: str, which: range, seconds: float) -> bytes:
    """The same stream with some time stamps moved."""
    out = bytearray(data)
    for number, (at, count) in enumerate(pes_times(data, pid_of)):
        if number not in which:
            continue
        for i in range(count):
            field = out[at + 5 * i : at + 5 * i + 5]
            ticks = (field[0] >> 1 & 7) << 30 | field[1] << 22 | (field[2] >> 1) << 15 | field[3] << 7 | field[4] >> 1
            ticks = int(ticks + seconds * 90_000) % (1 << 33)
            new = [
                ticks >> 30 << 1 & 0xE | field[0] & 0xF1,
                ticks >> 22,
                ticks >> 15 << 1 | 1,
                ticks >> 7,
                ticks << 1 | 1,
            ]
            out[at + 5 * i : at + 5 * i + 5] = bytes(byte & 0xFF for byte in new)
    return bytes(out)


@pytest.fixture(scope="module")
def transport(clip) -> Path:
    path = clip.with_suffix(".ts")
    ffmpeg("-i", clip, *CODECS["ts"], "-pes_payload_size", "0", path)
    return path


@pytest.mark.parametrize("seconds", [3600, -3600, 39_600, 5, -5, 2])
@pytest.mark.parametrize("kind", ["audio", "video"])
@pytest.mark.parametrize("which", [range(12, 13), range(12, 15)])
def test_a_few_bad_time_stamps_move_nothing(transport, tmp_path, seconds, kind, which):
    whole = items(transport)
    path = tmp_path / "spike.ts"
    path.write_bytes(moved(transport.read_bytes(), kind, which, seconds))
    assert path.read_bytes() != transport.read_bytes()
    found = items(path)
    assert sound_s(found) == pytest.approx(sound_s(whole), abs=0.05)
    times, wanted = ([frame.media_ns / S for frame in pictures(each)] for each in (found, whole))
    assert len(times) >= len(wanted) - 4
    assert times[-1] == pytest.approx(wanted[-1], abs=0.15)
    last, true = ([item for item in each if isinstance(item, AudioChunk)][-1].media_ns for each in (found, whole))
    assert last == pytest.approx(true, abs=S // 10)


@pytest.mark.parametrize("seconds", [3600, 5])
@pytest.mark.parametrize(("kind", "first"), [("audio", 0), ("video", 1)])
def test_bad_time_stamps_before_the_other_track_has_begun_move_nothing(
    transport, tmp_path, seconds, kind, first, caplog
):
    path = tmp_path / "spike.ts"
    path.write_bytes(moved(transport.read_bytes(), kind, range(first, first + 1), seconds))
    whole, found = items(transport), items(path)
    assert sound_s(found) == pytest.approx(sound_s(whole), abs=0.05)
    for medium in (AudioChunk, VideoFrame):
        last, true = ([item for item in each if isinstance(item, medium)][-1].media_ns for each in (found, whole))
        assert last == pytest.approx(true, abs=S // 10)
    assert "cut short" not in caplog.text


@pytest.mark.parametrize("seconds", [40_000, 3600, 30, -3])
def test_a_clock_that_jumps_for_good_is_closed_up(transport, tmp_path, seconds, caplog):
    data = transport.read_bytes()
    for kind in ("audio", "video"):
        count = sum(1 for _ in pes_times(data, kind))
        data = moved(data, kind, range(count // 2, count), seconds)
    path = tmp_path / "jump.ts"
    path.write_bytes(data)
    found = items(path)
    assert sound_s(found) == pytest.approx(4.0, abs=0.2)
    assert pictures(found)[-1].media_ns / S == pytest.approx(3.9, abs=0.5)
    assert "closed up" in caplog.text and "cut short" not in caplog.text


def at_once(data: bytes, every: int) -> bytes:
    """The same stream, with the first PES's time stamp in ``every`` so many: in all, a clock that stands still."""
    out = bytearray(data)
    for kind in ("audio", "video"):
        places = list(pes_times(data, kind))
        first = data[places[0][0] : places[0][0] + 5]
        for at, count in places[every - 1 :: every]:
            for i in range(count):
                out[at + 5 * i : at + 5 * i + 5] = bytes([first[0] & 0xF | out[at + 5 * i] & 0xF0]) + first[1:]
    return bytes(out)


@pytest.mark.parametrize("every", [1, 4])
def test_a_clock_that_stands_still_or_often_forgets_itself_costs_nothing(transport, tmp_path, every):
    path = tmp_path / "still.ts"
    path.write_bytes(at_once(transport.read_bytes(), every))
    found = items(path)
    assert sound_s(found) == pytest.approx(4.0, abs=0.2)
    assert pictures(found)[-1].media_ns / S == pytest.approx(3.9, abs=0.3)


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_a_track_with_a_clock_of_its_own_is_beside_the_other(transport, tmp_path, kind):
    path = tmp_path / "apart.ts"
    path.write_bytes(moved(transport.read_bytes(), kind, range(10_000), 8640))
    found = items(path)
    assert sound_s(found) == pytest.approx(4.0, abs=0.2)
    ends = [
        [item for item in found if isinstance(item, medium)][-1].media_end_ns for medium in (AudioChunk, VideoFrame)
    ]
    assert abs(ends[0] - ends[1]) < 1.2 * S and max(ends) < 6 * S


def test_a_gap_of_a_few_seconds_stays_one(transport, tmp_path):
    data = transport.read_bytes()
    for kind in ("audio", "video"):
        count = sum(1 for _ in pes_times(data, kind))
        data = moved(data, kind, range(count // 2, count), 4)
    path = tmp_path / "gap.ts"
    path.write_bytes(data)
    chunks = [item for item in items(path) if isinstance(item, AudioChunk)]
    assert chunks[-1].media_end_ns / S == pytest.approx(8.0, abs=0.3)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("h264", "libx264"), pytest.param("hevc", "libx265", marks=pytest.mark.long), ("m2v", "mpeg2video")],
)
@pytest.mark.parametrize("rate", [25, 15])
def test_pictures_without_times_have_those_of_the_frame_rate(clip, tmp_path, suffix, codec, rate):
    path = tmp_path / f"camera.{suffix}"
    quiet = ["-x265-params", "log-level=error"] if suffix == "hevc" else []
    if suffix == "m2v" and rate == 15:
        pytest.skip("MPEG-2 has no rate of 15 a second")
    ffmpeg("-i", clip, "-an", "-r", rate, "-c:v", codec, *quiet, path)
    times = [frame.media_ns / S for frame in pictures(items(path, {"video"}))]
    assert len(times) == pytest.approx(40, abs=2)
    assert times[0] == pytest.approx(0, abs=0.1) and times[-1] == pytest.approx(3.9, abs=0.15)


@pytest.mark.parametrize("suffix", ["aac", "mp3"])
def test_a_length_that_was_only_estimated_is_no_damage(tmp_path, suffix, caplog):
    loud = media.audio_only(tmp_path / "loud.wav", 4.0)
    path = tmp_path / f"estimated.{suffix}"
    quiet = ["-af", "apad=pad_dur=8"]  # so the first seconds have more bits than the rest
    codec = (
        ["-c:a", "aac", "-f", "adts"] if suffix == "aac" else ["-c:a", "libmp3lame", "-q:a", "2", "-write_xing", "0"]
    )
    ffmpeg("-i", loud, *quiet, *codec, path)
    assert sound_s(items(path, {"audio"})) == pytest.approx(12, abs=0.3)
    assert "cut short" not in caplog.text


def test_an_mp3_that_was_cut_off_is_told(tmp_path, caplog):
    loud, path = media.audio_only(tmp_path / "loud.wav", 8.0), tmp_path / "cut.mp3"
    ffmpeg("-i", loud, "-c:a", "libmp3lame", "-q:a", "2", path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    items(path, {"audio"})
    assert "cut short" in caplog.text


def test_pictures_whose_place_in_decoding_order_is_not_known_move_nothing(tmp_path):
    path = tmp_path / "b-frames.mkv"
    bars = ["-f", "lavfi", "-i", "testsrc=s=64x48:r=5", "-f", "lavfi", "-i", "sine=r=16000"]
    ffmpeg(*bars, "-t", 3, "-c:v", "libx264", "-bf", 3, "-c:a", "aac", path)
    found = items(path)
    assert sound_s(found) == pytest.approx(3, abs=0.1)
    times = [frame.media_ns / S for frame in pictures(found)]
    assert times == pytest.approx(list(np.arange(0, 3, 0.2)), abs=0.1)


@pytest.mark.parametrize(
    ("magic", "speech", "noise"), [(b"#!AMR\n", (0, 12), (8, 5)), (b"#!AMR-WB\n", (0, 17), (9, 5))]
)
def test_pauses_of_a_telephone_are_silence_and_no_damage(tmp_path, caplog, magic, speech, noise):
    path = tmp_path / "call.amr"
    rng = np.random.default_rng(0)

    def frame(kind: int, size: int) -> bytes:
        return bytes([kind << 3 | 4]) + rng.bytes(size)

    talk = b"".join(frame(*speech) for _ in range(50))
    pause = (frame(*noise) + frame(15, 0) * 7) * 25  # comfort noise, and then nothing
    path.write_bytes(magic + talk + pause + talk)
    assert sound_s(items(path, {"audio"})) == pytest.approx(6.0, abs=0.05)
    assert not caplog.records


def test_samples_that_are_no_numbers_are_silence(tmp_path, caplog):
    samples = np.full(16_000, 0.25, np.float32)
    samples[[10, 20, 30]] = np.nan, np.inf, -np.inf
    path, raw = tmp_path / "nan.wav", tmp_path / "raw"
    raw.write_bytes(samples.tobytes())
    ffmpeg("-f", "f32le", "-ar", 16_000, "-ac", 1, "-i", raw, "-c:a", "pcm_f32le", path)
    core = AudioCore("a", None)
    messages = [message for item in items(path, {"audio"}) for message in core.push(item)]
    found = np.concatenate([message.samples for message in messages if isinstance(message, Pcm)])
    assert set(found.tolist()) == {0, 8192} and (found == 0).sum() == 3
    assert "no numbers" in caplog.text


# Tracks


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    """Sound: silence (the first track), 300 Hz (the default), 1000 Hz (German). Picture: dark, bright (the default)."""
    path = tmp_path_factory.mktemp("tracks") / "tracks.mkv"
    sines = ["-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono"]
    for frequency in (300, 1000):
        sines += ["-f", "lavfi", "-i", f"sine=f={frequency}:r=16000"]
    for colour in ("black", "white"):
        sines += ["-f", "lavfi", "-i", f"color={colour}:s=64x48:r=10"]
    maps = [part for i in range(5) for part in ("-map", i)]
    ffmpeg(
        *sines, *maps, "-t", 1, "-c:a", "flac", "-c:v", "ffv1", "-disposition:a:0", 0, "-disposition:a:1", "default",
        "-disposition:v:0", 0, "-disposition:v:1", "default", "-metadata:s:a:2", "language=deu", path,
    )  # fmt: skip
    return path


def frequency(found) -> float:
    samples = np.concatenate([item.samples[:, 0] for item in found if isinstance(item, AudioChunk)])
    if not samples.any():
        return 0.0
    return float(np.abs(np.fft.rfft(samples)).argmax() * 16_000 / len(samples))


@pytest.mark.parametrize(
    ("tracks", "hertz", "bright"),
    [
        ("", 300, True), ("audio:1", 0, True), ("audio:3,video:1", 1000, False), ("audio:deu", 1000, True),
        ("audio:de", 1000, True), ("video:1", 300, False), ("audio:9", 300, True), ("audio:fra", 300, True),
    ],
)  # fmt: skip
def test_the_default_track_or_the_one_asked_for(tones, caplog, tracks, hertz, bright):
    with caplog.at_level("INFO"):
        found = items(tones, tracks=tracks)
    assert frequency(found) == pytest.approx(hertz, abs=5)
    assert bool(pictures(found)[0].image.mean() > 128) is bright
    assert "audio track" in caplog.text and "of 3 is used" in caplog.text
    assert ("that can be decoded; taking another" in caplog.text) is (tracks in ("audio:9", "audio:fra"))


@pytest.mark.parametrize(
    ("asked", "marked", "same"),
    [
        ("de", "ger", True), ("ger", "deu", True), ("es", "spa", True), ("ja", "jpn", True), ("zh", "chi", True),
        ("de-AT", "ger", True), ("de-AT", "de-CH", False), ("EN", "eng", True), ("en", "enm", False),
        ("gsw", "gsw", True), ("de", "", False), ("ma", "mar", False), ("en", "und", False),
    ],
)  # fmt: skip
def test_a_language_has_several_codes(asked, marked, same):
    assert is_language(asked, marked) is same


def test_a_track_that_was_not_chosen_gives_nothing_though_it_has_gaps(clip, tmp_path):
    path = tmp_path / "two.mkv"
    gap = "[0:a]aselect='not(between(t,0.5,3.8))'[late]"
    ffmpeg("-i", clip, "-filter_complex", gap, "-map", "0:a", "-map", "[late]", "-c:a", "flac", path)
    assert sound_s(items(path, {"audio"})) == pytest.approx(4, abs=0.1)
    chunks = [item for item in items(path, {"audio"}, tracks="audio:2") if isinstance(item, AudioChunk)]
    assert chunks[-1].media_end_ns / S > 3.9 and sum(len(chunk.samples) for chunk in chunks) / 16_000 < 1.0


def test_without_a_default_it_is_the_first_that_can_be_decoded(clip, tmp_path):
    path = tmp_path / "unknown.mkv"
    ffmpeg("-i", clip, "-map", "0:a", "-map", "0:a", "-c:a:0", "alac", "-c:a:1", "libopus", path)
    path.write_bytes(path.read_bytes().replace(b"A_ALAC", b"A_XYZQ"))
    assert sound_s(items(path, {"audio"})) == pytest.approx(4, abs=0.2)


@pytest.mark.parametrize("suffix", ["m4a", "mp3", "flac"])
def test_a_cover_is_no_video(clip, tmp_path, suffix):
    cover, path = tmp_path / "cover.png", tmp_path / f"song.{suffix}"
    ffmpeg("-i", clip, "-frames:v", 1, cover)
    ffmpeg(
        "-i", clip, "-i", cover, "-map", "0:a", "-map", "1:v", "-c:v", "copy", "-disposition:v:0", "attached_pic", path
    )
    with av.open(str(path)) as container:
        assert container.streams.video
    found = items(path)
    assert NoTrack("video") in found and not pictures(found)


def test_a_cover_before_the_video_is_passed_over(clip, tmp_path):
    cover, path = tmp_path / "cover.png", tmp_path / "talk.mp4"
    ffmpeg("-i", clip, "-frames:v", 1, cover)
    ffmpeg(
        "-i", cover, "-i", clip, "-map", "0:v", "-map", "1:v", "-map", "1:a", "-c:v", "copy", "-c:a", "copy",
        "-disposition:v:0", "attached_pic", path,
    )  # fmt: skip
    assert len(pictures(items(path))) == pytest.approx(40, abs=2)


def test_a_cover_in_a_container_that_has_no_mark_for_it(clip, tmp_path):
    cover, path = tmp_path / "cover.jpg", tmp_path / "talk.mkv"
    ffmpeg("-i", clip, "-frames:v", 1, cover)
    ffmpeg(
        "-i", cover, "-i", clip, "-map", "0:v", "-map", "1:v", "-map", "1:a", "-c:v", "copy", "-c:a", "copy", path,
    )  # fmt: skip
    with av.open(str(path)) as container:
        assert not container.streams.video[0].disposition & av.stream.Disposition.attached_pic
    assert len(pictures(items(path))) == pytest.approx(40, abs=2)


# Pictures


def corner(image: np.ndarray) -> tuple[int, int]:
    """Which corner is bright: (0 or 1 from the top, 0 or 1 from the left)."""
    means = [part.mean() for half in np.array_split(image, 2) for part in np.array_split(half, 2, axis=1)]
    return divmod(int(np.argmax(means)), 2)


ONE = 1 << 16
MATRICES = {  # a, b, c, d: where the bright corner of the stored picture, top left, is then
    "as it is": ((ONE, 0, 0, ONE), (0, 0)), "mirrored": ((-ONE, 0, 0, ONE), (0, 1)),
    "flipped": ((ONE, 0, 0, -ONE), (1, 0)),
    "turned by 180": ((-ONE, 0, 0, -ONE), (1, 1)), "turned right": ((0, ONE, -ONE, 0), (0, 1)),
    "turned left": ((0, -ONE, ONE, 0), (1, 0)), "turned right and mirrored": ((0, ONE, ONE, 0), (0, 0)),
    "turned left and mirrored": ((0, -ONE, -ONE, 0), (1, 1)),
}  # fmt: skip


@pytest.mark.parametrize(("matrix", "bright"), MATRICES.values(), ids=MATRICES)
def test_the_display_matrix_is_followed(tmp_path, matrix, bright):
    path = tmp_path / "corner.mp4"
    picture = "color=black:s=160x96:r=10,drawbox=0:0:60:36:white:fill"
    ffmpeg("-f", "lavfi", "-i", picture, "-t", 0.5, "-c:v", "mpeg4", "-q:v", 2, path)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", matrix[0], matrix[1], 0, matrix[2], matrix[3], 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    image = pictures(items(path, {"video"}))[0].image
    assert corner(image) == bright
    assert image.shape == ((160, 96) if matrix[0] == 0 else (96, 160))


@pytest.mark.parametrize(
    ("aspect", "shape"),
    [("4/3", (96, 213)), ("10/7", (96, 229)), ("2/1", (96, 320)), ("1/2", (192, 160))],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_pixels_become_square(tmp_path, aspect, shape, suffix):
    path = tmp_path / f"wide.{suffix}"
    ffmpeg("-f", "lavfi", "-i", f"testsrc=s=160x96:r=10,setsar={aspect}", "-t", 0.5, "-c:v", "mpeg4", path)
    assert pictures(items(path, {"video"}))[0].image.shape == shape


def test_the_face_is_found_again_at_once_when_the_size_changes(tmp_path):
    from emostream.stream.config import Config
    from emostream.stream.cores.video import VideoCore, make_detector

    frames = [media.gray(image) for image in media.face_frames(24)]
    core = VideoCore("x", make_detector(Config().video), None)
    import cv2

    found = []
    for i, image in enumerate(frames):
        size = [(480, 360), (240, 180), (960, 720), (180, 240)][i // 6]
        resized = cv2.resize(image, size)
        (face,) = core.push(VideoFrame(resized, i * S // 10))
        found.append(face.found)
    assert all(found[:18])  # the last pictures are squeezed


@pytest.mark.parametrize("shape", [(4, 4096), (4096, 4), (1, 1), (2, 2), (11, 11), (0, 0)])
def test_pictures_that_are_almost_nothing_have_no_face(shape):
    from emostream.stream.config import Config
    from emostream.stream.cores.video import VideoCore, make_detector

    core = VideoCore("x", make_detector(Config().video), None)
    for i in range(3):
        (face,) = core.push(VideoFrame(np.full(shape, 128, np.uint8), i * S // 10))
        assert not face.found
