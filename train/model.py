"""The fusion model, whole: features of sound, face and words with their lengths → logits.

After Rajan, Brutti and Cavallaro, "Is cross-attention preferable to self-attention for multi-modal emotion
recognition?" (ICASSP 2022): per modality a convolution over time and a bidirectional GRU (60 units each way, so 120
wide), multi-head attention (6 heads), mean over time, mean and standard deviation over the vectors ("statistical
pooling"), two linear layers.

Two rules hold everywhere. Rows beyond a sequence's length change nothing, whatever they hold: they are masked before
the convolution, skipped by the backward GRU, and masked in attention and in every mean. And a modality of length 0
is absent: its vectors are left out of the pooling, not fed as zeros.

Shapes: B batch, T rows in time, D features of a row, W width, H heads, N vectors to pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION = ("self", "cross", "both", "none")
MODALITIES = ("audio", "video", "text")
# features of a row, and (kernel, stride) of the convolution; words are few and far apart in time, so they have none.
# Audio rows come every 10 ms: with stride 4 the GRU sees one each 40 ms.
DIMS = {"audio": 120, "video": 128, "text": 48}
CONVOLUTION: dict[str, tuple[int, int] | None] = {"audio": (5, 4), "video": (3, 1), "text": None}
_MASKED = -1e4  # score of a masked key: finite, so that a row without any key stays finite, in half precision too


def valid(length: Tensor, rows: int) -> Tensor:
    """(B,) lengths → (B, rows) bool, true where a row lies inside its sequence."""
    return torch.arange(rows, device=length.device)[None] < length[:, None]


def reverse(x: Tensor, length: Tensor) -> Tensor:
    """Turn each sequence around within its own length; the rows beyond it stay. (B, T, D), (B,) → (B, T, D)."""
    t = torch.arange(x.shape[1], device=x.device)[None]  # (1, T)
    index = torch.where(t < length[:, None], length[:, None] - 1 - t, t)  # (B, T)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def time_mean(x: Tensor, length: Tensor) -> Tensor:
    """Mean over the valid rows; zeros for length 0. (B, T, W), (B,) → (B, W)."""
    keep = valid(length, x.shape[1])[..., None].to(x.dtype)  # (B, T, 1)
    return (x * keep).sum(1) / length.clamp(min=1)[:, None].to(x.dtype)


class Encoder(nn.Module):
    """One modality: normalise, convolve over time, read in both directions.

    ``mean`` and ``std`` are those of the training features, so that a runtime feeds plain features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, hidden: int, convolution: tuple[int, int] | None, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.stride = convolution[1] if convolution else 1
        inner = 2 * hidden if convolution else dim
        self.conv = nn.Conv1d(dim, inner, convolution[0], self.stride, convolution[0] // 2) if convolution else None
        # two one-directional GRUs: a bidirectional one would begin its way back in the padding
        self.ahead = nn.GRU(inner, hidden, batch_first=True)
        self.back = nn.GRU(inner, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D), (B,) → states (B, T', W) and their lengths (B,); T' = ceil(T / stride)."""
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        x = torch.where(valid(length, x.shape[1])[..., None], (x - self.mean) / self.std, zero)  # (B, T, D)
        x = self.dropout(x)
        if self.conv is not None:  # it pads its edges with zeros too, so every clip ends the same way
            x = F.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)  # (B, T', W)
            length = (length + self.stride - 1) // self.stride
        start = torch.zeros(1, x.shape[0], self.ahead.hidden_size, dtype=x.dtype, device=x.device)
        ahead, _ = self.ahead(x, start)  # (B, T', W/2)
        back, _ = self.back(reverse(x, length), start)  # (B, T', W/2)
        x = torch.cat([ahead, reverse(back, length)], dim=2)  # (B, T', W)
        return self.dropout(x), length


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017, section 3.2) with a residual, written out.

    ``nn.MultiheadAttention`` bakes the traced length into an exported graph; this does not.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, T, W) → (B, H, T, W/H)

    def forward(self, target: Tensor, source: Tensor, source_length: Tensor) -> Tensor:
        """Rows of ``target`` (B, Tq, W) ask, valid rows of ``source`` (B, Ts, W) answer → (B, Tq, W)."""
        q, k, v = self.split(self.query(target)), self.split(self.key(source)), self.split(self.value(source))
        score = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5)  # (B, H, Tq, Ts)
        keep = valid(source_length, source.shape[1])[:, None, None]  # (B, 1, 1, Ts)
        weight = torch.where(keep, score, torch.full((), _MASKED, dtype=score.dtype, device=score.device)).softmax(3)
        answer = (self.dropout(weight) @ v).transpose(1, 2).flatten(2)  # (B, H, Tq, W/H) → (B, Tq, W)
        return self.norm(target + self.out(answer))


def statistics(vectors: Tensor, present: Tensor) -> Tensor:
    """Mean and standard deviation over the vectors that are present. (B, N, W), (B, N) bool → (B, 2 W).

    The deviation is that of the vectors themselves (divided by their number, not one less), so that one vector
    alone has 0 and nothing is undefined.
    """
    keep = present[..., None].to(vectors.dtype)  # (B, N, 1)
    count = keep.sum(1).clamp(min=1)  # (B, 1)
    mean = (vectors * keep).sum(1) / count  # (B, W)
    variance = ((vectors - mean[:, None]) ** 2 * keep).sum(1) / count  # (B, W)
    eps = 1e-5  # the slope of a square root is infinite at 0
    return torch.cat([mean, (variance + eps).sqrt() - eps**0.5], dim=1)  # (B, 2 W)


class Fusion(nn.Module):
    """See ``build``. One vector per entry of ``pairs``, (target, source): a modality with itself is self-attention."""

    def __init__(
        self,
        attention: str,
        dims: Mapping[str, int],
        pooling: bool,
        labels: int,
        hidden: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        width = 2 * hidden
        self.dims, self.attention, self.pooling = dict(dims), attention, pooling
        self.encoders = nn.ModuleDict({m: Encoder(d, hidden, CONVOLUTION[m], dropout) for m, d in dims.items()})
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

        None is a modality absent from the whole batch. A clip with every modality absent gets what the last layers
        make of a zero vector: it means nothing, and a caller does not ask for it.
        """
        given = {"audio": (audio, audio_len), "video": (video, video_len), "text": (text, text_len)}
        like = next(x for x, _ in given.values() if x is not None)
        states: dict[str, Tensor] = {}
        length: dict[str, Tensor] = {}
        for m, encoder in self.encoders.items():
            x, n = given[m]
            if x is None:
                x = torch.zeros(like.shape[0], 1, self.dims[m], dtype=like.dtype, device=like.device)
                n = torch.zeros(like.shape[0], dtype=torch.int64, device=like.device)
            states[m], length[m] = encoder(x, n)
        here = {m: n > 0 for m, n in length.items()}  # (B,) each

        vectors, present = [], []
        for (target, source), attend in zip(self.pairs, self.attentions, strict=True):
            vectors.append(time_mean(attend(states[target], states[source], length[source]), length[target]))  # (B, W)
            present.append(here[target] & here[source])
        if self.attention in ("cross", "none"):
            # no attention: the mean of the states stands for a modality; with cross-attention only where a modality
            # is alone and so has nothing to attend to
            others = torch.stack([h.to(torch.int64) for h in here.values()], dim=1).sum(1)  # (B,)
            for m in self.encoders:
                vectors.append(time_mean(states[m], length[m]))  # (B, W)
                present.append(here[m] & (others == 1) if self.attention == "cross" else here[m])
        stacked, mask = torch.stack(vectors, dim=1), torch.stack(present, dim=1)  # (B, N, W), (B, N)
        pooled = statistics(stacked, mask) if self.pooling else (stacked * mask[..., None]).flatten(1)  # (B, 2W or NW)
        return self.classifier(self.dropout(F.relu(self.hidden_layer(self.dropout(pooled)))))  # (B, labels)


def build(
    attention: str = "self",
    modalities: Sequence[str] = MODALITIES,
    pooling: bool = True,
    labels: int = 7,
    dims: Mapping[str, int] = DIMS,
    hidden: int = 60,  # the paper's: 120 wide with both directions
    heads: int = 6,  # the paper's
    dropout: float = 0.3,
) -> Fusion:
    """A fusion model with random weights.

    ``attention``: "self", one per modality; "cross", one per ordered pair (queries from the target, keys and values
    from the source), where a modality that is alone gives the mean of its states; "both"; "none", the mean of each
    modality's states. ``pooling``: mean and standard deviation over the vectors, else they are concatenated, zeros
    for absent ones. Raises ValueError for a name that is not one of these.
    """
    if attention not in ATTENTION:
        raise ValueError(f"attention {attention!r} is unknown; choose one of: {', '.join(ATTENTION)}")
    if not modalities or set(modalities) - set(MODALITIES):
        raise ValueError(f"modalities {list(modalities)} must be some of: {', '.join(MODALITIES)}")
    return Fusion(attention, {m: dims[m] for m in modalities}, pooling, labels, hidden, heads, dropout)
