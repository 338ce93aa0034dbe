"""Who speaks? Faces of the GRID corpus side by side, each with the sound of one of them or of somebody else.

    python benchmarks/people.py --data DIR [--quick]

Every two of DIR's talking faces (clips/grid_*) are put beside each other and labelled with the sound of either: both
talking, or the other's picture stopped. Then with a third person's voice; and each face alone, with its own and with
the others' voices. A case is right where ``speaking`` is the face whose sound it is, or null where it is nobody's in
view; null is counted apart from wrong faces.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from benchmarks import common
from emostream.commands import exit_code
from emostream.errors import ConfigError
from emostream.stream.config import load_config
from emostream.stream.label import Labeller

_RATE_HZ, _FPS = 16_000, 25
_BEFORE, _AFTER = 13, 18  # frames for which the first and the last picture stay
BIAS = [
    "Read sentences of one grammar, of the same length and begun at the same time: two people's words agree more by"
    " chance than in talk.",
    "Faces look into the camera, well lit, a third of the picture high; the threshold was set on these clips.",
    "Pictures and sound are joined without a codec; a camera that lags is not among them.",
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
        """The pictures, with the first and last one held."""
        held = np.concatenate(
            [np.repeat(self.frames[:1], _BEFORE, 0), self.frames, np.repeat(self.frames[-1:], _AFTER, 0)]
        )
        return np.repeat(held[:1], len(held), 0) if still else held

    def heard(self) -> np.ndarray:
        """The sound, in as much quiet noise."""
        step = _RATE_HZ // _FPS
        whole = np.concatenate([np.zeros(_BEFORE * step), self.samples, np.zeros(_AFTER * step)])
        noise = np.random.default_rng(0).normal(0, 1e-3, len(whole))
        whole = whole + noise
        return whole.astype(np.float32)


@dataclass(frozen=True)
class Case:
    """What is seen and heard. ``right``: where in the picture, from left to right, who speaks is; None: nowhere."""

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


def tables(figures: common.Figures) -> str:
    rows = [
        [CASES[kind], counts["labels"], counts["right"], counts["null"], counts["wrong"], f"{counts['share']:.3f}"]
        for kind, counts in figures["speaking"].items()
    ]
    return common.table(["case", "labels", "right", "null", "wrong", "right, share"], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.make_parser(__doc__)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get(common.DATA), metavar="DIR",
        help=f"folder with clips/ (default: {common.DATA})",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.data is None:
        raise ConfigError(f"where are the recordings? give --data DIR or set {common.DATA}")
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
    figures: common.Figures = {
        "speaking": {
            kind: {
                "labels": counts[kind].total(),
                **{answer: counts[kind][answer] for answer in ("right", "null", "wrong")},
                "share": round(counts[kind]["right"] / max(1, counts[kind].total()), 3),
            }
            for kind in CASES
        }
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
