"""How many words are wrong, and what recognising them costs, by recogniser.

    python benchmarks/words.py --data DIR [--recognizers moonshine pocketsphinx] [--lines 200] [--quick]

Sixty clips of DIR's ravdess/ (two sentences, acted) and DIR's talking faces (clips/grid_*, whose names encode the
sentence) go through voice activity detection and the recogniser as a live run's sound does, with a second of silence
after each. The word error rate is the share of words that are wrong, missing or too many, without regard to case
and punctuation. With ``--lines N``, also N lines of television dialogue (DIR's meld/, its dev part), spoken by Debian's
flite in three voices: the word error rate, and how many the bundle labels correctly by the words alone, as recognised
and as written. Processor time is that of all threads of this process, less that of a run without words, per second of
speech.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import accuracy_score, f1_score

from benchmarks import common
from benchmarks.script import ravdess_clips, read_sound
from emostream.commands import exit_code
from emostream.engines.bundle import open_bundle
from emostream.errors import ConfigError
from emostream.stream.clock import VirtualClock
from emostream.stream.config import Speech
from emostream.stream.cores.classifier import Classifier, Features
from emostream.stream.cores.speech import SpeechCore
from emostream.stream.features.face import CROP
from emostream.stream.features.text import tokens
from emostream.stream.messages import Pcm, SpeechEvent
from emostream.stream.speech.recognizer import make_recognizer
from emostream.stream.speech.vad import FRAME_NS, load_vad
from emostream.train.corpora import in_split, meld

_BLOCK, _SILENCE = 512, 16_000  # samples
_VOICES = ("slt", "rms", "kal16")
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


@dataclass(frozen=True)
class Clip:
    """``path``: its sound, or else a voice of flite speaks it; ``said``: its words; ``label``: of the dialogue's
    lines."""

    corpus: str
    said: str
    path: Path | None = None
    voice: str = ""
    label: str = ""

    def sound(self) -> np.ndarray:
        """(n,) float32 at 16 kHz."""
        return speak(self.said, self.voice) if self.path is None else read_sound(self.path)


def clips(data: Path, count: int, lines: int) -> Iterator[Clip]:
    """``count`` clips of each corpus, and lines of dialogue. Raises ConfigError if flite is needed and missing."""
    found = ravdess_clips(data / "ravdess")
    for i in np.random.default_rng(0).permutation(len(found))[:count]:
        yield Clip("ravdess", _SAID[found[i].stem.split("-")[4]], found[i])
    for path in sorted((data / "clips").glob("grid_*"))[:count]:
        code = path.stem.rpartition("_")[2]
        said = " ".join(names.get(letter, letter) for names, letter in zip(_GRID, code, strict=True))
        yield Clip("grid", said, path)
    if lines:
        if shutil.which("flite") is None:
            raise ConfigError("--lines needs flite: sudo apt-get install flite")
        dialogue = [item for item in in_split(meld.load(data / "meld"), "val") if tokens(str(item.content))]
        for number, i in enumerate(np.random.default_rng(0).permutation(len(dialogue))[:lines]):
            said = str(dialogue[i].content)
            yield Clip("meld", said, voice=_VOICES[number % len(_VOICES)], label=dialogue[i].label)


def speak(text: str, voice: str) -> np.ndarray:
    """A line as flite says it: (n,) float32 at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "line.wav"
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(path)], check=True)
        return read_sound(path)


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


def right(classifier: Classifier, chosen: Sequence[Clip], said: Sequence[Sequence[str]]) -> dict[str, float]:
    """How many of the clips that have a label get it by these words alone; a clip without words gets none."""
    no_faces, no_sound = classifier.encode_faces(np.zeros((0, CROP, CROP), np.uint8)), np.zeros((0, 168), np.float32)
    answers = []
    for clip, words in zip(chosen, said, strict=True):
        item = Features(no_sound, no_faces, classifier.encode_words(words))
        if clip.label:
            (result,) = classifier.classify([item], [False]) if len(item.text) else (None,)
            answers.append("" if result is None else classifier.labels[int(result.probabilities.argmax())])
    truth = [clip.label for clip in chosen if clip.label]
    return {
        "accuracy": round(float(accuracy_score(truth, answers)), 3),
        "weighted_f1": round(float(f1_score(truth, answers, average="weighted", zero_division=0)), 3),
    }


def measure(name: str, chosen: Sequence[Clip], classifier: Classifier | None) -> common.Figures:
    config, vad = Speech(recognizer=name), load_vad("")  # type: ignore[arg-type]
    recognizer = make_recognizer(config)
    wrong: Counter[str] = Counter()
    words: Counter[str] = Counter()
    cpu_s = speech_s = 0.0
    said = []
    for clip in chosen:
        sound = np.concatenate([clip.sound(), np.zeros(_SILENCE, np.float32)])
        samples = np.clip(sound * 32768, -32768, 32767).astype(np.int16)
        vad.reset()
        core, begun_s = SpeechCore("a", vad, recognizer, config, VirtualClock()), time.process_time()
        utterances = hear(core, samples)
        cpu_s += time.process_time() - begun_s
        speech_s += sum(event.end_ns - event.start_ns for event in utterances) / 1e9
        said.append([word.word for event in utterances for word in event.words])
        wrong[clip.corpus] += errors(tokens(clip.said), tokens(" ".join(said[-1])))
        words[clip.corpus] += len(tokens(clip.said))
    rates = {corpus: round(wrong[corpus] / words[corpus], 3) for corpus in words}
    figures = {"error_rate": rates, "words": dict(words), "cpu_s": round(cpu_s, 2), "speech_s": round(speech_s, 1)}
    return figures if classifier is None else figures | {"labels": right(classifier, chosen, said)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.make_parser(__doc__)
    common.add_data(parser, "ravdess/ and clips/")
    parser.add_argument("--recognizers", nargs="+", default=["moonshine", "pocketsphinx"], metavar="NAME")
    parser.add_argument("--lines", type=int, default=0, metavar="N", help="also N lines of meld/, spoken by flite")
    parser.add_argument("--bundle", default="ekman7", help="that labels those lines (default: %(default)s)")
    options = parser.parse_args(arguments)
    common.check_data(options)
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    chosen = list(clips(options.data, 6 if options.quick else 60, options.lines))
    classifier = Classifier(open_bundle(options.bundle), "onnxruntime") if options.lines else None
    silent_s = measure("none", chosen, None)["cpu_s"]
    figures: common.Figures = {}
    for name in options.recognizers:
        figures[name] = found = measure(name, chosen, classifier)
        found["core_in_speech"] = round((found["cpu_s"] - silent_s) / max(found["speech_s"], 0.1), 3)
    corpora = list(next(iter(figures.values()))["error_rate"])
    rows = [
        [name, *(f"{found['error_rate'][corpus]:.3f}" for corpus in corpora), f"{found['core_in_speech']:.3f}"]
        for name, found in figures.items()
    ]
    table = common.table(
        ["", *(f"{corpus}: word error rate" for corpus in corpora), "cores while somebody speaks"], rows
    )
    if classifier is not None:
        written = right(classifier, chosen, [clip.said.split() for clip in chosen])
        labels = {name: found["labels"] for name, found in figures.items()} | {"as written": written}
        figures["as written"] = {"labels": written, "error_rate": dict.fromkeys(corpora, 0.0)}
        table += "\n" + common.table(
            ["by words alone", "accuracy", "weighted F1"],
            [[name, f"{found['accuracy']:.3f}", f"{found['weighted_f1']:.3f}"] for name, found in labels.items()],
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
