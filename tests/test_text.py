"""stream/features/text.py, train/bundle/text.py"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emostream.engines.bundle import PIECES
from emostream.stream.features.spelling import spoken
from emostream.stream.features.text import MAX_ROWS, TextEncoder, WordPieces, tokens
from emostream.train.bundle import text
from emostream.train.bundle.features import Ragged
from emostream.train.corpora import LABELS

torch.set_num_threads(1)

SMALL = WordPieces(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##able", "able", "##s", "don", "'", "t", "a", "##a", "cafe"]
)


@pytest.fixture(scope="module")
def pieces(bundle) -> WordPieces:
    return WordPieces.load(bundle.path(PIECES))


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


def test_words_are_written_as_the_encoder_knows_them():
    assert spoken(["Kids", "don’t", "talk,", "twenty-five", "—", "O'Neill."], punctuation=False) == [
        "kids", "don't", "talk", "twenty", "five", "o'neill",
    ]  # fmt: skip
    assert spoken(["Kids", "talk."], punctuation=True) == ["Kids", "talk."]
    plain = ["kids", "don't", "talk"]
    assert spoken(plain, punctuation=False) == plain


def test_a_word_is_its_longest_pieces():
    assert SMALL.of_word("unable") == [4, 5] and SMALL.of_word("ables") == [6, 7]
    assert SMALL.of_word("don't") == [8, 9, 10]  # the apostrophe stands alone
    assert SMALL.of_word("Café") == [13]
    assert SMALL.of_word("xyz") == SMALL.of_word("a" * 41) == [SMALL.unknown]
    assert SMALL.of_word("") == []


def test_a_line_holds_the_last_pieces_between_its_marks():
    assert SMALL.line(["a", "able"]).tolist() == [2, 11, 6, 3]
    long = SMALL.line(["a"] * 200 + ["able"])
    assert len(long) == MAX_ROWS and long[0] == 2 and long[-2:].tolist() == [6, 3]
    assert SMALL.line([]).tolist() == [2, 3]


@given(st.lists(st.text(max_size=20), max_size=10))
def test_any_words_give_numbers_of_the_vocabulary(pieces, words):
    line = pieces.line(words)
    assert line.dtype == np.int64 and line.min() >= 0 and line.max() < len(pieces.number)


def test_pieces_are_those_of_the_pretrained_networks_own_tokenizer(pieces):
    tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    theirs = tokenizers.Tokenizer.from_file(str(text.model_folder() / "tokenizer.json"))
    theirs.no_truncation(), theirs.no_padding()
    for line in ("i don't know what you're talking about", "unbelievably café naïve 101 résumé", "안녕하세요 czerwień"):
        words = tokens(line)
        want = theirs.encode(" ".join(words), add_special_tokens=False).ids
        assert [number for word in words for number in pieces.of_word(word)] == want


@pytest.mark.parametrize(
    ("line", "known"),
    [
        ("i have no idea what you are talking about", True),
        ("she really did say that to him yesterday", True),
        ("i don't think he's here", True),  # apostrophes break no word
        ("das wetter ist heute wirklich schön", False),
        ("ach", True),  # too few words to decide
        ("czerwona sukienka wisi dzisiaj w szafie", False),
        ("przepraszam ale nie mogłem wcześniej przyjechać", False),
    ],
)
def test_words_of_another_language_are_left_out(pieces, line, known):
    assert pieces.knows(line.split()) == known
    encoder = TextEncoder(lambda numbers: np.ones((1, numbers.shape[1], 4), np.float32), pieces, 4)
    assert bool(len(encoder.encode(line.split()))) == known


def test_the_same_words_are_encoded_once():
    runs = []
    encoder = TextEncoder(lambda numbers: runs.append(1) or np.zeros((1, numbers.shape[1], 2), np.float32), SMALL, 2)
    assert encoder.encode([]).shape == (0, 2) and not runs
    for _ in range(3):
        assert encoder.encode(["a", "able"]).shape == (4, 2)
    assert len(runs) == 1
    for n in range(40):
        encoder.encode(["a"] * (n + 1))
    encoder.encode(["a", "able"])  # dropped from the cache meanwhile
    assert len(runs) == 42


# Training


def test_the_rebuilt_network_is_the_pretrained_one():
    """Sentences of the published example, by the mean of their states; the similarities are those of its model card."""
    net, pieces = text.pretrained(1)
    net.eval()

    def mean(line: str) -> torch.Tensor:
        numbers = torch.from_numpy(pieces.line([*line.lower().rstrip(".").split(), "."]))[None]
        with torch.inference_mode():
            return torch.nn.functional.normalize(net.states(numbers, torch.ones(numbers.shape)).mean(1), dim=1)[0]

    food, bread, baby = map(
        mean, ("A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby.")
    )
    assert float(food @ bread) == pytest.approx(0.7553, abs=1e-3)
    assert float(food @ baby) == pytest.approx(-0.1050, abs=1e-3)


def test_misheard_words_are_mostly_those_that_sound_alike():
    line = ["their", "right"]
    mishearing = text.Mishearing([line, ["there", "they're", "the", "rest", "is", "written"]])
    rng = np.random.default_rng(0)
    assert set(mishearing.alike["their"]) >= {"their", "there"}
    heard = [mishearing.heard(line, rng) for _ in range(2000)]
    assert all(1 <= len(h) <= 2 for h in heard)
    firsts = [h[0] for h in heard if len(h) == 2]
    assert 0.85 < len(firsts) / 2000 * (1 / 0.81) < 1.15  # both are kept
    assert 0.01 < np.mean([word == "there" for word in firsts]) < 0.08
    assert line == ["their", "right"]  # the line itself does not change


def test_batches_hold_each_line_once_beside_those_of_its_length():
    rng = np.random.default_rng(0)
    lines = [np.zeros(n, np.int64) for n in rng.integers(3, 60, 500)]
    groups = text.in_groups(lines, rng.permutation(500), 16)
    assert sorted(np.concatenate(groups).tolist()) == list(range(500))
    widths = [max(len(lines[i]) for i in group) - min(len(lines[i]) for i in group) for group in groups]
    assert np.mean(widths) < 15


@pytest.mark.long
@pytest.mark.slow
def test_training_separates_two_labels_and_padding_changes_nothing():
    texts = ["i am so happy today", "this is truly awful news i am afraid"] * 32
    labels = np.array([LABELS.index("joy"), LABELS.index("sadness")] * 32)
    losses = []
    net = text.train(texts, labels, np.zeros(64, np.int64), 3, 0, lambda _, __, loss: losses.append(loss), batch=8)
    assert losses[-1] < 0.7 * losses[0]
    pieces = WordPieces.load(text.model_folder() / "vocab.txt")
    lines = [pieces.line(tokens(line)) for line in texts[:2]]
    assert text.predict(net, lines, 0).argmax(1).tolist() == labels[:2].tolist()
    together: Ragged = text.encode(net, lines)
    for i, line in enumerate(lines):
        alone = text.encode(net, [line])[0]
        assert alone.shape == (len(line), text.DIM)
        np.testing.assert_allclose(together[i].astype(float), alone.astype(float), atol=0.15)  # bfloat16
