"""Make the demo clip: a face that speaks five sentences, each in a different mood.

    sudo apt-get install flite && pip install scikit-image
    python tools/make_demo.py stream/sources/demo.mp4

writes ``demo.mp4`` (H.264, 480 × 360 at 25 frames per second, AAC mono at 16 kHz) and beside it ``demo.json``, which
says when each sentence truly starts and ends, its mood, and whom to credit. Two runs on one machine give the same bytes
if the versions of Flite, PyAV and OpenCV are the same.

The voice is Flite's ``slt``, which suits the face. PocketSphinx got 12 % of the words of ten trial sentences wrong
(espeak-ng's ``en-us`` voices: 15 to 25 %; Flite's male ``rms``: 2 %). These five were chosen because it gets every word
right: the clip shows the pipeline, it does not measure the recogniser. Pitch and speed follow the mood. The face is a
photograph of Eileen Collins from scikit-image, which NASA put into the public domain. It is warped: the jaw follows the
sound's level; brows, mouth corners and eyelids follow the mood; the eyes blink; the camera sways.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import skimage.data

RATE_HZ = 16_000  # what the voice gives
FPS = 25
WIDTH, HEIGHT = 480, 360
LEAD_IN_S, LEAD_OUT_S = 0.5, 1.5
PEAK = 0.5  # of full scale, before a sentence's own gain
NOISE = 10 ** (-55 / 20)  # root mean square of the background noise, of full scale: silence is not digital zero
SEED = 7


@dataclass(frozen=True)
class Sentence:
    mood: str
    text: str
    pitch: float  # factor on the voice's pitch
    stretch: float  # factor on the voice's durations
    gain: float
    pause_s: float  # silence after it


SENTENCES = [
    Sentence("joy", "This is the best day of my life, and I am so happy!", 1.12, 0.95, 1.0, 2.0),
    Sentence(
        "anger", "Stop it right now, I am very angry with you, and I never want to see you again!", 0.97, 0.92, 1.3, 2
    ),
    Sentence("fear", "Please help me, there is someone in the house, and I am so afraid.", 1.1, 0.95, 0.85, 1.8),
    Sentence("sadness", "My best friend is gone, and I feel so sad and alone.", 0.88, 1.2, 0.7, 2.0),
    Sentence("neutral", "The next meeting will be at ten o'clock in the morning.", 1.0, 1.0, 0.9, LEAD_OUT_S),
]


@dataclass(frozen=True)
class Expression:
    """Displacements in pixels of the portrait; positive is down. ``eyes`` widens (> 0) or narrows the eyes."""

    brow_inner: float
    brow_outer: float
    corners: float  # of the mouth
    jaw: float  # at rest: 0 is the portrait's smile, which shows teeth; -7 closes the lips
    eyes: float
    tilt_deg: float  # of the head, on average


EXPRESSIONS = {
    "joy": Expression(-1.5, -1.5, -1.0, -1.0, -0.05, 1.5),
    "anger": Expression(5.0, 0.5, 3.5, -6.5, -0.10, 0.0),
    "fear": Expression(-4.0, -2.5, 3.0, -5.0, 0.30, -1.5),
    "sadness": Expression(-3.5, 2.0, 5.0, -6.5, -0.20, -3.0),
    "neutral": Expression(0.0, 0.0, 2.0, -6.5, 0.0, 0.0),
}

# Where things are in the portrait, in its pixels, as the viewer sees them.
VIEW_CENTRE, VIEW_WIDTH = (225.0, 112.0), 270.0
BROWS_INNER, BROWS_OUTER = ((211.0, 92.0), (239.0, 94.0)), ((193.0, 91.0), (258.0, 93.0))
EYES = ((201.5, 101.0), (246.5, 103.5))
CORNERS = ((203.0, 140.0), (244.0, 140.0))
MOUTH_X, TEETH_Y, MOUTH_HALF_WIDTH, CHIN = 224.0, 149.0, 21.0, 30.0


def speak(sentence: Sentence) -> np.ndarray:
    """The sentence's sound, without the silence before and after: (n,) float32 in [-1, 1] at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sentence.wav"
        prosody = ["--setf", f"f0_shift={sentence.pitch}", "--setf", f"duration_stretch={sentence.stretch}"]
        subprocess.run(["flite", "-voice", "slt", *prosody, "-t", sentence.text, "-o", str(path)], check=True)
        with wave.open(str(path)) as file:
            if file.getframerate() != RATE_HZ or file.getnchannels() != 1:
                raise ValueError(f"flite gave {file.getnchannels()} × {file.getframerate()} Hz, not 1 × {RATE_HZ} Hz")
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32)
    samples /= np.abs(samples).max()
    loud = np.flatnonzero(np.abs(samples) > 0.02)
    return PEAK * sentence.gain * samples[loud[0] : loud[-1] + 1]


def sound() -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The whole sound track, (n,) float32 at 16 kHz; and each sentence with its true start and end."""
    parts, spans = [np.zeros(int(LEAD_IN_S * RATE_HZ), np.float32)], []
    position = len(parts[0])
    for sentence in SENTENCES:
        samples = speak(sentence)
        start, end = position / RATE_HZ, (position + len(samples)) / RATE_HZ
        spans.append({"start_s": round(start, 3), "end_s": round(end, 3), "mood": sentence.mood, "text": sentence.text})
        pause = np.zeros(int(sentence.pause_s * RATE_HZ), np.float32)
        parts += [samples, pause]
        position += len(samples) + len(pause)
    track = np.concatenate(parts)
    return track + np.random.default_rng(SEED).normal(0, NOISE, len(track)).astype(np.float32), spans


def loudness(track: np.ndarray) -> np.ndarray:
    """How far the jaw opens in each video frame, from the level of the sound around it: (frames,) in [0, 1]."""
    frames = len(track) * FPS // RATE_HZ
    half = RATE_HZ // FPS
    centres = np.arange(frames) * half + half // 2
    padded = np.pad(track, half)
    level = np.array([np.sqrt(np.mean(padded[c : c + 2 * half] ** 2)) for c in centres])
    return np.clip((level - 0.01) / 0.15, 0, 1) ** 0.6


def expressions(spans: list[dict[str, Any]], frames: int) -> np.ndarray:
    """Every field of ``Expression`` for each frame: (frames, 6). A mood takes 0.8 s to appear and is there 0.2 s before
    its sentence."""
    times = np.arange(frames) / FPS
    fields = np.array([list(vars(EXPRESSIONS[span["mood"]]).values()) for span in spans])
    values = np.repeat(fields[:1], frames, axis=0)
    for before, after, span in zip(fields, fields[1:], spans[1:], strict=False):
        values += np.outer(_smoothstep((times - (span["start_s"] - 1.0)) / 0.8), after - before)
    return values


def blinks(frames: int) -> np.ndarray:
    """How far the lids are closed in each frame: (frames,) in [0, 1]. A blink every 2.5 to 5 s lasts about 0.2 s."""
    rng = np.random.default_rng(SEED)
    closed, time_s = np.zeros(frames), 1.8
    while time_s < frames / FPS:
        closed = np.maximum(closed, np.clip(1.4 - np.abs(np.arange(frames) / FPS - time_s) / 0.08, 0, 1))
        time_s += rng.uniform(2.5, 5.0)
    return closed


def draw(portrait: np.ndarray, time_s: float, face: Expression, opening: float, blink: float) -> np.ndarray:
    """One frame, (360, 480, 3) RGB uint8, from the (512, 512, 3) portrait."""
    angle = np.radians(face.tilt_deg + 1.5 * np.sin(2 * np.pi * time_s / 5.3))
    zoom = VIEW_WIDTH / WIDTH * (1 + 0.03 * np.sin(2 * np.pi * time_s / 11.0))
    pan_x, pan_y = 5 * np.sin(2 * np.pi * time_s / 7.7), 2.5 * np.sin(2 * np.pi * time_s / 4.1 + 1)
    v, u = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    u, v = (u - WIDTH / 2) * zoom, (v - HEIGHT / 2) * zoom
    x = VIEW_CENTRE[0] + pan_x + u * np.cos(angle) - v * np.sin(angle)
    y = VIEW_CENTRE[1] + pan_y + u * np.sin(angle) + v * np.cos(angle)

    def bump(centre: tuple[float, float], radius_x: float, radius_y: float) -> np.ndarray:
        weight: np.ndarray = np.exp(-(((x - centre[0]) / radius_x) ** 2 + ((y - centre[1]) / radius_y) ** 2) / 2)
        return weight

    # Each pixel (x, y) of the warped face is fetched from (from_x, from_y) of the portrait.
    from_x, from_y = x.copy(), y.copy()
    for inner, outer, eye, corner, inwards in zip(BROWS_INNER, BROWS_OUTER, EYES, CORNERS, (1, -1), strict=True):
        from_y -= face.brow_inner * bump((inner[0], inner[1] + face.brow_inner), 7, 4)
        from_y -= face.brow_outer * bump((outer[0], outer[1] + face.brow_outer), 7, 4)
        from_x -= inwards * 0.4 * max(face.brow_inner, 0) * bump(inner, 8, 5)
        from_y -= face.corners * bump((corner[0], corner[1] + face.corners), 8, 8)
        from_y -= face.eyes * (y - eye[1]) * bump(eye, 9, 5)
        lid = 7.5 - 0.6 * max(face.brow_inner, 0)  # the skin of the upper lid comes down this far
        from_y -= lid * blink * bump((eye[0], eye[1] + 1), 11, 3.5)

    # The lower lip and chin move down by `drop`, below the edge of the upper teeth. The edge bends with the corners.
    across = np.clip(np.abs(x - MOUTH_X) / MOUTH_HALF_WIDTH, 0, 1)
    drop = (face.jaw + opening * (3.5 - face.jaw)) * (1 - across**2)
    edge = TEETH_Y - 9 * across**2
    below = from_y - edge - drop  # how far below the lower lip's upper edge
    from_y = np.where(below > 0, from_y - drop * (1 - _smoothstep(below / CHIN)), from_y)
    maps = from_x.astype(np.float32), from_y.astype(np.float32)
    frame = cv2.remap(portrait, *maps, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    inside = np.clip(1 - below, 0, 1) * np.clip((y - edge) / 1.5, 0, 1) * (across < 1)  # between teeth and lower lip
    inside = np.where(drop > 0, inside * np.clip(drop, 0, 1), 0.0)[..., None]
    drawn: np.ndarray = np.clip(frame * (1 - inside) + np.array([60, 22, 22]) * inside + 0.5, 0, 255).astype(np.uint8)
    return drawn


def encode(path: Path, frames: list[np.ndarray], track: np.ndarray) -> None:
    pcm = np.round(np.clip(track, -1, 1) * 32767).astype(np.int16)
    with av.open(str(path), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "24", "preset": "veryslow", "threads": "1"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.gop_size = 2 * FPS
        audio = container.add_stream("aac", rate=RATE_HZ, layout="mono", bit_rate=64_000)
        step = RATE_HZ // FPS
        for i, image in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(image, "rgb24")
            picture.pts = i
            container.mux(video.encode(picture))
            piece = av.AudioFrame.from_ndarray(pcm[None, i * step : (i + 1) * step], "s16", "mono")
            piece.sample_rate, piece.pts = RATE_HZ, i * step
            container.mux(audio.encode(piece))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def main(out: Path) -> None:
    track, spans = sound()
    opening = loudness(track)
    faces = expressions(spans, len(opening))
    lids = blinks(len(opening))
    portrait = skimage.data.astronaut()
    frames = [draw(portrait, i / FPS, Expression(*faces[i]), opening[i], lids[i]) for i in range(len(opening))]
    encode(out, frames, track)
    about = {
        "made_by": "tools/make_demo.py",
        "duration_s": len(frames) / FPS,
        "sentences": spans,
        "credits": {
            "voice": {
                "what": "synthetic speech: Flite 2.2, voice cmu_us_slt (CMU ARCTIC)",
                "by": "Language Technologies Institute, Carnegie Mellon University",
                "licence": "Flite's own BSD-like licence: free use, modification and distribution",
                "source": "http://cmuflite.org",
            },
            "portrait": {
                "what": "photograph of the astronaut Eileen Collins, by way of scikit-image (skimage.data.astronaut)",
                "by": "NASA",
                "licence": "public domain, no known copyright restrictions",
                "source": "https://flic.kr/p/r9qvLn",
                "changes": "cropped, moved and warped by a program; expressions and words are not the person's own",
            },
        },
    }
    out.with_suffix(".json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _smoothstep(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    smooth: np.ndarray = x * x * (3 - 2 * x)
    return smooth


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/make_demo.py OUT.mp4")
    main(Path(sys.argv[1]))
