"""How well the face encoder does on a talking face: 52 takes of RAVDESS's actor 01, who is in no training set."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.special import log_softmax

from emostream.stream.config import Video
from emostream.stream.cores.video import make_detector
from emostream.stream.features.face import crop_face, find_faces
from emostream.train.bundle.face import FaceNet, encode
from emostream.train.corpora import LABELS, check_label, read_columns
from emostream.train.metrics import scores

FILE = "ravdess_av/actor01.parquet"


def there(data: Path) -> bool:
    """Whether the takes are below ``data``."""
    return (data / FILE).is_file()


@cache
def takes(data: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Crops of each take as the live pipeline cuts them, (frames, 48, 48) uint8, and the takes' labels as numbers."""
    path = data / FILE
    rows = read_columns(path, ("clip", "frame", "image", "label"))
    images: dict[str, dict[int, bytes]] = defaultdict(dict)
    labels = {}
    for clip, frame, image, label in zip(*rows.values(), strict=True):
        images[clip][frame] = image
        labels[clip] = LABELS.index(check_label(label, path))
    detector, crops = make_detector(Video()), []
    for frames in images.values():
        clip_crops = []
        for _, encoded in sorted(frames.items()):
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
            if image is not None and (faces := find_faces(detector, image)):
                clip_crops.append(crop_face(image, max(faces, key=lambda face: face.area)))
        crops.append(np.stack(clip_crops) if clip_crops else np.zeros((0, 48, 48), np.uint8))
    return crops, np.array([labels[clip] for clip in images], np.int64)


@torch.inference_mode()
def judge(net: FaceNet, data: Path) -> dict[str, float]:
    """Scores of the encoder's own classifier, by the mean of the frames' log-probabilities of each take."""
    crops, truth = takes(data)
    means = []
    for frames in crops:
        logits = net.classifier(torch.from_numpy(encode(net, frames))).numpy() if len(frames) else np.zeros((1, 7))
        means.append(log_softmax(logits, axis=1).mean(axis=0))
    return scores(truth, np.stack(means).argmax(axis=1))
