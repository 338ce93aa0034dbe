"""When is a sentence over? Rules for the end of an utterance, on recordings of real speech.

    python benchmarks/endpoint.py --data DIR [--quick]

RAVDESS sentences, and GRID's if DIR has them, each with silence before and after it and noise 50 dB below its loudest
sample, go through Silero VAD and the endpointer that runs live, without processes. The true end of speech is the end of
the last 10 ms whose level is within 26 dB of the loudest, so very soft tails do not count. Every clip is one utterance.

For each rule, the benchmark reports how long after the true end the end is confirmed, and how many utterances are cut
early, which means that voice activity heard more speech after the rule had ended the utterance. Utterances are "lost"
if voice activity heard nothing more although the level stayed up, so that the end was confirmed 100 ms or more before
the true one: breath, a laugh, a scream. No wait mends that. A rule is chosen on the speakers with odd numbers and
judged on those with even ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import common
from benchmarks.script import LEVEL_FRAME, RATE_HZ, levels, ravdess_clips, read_sound
from emostream.commands import exit_code
from emostream.stream.config import Speech
from emostream.stream.speech.endpoint import Endpointer
from emostream.stream.speech.vad import FRAME_NS, FRAME_SAMPLES

RULES = {  # name → (hangover_ms, min_hangover_ms)
    **{f"fixed {ms} ms": (ms, ms) for ms in (192, 256, 320, 400, 512)},
    **{f"{ms} ms if sure, else 400 ms": (400, ms) for ms in (160, 192, 224, 256, 288)},
}
DEFAULT = "192 ms if sure, else 400 ms"
_LEVEL = 10 ** (-26 / 20)
_NOISE = 10 ** (-50 / 20)
_EARLY_S = 0.1
_LEAD_S, _TAIL_S = 0.5, 1.5  # silence around a clip
BIAS = [
    "Acted sentences of one breath: people who think while they speak pause more, and are cut more often.",
    "The noise is white and steady; voices in the background keep voice activity from being sure.",
    "The true end is defined by level, so breath and reverberation after the last sound do not count as speech.",
    "What the pipeline adds after the end is confirmed is not included: see latency.py.",
]


@dataclass(frozen=True)
class Clip:
    """``probabilities``: of speech, (frames,), one every 32 ms. Start and end of speech in seconds."""

    name: str
    probabilities: np.ndarray
    start_s: float
    end_s: float

    @property
    def even(self) -> bool:
        """Whether its speaker is one that rules are judged on."""
        digits = self.name.rpartition("-")[2]
        return not digits.isdigit() or int(digits) % 2 == 0


def hear(paths: Sequence[Path]) -> list[Clip]:
    """Run voice activity on each file."""
    from emostream.stream.speech.vad import load_vad

    vad, rng, clips = load_vad(), np.random.default_rng(0), []
    for path in paths:
        sound = read_sound(path)
        level = levels(sound)
        loud = np.flatnonzero(level > _LEVEL * level.max())
        start_s, end_s = (_LEAD_S + i * LEVEL_FRAME / RATE_HZ for i in (loud[0], loud[-1] + 1))
        whole = np.concatenate([np.zeros(round(_LEAD_S * RATE_HZ)), sound, np.zeros(round(_TAIL_S * RATE_HZ))])
        whole = whole + rng.normal(0, np.abs(sound).max() * _NOISE, len(whole))
        pcm = np.round(np.clip(whole, -1, 1) * 32767).astype(np.int16)
        vad.reset()
        blocks = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
        probabilities = np.array([vad.push(block) for block in blocks])
        clips.append(Clip(path.stem, probabilities, start_s, end_s))
    return clips


def judge(clips: Sequence[Clip], hangover_ms: int, min_hangover_ms: int) -> common.Figures:
    """One rule on all clips.

    ``delay``: true end → confirmed, and ``wait``: end by voice activity → confirmed: percentiles in milliseconds over
    the last utterance of each clip. ``cut``: number of clips cut early; ``cut_early``: their share of the clips that
    were heard; ``lost``: see the module.
    """
    delays, waits = [], []
    cut = lost = unheard = 0
    for clip in clips:
        endpointer = Endpointer.from_config(Speech(hangover_ms=hangover_ms, min_hangover_ms=min_hangover_ms))
        ended = []
        for i, probability in enumerate(clip.probabilities):
            for event in endpointer.push(float(probability), i * FRAME_NS):
                if event.kind == "ended":
                    ended.append((event.end_ns / 1e9, (i + 1) * FRAME_NS / 1e9))
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


def tables(figures: dict[str, common.Figures]) -> str:
    """One table for each half of the speakers, one row per rule."""
    parts = []
    for half, rules in figures.items():
        rows = [
            [
                f"**{name}**" if name == DEFAULT else name, rule["delay"]["p50"], rule["delay"]["p90"],
                rule["wait"]["p50"], rule["lost"], rule["cut"], f"{rule['cut_early']:.1%}",
            ]
            for name, rule in rules.items()
        ]  # fmt: skip
        first = next(iter(rules.values()))
        title = f"{half}: {first['clips']} clips, {first['unheard']} unheard"
        header = [title, "delay p50, ms", "p90", "wait p50", "lost", "cut", "cut early"]
        parts.append(common.table(header, rows))
    return "\n\n".join(parts)


def plot(path: Path, figures: dict[str, common.Figures]) -> None:
    """The delay of each rule against how often it cuts utterances early."""
    beside = {"textcoords": "offset points"}
    with common.drawing(path, (7, 4.5)) as (_, ((axes,),)):
        for kind, colour in (("fixed", common.GREY), ("sure", common.BLUE)):
            rules = {name: rule for name, rule in figures["judged"].items() if kind in name}
            points = [(rule["delay"]["p50"], 100 * rule["cut_early"]) for rule in rules.values()]
            axes.plot(*zip(*points, strict=True), "o-", color=colour)
            for name, point in zip(rules, points, strict=True):
                axes.annotate(name.split(" ms")[0].replace("fixed ", ""), point, xytext=(5, 5), **beside)
            text = "always this long" if kind == "fixed" else "this long if sure, else 400 ms"
            axes.annotate(text, points[-1], color=colour, xytext=(0, -16), ha="right", **beside)
        axes.axhline(3, color=common.ORANGE, linewidth=1)
        axes.set_xlabel("true end of speech → end confirmed, p50, ms")
        axes.set_ylabel("utterances cut early, %")
        axes.set_ylim(bottom=0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.make_parser(__doc__)
    common.add_data(parser, "ravdess/ and, if there, clips/")
    options = parser.parse_args(arguments)
    common.check_data(options)
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    paths = ravdess_clips(options.data / "ravdess")
    if options.quick:
        paths = paths[::5]
    paths += sorted((options.data / "clips").glob("grid_*"))
    print(f"{len(paths)} recordings", file=sys.stderr)
    clips = hear(paths)
    halves = {"chosen": [c for c in clips if not c.even], "judged": [c for c in clips if c.even]}
    figures = {half: {name: judge(part, *rule) for name, rule in RULES.items()} for half, part in halves.items()}
    settings = {
        "recordings": len(paths), "noise": "-50 dB of the peak", "default rule": DEFAULT, "quick": options.quick,
    }  # fmt: skip
    result = common.Result("endpoint", settings, BIAS, figures)
    return common.finish(options.out, result, tables(figures), lambda path: plot(path, figures))


if __name__ == "__main__":
    sys.exit(exit_code(main))
