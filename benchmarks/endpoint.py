"""When is a sentence over? Rules for the end of an utterance, on recordings of real speech.

    python benchmarks/endpoint.py --data DIR [--quick]

RAVDESS sentences, and GRID's where DIR has them, each with silence before and after it and noise 50 dB below its
loudest sample, go through Silero VAD and the endpointer that runs live, without processes. The true end of speech is
the end of the last 10 ms whose level is within 26 dB of the loudest, so very soft tails do not count. Every clip is one
utterance. For each rule: how long after the true end it is confirmed, and how many are cut early, which is that voice
activity heard more speech after the rule had ended the utterance. "lost" are those of which it heard nothing more
although the level stayed up, so that the end was confirmed 100 ms or more before the true one; breath, a laugh, a
scream: no wait mends that. A rule is chosen on the speakers with odd numbers and judged on those with even ones.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import common
from benchmarks.script import RATE_HZ, _read
from emostream.stream.config import Speech
from emostream.stream.speech.vad import FRAME_NS, FRAME_SAMPLES, Endpointer

RULES = {  # name → (hangover_ms, min_hangover_ms)
    **{f"fixed {ms} ms": (ms, ms) for ms in (192, 256, 320, 400, 512)},
    **{f"{ms} ms if sure, else 400 ms": (400, ms) for ms in (160, 192, 224, 256, 288)},
}
DEFAULT = "192 ms if sure, else 400 ms"
_LEVEL = 10 ** (-26 / 20)
_NOISE = 10 ** (-50 / 20)
_EARLY_S = 0.1
BIAS = [
    "acted sentences of one breath: people who think while they speak pause more, and are cut more often",
    "the noise is white and steady; voices in the background keep voice activity from being sure",
    "the true end is defined by level, so breath and reverberation after the last sound do not count as speech",
    "what the pipeline adds after the end is confirmed is not in it: see latency.py",
]


@dataclass(frozen=True)
class Clip:
    """``probabilities``: of speech, (frames,), one each 32 ms. Start and end of speech in seconds."""

    name: str
    probabilities: np.ndarray
    start_s: float
    end_s: float

    @property
    def even(self) -> bool:
        """Whether it is of the speakers that rules are judged on."""
        digits = self.name.rpartition("-")[2]
        return not digits.isdigit() or int(digits) % 2 == 0


def hear(paths: Sequence[Path]) -> list[Clip]:
    """Run voice activity on each file."""
    from emostream.stream.nodes.speech import load_vad

    vad, rng, clips = load_vad(), np.random.default_rng(0), []
    for path in paths:
        sound = _read(path)
        frames = sound[: len(sound) // 160 * 160].reshape(-1, 160)
        level = np.sqrt((frames**2).mean(axis=1))
        loud = np.flatnonzero(level > _LEVEL * level.max())
        lead = RATE_HZ // 2
        whole = np.concatenate([np.zeros(lead), sound, np.zeros(RATE_HZ * 3 // 2)])
        whole = whole + rng.normal(0, np.abs(sound).max() * _NOISE, len(whole))
        pcm = np.round(np.clip(whole, -1, 1) * 32767).astype(np.int16)
        vad.reset()
        blocks = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
        probabilities = np.array([vad.push(block) for block in blocks])
        clips.append(Clip(path.stem, probabilities, 0.5 + loud[0] / 100, 0.5 + (loud[-1] + 1) / 100))
    return clips


def judge(clips: Sequence[Clip], hangover_ms: int, min_hangover_ms: int) -> dict:
    """One rule on all clips. ``delay``: true end → confirmed; ``wait``: end by voice activity → confirmed, both
    percentiles in ms of the last utterance of each clip. ``cut_early``: share of the clips that were heard, of which
    ``cut`` is the number; ``lost``: see above."""
    delays, waits = [], []
    cut = lost = unheard = 0
    for clip in clips:
        endpointer = Endpointer.from_config(Speech(hangover_ms=hangover_ms, min_hangover_ms=min_hangover_ms))
        ended = []
        for i, probability in enumerate(clip.probabilities):
            for bound in endpointer.push(float(probability), i * FRAME_NS):
                if bound.kind == "ended":
                    ended.append((bound.end_ns / 1e9, (i + 1) * FRAME_NS / 1e9))
        if not ended:
            unheard += 1
            continue
        end_s, confirmed_s = ended[-1]
        delays.append((confirmed_s - clip.end_s) * 1000)
        waits.append((confirmed_s - end_s) * 1000)
        cut += len(ended) > 1
        lost += int(len(ended) == 1 and confirmed_s < clip.end_s - _EARLY_S)
    heard = len(clips) - unheard
    return {
        "clips": len(clips), "unheard": unheard, "cut": cut, "lost": lost, "cut_early": cut / heard,
        "delay": common.percentiles(delays), "wait": common.percentiles(waits),
    }  # fmt: skip


def tables(figures: dict[str, dict[str, dict]]) -> str:
    parts = []
    for half, rules in figures.items():
        rows = [
            [
                f"**{name}**" if name == DEFAULT else name, of["delay"]["p50"], of["delay"]["p90"], of["wait"]["p50"],
                of["lost"], of["cut"], f"{of['cut_early']:.1%}",
            ]
            for name, of in rules.items()
        ]  # fmt: skip
        some = next(iter(rules.values()))
        title = f"{half}: {some['clips']} clips, {some['unheard']} unheard"
        header = [title, "delay p50, ms", "p90", "wait p50", "lost", "cut", "cut early"]
        parts.append(common.table(header, rows))
    return "\n\n".join(parts)


def plot(figures: dict[str, dict[str, dict]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for kind, colour in (("fixed", "#9a9a9a"), ("sure", "#0072B2")):
        rules = {name: of for name, of in figures["judged"].items() if kind in name}
        x, y = zip(*((of["delay"]["p50"], 100 * of["cut_early"]) for of in rules.values()), strict=True)
        axes.plot(x, y, "o-", color=colour)
        for name, at, up in zip(rules, x, y, strict=True):
            axes.annotate(
                name.split(" ms")[0].replace("fixed ", ""), (at, up), xytext=(5, 5), textcoords="offset points"
            )
        axes.annotate(
            "always so long" if kind == "fixed" else "so long if sure, else 400 ms", (x[-1], y[-1]), color=colour,
            xytext=(0, -16), textcoords="offset points", ha="right",
        )  # fmt: skip
    axes.axhline(3, color="#E69F00", linewidth=1)
    axes.set_xlabel("true end of speech → end confirmed, p50, ms")
    axes.set_ylabel("utterances cut early, %")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("EMOSTREAM_DATA"), metavar="DIR",
        help="folder with ravdess/, and clips/ perhaps (default: EMOSTREAM_DATA)",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    if given.data is None:
        print("error: where are the recordings? give --data DIR or set EMOSTREAM_DATA", file=sys.stderr)
        return 2
    return _measure(given)


def _measure(given: argparse.Namespace) -> int:
    paths = sorted(p for p in (given.data / "ravdess").rglob("03-01-*") if p.suffix.lower() in (".wav", ".flac"))
    if given.quick:
        paths = paths[::5]
    paths += sorted((given.data / "clips").glob("grid_*"))
    if not paths:
        print(f"error: {given.data}: no ravdess/**/03-01-*.wav or .flac there", file=sys.stderr)
        return 2
    print(f"{len(paths)} recordings", file=sys.stderr)
    clips = hear(paths)
    halves = {"chosen": [c for c in clips if not c.even], "judged": [c for c in clips if c.even]}
    figures = {half: {name: judge(some, *rule) for name, rule in RULES.items()} for half, some in halves.items()}
    settings = {"recordings": len(paths), "noise": "-50 dB of the peak", "default rule": DEFAULT, "quick": given.quick}
    result = common.Result("endpoint", settings, BIAS, figures)
    return common.finish(given.out, result, tables(figures), lambda path: plot(figures, path))


if __name__ == "__main__":
    sys.exit(main())
