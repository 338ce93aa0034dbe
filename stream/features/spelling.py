"""Words as the text encoder knows them: one recogniser writes "Kids are here.", another "kids are here"."""

from __future__ import annotations

from collections.abc import Iterable

from emostream.stream.features.text import tokens

PUNCTUATION = "punctuation"  # in a manifest's settings of text: whether the encoder was trained with case and marks


def spoken(words: Iterable[str], punctuation: bool) -> list[str]:
    """The words for an encoder: as they are if it knows punctuation, else in lower case and without it."""
    return list(words) if punctuation else [token for word in words for token in tokens(word)]
