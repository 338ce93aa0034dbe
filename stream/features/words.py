"""Words to vectors, by hashed words and character n-grams: every word has a vector, and no vocabulary is shipped.

The vector of a word is the mean of the table rows that its features hash to (Bojanowski et al., "Enriching Word
Vectors with Subword Information", TACL 2017; hashing as in Weinberger et al., ICML 2009).
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def tokens(text: str) -> list[str]:
    """Lower-case words of ``text`` as a recogniser writes them: without punctuation, with apostrophes inside words."""
    return _TOKEN.findall(unicodedata.normalize("NFC", text).lower().replace("’", "'"))


def rows_of(word: str, buckets: int, min_n: int = 3, max_n: int = 5) -> list[int]:
    """Table rows of one word: one for the word itself, and one for each character n-gram of ``<word>``."""
    marked = f"<{word}>"
    grams = [marked[i : i + n] for n in range(min_n, max_n + 1) for i in range(len(marked) - n + 1)]
    return [zlib.crc32(gram.encode()) % buckets for gram in [word, *grams]]


class WordVectors:
    """A table of vectors; ``table``: (buckets, dim) float16 or float32."""

    def __init__(self, table: np.ndarray, min_n: int = 3, max_n: int = 5) -> None:
        self.table = table
        self.min_n, self.max_n = min_n, max_n
        self._known: dict[str, np.ndarray] = {}

    @property
    def dim(self) -> int:
        return int(self.table.shape[1])

    def encode(self, words: Sequence[str]) -> np.ndarray:
        """Vectors of ``words``: (len(words), dim) float32. A word without letters and digits becomes zeros."""
        out = np.zeros((len(words), self.dim), np.float32)
        for i, word in enumerate(words):
            if word not in self._known:
                if len(self._known) > 20_000:  # bounded on an endless stream
                    self._known.clear()
                self._known[word] = self._vector(word)
            out[i] = self._known[word]
        return out

    def _vector(self, word: str) -> np.ndarray:
        parts = [row for token in tokens(word) for row in rows_of(token, len(self.table), self.min_n, self.max_n)]
        if not parts:
            return np.zeros(self.dim, np.float32)
        vector: np.ndarray = self.table[parts].astype(np.float32).mean(axis=0)
        return vector

    def save(self, path: Path) -> None:
        """Write the table as safetensors."""
        path.write_bytes(save({"table": np.ascontiguousarray(self.table)}))

    @classmethod
    def load(cls, path: Path, min_n: int = 3, max_n: int = 5) -> WordVectors:
        """Read a table that ``save`` wrote."""
        return cls(load_file(path)["table"], min_n, max_n)
