"""Scores and counts of the labels that ``stream-label`` wrote."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from emostream.errors import CorpusError
from emostream.stream.emotion import Emotion, decode_emotion
from emostream.train.corpora import LABELS, Item
from emostream.train.metrics import scores


def read_labels(path: Path) -> list[Emotion]:
    """Utterances of a JSON-lines file. Raises CorpusError if it cannot be read or has another format."""
    try:
        lines = path.read_bytes().splitlines()
        return [message for line in lines if (message := decode_emotion(line)).kind == "utterance"]
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path}: not the output of stream-label ({error})") from error


def count(labels: Sequence[Emotion]) -> dict[str, float]:
    """Number of utterances, the share of each label that occurs among them, and the share marked uncertain."""
    shares = {name: n / len(labels) for name, n in sorted(Counter(label.label for label in labels).items())}
    if labels:
        shares["uncertain"] = sum(label.uncertain for label in labels) / len(labels)
    return {"utterances": len(labels), **{name: round(share, 3) for name, share in shares.items()}}


def score(items: Iterable[Item], labels: Iterable[Emotion]) -> dict[str, float]:
    """Scores of labels against whole recordings, ``items``, whose file names are the streams' names.

    A recording with several utterances gets the mean of their probabilities, weighted by length; one without any
    counts as wrong and is counted in ``without_utterance``. Raises CorpusError if an item has no path.
    """
    by_stream: dict[str, list[Emotion]] = defaultdict(list)
    for label in labels:
        by_stream[label.stream].append(label)
    truth, predicted, without = [], [], 0
    for item in items:
        if not isinstance(item.content, Path):
            raise CorpusError("only recordings can be scored")
        utterances = by_stream.get(item.content.name, [])
        weights = np.array([max(u.end_s - u.start_s, 1e-3) for u in utterances])
        truth.append(LABELS.index(item.label))
        if not utterances:
            without += 1
            predicted.append(len(LABELS))  # none of the labels
            continue
        probabilities = np.array([[u.probabilities[name] for name in LABELS] for u in utterances])
        predicted.append(int((weights @ probabilities).argmax()))
    return {**scores(np.array(truth), np.array(predicted)), "without_utterance": without}
