"""The whole fusion model: features of sound, face and words → logits. ``build`` makes it, in two variants.

After Rajan, Brutti and Cavallaro, "Is cross-attention preferable to self-attention for multi-modal emotion
recognition?" (ICASSP 2022). The network, from input to output:

1. each modality by itself: a convolution, then a bidirectional GRU with 60 units each way, so 120 wide;
2. multi-head attention (6 heads) within each modality ("self") or from one modality to another ("cross");
3. the mean over time, so that each attention gives one vector;
4. mean and standard deviation over these vectors ("statistical pooling");
5. two linear layers.

``Paper`` is the authors' published network to the letter, to reproduce their figures on arrays of fixed length.
``Fusion`` is the shipped one: the same idea for sequences of any length, with any modality absent. The comment before
it says what differs, and why.

Shapes: B batch, T rows in time, D features of a row, W width, H heads, N vectors to pool. A pair is (target, source):
queries come from the target, keys and values from the source; a modality paired with itself is self-attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emostream.engines.bundle import MODALITIES

VARIANTS = ("default", "paper")
ATTENTION = ("self", "cross", "both", "none")

# --- the paper's network ---------------------------------------------------------------------------------------------

# rows of each array, and features of a row: word vectors, ResNet frames, MFCC with deltas
PAPER_ROWS = {"text": 128, "video": 32, "audio": 1000}
PAPER_DIMS = {"text": 300, "video": 2048, "audio": 120}
# the convolution's output rows for so many input rows; for other numbers of rows the same ratio, rounded down
PAPER_CONVOLUTION = {"video": (25, 32), "audio": (500, 1000)}
PAPER_SELVES = (("text", "text"), ("video", "video"), ("audio", "audio"))  # in the order in which they are pooled
PAPER_CROSSES = (
    ("text", "audio"), ("text", "video"), ("video", "text"), ("video", "audio"), ("audio", "text"), ("audio", "video")
)  # fmt: skip


def authors_name(target: str, source: str) -> str:
    """The authors' name of a pair's attention: ``mha_t``, or with the source before the target ``mha_a_t``."""
    return f"mha_{target[0]}" if target == source else f"mha_{source[0]}_{target[0]}"


class Paper(nn.Module):
    """The published network; see ``build``. Its parameters have the authors' names and torch's own layouts.

    The authors published three modalities with self- or with cross-attention, both pooled. The other systems follow the
    paper in the plainest way: fewer modalities leave out the pairs that they lack and keep the order of the others;
    "both" pools the self vectors, then the cross vectors; "none" pools the means of the GRU states; without pooling the
    vectors are concatenated in the same order. A single vector has no unbiased deviation (0 / 0), so it goes into the
    linear layers unchanged, pooling or not.
    """

    def __init__(
        self,
        attention: str,
        dims: Mapping[str, int],
        rows: Mapping[str, int],
        pooling: bool,
        labels: int,
        hidden: int,
        heads: int,
    ) -> None:
        super().__init__()
        width = 2 * hidden
        self.dims, self.rows = {m: dims[m] for m in PAPER_ROWS if m in dims}, dict(rows)
        self.text_dropout = nn.Dropout(0.25)
        for m, dim in self.dims.items():
            if m in PAPER_CONVOLUTION:
                rows_out, rows_in = PAPER_CONVOLUTION[m]
                self.add_module(f"{m}_conv", nn.Conv1d(rows[m], max(1, rows[m] * rows_out // rows_in), kernel_size=1))
            self.add_module(f"{m}_encoder", nn.GRU(dim, hidden, batch_first=True, bidirectional=True))
        pairs: tuple[tuple[str, str], ...] = ()
        pairs += PAPER_SELVES if attention in ("self", "both") else ()
        pairs += PAPER_CROSSES if attention in ("cross", "both") else ()
        self.pairs = [(target, source) for target, source in pairs if target in dims and source in dims]
        for pair in self.pairs:
            self.add_module(authors_name(*pair), nn.MultiheadAttention(width, heads, dropout=0.1, batch_first=True))
        vectors = len(self.pairs) or len(self.dims)
        self.pooling = pooling and vectors > 1
        self.concat_linear = nn.Linear(2 * width if self.pooling else vectors * width, hidden)
        self.classifier = nn.Linear(hidden, labels)

    def encode(self, m: str, x: Tensor) -> Tensor:
        """(B, rows, D) → states (B, T, W), where T is the rows of text, or the rows that the convolution makes.

        The time steps are the convolution's channels. With kernel 1 each of its rows is therefore a learned weighted
        sum of all rows, the same for every feature: hence the fixed lengths.
        """
        x = self.text_dropout(x) if m == "text" else self.get_submodule(f"{m}_conv")(x)  # (B, rows, D) → (B, T, D)
        states: Tensor = self.get_submodule(f"{m}_encoder")(x)[0]  # (B, T, D) → (B, T, W)
        return states

    def forward(
        self,
        audio: Tensor | None = None,
        audio_len: Tensor | None = None,
        video: Tensor | None = None,
        video_len: Tensor | None = None,
        text: Tensor | None = None,
        text_len: Tensor | None = None,
    ) -> Tensor:
        """Features (B, rows, D) float32 of every modality of the network → logits (B, labels).

        There are no masks: lengths are ignored, and rows of padding count like any others. Raises ValueError for a
        modality that is missing or of another shape.
        """
        features = {"audio": audio, "video": video, "text": text}
        states: dict[str, Tensor] = {}
        for m, dim in self.dims.items():
            x, want = features[m], (self.rows[m], dim)
            if x is None:
                raise ValueError(f"{m} is not given, and the paper's network has no masks: give {', '.join(self.dims)}")
            if x.shape[1:] != want:
                raise ValueError(f"{m} is {tuple(x.shape)}, not (batch, {want[0]}, {want[1]}): pad or cut it to that")
            states[m] = self.encode(m, x)
        if len({len(x) for x in states.values()}) > 1:
            raise ValueError(f"batches differ: {', '.join(f'{m} has {len(x)}' for m, x in states.items())}")

        vectors = [x.mean(1) for x in states.values()]  # (B, T, W) → (B, W) each
        if self.pairs:
            vectors = []
            for target, source in self.pairs:
                attend = self.get_submodule(authors_name(target, source))
                answer, _ = attend(states[target], states[source], states[source], need_weights=False)  # (B, T, W)
                vectors.append(answer.mean(1))  # (B, T, W) → (B, W)
        if self.pooling:
            # Deviation comes first: the authors' code unpacks torch's (deviation, mean) as (mean, deviation).
            vectors = [*torch.std_mean(torch.stack(vectors, dim=1), dim=1)]  # (B, N, W) → 2 × (B, W); divided by N - 1
        x = self.concat_linear(torch.cat(vectors, dim=1))  # (B, 2W or NW) → (B, W/2)
        logits: Tensor = self.classifier(x)  # (B, W/2) → (B, labels)
        return logits


def load_authors_weights(model: Paper, state: Mapping[str, Tensor]) -> None:
    """Load a state dict with the authors' names, of any precision (theirs is double).

    Raises ValueError, having loaded nothing, with every name that is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    problems = [f"missing: {name}" for name in own if name not in state]
    problems += [f"unexpected: {name}" for name in state if name not in own]
    problems += [
        f"wrong shape: {name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        raise ValueError("\n  ".join(["these weights are not of this network, nothing was loaded:", *problems]))
    model.load_state_dict(state)


# --- ours ------------------------------------------------------------------------------------------------------------
#
# Two rules hold everywhere below. Rows beyond a sequence's length change nothing, whatever their values: they are
# masked before the convolution, skipped by the backward GRU, and masked in attention and in every mean. And a modality
# of length 0 is absent: its vectors are left out of the pooling, not fed as zeros.
#
# What differs from the paper:
# - Lengths and masks. Live speech has no fixed length, faces come and go, and padding must not change a label.
# - The convolution goes over time, with features as channels, so it takes any length; a ReLU follows. It
#   makes one row out of 2 voice vectors and of 3 faces: a GRU's steps wait for each other, so they are what takes time.
# - Two one-directional GRUs for a bidirectional one, so that the way back begins at the last valid row.
# - Attention is written out, since torch's own does not export with free lengths. It has a residual and a layer norm:
#   if it finds nothing, the states pass unchanged, and the scale is the same whatever is absent.
# - Three heads for six: half as many small matrix products, each twice as large.
# - Where only one modality is present, cross-attention has no pair; the mean of the states takes its place.
# - The deviation is the biased one (divided by N, not N - 1), so that a single vector has deviation 0 and nothing is
#   undefined; the mean comes first.
# - ReLU between the linear layers, without which two of them can do no more than one; the first is as wide as the
#   GRUs, twice the paper's.
# - Dropout at one rate everywhere: of features, states and attention weights, and before each linear layer.
# - Features are normalised within the network, by the training features' mean and deviation, so that a runtime feeds
#   plain ones. ``Paper`` takes its arrays as they are.
# - Modality dropout: the trainer leaves whole modalities out of a batch, since each may be absent in use.
# - Features of encoders that run on a small machine: a voice vector of 168 for each 80 ms in place of 120 MFCC for each
#   10 ms, 128 values for a face and for a piece of a word.

DIMS = {"audio": 168, "video": 128, "text": 128}  # features of a row: voice vectors, face vectors, rows of text


class Reading(NamedTuple):
    """A modality's way to its GRU: of every ``step`` rows one is read; a convolution takes ``taken`` rows at once, its
    stride too, and gives ``width`` values (0: no convolution); the mean over ``mean`` rows is the GRU's input.
    """

    step: int
    taken: int
    width: int
    mean: int

    @property
    def stride(self) -> int:
        """Rows of features per row of the GRU."""
        return self.step * self.taken * self.mean


# Voice vectors come every 80 ms, and the GRU has a row for each 160 ms. Faces come every 100 ms, and the GRU has a row
# for each 300 ms. Words are few and far apart in time, so they have no convolution.
READING = {"audio": Reading(1, 2, 120, 1), "video": Reading(1, 3, 64, 1), "text": Reading(1, 1, 0, 1)}
# MFCC rows come every 10 ms and each sees 105 ms, its deltas included, so every second one is enough; a row of the GRU
# for each 200 ms. A mean has no weights; a second convolution in its place learns the training voices by heart.
MFCC_READING = Reading(2, 2, 120, 5)
SOUND = {"voice": READING["audio"], "mfcc": MFCC_READING}
POOLING_EPS = 1e-5  # the slope of a square root is infinite at 0
MASKED = -1e4  # score of a masked key: finite, so that a row without any key stays finite, in half precision too


def valid(length: Tensor, rows: int) -> Tensor:
    """(B,) lengths → (B, rows) bool, true where a row lies inside its sequence."""
    return torch.arange(rows, device=length.device)[None] < length[:, None]


def reverse(x: Tensor, length: Tensor) -> Tensor:
    """Reverse each sequence within its own length; the rows beyond it stay. (B, T, D), (B,) → (B, T, D)."""
    t = torch.arange(x.shape[1], device=x.device)[None]  # (1, T)
    index = torch.where(t < length[:, None], length[:, None] - 1 - t, t)  # (B, T)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def time_mean(x: Tensor, keep: Tensor) -> Tensor:
    """Mean over the valid rows; zeros where there are none. (B, T, W), (B, T) 0 or 1 → (B, W)."""
    share = keep / keep.sum(1, keepdim=True).clamp(min=1)  # (B, T)
    return (share[:, None] @ x)[:, 0]  # (B, 1, T) @ (B, T, W) → (B, W)


class Encoder(nn.Module):
    """One modality: normalise, convolve over time, read in both directions.

    ``mean`` and ``std`` are those of the training features; the rest is by ``reading``. A convolution whose stride is
    its kernel size is one matrix product, of the rows that it takes at once, laid end to end.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, reading: Reading, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.step, self.taken, self.mean_of, self.stride = reading.step, reading.taken, reading.mean, reading.stride
        inner = reading.width or dim
        self.conv = nn.Linear(self.taken * dim, inner) if reading.width else None
        # two one-directional GRUs: a bidirectional one would begin its way back in the padding
        self.ahead = nn.GRU(inner, hidden, batch_first=True)
        self.back = nn.GRU(inner, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D), (B,) → states (B, T', W), and 1 where they are valid, else 0: (B, T'); T' = ceil(T / stride)."""
        if self.step > 1:
            x = x[:, :: self.step]  # (B, T, D) → (B, T/step, D)
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        inside = valid((length + self.step - 1) // self.step, x.shape[1])  # (B, T/step)
        x = torch.where(inside[..., None], (x - self.mean) * (1 / self.std), zero)
        x = self.dropout(x)
        if self.conv is not None:
            rows = self.taken * self.mean_of
            missing = (x.shape[1] + rows - 1) // rows * rows - x.shape[1]
            # zeros up to a multiple of what becomes one row, so that the batch's longest clip ends like the others
            x = torch.cat([x, x.new_zeros(x.shape[0], missing, x.shape[2])], dim=1)  # (B, T'·mean·taken, D)
            x = x.reshape(x.shape[0], -1, self.taken * x.shape[2])  # (B, T'·mean, taken·D)
            x = F.relu(self.conv(x))  # (B, T'·mean, inner)
        if self.mean_of > 1:
            x = x.reshape(x.shape[0], -1, self.mean_of, x.shape[2]).mean(2)  # (B, T'·mean, inner) → (B, T', inner)
        length = (length + self.stride - 1) // self.stride
        start = torch.zeros(1, x.shape[0], self.ahead.hidden_size, dtype=x.dtype, device=x.device)  # (1, B, W/2)
        ahead, _ = self.ahead(x, start)  # (B, T', W/2)
        back, _ = self.back(reverse(x, length), start)  # (B, T', W/2)
        x = torch.cat([ahead, reverse(back, length)], dim=2)  # (B, T', W)
        return self.dropout(x), valid(length, x.shape[1]).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., "Attention is all you need", 2017, section 3.2) with a residual.

    ``nn.MultiheadAttention`` bakes the traced length into an exported graph; this does not. Query, key and value are
    one product where a modality attends to itself.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, target: Tensor, source: Tensor, source_keep: Tensor) -> Tensor:
        """``target`` (B, Tq, W) attends to the rows of ``source`` (B, Ts, W) where ``source_keep`` (B, Ts) is 1, not 0.
        Returns (B, Tq, W)."""
        width = target.shape[2]
        if target is source:
            parts = self.split(self.query_key_value(target), 3)  # (3, B, H, T, W/H)
            q, k, v = parts[0], parts[1], parts[2]
        else:
            w, b = self.query_key_value.weight, self.query_key_value.bias
            q = self.split(F.linear(target, w[:width], b[:width]), 1)[0]  # (B, H, Tq, W/H)
            parts = self.split(F.linear(source, w[width:], b[width:]), 2)  # (2, B, H, Ts, W/H)
            k, v = parts[0], parts[1]
        score = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5)  # (B, H, Tq, Ts)
        weight = (score + (source_keep - 1)[:, None, None] * -MASKED).softmax(3)  # (B, H, Tq, Ts)
        answer = (self.dropout(weight) @ v).transpose(1, 2).flatten(2)  # (B, H, Tq, W/H) → (B, Tq, W)
        attended: Tensor = self.norm(target + self.out(answer))  # (B, Tq, W)
        return attended

    def split(self, x: Tensor, parts: int) -> Tensor:
        """(B, T, parts · W) → (parts, B, H, T, W/H)."""
        split: Tensor = x.unflatten(2, (parts, self.heads, -1))  # type: ignore[no-untyped-call]  # (B, T, parts, H, W/H)
        return split.permute(2, 0, 3, 1, 4)


def statistics(vectors: Tensor, present: Tensor) -> Tensor:
    """Statistical pooling: mean and standard deviation over the present vectors. (B, N, W), (B, N) bool → (B, 2W).

    The deviation is the biased one (divided by N), so that a single vector has 0 and nothing is undefined.
    """
    keep = present[..., None].to(vectors.dtype)  # (B, N, 1)
    count = keep.sum(1).clamp(min=1)  # (B, 1)
    mean = (vectors * keep).sum(1) / count  # (B, W)
    variance = ((vectors - mean[:, None]) ** 2 * keep).sum(1) / count  # (B, W)
    return torch.cat([mean, (variance + POOLING_EPS).sqrt() - POOLING_EPS**0.5], dim=1)  # (B, 2W)


class Fusion(nn.Module):
    """The shipped network; see ``build``. It pools one vector per pair, or the mean state of a modality without one."""

    def __init__(
        self,
        attention: str,
        dims: Mapping[str, int],
        pooling: bool,
        labels: int,
        hidden: int,
        heads: int,
        dropout: float,
        sound: str = "voice",
    ) -> None:
        super().__init__()
        width = 2 * hidden
        readings = {**READING, "audio": SOUND[sound]}
        self.dims, self.attention, self.pooling = dict(dims), attention, pooling
        self.encoders = nn.ModuleDict({m: Encoder(readings[m], dim, hidden, dropout) for m, dim in dims.items()})
        selves = [(m, m) for m in dims] if attention in ("self", "both") else []
        crosses = [(t, s) for t in dims for s in dims if t != s] if attention in ("cross", "both") else []
        self.pairs = selves + crosses
        self.attentions = nn.ModuleList(Attention(width, heads, dropout) for _ in self.pairs)
        vectors = len(self.pairs) + (len(dims) if not selves else 0)
        self.hidden_layer = nn.Linear(2 * width if pooling else vectors * width, width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, labels)

    def forward(
        self,
        audio: Tensor | None = None,
        audio_len: Tensor | None = None,
        video: Tensor | None = None,
        video_len: Tensor | None = None,
        text: Tensor | None = None,
        text_len: Tensor | None = None,
    ) -> Tensor:
        """Features (B, T, D) float32 and lengths (B,) int64 of each modality → logits (B, labels).

        None: the modality is absent from the whole batch. The logits of a clip without any modality mean nothing: they
        are those of a zero vector.
        """
        inputs = {"audio": (audio, audio_len), "video": (video, video_len), "text": (text, text_len)}
        like = next(x for x, _ in inputs.values() if x is not None)
        states: dict[str, Tensor] = {}
        here: dict[str, Tensor] = {}  # (B,) bool each: whether the clip has the modality
        keep: dict[str, Tensor] = {}  # (B, T) each: 1 where a state is valid, else 0
        for m, encoder in self.encoders.items():
            x, n = inputs[m]
            if x is None:
                x = torch.zeros(like.shape[0], 1, self.dims[m], dtype=like.dtype, device=like.device)
                n = torch.zeros(like.shape[0], dtype=torch.int64, device=like.device)
            assert n is not None, f"{m} needs its lengths"
            states[m], keep[m] = encoder(x, n)  # (B, T, D) → (B, T', W), (B, T')
            here[m] = n > 0

        vectors, present = [], []
        for (target, source), attend in zip(self.pairs, self.attentions, strict=True):
            attended = attend(states[target], states[source], keep[source])  # (B, T', W)
            vectors.append(time_mean(attended, keep[target]))  # (B, T', W) → (B, W)
            present.append(here[target] & here[source])
        if self.attention in ("cross", "none"):
            # the mean of the states takes the place of attention; with cross-attention only where a modality is alone,
            # so that it has nothing to attend to
            count = torch.stack([h.to(torch.int64) for h in here.values()], dim=1).sum(1)  # (B,)
            for m in self.encoders:
                vectors.append(time_mean(states[m], keep[m]))  # (B, T', W) → (B, W)
                present.append(here[m] & (count == 1) if self.attention == "cross" else here[m])
        stacked, mask = torch.stack(vectors, dim=1), torch.stack(present, dim=1)  # (B, N, W), (B, N)
        pooled = statistics(stacked, mask) if self.pooling else (stacked * mask[..., None]).flatten(1)  # (B, 2W or NW)
        x = F.relu(self.hidden_layer(self.dropout(pooled)))  # (B, 2W or NW) → (B, W)
        logits: Tensor = self.classifier(self.dropout(x))  # (B, W) → (B, labels)
        return logits


def build(
    variant: str = "default",
    attention: str = "self",
    modalities: Sequence[str] = MODALITIES,
    pooling: bool = True,
    labels: int = 7,
    dims: Mapping[str, int] | None = None,
    rows: Mapping[str, int] | None = None,
    hidden: int = 60,  # as in the paper: 120 wide with both directions
    heads: int | None = None,
    dropout: float | None = None,
    sound: str = "voice",
) -> Fusion | Paper:
    """A model with random weights: ``variant`` "default" gives a ``Fusion``, "paper" a ``Paper``.

    ``attention``: "self", one per modality; "cross", one per ordered pair (queries from the target, keys and values
    from the source); "both"; "none", the mean of each modality's states. ``pooling``: mean and standard deviation over
    the vectors; without it they are concatenated, in the default variant with zeros for absent ones.

    ``dims`` replaces the variant's number of features of a row, and ``rows``, in the paper variant alone, its number of
    rows in time, for the modalities that they name. The paper's convolution makes 25 rows of 32 of video and 500 of
    1000 of audio; of other numbers the same share, rounded down, at least one. ``heads``: 6 in the paper variant, 3 in
    the default one. ``dropout``: 0.3 in the default variant; the paper's rates are fixed. ``sound``: "voice" where the
    default variant reads vectors of the voice encoder, "mfcc" where it reads rows of MFCC. Raises ValueError for an
    unknown name, for an option that the variant lacks, and for the paper's cross-attention with one modality.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; choose one of: {', '.join(VARIANTS)}")
    if attention not in ATTENTION:
        raise ValueError(f"attention {attention!r} is unknown; choose one of: {', '.join(ATTENTION)}")
    if not modalities or set(modalities) - set(MODALITIES):
        raise ValueError(f"modalities {list(modalities)} must be some of: {', '.join(MODALITIES)}")
    heads = heads or (6 if variant == "paper" else 3)
    if 2 * hidden % heads:
        raise ValueError(f"width {2 * hidden} (twice the hidden units) is not a multiple of {heads} heads")
    if variant == "default":
        if rows is not None:
            raise ValueError("the default variant takes any number of rows: leave out rows, or choose variant 'paper'")
        dims = {**DIMS, **(dims or {})}
        rate = 0.3 if dropout is None else dropout
        return Fusion(attention, {m: dims[m] for m in modalities}, pooling, labels, hidden, heads, rate, sound)
    if dropout is not None:
        raise ValueError("the paper's dropout rates are fixed: leave out dropout, or choose variant 'default'")
    if attention == "cross" and len(set(modalities)) == 1:
        raise ValueError(f"cross-attention goes from one modality to another, and {modalities[0]} is alone: use 'self'")
    dims, rows = {**PAPER_DIMS, **(dims or {})}, {**PAPER_ROWS, **(rows or {})}
    return Paper(attention, {m: dims[m] for m in modalities}, rows, pooling, labels, hidden, heads)
