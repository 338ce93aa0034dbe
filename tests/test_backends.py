"""Every backend gives the torch model's results and refuses bad input. For TensorRT see test_tensorrt.py."""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emostream.engines import load
from emostream.engines.backend import Backend
from emostream.engines.bundle import FACE, FUSION, FUSION_GPU, MODALITIES, SUBSETS, Bundle
from emostream.engines.onnx import OnnxRuntime
from emostream.engines.trt.precision import cast
from emostream.errors import BackendError
from emostream.stream.cores.classifier import Classifier, Features
from emostream.train.bundle.face import FaceNet, decode
from emostream.train.corpora import fer2013, goemotions, in_split, ravdess
from emostream.train.graphs import portable as export
from emostream.train.model import DIMS, build
from emostream.train.recordings import read_sound
from tests.nets import SMALL, small

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
CLASSES = {"onnxruntime": ("onnx", "OnnxRuntime"), "openvino": ("openvino", "OpenVino"), "torch": ("torch", "Torch")}
MOST = {"audio": 1500, "video": 150, "text": 64}  # rows in the window of the shipped bundle
TYPICAL = {"audio": 301, "video": 29, "text": 7}
ALL, ONE = tuple(MOST.values()), (1, 1, 1)

Make = Callable[..., Backend]


def make(backend: str) -> Make:
    """The class of a backend; skips the test where its library is not installed."""
    if lacking := load.available()[backend]:
        pytest.skip(f"{backend}: {lacking}")
    module, name = CLASSES[backend]
    return getattr(importlib.import_module(f"emostream.engines.{module}"), name)


@pytest.fixture(scope="module", params=CLASSES)
def backend(request: pytest.FixtureRequest) -> Make:
    return make(request.param)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    """A fusion model of the shipped size with random weights, and its graph. Its logits are far apart."""
    torch.manual_seed(0)
    net = build().eval()
    with torch.no_grad():
        for encoder in net.encoders.values():
            encoder.mean.normal_()
            encoder.std.uniform_(0.5, 2)
        for weights in net.parameters():
            weights.mul_(1.5)
    path = tmp_path_factory.mktemp("graph") / FUSION
    export.export_fusion(net, path)
    return net, path


@pytest.fixture(scope="module")
def graph(backend: Make, model) -> Iterator[Backend]:
    loaded = backend(model[1])
    yield loaded
    loaded.close()


def arrays(lengths: list[tuple[int, ...]], padding: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of (audio, video, text) lengths; rows beyond them are random."""
    by_name = {name: [clip[i] for clip in lengths] for i, name in enumerate(MODALITIES)}
    return export.fusion_inputs(DIMS, by_name, np.random.default_rng(seed), padding)


@torch.inference_mode()
def expected(net: torch.nn.Module, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return net(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()


# Results


LENGTHS = st.tuples(*(st.one_of(st.sampled_from((0, 1, 2, 3)), st.integers(0, n // 5)) for n in MOST.values()))


@settings(max_examples=15)
@given(st.lists(LENGTHS.filter(any), min_size=1, max_size=8), st.integers(0, 5), st.integers(0, 9))
@example([ONE], 0, 0)
@example([ALL], 0, 0)
@example([ONE, ALL, (1499, 149, 63), (5, 0, 1), (7, 3, 0), (0, 13, 3), (3, 0, 0), (0, 1, 0)], 0, 0)
def test_logits_are_the_torch_models_at_any_lengths(model, graph, lengths, padding, seed):
    inputs = arrays(lengths, padding, seed)
    want = expected(model[0], inputs)
    got = graph.run(inputs)["logits"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)
    assert np.ptp(want, axis=1).min() > 100 * TOLERANCE  # so that a wrong graph would be far off


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
@pytest.mark.parametrize("subset", SUBSETS)
def test_any_modality_may_be_absent(model, graph, subset, batch):
    clip = tuple(n if name in subset.split("+") else 0 for name, n in TYPICAL.items())
    inputs = arrays([clip] * batch)
    np.testing.assert_allclose(graph.run(inputs)["logits"], expected(model[0], inputs), rtol=0, atol=TOLERANCE)


def test_neither_padding_nor_its_content_matters(graph):
    lengths = [(301, 29, 7), (120, 0, 3), (0, 11, 0)]
    inputs = arrays(lengths)
    want = graph.run(inputs)["logits"]
    for padding, value in ((0, 1e4), (1, -3), (40, 1e4)):
        padded = dict(inputs)
        for i, name in enumerate(MODALITIES):
            length, width = np.array([clip[i] for clip in lengths]), inputs[name].shape[1]
            rows = np.pad(inputs[name], ((0, 0), (0, padding), (0, 0)))
            rows[np.arange(width + padding) >= length[:, None]] = value
            padded[name] = rows
        np.testing.assert_allclose(graph.run(padded)["logits"], want, rtol=0, atol=2e-5)


VARIANTS = list(itertools.product(["self", "cross", "both", "none"], [True, False]))
QUICK = [("self", True)]


@pytest.fixture(
    scope="module", params=[v if v in QUICK else pytest.param(v, marks=pytest.mark.long) for v in VARIANTS], ids=str
)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """A small network of one kind, and its graph."""
    attention, pooling = request.param
    net, path = small(attention, pooling=pooling), tmp_path_factory.mktemp("variant") / "graph.onnx"
    export.export_fusion(net, path)
    return net, path


@pytest.mark.slow
def test_every_variant_of_the_model_runs(backend, variant):
    net, path = variant
    inputs = export.fusion_inputs(
        SMALL, {"audio": [9, 0], "video": [3, 5], "text": [0, 2]}, np.random.default_rng(0), padding=2
    )
    got = backend(path).run(inputs)["logits"]
    np.testing.assert_allclose(got, expected(net, inputs), rtol=0, atol=TOLERANCE)


def test_face_vectors_are_the_torch_networks(backend, tmp_path):
    torch.manual_seed(0)
    net = FaceNet().eval()
    export.export_face(net, tmp_path / FACE)
    face = backend(tmp_path / FACE)
    for n in (1, 3, 64):
        crops = np.random.default_rng(n).integers(0, 256, (n, 48, 48), np.uint8)
        crops[0] = 128  # flat
        with torch.inference_mode():
            want = net(torch.from_numpy(crops)).numpy()
        np.testing.assert_allclose(face.run({"crops": crops})["vectors"], want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "onnxruntime"])
def test_the_shipped_bundle_gives_the_same_probabilities(bundle, classifier, name):
    make(name)
    rng = np.random.default_rng(0)
    other = Classifier(bundle, name)
    faces = classifier.encode_faces(crops := rng.integers(0, 256, (9, 48, 48), np.uint8))
    np.testing.assert_allclose(other.encode_faces(crops), faces, rtol=0, atol=TOLERANCE)
    item = Features(rng.normal(0, 3, (123, 168)).astype(np.float32), faces, classifier.encode_words(["no", "way"]))
    (want,), (got,) = (each.classify([item], [True]) for each in (classifier, other))
    np.testing.assert_allclose(got.probabilities, want.probabilities, rtol=0, atol=TOLERANCE)
    assert other.backend.startswith(f"{name}/")
    other.close()
    with pytest.raises(BackendError, match="is closed"):
        other.classify([item], [True])


DATA = Path(os.environ.get("EMOSTREAM_DATA", "/nonexistent"))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA / "ravdess").is_dir(), reason="EMOSTREAM_DATA names no folder with ravdess, fer2013 and goemotions"
)
def test_half_precision_gives_the_same_labels_for_real_features(bundle: Bundle, classifier, tmp_path):
    """RAVDESS recordings, FER2013 faces and GoEmotions comments, combined in every subset of modalities."""
    count = 180
    rng = np.random.default_rng(0)
    drawn = [
        [items[i] for i in rng.choice(len(items), number, replace=False)]
        for items, number in (
            (in_split(ravdess.load(DATA / "ravdess"), "val"), count),
            (in_split(fer2013.load(DATA / "fer2013"), "val"), 5 * count),
            (in_split(goemotions.load(DATA / "goemotions"), "val"), count),
        )
    ]
    sounds = [classifier.voice_encoder().encode(read_sound(item.content).rows()) for item in drawn[0]]
    faces = classifier.encode_faces(decode(drawn[1])).reshape(count, 5, -1)  # five rows a clip
    texts = [classifier.encode_words(item.content.lower().split()) for item in drawn[2]]
    clips = [
        Features(
            *(part if name in subset.split("+") else part[:0] for name, part in zip(MODALITIES, parts, strict=True))
        )
        for parts in zip(sounds, faces, texts, strict=True)
        for subset in SUBSETS
    ]
    clips = [clip for clip in clips if clip.present()]
    clips.sort(key=lambda clip: len(clip.audio))
    onnx.save(cast(onnx.load(bundle.path(FUSION_GPU)), "fp16"), tmp_path / FUSION)
    half, agreeing = OnnxRuntime(tmp_path / FUSION), 0
    whole = OnnxRuntime(bundle.path(FUSION))
    worst = 0.0
    for batch in (clips[i : i + 7] for i in range(0, len(clips), 7)):
        inputs: dict[str, np.ndarray] = {}
        for name in MODALITIES:
            rows = [getattr(clip, name) for clip in batch]
            inputs[f"{name}_len"] = np.array([len(sequence) for sequence in rows], np.int64)
            inputs[name] = np.zeros((len(batch), max(1, *map(len, rows)), DIMS[name]), np.float32)
            for i, sequence in enumerate(rows):
                inputs[name][i, : len(sequence)] = sequence
        low, high = half.run(inputs)["logits"], whole.run(inputs)["logits"]
        agreeing += int((low.argmax(1) == high.argmax(1)).sum())
        worst = max(worst, float(np.abs(low - high).max()))
    print(f"fp16: {agreeing} of {len(clips)} labels, logits differ by up to {worst:.2g}")
    assert worst > 0  # else nothing was rounded
    assert agreeing >= 0.999 * len(clips)


# What does not fit


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda given: given.pop("video"),
            "the graph takes audio, audio_len, text.* it was given audio, audio_len, text,",
        ),
        (lambda given: given.update(words=given["text"]), "it was given .*words"),
        (
            lambda given: given.update(audio=given["audio"].astype(np.float64)),
            "audio is float64; the graph takes float32",
        ),
        (lambda given: given.update(text_len=given["text_len"].astype(np.int32)), "text_len is int32; .* takes int64"),
        (
            lambda given: given.update(audio=given["audio"][..., :40]),
            r"audio has shape \(2, 9, 40\); .*\(any, any, 168\)",
        ),
        (lambda given: given.update(video=given["video"][0]), r"video has shape \(5, 128\); .*\(any, any, 128\)"),
        (lambda given: given.update(text_len=given["text_len"][:, None]), r"text_len has shape \(2, 1\)"),
        (
            lambda given: given.update(text_len=given["text_len"][:1]),
            "differ in the rows of their batch: .*'text_len': 1",
        ),
        (lambda given: given.update(video=given["video"][:, :0]), "video has shape .* which is empty"),
    ],
)
def test_arrays_that_do_not_fit(graph, change, says):
    inputs = arrays([(9, 5, 3)] * 2)
    want = graph.run(inputs)["logits"]
    change(wrong := dict(inputs))
    with pytest.raises(BackendError, match=says):
        graph.run(wrong)
    np.testing.assert_array_equal(graph.run(inputs)["logits"], want)  # the errors left no trace


def test_arrays_need_not_be_contiguous(model, graph):
    inputs = arrays([(9, 5, 3)] * 2)
    turned = {name: np.asfortranarray(array) for name, array in inputs.items()}
    np.testing.assert_array_equal(graph.run(turned)["logits"], graph.run(inputs)["logits"])


def test_results_stay_when_the_backend_runs_again(graph):
    first = graph.run(arrays([(9, 5, 3)]))["logits"]
    kept = first.copy()
    graph.run(arrays([(9, 5, 3)], seed=1))
    np.testing.assert_array_equal(first, kept)


def test_closing_twice(backend, model):
    graph = backend(model[1])
    graph.close()
    graph.close()
    with pytest.raises(BackendError, match="is closed; load the graph again"):
        graph.run(arrays([ONE]))


def test_a_file_that_is_not_a_graph(backend, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"x\.onnx: .*cannot"):
        backend(tmp_path / "x.onnx")
    with pytest.raises(BackendError, match=r"no\.onnx: .*cannot"):
        backend(tmp_path / "no.onnx")


# ONNX Runtime with CUDA, on a machine without a GPU


def test_onnx_runtime_warns_where_it_cannot_use_cuda(model, monkeypatch, caplog):
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    if "CUDAExecutionProvider" in onnxruntime.InferenceSession(model[1], providers=providers).get_providers():
        pytest.skip("CUDA can be used here")
    assert OnnxRuntime(model[1]).name == "onnxruntime/cpu"
    assert "it runs on the CPU" in caplog.text


def test_onnx_runtime_prefers_cuda_to_the_cpu(model, monkeypatch):
    asked = []
    session = onnxruntime.InferenceSession

    def on_cuda(path: str, options: object, providers: list) -> object:
        asked.extend(providers)
        plain = session(path, options, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(plain, "get_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
        return plain

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", on_cuda)
    assert OnnxRuntime(model[1]).name == "onnxruntime/cuda"
    assert asked == [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]


# What an import does


@pytest.mark.process
def test_openvino_sends_nothing():
    make("openvino")
    code = (
        "import socket, sys\n"
        "sys.addaudithook(lambda event, _: event.startswith('socket.') and print('SENT', event))\n"
        "import emostream.engines.openvino\n"
        "print(sorted(name for name in sys.modules if name.startswith('openvino_telemetry.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
