"""The face encoder: a small convolutional network from a 48×48 gray crop to a vector, trained on FER+.

Stills never open the mouth to speak, and a network that knows only them takes an open mouth for fear or surprise. So in
training the mouth is hidden in some images, and opened or shut in others, while the label stays.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emostream.errors import Problems
from emostream.stream.features.face import CROP
from emostream.train.corpora import LABELS, Item
from emostream.train.metrics import scores
from emostream.train.mixed import mixed_precision
from emostream.train.progress import StepDone, ignore
from emostream.train.schedule import one_cycle

DIM = 128
TALKING = 0.3  # share of the training images whose mouth opens or shuts
AVERAGE = 0.998  # decay of the average of the weights
VERSION = 3  # raise this number when the network or its training changes, so that cached encoders are not used


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class Residual(nn.Module):
    """Two 3×3 convolutions around a shortcut (He et al., "Deep residual learning for image recognition", CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.second = _conv(inputs, outputs, stride=stride), _conv(outputs, outputs)
        self.shortcut = _conv(inputs, outputs, 1, stride) if (inputs, stride) != (outputs, 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) → (N, outputs, h / stride, w / stride)."""
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class FaceNet(nn.Module):
    """Crops → vectors of mean 0 and variance 1 (layer normalisation without weights); 0.9 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(1, 48, 5, 2), nn.ReLU(),  # (N, 48, 24, 24)
            Residual(48, 48),
            Residual(48, 96, 2), Residual(96, 96),  # (N, 96, 12, 12)
            Residual(96, 192, 2),  # (N, 192, 6, 6)
        )  # fmt: skip
        self.vector = nn.Linear(192, DIM)
        self.dropout = nn.Dropout(0.3)
        self.classifier = nn.Linear(DIM, len(LABELS))  # for training only; fusion reads the vectors

    def forward(self, crops: Tensor) -> Tensor:
        """(N, 48, 48) uint8, or float of the same range → (N, 128) float32."""
        x = crops.to(torch.float32).unsqueeze(1)  # (N, 1, 48, 48)
        x = x - x.mean(dim=(2, 3), keepdim=True)  # each crop by itself: brightness and contrast of a camera drop out
        x = x / ((x * x).mean(dim=(2, 3), keepdim=True) + 25.0).sqrt()  # 25 keeps the noise of a flat crop small
        x = self.body(x).mean(dim=(2, 3))  # (N, 192)
        return F.layer_norm(self.vector(self.dropout(x)).float(), (DIM,))


def decode(items: Sequence[Item]) -> np.ndarray:
    """Encoded images of ``items`` → (N, 48, 48) uint8 gray. Raises Problems with all that cannot be decoded."""
    damaged = []
    crops = np.empty((len(items), CROP, CROP), np.uint8)
    for i, item in enumerate(items):
        assert isinstance(item.content, bytes)
        image = cv2.imdecode(np.frombuffer(item.content or b"-", np.uint8), cv2.IMREAD_GRAYSCALE)
        if image is None:
            damaged.append(f"image {i + 1} of split {item.split} cannot be decoded")
            continue
        crops[i] = (
            image if image.shape == (CROP, CROP) else cv2.resize(image, (CROP, CROP), interpolation=cv2.INTER_AREA)
        )
    if damaged:
        raise Problems("FER2013", damaged)
    return crops


def jitter(crops: np.ndarray, rng: np.random.Generator, strong: bool = True, talking: float = 0.0) -> np.ndarray:
    """Turn, scale, shift, light and blur crops as a live detector and camera do; (N, 48, 48) uint8 → the same.

    ``strong`` adds mirror images, coarse pictures, and hidden patches and mouths ("cutout"), which help training but do
    not occur from one frame of a video to the next. ``talking``: in how many of the images the mouth opens or shuts.
    """
    jittered = np.empty_like(crops)
    n = len(crops)
    turn, scale = rng.normal(0, 6 if strong else 3, n), np.exp(rng.normal(0, 0.07 if strong else 0.03, n))
    shift = rng.normal(0, 2 if strong else 1, (n, 2))
    contrast, light = np.exp(rng.normal(0, 0.2, n)), rng.normal(0, 15, n)
    blur, mirror, hide, mouth = rng.random(n) < 0.15, rng.random(n) < 0.5, rng.random(n) < 0.3, rng.random(n) < 0.3
    coarse, moves = rng.random(n) < 0.15, rng.random(n) < talking
    corner, size = rng.integers(0, CROP - 8, (n, 2)), rng.integers(8, 18, (n, 2))
    for i, crop in enumerate(crops):
        if moves[i]:
            crop = move_mouth(crop, rng.uniform(-3.5, 5.5), rng.uniform(34, 39))
        matrix = cv2.getRotationMatrix2D((CROP / 2, CROP / 2), turn[i], scale[i])
        matrix[:, 2] += shift[i]
        x = cv2.warpAffine(crop, matrix, (CROP, CROP), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if blur[i]:
            x = cv2.GaussianBlur(x, (3, 3), 0)
        if strong and coarse[i]:
            side = int(rng.integers(20, 40))
            x = cv2.resize(cv2.resize(x, (side, side), interpolation=cv2.INTER_AREA), (CROP, CROP))
        x = cv2.convertScaleAbs(x, alpha=contrast[i], beta=max(light[i], -float(x.min())))
        if strong and mirror[i]:
            x = x[:, ::-1]
        jittered[i] = x
        if strong and mouth[i]:
            top, left = int(rng.integers(28, 34)), int(rng.integers(6, 14))
            jittered[i, top:, left : CROP - left] = int(rng.integers(20, 236)) if rng.random() < 0.5 else int(x.mean())
        elif strong and hide[i]:
            (top, left), (height, width) = corner[i], size[i]
            jittered[i, top : top + height, left : left + width] = int(x.mean())
    return jittered


def move_mouth(crop: np.ndarray, pixels: float, line: float) -> np.ndarray:
    """A (48, 48) crop whose lower lip and jaw are further down by ``pixels`` (negative: up), as in speaking. ``line``:
    the row of the mouth; what is on it is stretched, or shrunk."""
    y, x = np.mgrid[0:CROP, 0:CROP].astype(np.float32)
    down = pixels * np.clip((y - line) / (abs(pixels) + 1), 0, 1) * np.exp(-(((x - CROP / 2) / 13) ** 2))
    return cv2.remap(crop, x, y - down.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@torch.inference_mode()
def encode(net: FaceNet, crops: np.ndarray, batch: int = 64) -> np.ndarray:
    """(N, 48, 48) uint8 → (N, 128) float32."""
    net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # half the time on a CPU
    return np.concatenate([net(torch.from_numpy(crops[i : i + batch])).numpy() for i in range(0, len(crops), batch)])


@torch.inference_mode()
def evaluate(net: FaceNet, crops: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of the network's own classifier on (N, 48, 48) uint8 crops."""
    logits = net.classifier(torch.from_numpy(encode(net, crops))).numpy()
    return scores(labels, logits.argmax(1))


def targets(votes: np.ndarray) -> np.ndarray:
    """(N, labels) votes → shares that sum to 1; a label that one person alone gave is left out (Barsoum et al.)."""
    kept = np.where(votes > 1, votes, 0).astype(np.float32)
    kept = np.where(kept.sum(axis=1, keepdims=True) > 0, kept, votes.astype(np.float32))
    shares: np.ndarray = kept / kept.sum(axis=1, keepdims=True)
    return shares


def train(
    crops: np.ndarray,
    votes: np.ndarray,
    epochs: int,
    seed: int,
    step_done: StepDone = ignore,
    batch: int = 128,
    fast: bool = True,
) -> FaceNet:
    """Train on (N, 48, 48) uint8 crops and (N, labels) votes; returns the average of the weights at the end.

    An image is drawn with a probability proportional to its class's count to the power of -0.4: a compromise between
    the corpus's mix, in which disgust and fear are hardly learnt, and an even one, in which the same few faces come
    again and again. ``fast``: in mixed precision, where the processor has it.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = FaceNet()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    labels, wanted = votes.argmax(axis=1), targets(votes)
    count = np.bincount(labels, minlength=len(LABELS)).clip(1)
    draw = (count**-0.4)[labels]
    draw /= draw.sum()
    steps = max(1, len(crops) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=5e-3)
    schedule = one_cycle(optimiser, 4e-3, epochs * steps, warm_up=0.2)
    average = copy.deepcopy(net)
    for epoch in range(epochs):
        net.train()
        order = rng.choice(len(crops), steps * batch, p=draw)
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            x = torch.from_numpy(jitter(crops[chosen], rng, talking=TALKING))
            with mixed_precision(fast):
                vectors = net(x)
            logits = net.classifier(net.dropout(vectors))
            loss = F.cross_entropy(logits, torch.from_numpy(wanted[chosen]), label_smoothing=0.03)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            decay = min(AVERAGE, (epoch * steps + step + 1) / (epoch * steps + step + 10))
            with torch.no_grad():
                for kept, value in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
                    if kept.dtype.is_floating_point:
                        kept.lerp_(value, 1 - decay)
            step_done(epoch * steps + step + 1, epochs * steps, loss.item())
    return average.eval()
