"""Excerpts of the AMI meetings: ordinary talk in rooms, by several people.

``turns.rttm`` lists the turns of each excerpt, ``<excerpt>.opus``. Nobody rated the emotions of these turns: ordinary
talk is mostly neutral, so each is labelled neutral, which is wrong for some. An item is what one person says without a
pause of half a second and without anybody talking at the same time, six seconds at most. Excerpts with a voice in
common are on one side of the split.
"""

from __future__ import annotations

from pathlib import Path

from emostream.errors import CorpusError
from emostream.train.corpora import Item

NAME = "AMI"
LICENCE = "CC BY 4.0"
CITATION = "Carletta et al., The AMI Meeting Corpus, MLMI 2005"
HELD_OUT = ("dev00", "dev01", "trn04", "trn07", "trn08", "tst00", "tst01")
SHORTEST_S, LONGEST_S = 0.8, 6.0
PAUSE_S = 0.5


def load(folder: Path) -> list[Item]:
    """The turns in ``folder``. Raises CorpusError if there is no list of turns, a line of it cannot be read, or no
    excerpt that it names is there."""
    items = []
    for excerpt, spoken in sorted(turns_of(folder).items()):
        path = folder / f"{excerpt}.opus"
        if path.is_file():
            split = "val" if excerpt in HELD_OUT else "train"
            items += [Item(path, "neutral", split, f"ami-{speaker}", (), span) for span, speaker in alone(spoken)]
    if not items:
        raise CorpusError(f"{folder}: none of the excerpts that turns.rttm names is there")
    return items


def turns_of(folder: Path) -> dict[str, list[tuple[float, float, str]]]:
    """By excerpt, start and end in seconds and the speaker of each turn. Raises CorpusError if there is no list of
    turns, or a line of it cannot be read."""
    table = folder / "turns.rttm"
    if not table.is_file():
        raise CorpusError(f"{table}: no such file; expected the turns of AMI's excerpts")
    turns: dict[str, list[tuple[float, float, str]]] = {}
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        try:
            excerpt, start, length, speaker = fields[1], float(fields[3]), float(fields[4]), fields[7]
        except (IndexError, ValueError) as error:
            raise CorpusError(f"{table}: line {number}: not a turn (SPEAKER excerpt 1 start length …)") from error
        turns.setdefault(excerpt, []).append((start, start + length, speaker))
    return turns


def alone(turns: list[tuple[float, float, str]]) -> list[tuple[tuple[float, float], str]]:
    """The sections in which only one person talks, in pieces of ``SHORTEST_S`` to ``LONGEST_S``: start and end in s,
    and who.

    ``turns``: start, end and speaker of each turn.
    """
    joined: list[tuple[float, float, str]] = []
    for start, end, speaker in sorted(turns, key=lambda turn: (turn[2], turn[0])):
        if joined and joined[-1][2] == speaker and start - joined[-1][1] < PAUSE_S:
            start, end = joined[-1][0], max(end, joined.pop()[1])
        joined.append((start, end, speaker))
    stretches = []
    for start, end, speaker in sorted(joined):
        others = sorted((a, b) for a, b, who in joined if who != speaker and a < end and b > start)
        for a, b in [*others, (end, end)]:
            while a - start >= SHORTEST_S:
                piece = min(a, start + LONGEST_S)
                stretches.append(((start, piece), speaker))
                start = piece
            start = max(start, b)
    return stretches
