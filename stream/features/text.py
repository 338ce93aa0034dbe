"""Encodes what is said: words → word pieces → ``text.onnx`` → a vector for each piece in its context.

The pieces are BERT's (WordPiece: Wu et al., "Google's neural machine translation system", 2016): the longest piece of
the vocabulary with which a word begins, then the longest with which the rest begins, and so on.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

MAX_ROWS = 64  # pieces in the text window, including the marks at its ends
LONGEST_WORD = 40  # letters; a longer word is unknown
MOST_BROKEN = 0.4  # continuation or unknown pieces per word; with more, the language is not the encoder's
LEAST_WORDS = 3  # fewer words do not identify the language

SETTINGS = {"longest_word": LONGEST_WORD, "most_broken": MOST_BROKEN, "least_words": LEAST_WORDS}

_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def tokens(text: str) -> list[str]:
    """Lower-case words of ``text`` as a recogniser writes them: without punctuation, with apostrophes inside words."""
    return _TOKEN.findall(unicodedata.normalize("NFC", text).lower().replace("’", "'"))


class WordPieces:
    """Maps words to the numbers of their pieces. ``pieces``: the vocabulary, the lines of ``vocab.txt``."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.number = {piece: number for number, piece in enumerate(pieces)}
        self.first, self.last, self.unknown = (self.number[mark] for mark in ("[CLS]", "[SEP]", "[UNK]"))
        self._broken = {n for piece, n in self.number.items() if piece.startswith("##")} | {self.unknown}
        self._known: dict[str, list[int]] = {}

    @classmethod
    def load(cls, path: Path) -> WordPieces:
        """Read ``vocab.txt``. Raises KeyError if it lacks the marks of BERT's vocabularies."""
        return cls(path.read_text(encoding="utf-8").splitlines())

    def of_word(self, word: str) -> list[int]:
        """Pieces of one word as a recogniser writes it. An apostrophe is a piece of its own."""
        if word not in self._known:
            if len(self._known) > 20_000:  # bounded on an endless stream
                self._known.clear()
            plain = unicodedata.normalize("NFD", word.lower())
            plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Mn")  # no accents
            self._known[word] = [number for part in re.findall(r"[^\W_]+|\S", plain) for number in self._pieces(part)]
        return self._known[word]

    def _pieces(self, word: str) -> list[int]:
        numbers: list[int] = []
        start = 0
        while start < len(word) and len(word) <= LONGEST_WORD:
            for end in range(len(word), start, -1):
                number = self.number.get(("##" if start else "") + word[start:end])
                if number is not None:
                    numbers.append(number)
                    start = end
                    break
            else:
                return [self.unknown]
        return numbers or [self.unknown]

    def line(self, words: Sequence[str]) -> np.ndarray:
        """The last words that fit into ``MAX_ROWS``, between the marks of a line: (n,) int64."""
        numbers = [number for word in words for number in self.of_word(word)]
        return np.array([self.first, *numbers[-(MAX_ROWS - 2) :], self.last], np.int64)

    def knows(self, words: Sequence[str]) -> bool:
        """Whether the words may be in the vocabulary's language; words of other languages break into many pieces."""
        if len(words) < LEAST_WORDS:
            return True
        broken = sum(number in self._broken for word in words for number in self.of_word(word))
        return broken <= MOST_BROKEN * len(words)


class TextEncoder:
    """``run``: ``text.onnx``, pieces (1, n) int64 → vectors (1, n, dim) float32."""

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], pieces: WordPieces, dim: int) -> None:
        self._run, self.pieces, self.dim = run, pieces, dim
        self._last: dict[tuple[str, ...], np.ndarray] = {}  # a cache: while someone speaks, the same words come again

    def encode(self, words: Sequence[str]) -> np.ndarray:
        """Vectors of the last words: (n, dim) float32; n = 0 without words or if the language is not known."""
        wanted = self.begin(words)
        return self.finish(words, None if wanted is None else self._run(wanted))

    def begin(self, words: Sequence[str]) -> np.ndarray | None:
        """The first half of ``encode``: the network's input, (1, n) int64; None if there is nothing to run."""
        if not words or tuple(words) in self._last or not self.pieces.knows(words):
            return None
        return self.pieces.line(words)[None]

    def finish(self, words: Sequence[str], computed: np.ndarray | None) -> np.ndarray:
        """The second half: the vectors of the same words, from the network's output, (1, n, dim)."""
        key = tuple(words)
        if computed is not None:
            while len(self._last) >= 16:
                self._last.pop(next(iter(self._last)))
            self._last[key] = computed[0]
        return self._last.get(key, np.zeros((0, self.dim), np.float32))
