"""How many words are wrong, and what recognising them costs, by recogniser.

    python benchmarks/words.py --data DIR [--recognizers moonshine pocketsphinx] [--quick]

Sixty clips of DIR's ravdess/ (two sentences, acted) and DIR's talking faces (clips/grid_*, whose names encode the
sentence) go through voice activity detection and the recogniser as a live run's sound does, with a second of silence
after each. The word error rate is the share of words that are wrong, missing or too many, without regard to case
and punctuation. Processor time is that of all threads of this process, less that of a run without words, per second of
speech.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import common
from benchmarks.script import ravdess_clips, read_sound
from emostream.commands import exit_code
from emostream.errors import ConfigError
from emostream.stream.clock import VirtualClock
from emostream.stream.config import Speech
from emostream.stream.cores.speech import SpeechCore
from emostream.stream.features.text import tokens
from emostream.stream.messages import Pcm, SpeechEvent
from emostream.stream.speech.recognizer import make_recognizer
from emostream.stream.speech.vad import FRAME_NS, load_vad

_BLOCK, _SILENCE = 512, 16_000  # samples
_SAID = {"01": "kids are talking by the door", "02": "dogs are sitting by the door"}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_GRID: tuple[dict[str, str], ...] = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"}, {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"}, {},
    dict(zip("z123456789", _DIGITS, strict=True)),
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)  # fmt: skip
BIAS = [
    "RAVDESS has two sentences and no noise; GRID's are no English that a recogniser expects (bin blue at F two now).",
    "At the pace of the machine: a run in real time that is too slow for its words so far has fewer of them.",
]


def clips(data: Path, count: int) -> Iterator[tuple[str, Path, str]]:
    """Corpus, path and sentence of each clip."""
    found = ravdess_clips(data / "ravdess")
    for i in np.random.default_rng(0).permutation(len(found))[:count]:
        yield "ravdess", found[i], _SAID[found[i].stem.split("-")[4]]
    for path in sorted((data / "clips").glob("grid_*"))[:count]:
        code = path.stem.rpartition("_")[2]
        yield "grid", path, " ".join(names.get(letter, letter) for names, letter in zip(_GRID, code, strict=True))


def errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Words to replace, remove or insert (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def hear(core: SpeechCore, samples: np.ndarray) -> list[SpeechEvent]:
    """The utterances in (n,) int16."""
    ended = []
    for i in range(len(samples) // _BLOCK):
        block = samples[i * _BLOCK : (i + 1) * _BLOCK]
        pcm = Pcm(
            stream="a", media_start_ns=i * FRAME_NS, media_end_ns=(i + 1) * FRAME_NS, captured_ns=0, samples=block
        )
        ended += [event for event in core.push(pcm) if isinstance(event, SpeechEvent) and event.event == "ended"]
    return ended


def measure(name: str, chosen: Sequence[tuple[str, Path, str]]) -> common.Figures:
    config, vad = Speech(recognizer=name), load_vad("")  # type: ignore[arg-type]
    recognizer = make_recognizer(config)
    wrong: Counter[str] = Counter()
    words: Counter[str] = Counter()
    cpu_s = speech_s = 0.0
    for corpus, path, sentence in chosen:
        sound = np.concatenate([read_sound(path), np.zeros(_SILENCE, np.float32)])
        samples = np.clip(sound * 32768, -32768, 32767).astype(np.int16)
        vad.reset()
        core, begun_s = SpeechCore("a", vad, recognizer, config, VirtualClock()), time.process_time()
        utterances = hear(core, samples)
        cpu_s += time.process_time() - begun_s
        speech_s += sum(event.end_ns - event.start_ns for event in utterances) / 1e9
        heard = tokens(" ".join(word.word for event in utterances for word in event.words))
        wrong[corpus] += errors(sentence.split(), heard)
        words[corpus] += len(sentence.split())
    rates = {corpus: round(wrong[corpus] / words[corpus], 3) for corpus in words}
    return {"error_rate": rates, "words": dict(words), "cpu_s": round(cpu_s, 2), "speech_s": round(speech_s, 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.make_parser(__doc__)
    common.add_data(parser, "ravdess/ and clips/")
    parser.add_argument("--recognizers", nargs="+", default=["moonshine", "pocketsphinx"], metavar="NAME")
    options = parser.parse_args(arguments)
    common.check_data(options)
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    chosen = list(clips(options.data, 6 if options.quick else 60))
    if not chosen:
        raise ConfigError(f"{options.data}: has neither ravdess/ nor clips/grid_*")
    silent_s = measure("none", chosen)["cpu_s"]
    figures: common.Figures = {}
    for name in options.recognizers:
        figures[name] = found = measure(name, chosen)
        found["core_in_speech"] = round((found["cpu_s"] - silent_s) / max(found["speech_s"], 0.1), 3)
    corpora = list(next(iter(figures.values()))["error_rate"])
    rows = [
        [name, *(f"{found['error_rate'][corpus]:.3f}" for corpus in corpora), f"{found['core_in_speech']:.3f}"]
        for name, found in figures.items()
    ]
    table = common.table(
        ["", *(f"{corpus}: word error rate" for corpus in corpora), "cores while somebody speaks"], rows
    )
    result = common.Result("words", {"clips": len(chosen), "quick": options.quick}, BIAS, figures)
    return common.finish(options.out, result, table, lambda path: plot(path, figures))


def plot(path: Path, figures: common.Figures) -> None:
    with common.drawing(path, (6, 2.4)) as (_, grid):
        axes = grid[0, 0]
        corpora = list(next(iter(figures.values()))["error_rate"])
        for i, (name, found) in enumerate(figures.items()):
            places = np.arange(len(corpora)) + i * 0.8 / len(figures)
            axes.barh(places, list(found["error_rate"].values()), 0.7 / len(figures), label=name)
        axes.set_yticks(np.arange(len(corpora)) + 0.4 - 0.4 / len(figures), corpora)
        axes.set_xlabel("word error rate")
        axes.legend(frameon=False)


if __name__ == "__main__":
    sys.exit(exit_code(main))
