"""Moonshine tiny, an English speech recognition network: sound → tokens, and tokens → words.

N. Jeffries, E. King, M. Kudlur, G. Nicholson, J. Wang, P. Warden, "Moonshine: Speech recognition for live
transcription and voice commands" (arXiv:2410.15608, 2024). An encoder reads a whole piece of sound, a decoder writes
its text token by token, with case and punctuation. The files, with weights of 8 bits, come with the package
``moonshine-voice``, whose code is not used.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime import OrtValue, RunOptions

from emostream.errors import ModelError
from emostream.stream import models
from emostream.stream.emotion import Word

RATE_HZ = 16_000
LEAST_SAMPLES = RATE_HZ // 5  # of less, the network makes words up
_TOKENS_PER_S = 6.5  # no more are in speech, says the paper's code; more are a loop
_QUIET = 33  # the loudest sample of silence: -60 dBFS
_LEAST_PROBABILITY = 0.4  # mean of a text's tokens: with less, most are made up
_LONGEST_LOOP, _MOST_REPEATS = 10, 4  # tokens; a sequence said so often in a row is said once
_START, _END, _FIRST_LETTER, _FIRST_SPECIAL = 1, 2, 3, 32_000  # numbers of tokens
_SPACE = "▁".encode()
_FRAME = 160  # samples: 10 ms
_BELOW_PEAK = 10 ** (-25 / 20)  # a frame this far below the loudest has no letters


@dataclass(frozen=True)
class Token:
    """``probability``: of this token after those before it."""

    number: int
    probability: float


def read_tokens(content: bytes) -> list[bytes]:
    """The text of each token, from ``tokenizer.bin``: its length in one byte, or in two if the first is 128 or more,
    then the bytes. Raises ModelError if the file is cut."""
    pieces, at = [], 0
    while at < len(content):
        length, at = content[at], at + 1
        if length >= 128 and at < len(content):
            length, at = length - 128 + 128 * content[at], at + 1
        pieces.append(content[at : at + length])
        at += length
    if at != len(content):
        raise ModelError("the file of tokens is cut")
    return pieces


class Moonshine:
    """The network, on one thread. ``folder``: holds its three files.

    Raises ModelError if a file is missing, is not the expected one, or cannot be loaded.
    """

    def __init__(self, folder: Path) -> None:
        try:
            if not models.verify(models.MOONSHINE, folder):
                raise ModelError(f"{folder}: a file is not that of moonshine-voice 0.0.48, as if changed or damaged")
            self._pieces = read_tokens((folder / "tokenizer.bin").read_bytes())
        except OSError as error:
            raise ModelError(f"{folder}: the {models.MOONSHINE} model cannot be read ({error.strerror})") from error
        self._encoder, self._decoder = (
            _session(folder / name) for name in ("encoder_model.ort", "decoder_model_merged.ort")
        )
        self._states = [output.name.replace("present", "past_key_values") for output in self._decoder.get_outputs()[1:]]

    def transcribe(
        self, samples: np.ndarray, draft: Sequence[int] = (), options: RunOptions | None = None
    ) -> list[Token]:
        """The most probable tokens of a piece of speech: (n,) int16 at 16 kHz; none for silence.

        ``draft``: tokens that it may begin with, such as those of its beginning. One run checks them all and keeps
        those that the network would have chosen, in place of a run for each. Setting ``options.terminate`` in another
        thread makes it raise whatever onnxruntime raises.
        """
        if len(samples) < LEAST_SAMPLES or max(int(samples.max()), -int(samples.min())) < _QUIET:
            return []
        sound = samples.astype(np.float32)[None] / 32768
        heard = OrtValue.ortvalue_from_numpy(np.ones(sound.shape, np.int64))
        inputs = {"input_values": OrtValue.ortvalue_from_numpy(sound), "attention_mask": heard}
        encoded = self._encoder.run_with_ort_values(None, inputs, options)[0]
        fixed = {"encoder_hidden_states": encoded, "encoder_attention_mask": heard}
        most = int(sound.size / RATE_HZ * _TOKENS_PER_S) + 1
        draft = list(draft)[:most]
        states = dict.fromkeys(self._states, OrtValue.ortvalue_from_numpy(np.zeros((1, 8, 0, 36), np.float32)))
        logits, *new = self._step(fixed, states, [_START, *draft], False, options)
        states = dict(zip(self._states, new, strict=True))
        chosen = _most_probable(logits.numpy()[0])
        kept = next((i for i, number in enumerate(draft) if chosen[i].number != number), len(draft))
        tokens = chosen[: kept + 1]
        if kept < len(draft):
            for name in (name for name in states if "decoder" in name):
                cut = np.ascontiguousarray(states[name].numpy()[:, :, : kept + 1])
                states[name] = OrtValue.ortvalue_from_numpy(cut)
        while tokens[-1].number != _END and len(tokens) < most and _repeats(tokens) is None:
            logits, *new = self._step(fixed, states, [tokens[-1].number], True, options)
            # those of the encoder come from the first step alone
            states |= {name: each for name, each in zip(self._states, new, strict=True) if "decoder" in name}
            tokens += _most_probable(logits.numpy()[0])
        if (once := _repeats(tokens)) is not None:
            tokens = tokens[:once]
        return [token for token in tokens if _FIRST_LETTER <= token.number < _FIRST_SPECIAL]

    def _step(
        self, fixed: dict[str, OrtValue], states: dict[str, OrtValue], numbers: list[int], cached: bool,
        options: RunOptions | None,
    ) -> list[OrtValue]:  # fmt: skip
        told = {"input_ids": np.array([numbers], np.int64), "use_cache_branch": np.array([cached])}
        values = {name: OrtValue.ortvalue_from_numpy(value) for name, value in told.items()}
        outputs: list[OrtValue] = self._decoder.run_with_ort_values(None, fixed | states | values, options)
        return outputs

    def words(self, tokens: Sequence[Token], samples: np.ndarray) -> list[Word]:
        """The words of ``transcribe``'s tokens, as written, with case and punctuation; none if they are no English
        or the network was so unsure that nobody spoke. A word's confidence is the mean probability of its tokens.

        The network tells no times. They are estimated: each letter takes the same time, and only the parts of the sound
        that are not much softer than its loudest have letters. Compared with PocketSphinx's forced alignment, the
        middle of a word is off by 0.09 s on average, by 0.17 s at most for nine of ten (48 RAVDESS sentences).
        """
        if not tokens or np.mean([token.probability for token in tokens]) < _LEAST_PROBABILITY:
            return []
        spelt: list[tuple[bytes, list[float]]] = []
        for token in tokens:
            piece = self._pieces[token.number]
            if piece.startswith(_SPACE) or not spelt:
                spelt.append((b"", []))
            spelt[-1] = (spelt[-1][0] + piece, [*spelt[-1][1], token.probability])
        texts = [text.decode("utf-8", "ignore").replace("▁", "").strip() for text, _ in spelt]
        if any(letter.isalpha() and "LATIN" not in unicodedata.name(letter, "") for text in texts for letter in text):
            return []
        said = [(text, np.mean(sure)) for text, (_, sure) in zip(texts, spelt, strict=True) if _letters(text)]
        shares = np.cumsum([0, *(_letters(text) for text, _ in said)])
        times = _spread(samples, shares / max(int(shares[-1]), 1))
        return [
            Word(text, round(times[i], 3), round(times[i + 1], 3), round(min(1.0, float(sure)), 3))
            for i, (text, sure) in enumerate(said)
        ]


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # a run that is stopped is no error
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's classes of errors derive from nothing else
        raise ModelError(f"{path}: this version of onnxruntime cannot load it ({error})") from error


def _most_probable(logits: np.ndarray) -> list[Token]:
    """(n, tokens) → n tokens."""
    best = logits.argmax(axis=1)
    highest = logits[np.arange(len(best)), best]
    sums = np.exp(logits - highest[:, None]).sum(axis=1)
    return [Token(int(number), 1 / float(total)) for number, total in zip(best, sums, strict=True)]


def _repeats(tokens: Sequence[Token]) -> int | None:
    """If the same few tokens come again and again at the end, how many are left when they are kept once."""
    numbers = [token.number for token in tokens]
    for length in range(1, min(_LONGEST_LOOP, len(numbers) // _MOST_REPEATS) + 1):
        last = numbers[-length:]
        if numbers[-length * _MOST_REPEATS :] == last * _MOST_REPEATS:
            return len(numbers) - length * (_MOST_REPEATS - 1)
    return None


def _letters(text: str) -> int:
    return sum(letter.isalnum() for letter in text)


def _spread(samples: np.ndarray, shares: np.ndarray) -> list[float]:
    """The seconds at which these shares of the sound's loud 10 ms frames have passed; increasing."""
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME).astype(np.float32)
    level = np.sqrt(np.square(frames).mean(axis=1))
    loud = np.flatnonzero(level >= level.max(initial=0) * _BELOW_PEAK)
    passed = np.interp(shares * len(loud), np.arange(len(loud) + 1), [*loud, loud[-1] + 1])
    return [float(each) for each in passed * _FRAME / RATE_HZ]
