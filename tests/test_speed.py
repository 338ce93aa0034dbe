"""Speed, as ratios between systems that take turns on one machine: absolute times differ from day to day.

The bounds leave room for a noisy machine; the measured figures are in docs/performance.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from emostream.engines.bundle import FUSION, FUSION_CPU, MODALITIES
from emostream.engines.onnx import OnnxRuntime
from emostream.stream.features.mfcc import Mfcc
from emostream.stream.messages import Codec, Pcm
from emostream.train.model import PAPER_DIMS, build

pytestmark = pytest.mark.alone

ROWS = {"audio": 500, "video": 50, "text": 15}  # 5 s: MFCC, faces, words
OUR_ROWS = {"audio": 63, "video": 50, "text": 20}  # voice vectors, faces, pieces of words
FRAME = 512  # samples, 32 ms


def fastest(runs: dict[str, Callable[[], object]], rounds: int = 30) -> dict[str, float]:
    """Seconds of the fastest run of each, in turns: other work on the machine can only add to it."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            for _ in range(3):
                begin = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - begin)
    return best


@pytest.fixture(scope="module")
def fusion_times(bundle) -> dict[str, float]:
    rng = np.random.default_rng(0)
    dims = {m: getattr(bundle.manifest, m).dim for m in MODALITIES}
    inputs = {m: rng.normal(0, 1, (1, rows, dims[m])).astype(np.float32) for m, rows in OUR_ROWS.items()}
    inputs |= {f"{m}_len": np.array([rows]) for m, rows in OUR_ROWS.items()}
    published = build("paper", rows=ROWS).eval()
    theirs = {m: torch.randn(1, rows, PAPER_DIMS[m]) for m, rows in ROWS.items()}
    exported, cpu = OnnxRuntime(bundle.path(FUSION)), OnnxRuntime(bundle.path(FUSION_CPU))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def eager() -> None:
        with torch.inference_mode():
            published(**theirs)

    try:
        return fastest({"published": eager, "exported": lambda: exported.run(inputs), "cpu": lambda: cpu.run(inputs)})
    finally:
        torch.set_num_threads(threads)


def test_fusion_is_many_times_faster_than_the_published_network_in_torch(fusion_times):
    assert fusion_times["published"] > 14 * fusion_times["cpu"]


def test_the_graph_for_a_cpu_is_faster_than_the_exported_one(fusion_times):
    assert fusion_times["cpu"] < 0.95 * fusion_times["exported"]


@pytest.fixture(scope="module")
def frame_times(vad) -> dict[str, float]:
    """Seconds for each processing step of 32 ms of sound."""
    samples = np.random.default_rng(0).integers(-3000, 3000, FRAME).astype(np.int16)
    mfcc, sender, receiver = Mfcc(), Codec(), Codec()
    message = Pcm(stream="s", media_start_ns=0, media_end_ns=1, captured_ns=0, samples=samples)
    return fastest({
        "vad": lambda: vad.push(samples), "mfcc": lambda: mfcc.push(samples),
        "bus": lambda: receiver.decode(sender.encode(message)),
    }, rounds=200)  # fmt: skip


def test_features_cost_no_more_than_voice_activity(frame_times):
    assert frame_times["mfcc"] < 1.5 * frame_times["vad"]


def test_packing_and_unpacking_a_message_is_cheap_beside_the_work_on_it(frame_times):
    assert frame_times["bus"] < 0.25 * (frame_times["vad"] + frame_times["mfcc"])
