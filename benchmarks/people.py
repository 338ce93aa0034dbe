"""Who speaks? Faces of the GRID corpus side by side, each with the sound of one of them or of somebody else; voices in
conversations; and two voices at once.

    python benchmarks/people.py --data DIR [--quick]

All pairs of DIR's talking faces (clips/grid_*) are put side by side and labelled with the sound of either: both
talking, or the other's picture stopped. Then with a third person's voice; and each face alone, with its own and with
the others' voices. A case is right if ``speaking`` is the face whose sound it is, or null if that face is not in view;
a wrong null is counted apart from wrong faces.

Conversations are made of DIR's ravdess/, emodb/ and nemo/: two to four speakers of one corpus, six utterances each in
random order, a second apart. The assigned names are compared with the true speakers by purity (the share of utterances
whose name belongs mostly to their speaker) and coverage (the share of utterances that have their speaker's most
frequent name). The threshold was set on the first two of every four speakers; these are the others. The same is done
for DIR's meetings/, where an utterance belongs to the speaker whom it overlaps most, if for at least four fifths of it.

``overlap`` is compared with the share of each utterance in which two people speak: in pairs of recordings of two
speakers of one corpus, mixed; in the conversations, where it is none; and in the meetings, of which its
threshold was set on trn*.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks import common
from benchmarks.overlap import compared, mixed, share_of_two, trimmed
from benchmarks.script import read_sound
from emostream.commands import exit_code
from emostream.errors import ConfigError
from emostream.stream.config import load_config
from emostream.stream.emotion import Emotion
from emostream.stream.label import Labeller

_RATE_HZ, _FPS = 16_000, 25
_EACH = 6  # utterances per speaker in a conversation
_BEFORE, _AFTER = 13, 18  # frames for which the first and the last picture are held
BIAS = [
    "Read sentences of one grammar, of the same length and begun at the same time: two people's words agree more by"
    " chance than in talk.",
    "Faces look into the camera, well lit, a third of the picture high; the threshold was set on these clips.",
    "Pictures and sound are joined without a codec; a camera that lags is not among them.",
    "Mixed voices: equally loud, without the room that two people share; pauses within both count as overlap. Meetings:"
    " few, 30 s each, and those who marked the turns heard more than the one microphone did.",
    "Conversations: acted emotions of a sentence each change a voice more than talk does; each corpus has one room.",
]
CASES = {
    "both": "two faces, both talking, one's sound",
    "other still": "two faces, the other's picture stopped",
    "nobody": "two faces, a third person's voice",
    "alone": "one face, its own voice",
    "off screen": "one face, another person's voice",
}


@dataclass(frozen=True)
class Clip:
    """``frames``: (n, height, width) gray at 25 a second; ``samples``: (m,) float32 at 16 kHz; both begin at 0."""

    name: str
    frames: np.ndarray
    samples: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Clip:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        resampler = av.AudioResampler("flt", "mono", _RATE_HZ)
        with av.open(str(path)) as container:
            parts = [part.to_ndarray()[0] for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        return cls(path.stem, np.stack(frames), np.concatenate(parts))

    def seen(self, still: bool = False) -> np.ndarray:
        """The pictures, with the first and the last one held."""
        held = np.concatenate(
            [np.repeat(self.frames[:1], _BEFORE, 0), self.frames, np.repeat(self.frames[-1:], _AFTER, 0)]
        )
        return np.repeat(held[:1], len(held), 0) if still else held

    def heard(self) -> np.ndarray:
        """The sound, with silence for the held pictures, in quiet noise."""
        step = _RATE_HZ // _FPS
        whole = np.concatenate([np.zeros(_BEFORE * step), self.samples, np.zeros(_AFTER * step)])
        noise = np.random.default_rng(0).normal(0, 1e-3, len(whole))
        whole = whole + noise
        return whole.astype(np.float32)


@dataclass(frozen=True)
class Case:
    """What is seen and heard. ``right``: the speaker's place in the picture, from left to right; None: not in it."""

    kind: str
    frames: np.ndarray
    samples: np.ndarray
    right: int | None
    faces: int


def cases(clips: Sequence[Clip]) -> Iterator[Case]:
    for pair in itertools.combinations(clips, 2):
        for kind in ("both", "other still"):
            for i, speaker in enumerate(pair):
                pictures = [clip.seen(still=kind != "both" and clip is not speaker) for clip in pair]
                yield Case(kind, np.concatenate(pictures, axis=2), speaker.heard(), i, 2)
        together = np.concatenate([clip.seen() for clip in pair], axis=2)
        for other in clips:
            if other not in pair:
                yield Case("nobody", together, other.heard(), None, 2)
    for clip, speaker in itertools.product(clips, clips):
        own = clip is speaker
        yield Case("alone" if own else "off screen", clip.seen(), speaker.heard(), 0 if own else None, 1)


def judge(labeller: Labeller, case: Case) -> Iterator[str]:
    """For each label: ``right``, ``null`` (nobody, though somebody in view speaks) or ``wrong``."""
    for label in labeller.label_arrays(case.samples, _RATE_HZ, case.frames, _FPS):
        box = next((face.box for face in label.faces if face.id == label.speaking), None)
        place = None if box is None else int((box[0] + box[2] / 2) * case.faces)
        yield "right" if place == case.right else "null" if place is None else "wrong"


Spoken = list[tuple[Path, str]]  # recordings and their speakers


def speakers(data: Path) -> dict[str, dict[str, list[Path]]]:
    """By corpus and speaker, the recordings of the last two of every four speakers."""
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((data / "ravdess").rglob("*.flac")):
        found["ravdess"][path.stem[18:20]].append(path)
    for path in sorted((data / "emodb").rglob("*.*")):
        found["emodb"][path.stem[:2]].append(path)
    for path in sorted((data / "nemo").rglob("*.opus")):
        found["nemo"][path.stem.split("_")[0]].append(path)
    return {
        corpus: {name: people[name] for i, name in enumerate(sorted(people)) if i % 4 >= 2}
        for corpus, people in found.items()
    }


def conversation(people: dict[str, list[Path]], rng: np.random.Generator) -> Spoken:
    count = min(len(people), int(rng.integers(2, 5)))
    names = rng.choice(sorted(people), count, replace=False)
    said = [(people[name][i], str(name)) for name in names for i in rng.choice(len(people[name]), _EACH, replace=False)]
    return [said[i] for i in rng.permutation(len(said))]


def purity_and_coverage(pairs: Sequence[tuple[str, str]]) -> tuple[float, float]:
    """Purity and coverage from the (speaker, name) of each utterance."""

    def share(by: int) -> float:
        groups: dict[str, Counter[str]] = defaultdict(Counter)
        for pair in pairs:
            groups[pair[by]][pair[1 - by]] += 1
        return sum(max(group.values()) for group in groups.values()) / max(1, len(pairs))

    return share(1), share(0)


def hear(labeller: Labeller, spoken: Spoken) -> tuple[list[Emotion], list[tuple[float, float, str]]]:
    """The labels of a conversation, and from when to when each speaks."""
    step, parts, spans = _RATE_HZ, [np.zeros(_RATE_HZ // 2, np.float32)], []
    position = len(parts[0])
    for path, who in spoken:
        sound = read_sound(path)
        sound = (0.3 * sound / max(float(np.abs(sound).max()), 1e-6)).astype(np.float32)
        spans.append((position / _RATE_HZ, (position + len(sound)) / _RATE_HZ, who))
        parts += [sound, np.zeros(step, np.float32)]
        position += len(sound) + step
    whole = np.concatenate(parts)
    whole = (whole + np.random.default_rng(0).normal(0, 3e-4, len(whole))).astype(np.float32)
    return list(labeller.label_arrays(whole, _RATE_HZ)), spans


def named(
    labels: Iterable[Emotion], spans: Sequence[tuple[float, float, str]], least: float = 0.5
) -> list[tuple[str, str]]:
    """(speaker, name) of each label that has a name and lies mostly within one speaker's spans."""
    pairs = []
    for label in labels:
        during: Counter[str] = Counter()
        for start_s, end_s, who in spans:
            during[who] += max(0.0, min(end_s, label.end_s) - max(start_s, label.start_s))  # type: ignore[assignment]
        who, seconds = during.most_common(1)[0]
        if label.speaker is not None and seconds >= least * (label.end_s - label.start_s):
            pairs.append((who, label.speaker))
    return pairs


Turns = list[tuple[float, float, str]]  # start and end in seconds, and whose it is


def meetings(labeller: Labeller, folder: Path) -> Iterator[tuple[str, list[Emotion], Turns]]:
    """Name, labels and turns of each meeting."""
    turns: dict[str, Turns] = defaultdict(list)
    for line in (folder / "turns.rttm").read_text(encoding="utf-8").splitlines():
        _, name, _, start, length, _, _, who, *_ = line.split()
        turns[name].append((float(start), float(start) + float(length), who))
    for path in sorted(folder.glob("*.opus")):
        yield path.stem, list(labeller.label(path)), turns[path.stem]


def _of_two(labels: Iterable[Emotion], turns: Turns) -> list[tuple[float, float | None]]:
    spans = [(start_s, end_s) for start_s, end_s, _ in turns]
    return [(share_of_two(label, spans), label.overlap) for label in labels]


def mixtures(labeller: Labeller, people: dict[str, list[Path]], count: int) -> list[tuple[float, float | None]]:
    """The share of two voices, and what was told, of each label of pairs of recordings."""
    rng, pairs = np.random.default_rng(2), []
    for _ in range(count):
        who = rng.choice(sorted(people), 2, replace=False)
        one, other = (trimmed(read_sound(people[name][rng.integers(len(people[name]))])) for name in who)
        sound, spans = mixed(one, other, rng)
        pairs += [(share_of_two(label, spans), label.overlap) for label in labeller.label_arrays(sound, _RATE_HZ)]
    return pairs


def _voice_row(conversations: Sequence[Sequence[tuple[str, str]]]) -> dict[str, float]:
    """Purity and coverage over the (speaker, name) of each utterance of conversations."""
    scores = [(len(pairs), *purity_and_coverage(pairs)) for pairs in conversations]
    total = sum(count for count, _, _ in scores)
    return {
        "conversations": len(scores), "utterances": total,
        "purity": round(sum(count * purity for count, purity, _ in scores) / max(1, total), 3),
        "coverage": round(sum(count * coverage for count, _, coverage in scores) / max(1, total), 3),
    }  # fmt: skip


Rows = dict[str, dict[str, Any]]


def voices(labeller: Labeller, data: Path, count: int) -> tuple[Rows, Rows]:
    """What was told of voices, and of overlap, by corpus."""
    names: Rows = {}
    overlaps: Rows = {}
    for corpus, people in speakers(data).items():
        rng = np.random.default_rng(1)
        heard = [hear(labeller, conversation(people, rng)) for _ in range(count)]
        names[corpus] = _voice_row([named(labels, spans) for labels, spans in heard])
        overlaps[f"{corpus}, in turn"] = compared((0.0, label.overlap) for labels, _ in heard for label in labels)
        overlaps[f"{corpus}, mixed"] = compared(mixtures(labeller, people, 5 * count))
    if (data / "meetings" / "turns.rttm").exists():
        held = list(meetings(labeller, data / "meetings"))
        said = [named(labels, turns, 0.8) for _, labels, turns in held]
        names["meetings"] = _voice_row([pairs for pairs in said if len({who for who, _ in pairs}) > 1])
        for name, judged in (("meetings", True), ("meetings, training", False)):
            chosen = [(labels, turns) for stem, labels, turns in held if stem.startswith("trn") != judged]
            overlaps[name] = compared(pair for labels, turns in chosen for pair in _of_two(labels, turns))
    return names, overlaps


def tables(figures: common.Figures) -> str:
    heard = [
        [name, row["conversations"], row["utterances"], f"{row['purity']:.3f}", f"{row['coverage']:.3f}"]
        for name, row in figures["voices"].items()
    ]
    rows = [
        [CASES[kind], counts["labels"], counts["right"], counts["null"], counts["wrong"], f"{counts['share']:.3f}"]
        for kind, counts in figures["speaking"].items()
    ]
    shown = common.table(["case", "labels", "right", "null", "wrong", "right, share"], rows)
    told = common.table(["voices of", "conversations", "utterances", "purity", "coverage"], heard)
    at_once = [
        [
            name,
            *(
                f"{value:.2f}" if isinstance(value, float) else "–" if value is None else value
                for value in row.values()
            ),
        ]
        for name, row in figures["overlap"].items()
    ]
    columns = ["sound", "labels", "null", "true", "told", "correlation", "AUC", "over .1", "told", "false alarms"]
    return f"{shown}\n\n{told}\n\n{common.table(columns, at_once)}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.make_parser(__doc__)
    common.add_data(parser, "clips/ and, if there, ravdess/, emodb/, nemo/ and meetings/")
    options = parser.parse_args(arguments)
    common.check_data(options)
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    paths = sorted((options.data / "clips").glob("grid_*"))[: 3 if options.quick else None]
    if len(paths) < 3:
        raise ConfigError(f"{options.data / 'clips'}: there are fewer than three of GRID's clips")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    clips = [Clip.load(path) for path in paths]
    print(f"{len(clips)} faces", file=sys.stderr)
    with Labeller(load_config(changes=["speech.recognizer=none"])) as labeller:
        for case in cases(clips):
            counts[case.kind].update(judge(labeller, case))
        names, overlaps = voices(labeller, options.data, 1 if options.quick else 12)
    figures: common.Figures = {
        "speaking": {
            kind: {
                "labels": counts[kind].total(),
                **{answer: counts[kind][answer] for answer in ("right", "null", "wrong")},
                "share": round(counts[kind]["right"] / max(1, counts[kind].total()), 3),
            }
            for kind in CASES
        },
        "voices": names,
        "overlap": overlaps,
    }
    result = common.Result("people", {"faces": len(clips), "quick": options.quick}, BIAS, figures)
    return common.finish(options.out, result, tables(figures), lambda path: plot(path, figures))


def plot(path: Path, figures: common.Figures) -> None:
    with common.drawing(path, (7, 2.6)) as (_, grid):
        axes = grid[0, 0]
        kinds = list(figures["speaking"])
        left = np.zeros(len(kinds))
        for answer, colour in (("right", "tab:green"), ("null", "lightgray"), ("wrong", "tab:red")):
            share = np.array([figures["speaking"][k][answer] / max(1, figures["speaking"][k]["labels"]) for k in kinds])
            axes.barh([CASES[kind] for kind in kinds], share, left=left, color=colour, label=answer)
            left += share
        axes.invert_yaxis()
        axes.set_xlabel("share of labels")
        axes.legend()


if __name__ == "__main__":
    sys.exit(exit_code(main))
