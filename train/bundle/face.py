"""The face encoder: a small convolutional network from a 48×48 gray crop to a vector, trained on FER2013."""

from __future__ import annotations

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
from emostream.train.progress import StepDone, ignore
from emostream.train.schedule import one_cycle

DIM = 128
VERSION = 2  # raise this number when the network or its training changes, so that cached encoders are not used


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


def jitter(crops: np.ndarray, rng: np.random.Generator, strong: bool = True) -> np.ndarray:
    """Turn, scale, shift, light and blur crops as a live detector and camera do; (N, 48, 48) uint8 → the same.

    ``strong`` adds mirror images and hidden patches ("cutout"), which help training but do not occur from one frame of
    a video to the next.
    """
    jittered = np.empty_like(crops)
    n = len(crops)
    turn, scale = rng.normal(0, 6 if strong else 3, n), np.exp(rng.normal(0, 0.07 if strong else 0.03, n))
    shift = rng.normal(0, 2 if strong else 1, (n, 2))
    contrast, light = np.exp(rng.normal(0, 0.2, n)), rng.normal(0, 15, n)
    blur, mirror, hide = rng.random(n) < 0.15, rng.random(n) < 0.5, rng.random(n) < 0.4
    corner, size = rng.integers(0, CROP - 8, (n, 2)), rng.integers(8, 18, (n, 2))
    for i, crop in enumerate(crops):
        matrix = cv2.getRotationMatrix2D((CROP / 2, CROP / 2), turn[i], scale[i])
        matrix[:, 2] += shift[i]
        x = cv2.warpAffine(crop, matrix, (CROP, CROP), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if blur[i]:
            x = cv2.GaussianBlur(x, (3, 3), 0)
        x = cv2.convertScaleAbs(x, alpha=contrast[i], beta=max(light[i], -float(x.min())))
        if strong and mirror[i]:
            x = x[:, ::-1]
        jittered[i] = x
        if strong and hide[i]:
            (top, left), (height, width) = corner[i], size[i]
            jittered[i, top : top + height, left : left + width] = int(x.mean())
    return jittered


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


def train(
    crops: np.ndarray,
    labels: np.ndarray,
    epochs: int,
    seed: int,
    step_done: StepDone = ignore,
    batch: int = 128,
    fast: bool = True,
) -> FaceNet:
    """Train on (N, 48, 48) uint8 crops and (N,) int64 labels; returns the network after the last epoch.

    An image is drawn with a probability proportional to its class's count to the power of -0.3: a compromise between
    the corpus's mix, in which disgust (one in 66) is hardly learnt, and an even one, in which the same few faces come
    again and again. ``fast`` computes convolutions in bfloat16.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = FaceNet()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    count = np.bincount(labels, minlength=len(LABELS)).clip(1)
    draw = (count**-0.3)[labels]
    draw /= draw.sum()
    steps = max(1, len(crops) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=5e-3)
    schedule = one_cycle(optimiser, 4e-3, epochs * steps, warm_up=0.2)
    for epoch in range(epochs):
        net.train()
        order = rng.choice(len(crops), steps * batch, p=draw)
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            x = torch.from_numpy(jitter(crops[chosen], rng))
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast):
                vectors = net(x)
            logits = net.classifier(net.dropout(vectors))
            loss = F.cross_entropy(logits, torch.from_numpy(labels[chosen]), label_smoothing=0.1)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            step_done(epoch * steps + step + 1, epochs * steps, loss.item())
    net.eval()
    return net
