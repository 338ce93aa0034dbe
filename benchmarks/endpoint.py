"""When is a sentence over? Rules for the end of an utterance, on recordings of real speech.

    python benchmarks/endpoint.py --data DIR [--quick]

RAVDESS sentences, and GRID's if DIR has them, each with silence before and after it and noise 50 dB below its loudest
sample, go through Silero VAD and the endpointer that runs live, without processes. The true end of speech is the end of
the last 10 ms whose level is within 26 dB of the loudest, so very soft endings do not count. Every clip is one
utterance.

For each rule, the benchmark reports how long after the true end the end is confirmed, and how many utterances are cut
early, which means that voice activity detection found more speech after the rule had ended the utterance. Utterances
are "lost" if it found nothing more although the level stayed up, so that the end was confirmed 100 ms or more before
the true one: breath, a laugh, a scream. No wait helps against that. A rule is chosen on the speakers with odd numbers
and evaluated on those with even ones, also under other microphones, rooms and lines.

Ordinary talk, if DIR has meetings/: an utterance counts as cut if the person who spoke last continues within a second,
according to the list of turns; its delay runs from the end of that turn, if nobody speaks for a second.
"""

from __future__ import annotations

import argparse
import re
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
from emostream.stream.speech.vad import FRAME_NS, FRAME_SAMPLES, SileroVad, load_vad

RULES = {  # name → (hangover_ms, min_hangover_ms)
    **{f"fixed {ms} ms": (ms, ms) for ms in (96, 192, 256, 320, 400, 512, 800)},
    **{f"{ms} ms if sure, else 400 ms": (400, ms) for ms in (160, 192, 224, 256, 288)},
}
DEFAULT = "192 ms if sure, else 400 ms"
COMPARED = ("fixed 192 ms", "fixed 400 ms", "fixed 800 ms")
CONDITIONS = ("noise 10 dB", "babble 10 dB", "room", "telephone")
Rule = tuple[int, int]
_LEVEL = 10 ** (-26 / 20)
_NOISE = 10 ** (-50 / 20)
_EARLY_S = 0.1
_NEAR_S, _SOON_S = 0.15, 1.0  # tolerance of turns; somebody who continues within this time was cut
_LEAD_S, _TAIL_S = 0.5, 1.5  # silence around a clip
BIAS = [
    "Acted sentences of one breath: people who think while they speak pause more, and are cut more often.",
    "The noise is white and steady; voices in the background keep voice activity from being sure.",
    "The true end is defined by level, so breath and reverberation after the last sound do not count as speech.",
    "What the pipeline adds after the end is confirmed is not included: see latency.py.",
]


@dataclass(frozen=True)
class Clip:
    """``probabilities``: of speech, (frames,), one every 32 ms. Start and end of speech in seconds. ``turns``: of a
    conversation, start, end and speaker of each."""

    name: str
    probabilities: np.ndarray
    start_s: float
    end_s: float
    turns: tuple[tuple[float, float, str], ...] = ()

    @property
    def even(self) -> bool:
        """Whether its speaker is one that rules are evaluated on."""
        digits = self.name.rpartition("-")[2]
        return not digits.isdigit() or int(digits) % 2 == 0


def probabilities_of(vad: SileroVad, pcm: np.ndarray) -> np.ndarray:
    """(n,) int16 → (n // 512,), the speech probability of each 32 ms."""
    vad.reset()
    blocks = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    return np.array([vad.push(block) for block in blocks])


def padded(sound: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
    """(n,) float32 with silence before and after it, as int16; and when its speech starts and ends, in seconds."""
    level = levels(sound)
    loud = np.flatnonzero(level > _LEVEL * level.max())
    start_s, end_s = (_LEAD_S + i * LEVEL_FRAME / RATE_HZ for i in (loud[0], loud[-1] + 1))
    whole = np.concatenate([np.zeros(round(_LEAD_S * RATE_HZ)), sound, np.zeros(round(_TAIL_S * RATE_HZ))])
    whole = whole + rng.normal(0, np.abs(sound).max() * _NOISE, len(whole))
    return np.round(np.clip(whole, -1, 1) * 32767).astype(np.int16), start_s, end_s


def hear(paths: Sequence[Path]) -> list[Clip]:
    """Run voice activity detection on each file."""
    vad, rng, clips = load_vad(), np.random.default_rng(0), []
    for path in paths:
        pcm, start_s, end_s = padded(read_sound(path), rng)
        clips.append(Clip(path.stem, probabilities_of(vad, pcm), start_s, end_s))
    return clips


def hear_elsewhere(paths: Sequence[Path], condition: str, data: Path) -> list[Clip]:
    """The same under one of CONDITIONS, with noises, voices and rooms that training never used."""
    from emostream.train.bundle.degrade import degrade, surroundings

    around, vad, rng, clips = surroundings(data, judging=True), load_vad(), np.random.default_rng(0), []
    for i, path in enumerate(paths):
        pcm, start_s, end_s = padded(read_sound(path), rng)
        clips.append(Clip(path.stem, probabilities_of(vad, degrade(pcm, condition, around, i)), start_s, end_s))
    return clips


def hear_talk(folder: Path) -> list[Clip]:
    """The excerpts of meetings."""
    from emostream.train.corpora.meetings import turns_of

    vad, clips = load_vad(), []
    for name, turns in sorted(turns_of(folder).items()):
        if (folder / f"{name}.opus").is_file():
            pcm = np.round(np.clip(read_sound(folder / f"{name}.opus"), -1, 1) * 32767).astype(np.int16)
            clips.append(Clip(name, probabilities_of(vad, pcm), 0.0, len(pcm) / RATE_HZ, tuple(sorted(turns))))
    return clips


def ends(clip: Clip, rule: Rule) -> list[tuple[float, float]]:
    """For each utterance, when voice activity detection found its last speech and when the rule confirmed the end, in
    seconds."""
    hangover_ms, min_hangover_ms = rule
    endpointer = Endpointer.from_config(Speech(hangover_ms=hangover_ms, min_hangover_ms=min_hangover_ms, pause_ms=64))
    return [
        (event.end_ns / 1e9, (i + 1) * FRAME_NS / 1e9)
        for i, probability in enumerate(clip.probabilities)
        for event in endpointer.push(float(probability), i * FRAME_NS)
        if event.kind == "ended"
    ]


def judge(clips: Sequence[Clip], rule: Rule) -> common.Figures:
    """One rule on all clips.

    ``delay``: true end → confirmed, and ``wait``: end by voice activity → confirmed: percentiles in milliseconds over
    the last utterance of each clip. ``cut``: number of clips cut early; ``cut_early``: their share of the clips that
    were heard; ``lost``: see the module.
    """
    delays, waits = [], []
    cut = lost = unheard = 0
    for clip in clips:
        ended = ends(clip, rule)
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


def judge_talk(clips: Sequence[Clip], rule: Rule) -> common.Figures:
    """One rule on conversations. ``cut``: utterances that ended although the person who spoke last continued within a
    second; ``delay``: from the end of the turn, for the ends after which nobody spoke for a second."""
    delays: list[float] = []
    utterances = cut = 0
    for clip in clips:
        for end_s, confirmed_s in ends(clip, rule):
            utterances += 1
            begun = [turn for turn in clip.turns if turn[0] < end_s - _NEAR_S]
            if not begun:
                continue
            last = max(begun, key=lambda turn: min(turn[1], end_s))
            within = any(start < end_s - _NEAR_S and end > end_s + _NEAR_S for start, end, _ in clip.turns)
            soon = [turn for turn in clip.turns if end_s - _NEAR_S <= turn[0] < end_s + _SOON_S]
            if within or any(turn[2] == last[2] for turn in soon):
                cut += 1
            elif not soon and end_s - last[1] < _SOON_S:  # otherwise it was no speech, or is not in the list
                delays.append((confirmed_s - last[1]) * 1000)
    return {
        "clips": len(clips), "utterances": utterances, "cut": cut, "cut_early": cut / max(1, utterances),
        "delay": common.percentiles(delays),
    }  # fmt: skip


def tables(figures: dict[str, common.Figures]) -> str:
    """A table for each half of the speakers, with a row per rule; then the default rule in other conditions, and in
    talk."""
    parts = []
    for half in ("chosen", "judged"):
        rules = figures[half]
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
    for where, rules in figures.items():
        if where in ("chosen", "judged"):
            continue
        rows = [
            [
                f"**{name}**" if name == DEFAULT else name, rule.get("utterances", rule["clips"]), rule["delay"]["p50"],
                rule["delay"]["p90"], rule["cut"], f"{rule['cut_early']:.1%}",
            ]
            for name, rule in rules.items()
            if name in (DEFAULT, *COMPARED)
        ]  # fmt: skip
        parts.append(common.table([where, "utterances", "delay p50, ms", "p90", "cut", "cut early"], rows))
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
                axes.annotate(re.findall(r"[\d.]+", name)[0], point, xytext=(5, 5), **beside)
            text = "always this long" if kind == "fixed" else "this long if sure,\nelse 400 ms"
            axes.annotate(text, points[-1], color=colour, xytext=(0, -8), ha="right", va="top", **beside)
        axes.axhline(2, color=common.ORANGE, linewidth=1)
        axes.set_xlabel("true end of speech → end confirmed, p50, ms")
        axes.set_ylabel("utterances cut early, %")
        axes.set_ylim(bottom=0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.make_parser(__doc__)
    common.add_data(parser, "ravdess/ and, if there, clips/, noise/ and rir/, meetings/")
    options = parser.parse_args(arguments)
    common.check_data(options)
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    paths = ravdess_clips(options.data / "ravdess")
    if options.quick:
        paths = paths[::5]
    judged = [path for path in paths if Clip(path.stem, np.zeros(0), 0, 0).even]
    paths += sorted((options.data / "clips").glob("grid_*"))
    print(f"{len(paths)} recordings", file=sys.stderr)
    clips = hear(paths)
    parts = {"chosen": [c for c in clips if not c.even], "judged": [c for c in clips if c.even]}
    places = CONDITIONS if (options.data / "noise").is_dir() and (options.data / "rir").is_dir() else ()
    for condition in places:
        parts[condition] = hear_elsewhere(judged[::4], condition, options.data)
    figures = {part: {name: judge(heard, rule) for name, rule in RULES.items()} for part, heard in parts.items()}
    if (options.data / "meetings").is_dir():
        talk = hear_talk(options.data / "meetings")
        figures["talk"] = {name: judge_talk(talk, rule) for name, rule in RULES.items()}
    settings = {
        "recordings": len(paths), "noise": "-50 dB of the peak", "default rule": DEFAULT, "quick": options.quick,
    }  # fmt: skip
    result = common.Result("endpoint", settings, BIAS, figures)
    return common.finish(options.out, result, tables(figures), lambda path: plot(path, figures))


if __name__ == "__main__":
    sys.exit(exit_code(main))
