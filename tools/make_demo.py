"""Make the demo clips: one face that speaks five sentences, each in a different mood; and two that speak in turn.

    sudo apt-get install flite && pip install pyworld 'setuptools<81'
    python tools/make_demo.py stream/sources/demo.mp4
    python tools/make_demo.py --two stream/sources/demo_two.mp4

The first writes ``demo.mp4`` (H.264, 480 × 360 at 25 frames per second, AAC mono at 16 kHz) and beside it
``demo.json``, which says when each sentence truly starts and ends, its mood, and whom to credit. Two runs on one
machine give the same bytes if the versions of Flite, WORLD, PyAV and OpenCV are the same.

The voice is Flite's ``slt``, which speaks without any mood. WORLD takes it apart into pitch, spectrum and noise, and
puts it together as people speak in each mood (Scherer, Speech Communication 40, 2003): high, wide and bright in joy;
fast and bright in anger; high, fast and trembling in fear; low, slow and dull in sadness. The face is drawn
(``drawn_face.py``) and moves as people's faces do in each mood (Ekman and Friesen's EMFACS); between the sentences it
is at rest. Its mouth follows the sound's level, the eyes blink, the head sways. The second writes the same of two
people side by side, 640 pixels wide; the other voice is Flite's ``rms``, and who listens is at rest.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import wave
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyworld
from drawn_face import Expression, Look, draw

RATE_HZ = 16_000  # the voice's sample rate
FPS = 25
WIDTH, HEIGHT = 480, 360
LEAD_IN_S, LEAD_OUT_S = 0.5, 1.5
PEAK = 0.5  # of full scale, before a sentence's own gain
NOISE = 10 ** (-55 / 20)  # root mean square of the background noise, of full scale: silence is not digital zero
WORLD_MS = 5.0  # WORLD's frames
TREMOR_HZ = 6.0
SEED = 7
APPEARS_S = 0.4  # how long a mood takes to appear before its sentence, and to fade after it


@dataclass(frozen=True)
class Prosody:
    """How the voice is changed. ``pitch``, ``spread``, ``rate``: factors on its mean pitch, on the deviation of the
    logarithm of its pitch from the mean, and on its speed. ``tilt_db``: per octave above 500 Hz. ``breath``: noise, 0
    to 1. ``tremor``: of the pitch, in semitones. ``accent_db``: what the quietest 20 dB lose. ``slope``: how far the
    pitch rises over the sentence, in semitones. ``gain``: on the level."""

    pitch: float = 1.0
    spread: float = 1.0
    rate: float = 1.0
    tilt_db: float = 0.0
    breath: float = 0.0
    tremor: float = 0.0
    accent_db: float = 0.0
    slope: float = 0.0
    gain: float = 1.0


@dataclass(frozen=True)
class Sentence:
    mood: str
    text: str
    voice: Prosody
    face: Expression
    pause_s: float  # silence after it
    who: int = 0  # the speaker, counted from left to right


SENTENCES = [
    Sentence(
        "joy",
        "This is the best day of my life, and I am so happy!",
        Prosody(pitch=1.35, spread=2.3, rate=1.0, tilt_db=4.0, breath=0.2, accent_db=6, slope=-1),
        Expression(brow_inner=1, brow_outer=2, lids=0.2, cheeks=1, corners=8, stretch=5, teeth=1, open=0.25),
        2.0,
    ),
    Sentence(
        "anger",
        "Stop it right now, I am very angry with you, and I never want to see you again!",
        Prosody(pitch=0.95, spread=1.8, rate=1.15, tilt_db=4.0, accent_db=1, slope=2, gain=1.3),
        Expression(brow_inner=-8, brow_outer=5, frown=1, wide=0.5, lids=0.3, nose=0.7, corners=-4, press=0.7, teeth=1),
        2.0,
    ),
    Sentence(
        "fear",
        "Please help me, there is someone in the house, and I am so afraid.",
        Prosody(pitch=1.55, spread=1.1, rate=1.2, tilt_db=0.5, breath=0.1, tremor=0.7, slope=-1.5),
        Expression(brow_inner=8, brow_outer=-3, frown=0.6, wide=1, corners=-6, stretch=6, teeth=0.8, open=0.3),
        2.0,
    ),
    Sentence(
        "sadness",
        "I feel so sad and lonely, my mother died last night.",
        Prosody(pitch=0.9, spread=0.8, rate=0.85, tilt_db=-3.0, accent_db=2, gain=0.95),
        Expression(brow_inner=7, brow_outer=-4, lids=0.7, corners=-7, stretch=-2),
        2.0,
    ),
    Sentence(
        "neutral",
        "The next meeting will be at ten o'clock in the morning.",
        Prosody(gain=0.9),
        Expression(),
        LEAD_OUT_S,
    ),
]


@dataclass(frozen=True)
class Character:
    """Somebody in the picture. ``at``: the middle of the head; ``size``: its height in parts of the picture's;
    ``phase``: of swaying and blinking; ``opening``: of the mouth where the voice is loudest."""

    voice: str = "slt"
    look: Look = Look()  # noqa: RUF009 (it is frozen)
    at: float = WIDTH / 2
    size: float = 1.08
    phase: float = 0.0
    opening: float = 0.32


@dataclass(frozen=True)
class Scene:
    width: int
    people: list[Character]
    sentences: list[Sentence]


ONE = Scene(WIDTH, [Character()], SENTENCES)
TWO = Scene(
    640,
    [
        Character(at=165, size=0.98, opening=0.9),
        Character(
            voice="rms",
            look=Look(skin=(196, 146, 112), hair=(120, 112, 104), shirt=(110, 62, 58), glasses=True),
            at=480,
            size=1.02,
            phase=2.1,
            opening=0.9,
        ),
    ],
    [
        replace(SENTENCES[0], pause_s=1.2),
        Sentence(
            "neutral",
            "The meeting will be on Tuesday at ten, in the room on the second floor.",
            Prosody(gain=0.9),
            Expression(),
            1.2,
            who=1,
        ),
        replace(SENTENCES[4], text="Thank you, I will bring the papers and a list of the questions.", pause_s=1.2),
        replace(SENTENCES[3], pause_s=LEAD_OUT_S, who=1),
    ],
)


def flite(text: str, voice: str) -> np.ndarray:
    """The sentence as the voice speaks it: (n,) float64 at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sentence.wav"
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(path)], check=True)
        with wave.open(str(path)) as file:
            if file.getframerate() != RATE_HZ or file.getnchannels() != 1:
                raise ValueError(f"flite gave {file.getnchannels()} × {file.getframerate()} Hz, not 1 × {RATE_HZ} Hz")
            return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float64) / 32768


def speak(text: str, voice: Prosody, speaker: str) -> np.ndarray:
    """The sentence's sound, without the silence before and after: (n,) float32 in [-1, 1] at 16 kHz."""
    plain = flite(text, speaker)
    pitch, times = pyworld.harvest(plain, RATE_HZ, frame_period=WORLD_MS)
    power = pyworld.cheaptrick(plain, pitch, times, RATE_HZ)
    noise = pyworld.d4c(plain, pitch, times, RATE_HZ)

    frames = np.linspace(0, len(pitch) - 1, int(len(pitch) / voice.rate))  # where the new frames were
    before, part = frames.astype(int), (frames % 1)[:, None]
    after = np.minimum(before + 1, len(pitch) - 1)
    pitch = pitch[before]
    power, noise = (x[before] * (1 - part) + x[after] * part for x in (power, noise))

    voiced, seconds = pitch > 0, np.arange(len(pitch)) * WORLD_MS / 1000
    octaves = np.log2(np.where(voiced, pitch, 1.0))
    mean = octaves[voiced].mean()
    octaves = mean + np.log2(voice.pitch) + voice.spread * (octaves - mean)
    octaves += voice.tremor / 12 * np.sin(2 * np.pi * TREMOR_HZ * seconds)
    octaves += voice.slope / 12 * (seconds / seconds[-1] - 0.5)
    pitch = np.where(voiced, 2**octaves, 0.0)

    hertz = np.linspace(0, RATE_HZ / 2, power.shape[1])
    power = power * 10 ** (voice.tilt_db * np.log2(np.maximum(hertz, 500) / 500) / 10)
    level_db = 10 * np.log10(power.sum(axis=1) + 1e-12)
    below = np.clip((level_db - np.percentile(level_db, 95)) / 20, -1, 0)
    power *= 10 ** (voice.accent_db * below[:, None] / 10)
    noise = np.clip(noise + voice.breath * (1 - noise) * np.sqrt(hertz / hertz[-1]), 0, 1)

    samples = pyworld.synthesize(pitch, np.ascontiguousarray(power), np.ascontiguousarray(noise), RATE_HZ, WORLD_MS)
    samples /= np.abs(samples).max()
    loud = np.flatnonzero(np.abs(samples) > 0.02)
    spoken: np.ndarray = (PEAK * voice.gain * samples[loud[0] : loud[-1] + 1]).astype(np.float32)
    return spoken


def sound(scene: Scene) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The whole sound track, (n,) float32 at 16 kHz; and each sentence with its true start and end."""
    parts, spans = [np.zeros(int(LEAD_IN_S * RATE_HZ), np.float32)], []
    position = len(parts[0])
    for sentence in scene.sentences:
        samples = speak(sentence.text, sentence.voice, scene.people[sentence.who].voice)
        start, end = position / RATE_HZ, (position + len(samples)) / RATE_HZ
        span = {"start_s": round(start, 3), "end_s": round(end, 3), "mood": sentence.mood, "text": sentence.text}
        spans.append(span if len(scene.people) == 1 else {**span, "who": sentence.who})
        pause = np.zeros(int(sentence.pause_s * RATE_HZ), np.float32)
        parts += [samples, pause]
        position += len(samples) + len(pause)
    track = np.concatenate(parts)
    return track + np.random.default_rng(SEED).normal(0, NOISE, len(track)).astype(np.float32), spans


def loudness(track: np.ndarray) -> np.ndarray:
    """How loud the sound around each video frame is: (frames,) in [0, 1]."""
    frames = len(track) * FPS // RATE_HZ
    half = RATE_HZ // FPS
    centres = np.arange(frames) * half + half // 2
    padded = np.pad(track, half)
    level = np.array([np.sqrt(np.mean(padded[c : c + 2 * half] ** 2)) for c in centres])
    return np.clip((level - 0.01) / 0.15, 0, 1) ** 0.6


def expressions(scene: Scene, who: int, spans: list[dict[str, Any]], frames: int) -> list[Expression]:
    """Somebody's face in each frame, without the movements of speech: at rest except during their own sentences."""
    times = np.arange(frames) / FPS
    values = np.zeros((frames, len(vars(Expression()))))
    for sentence, span in zip(scene.sentences, spans, strict=True):
        there = _smoothstep((times - span["start_s"]) / APPEARS_S + 1) * _smoothstep(
            (span["end_s"] - times) / APPEARS_S + 1
        )
        values += np.outer(there * (sentence.who == who), list(vars(sentence.face).values()))
    return [Expression(*row.tolist()) for row in values]


def speaks(scene: Scene, who: int, spans: list[dict[str, Any]], frames: int) -> np.ndarray:
    """In which frames ``who`` is speaking: (frames,) bool."""
    times = np.arange(frames) / FPS
    mine = np.zeros(frames, bool)
    for sentence, span in zip(scene.sentences, spans, strict=True):
        if sentence.who == who:
            mine |= (times > span["start_s"] - 0.2) & (times < span["end_s"] + 0.2)
    return mine


def blinks(frames: int, phase: float) -> np.ndarray:
    """How far the lids are closed in each frame: (frames,) in [0, 1]. A blink every 2.5 to 5 s lasts about 0.2 s."""
    rng = np.random.default_rng(SEED + round(10 * phase))
    closed, time_s = np.zeros(frames), 1.8 + phase / 2
    while time_s < frames / FPS:
        closed = np.maximum(closed, np.clip(1.4 - np.abs(np.arange(frames) / FPS - time_s) / 0.08, 0, 1))
        time_s += rng.uniform(2.5, 5.0)
    return closed


def talking(face: Expression, loud: float, opening: float) -> Expression:
    """The face while the mouth speaks with loudness ``loud``."""
    return replace(face, open=max(0.7 * face.open, opening * loud) if loud > 0.05 else face.open)


def head(character: Character, face: Expression, time_s: float, blink: float, width: int) -> np.ndarray:
    """Somebody in front of the wall, in a picture of the clip's size: (360, width, 3) RGB uint8."""
    drawn = draw(face, blink, character.look)
    height, drawn_width = drawn.shape[:2]
    time_s += 3.7 * character.phase
    angle = 1.5 * np.sin(2 * np.pi * time_s / 5.3)
    zoom = HEIGHT / height * (character.size + 0.03 * np.sin(2 * np.pi * time_s / 11.0))
    pan_x, pan_y = 5 * np.sin(2 * np.pi * time_s / 7.7), 8 + 2.5 * np.sin(2 * np.pi * time_s / 4.1 + 1)
    matrix = cv2.getRotationMatrix2D((drawn_width / 2, height / 2), angle, zoom)
    matrix[:, 2] += character.at - drawn_width / 2 + pan_x, (HEIGHT - height) / 2 + pan_y
    smooth = cv2.GaussianBlur(drawn, (0, 0), 0.6)  # against aliasing when it is shrunk
    return cv2.warpAffine(smooth, matrix, (width, HEIGHT), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def beside(heads: list[np.ndarray], people: list[Character]) -> np.ndarray:
    """One picture of all, each within their own part of it; the wall is continuous where they meet."""
    picture = heads[0].astype(np.float32)
    x = np.arange(picture.shape[1])
    for left, right, image in zip(people, people[1:], heads[1:], strict=False):
        share = np.clip((x - (left.at + right.at) / 2) / 16 + 0.5, 0, 1)[None, :, None]
        picture = picture * (1 - share) + image * share
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def encode(path: Path, frames: list[np.ndarray], track: np.ndarray) -> None:
    pcm = np.round(np.clip(track, -1, 1) * 32767).astype(np.int16)
    with av.open(str(path), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "24", "preset": "veryslow", "threads": "1"})
        video.width, video.height, video.pix_fmt = frames[0].shape[1], HEIGHT, "yuv420p"
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


def main(out: Path, scene: Scene) -> None:
    track, spans = sound(scene)
    loud = loudness(track)
    heads = []
    for who, character in enumerate(scene.people):
        lids = blinks(len(loud), character.phase)
        heard = loud if len(scene.people) == 1 else loud * speaks(scene, who, spans, len(loud))
        faces = expressions(scene, who, spans, len(loud))
        heads.append(
            [
                head(character, talking(face, heard[i], character.opening), i / FPS, lids[i], scene.width)
                for i, face in enumerate(faces)
            ]
        )
    frames = [beside(list(each), scene.people) for each in zip(*heads, strict=True)]
    encode(out, frames, track)
    names = [f"cmu_us_{character.voice}" for character in scene.people]
    voices = f"{'voice' if len(names) == 1 else 'voices'} {' and '.join(names)}"
    about = {
        "made_by": "tools/make_demo.py",
        "duration_s": len(frames) / FPS,
        "sentences": spans,
        "credits": {
            "voice": {
                "what": f"synthetic speech: Flite 2.2, {voices} (CMU ARCTIC)",
                "by": "Language Technologies Institute, Carnegie Mellon University",
                "licence": "Flite's own BSD-like licence: free use, modification and distribution",
                "source": "http://cmuflite.org",
                "changes": "pitch, speed, spectrum and level were changed with WORLD (Morise et al. 2016)",
            },
            "face": {"what": "drawn by tools/drawn_face.py", "licence": "that of emostream"},
        },
    }
    out.with_suffix(".json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _smoothstep(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    smooth: np.ndarray = x * x * (3 - 2 * x)
    return smooth


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or (len(sys.argv) == 3 and sys.argv[1] != "--two"):
        sys.exit("usage: python tools/make_demo.py [--two] OUT.mp4")
    main(Path(sys.argv[-1]), TWO if len(sys.argv) == 3 else ONE)
