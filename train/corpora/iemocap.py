"""IEMOCAP in its official release: five sessions, each of a woman and a man in improvised and scripted dialogues.

    IEMOCAP_full_release/Session1 … Session5/
        dialog/EmoEvaluation/Ses01F_impro01.txt      [6.2901 - 8.2357]  Ses01F_impro01_F000  neu  [2.5, 2.5, 2.5]
        dialog/transcriptions/Ses01F_impro01.txt     Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
        dialog/avi/DivX/Ses01F_impro01.avi           both actors, side by side
        sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav

``Ses01F_impro01``: session 1, the woman (F) wears the motion-capture markers; ``_M003``: a turn of the man.

That the actor with the markers is in the left half of the picture is an assumption. The release's read-me does not say
so. Public preprocessing code that works from the videos does it this way, for instance that of Dai et al., "Multimodal
End-to-End Sparse Model for Emotion Recognition" (NAACL 2021). It has not been checked against the videos here: look at
one before you rely on the faces.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from emostream.errors import Problems
from emostream.train.corpora import Clip

NAME = "IEMOCAP"
LICENCE = "by application to SAIL, University of Southern California; research use"
CITATION = (
    "Busso et al., IEMOCAP: Interactive emotional dyadic motion capture database, "
    "Language Resources and Evaluation 42(4), 2008"
)
EMOTION = {
    "ang": "anger", "exc": "excitement", "hap": "happiness", "sad": "sadness", "fru": "frustration", "sur": "surprise",
    "neu": "neutral",
}  # fmt: skip
LABELS = tuple(EMOTION.values())
DROPPED = ("xxx", "fea", "dis", "oth")  # the annotators disagree, or too few turns have the label
# turns in the whole release: Yoon et al., "Attentive modality hopping mechanism for speech emotion recognition"
# (ICASSP 2020)
COUNTS = {
    "anger": 1103, "excitement": 1041, "happiness": 595, "sadness": 1084, "frustration": 1849, "surprise": 107,
    "neutral": 1708,
}  # fmt: skip
SESSIONS = 5
PARTS = {
    "evaluation": "dialog/EmoEvaluation", "words": "dialog/transcriptions", "picture": "dialog/avi/DivX",
    "sound": "sentences/wav",
}  # fmt: skip
_EVALUATED = re.compile(r"\[([\d.]+) - ([\d.]+)\]\t(\w+)\t(\w{3})\t\[.*\]")
_SAID = re.compile(r"(\w+) \[[\d.]+-[\d.]+\]: ?(.*)")


def load(folder: Path) -> list[Clip]:
    """The turns that have one of the seven labels; fold n tests on session n + 1.

    ``folder``: the release or its parent folder. Raises Problems with everything that is missing or cannot be read.
    """
    if (folder / "IEMOCAP_full_release").is_dir():
        folder = folder / "IEMOCAP_full_release"
    clips: list[Clip] = []
    problems: list[str] = []
    for session in range(1, SESSIONS + 1):
        place = folder / f"Session{session}"
        missing = [place / part for part in PARTS.values() if not (place / part).is_dir()]
        if not place.is_dir():
            missing = [place]
        problems += [f"{path}: no such folder" for path in missing]
        if missing:
            continue
        files = sorted((place / PARTS["evaluation"]).glob("Ses*.txt"))
        if not files:
            problems.append(f"{place / PARTS['evaluation']}: holds no file named like Ses0{session}F_impro01.txt")
        for file in files:
            turns, wrong = _dialogue(place, session, file)
            clips += turns
            problems += wrong
    if problems:
        raise Problems(f"{folder}: does not have the layout of IEMOCAP's full release (see docs/corpora.md)", problems)
    return clips


def check_counts(clips: Sequence[Clip]) -> list[str]:
    """The labels whose numbers differ from the published ones, one line each."""
    count = Counter(clip.label for clip in clips)
    return [
        f"{label}: {count[label]} clips, published {published}"
        for label, published in COUNTS.items()
        if count[label] != published
    ]


def _dialogue(place: Path, session: int, file: Path) -> tuple[list[Clip], list[str]]:
    """The clips of one dialogue, and what is wrong with it."""
    name = file.stem
    if not re.fullmatch(rf"Ses0{session}[FM]_\w+", name):
        return [], [f"{file}: not named like a dialogue of session {session} (Ses0{session}F_impro01.txt)"]
    media = place / PARTS["picture"] / f"{name}.avi"
    said, problems = _words(place / PARTS["words"] / f"{name}.txt")
    if not media.is_file():
        problems.append(f"{media}: no such file")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    turns = [(number, line) for number, line in enumerate(lines, start=1) if line.startswith("[")]
    if not turns:
        problems.append(f"{file}: no line is like: [6.2901 - 8.2357]<TAB>{name}_F000<TAB>neu<TAB>[2.5, 2.5, 2.5]")
    clips = []
    for number, line in turns:
        match = _EVALUATED.fullmatch(line.rstrip())
        turn = re.fullmatch(rf"{name}_([FM])\d+", match[3]) if match else None
        if match is None or turn is None or match[4] not in (*EMOTION, *DROPPED):
            problems.append(f"{file}, line {number}: cannot be read: {line!r}")
            continue
        if match[4] in DROPPED:
            continue
        audio = place / PARTS["sound"] / name / f"{match[3]}.wav"
        if not audio.is_file():
            problems.append(f"{audio}: no such file")
        start_s, end_s = float(match[1]), float(match[2])
        if start_s >= end_s:
            problems.append(f"{file}, line {number}: {match[3]} starts at {start_s:g} s and ends at {end_s:g} s")
        clips.append(
            Clip(
                where=match[3], label=EMOTION[match[4]], speaker=f"Ses0{session}_{turn[1]}", group=f"Session{session}",
                media=media, audio=audio, start_s=start_s, end_s=end_s, text=said.get(match[3]), fold=session - 1,
                crop="left" if turn[1] == name[5] else "right",
            )
        )  # fmt: skip
    return clips, problems


def _words(file: Path) -> tuple[dict[str, str], list[str]]:
    """The words of each turn, and what is wrong with the file. Lines of another form are remarks."""
    if not file.is_file():
        return {}, [f"{file}: no such file"]
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    said = {match[1]: match[2].strip() for line in lines if (match := _SAID.fullmatch(line))}
    return said, [] if said else [f"{file}: no line is like: {file.stem}_F000 [006.2901-008.2357]: Excuse me."]
