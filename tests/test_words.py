"""stream/features/words.py"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.stream.features.words import WordVectors, rows_of, tokens

_TABLE = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float16)
_VECTORS = WordVectors(_TABLE)
_words = st.lists(st.text(min_size=1, max_size=12), max_size=8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("... — !?", []),
        ("Hello, World!", ["hello", "world"]),
        ("I don't; can’t", ["i", "don't", "can't"]),
        ("'quoted' rock'n'roll'", ["quoted", "rock'n'roll"]),
        ("well-known_thing", ["well", "known", "thing"]),
        ("room 101", ["room", "101"]),
        ("Cafe\u0301 ÉTÉ", ["café", "été"]),
        ("안녕하세요 세계", ["안녕하세요", "세계"]),
    ],
)
def test_tokens(text, words):
    assert tokens(text) == words


@given(st.text(max_size=60))
def test_tokens_of_tokens_are_the_same(text):
    once = tokens(text)
    assert tokens(" ".join(once)) == once


@given(st.text(min_size=1, max_size=12), st.integers(1, 5000))
def test_rows_lie_in_the_table(word, buckets):
    rows = rows_of(word, buckets)
    assert rows
    assert all(0 <= row < buckets for row in rows)


def test_rows_are_the_word_and_its_n_grams():
    # <ab> has two 3-grams and one 4-gram, and there is the word itself
    assert len(rows_of("ab", 1 << 30)) == 4
    # words with a common stem share rows, others do not
    many = 1 << 30
    assert set(rows_of("happy", many)) & set(rows_of("unhappy", many))
    assert not set(rows_of("happy", many)) & set(rows_of("torso", many))


def test_encode_keeps_the_order():
    ab, ba = _VECTORS.encode(["angry", "happy"]), _VECTORS.encode(["happy", "angry"])
    np.testing.assert_array_equal(ab, ba[::-1])
    assert np.abs(ab[0] - ab[1]).max() > 0.01


@given(_words, _words)
def test_encode_of_a_concatenation_is_the_concatenation(some, more):
    fresh = WordVectors(_TABLE)  # what a table has encoded before makes no difference
    together = fresh.encode(some + more)
    assert together.shape == (len(some) + len(more), 16)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together, np.concatenate([_VECTORS.encode(some), _VECTORS.encode(more)]))


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyzéл", min_size=1, max_size=20))
def test_every_word_has_a_vector(word):
    assert _VECTORS.encode([word])[0].any()
    np.testing.assert_array_equal(_VECTORS.encode([word.capitalize() + "!"]), _VECTORS.encode([word]))


@pytest.mark.parametrize("word", ["", "...", "—", "'", "_"])
def test_a_word_without_letters_gives_zeros(word):
    np.testing.assert_array_equal(_VECTORS.encode([word]), np.zeros((1, 16)))


def test_the_vector_is_the_mean_of_its_rows():
    rows = rows_of("stream", len(_TABLE))
    np.testing.assert_allclose(
        _VECTORS.encode(["stream"])[0], np.mean([_TABLE[row].astype(float) for row in rows], axis=0), atol=1e-6
    )


def test_returned_vectors_may_be_changed():
    _VECTORS.encode(["kept"])[:] = 0
    assert _VECTORS.encode(["kept"]).any()


def test_the_cache_of_an_endless_stream_is_bounded():
    vectors = WordVectors(_TABLE[:, :2])
    for start in range(0, 50_000, 1000):
        vectors.encode([f"w{i}" for i in range(start, start + 1000)])
    assert len(vectors._known) <= 20_001


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_save_and_load(tmp_path, dtype):
    table = np.asfortranarray(_TABLE.astype(dtype))
    WordVectors(table).save(tmp_path / "words.safetensors")
    loaded = WordVectors.load(tmp_path / "words.safetensors")
    np.testing.assert_array_equal(loaded.table, table)
    assert loaded.table.dtype == dtype
    np.testing.assert_array_equal(loaded.encode(["joy", "unseen"]), WordVectors(table).encode(["joy", "unseen"]))


def test_other_n_gram_lengths_give_other_vectors():
    assert not np.array_equal(WordVectors(_TABLE, 2, 3).encode(["stream"]), _VECTORS.encode(["stream"]))
