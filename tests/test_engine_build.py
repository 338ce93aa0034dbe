"""engines/trt/build.py on the real TensorRT-RTX, which compiles ahead of time without a GPU. No engine is executed."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from emostream.engines.bundle import FACE, FUSION, FUSION_GPU, VOICE
from emostream.engines.options import Options
from emostream.engines.trt import build
from emostream.engines.trt.profiles import Profile, of_bundle
from emostream.engines.trt.runtimes import load_module
from emostream.errors import BackendError, ConfigError

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed; it is for x86-64 only")
GPUS = ("SM86", "SM89", "SM120")
PROFILE: Profile = {"x": ((1, 3), (2, 3), (4, 3))}


def small(path: Path, op_type: str = "Relu", domain: str = "") -> Path:
    """x (rows, 3) → y, by one operator."""
    node = helper.make_node(op_type, ["x"], ["y"], name="the_node", domain=domain)
    arrays = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 3]) for name in ("x", "y")]
    graph = helper.make_graph([node], "small", arrays[:1], arrays[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("of.ours", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.long)])
@pytest.mark.parametrize("file", [pytest.param(FUSION, marks=pytest.mark.long), FUSION_GPU, VOICE, FACE])
def test_every_graph_that_is_shipped_compiles(bundle, file, precision):
    """The portable fusion graph too, which is all that older bundles have."""
    options = Options("tensorrt_rtx", precision, GPUS)
    profile = of_bundle(bundle.manifest, file if file in (VOICE, FACE) else FUSION)
    blob, report = build.compile(bundle.path(file), profile, options, trt)
    assert report.size_bytes == len(blob) > 1e6
    assert report.sha256 == hashlib.sha256(blob).hexdigest()
    assert (report.precision, report.runtime, report.runtime_version) == (precision, "tensorrt_rtx", trt.__version__)
    assert report.layers > 40 and report.seconds > 0


@pytest.mark.slow
def test_half_precision_is_half_the_weights(bundle):
    sizes = {}
    for precision in ("fp32", "fp16"):
        options = Options("tensorrt_rtx", precision, ("SM86",))
        sizes[precision] = build.compile(bundle.path(FACE), of_bundle(bundle.manifest, FACE), options, trt)[
            1
        ].size_bytes
    assert sizes["fp16"] < 0.65 * sizes["fp32"]


@pytest.mark.parametrize("graph", [FUSION, FACE])
def test_inputs_and_outputs_as_the_manifest_says(bundle, graph):
    """Of the compiled network: names, types, fixed sizes, and that the profile covers every size that varies."""
    builder = trt.Builder(build.logger(trt))
    path = bundle.path_for(graph, "tensorrt_rtx")
    network = build.parse(path, build._graph(path, "fp16"), builder, trt)
    results = {}
    for index in range(network.num_inputs):
        entry = network.get_input(index)
        results[entry.name] = (entry.dtype, tuple(entry.shape))
    outputs = {network.get_output(i).name: tuple(network.get_output(i).shape) for i in range(network.num_outputs)}
    manifest = bundle.manifest
    profile = of_bundle(manifest, graph)
    assert set(results) == set(profile)
    if graph == FACE:
        side = manifest.video.settings["crop"]
        assert results == {"crops": (trt.uint8, (-1, side, side))}
        assert outputs == {"vectors": (-1, manifest.video.dim)}
        return
    for name in ("audio", "video", "text"):
        modality = getattr(manifest, name)
        assert results[name] == (trt.float32, (-1, -1, modality.dim))
        assert results[f"{name}_len"] == (trt.int64, (-1,))
        assert profile[name][0] == (1, 1, modality.dim) and profile[name][2] == (8, modality.max_rows, modality.dim)
    assert outputs == {"logits": (-1, len(manifest.labels))}


def test_progress_hears_of_every_phase(bundle):
    class Record:
        def __init__(self) -> None:
            self.phases: Counter[str] = Counter()
            self.steps = 0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            assert steps >= 0
            self.phases[phase] += 1

        def step_complete(self, phase: str, step: int) -> None:
            assert self.phases[phase] > 0
            self.steps += 1

        def phase_finish(self, phase: str) -> None:
            self.phases[phase] -= 1

    record = Record()
    options = Options("tensorrt_rtx", "fp32", ("SM86",))
    build.compile(bundle.path(FACE), of_bundle(bundle.manifest, FACE), options, trt, progress=record)
    assert record.phases and not any(record.phases.values()) and record.steps > 0


def test_a_build_can_be_interrupted(bundle, monkeypatch):
    """As with Ctrl-C, which the main thread handles while it waits."""

    built = []

    def interruptible(make, cancelled):
        cancelled.set()
        built.append(make())
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_interruptible", interruptible)
    options = Options("tensorrt_rtx", "fp32", ("SM86",))
    with pytest.raises(KeyboardInterrupt):
        build.compile(bundle.path(FACE), of_bundle(bundle.manifest, FACE), options, trt)
    assert built == [None]  # TensorRT stopped at its next step


def test_unsupported_operator_is_named(tmp_path):
    path = small(tmp_path / "own.onnx", "Frobnicate", "of.ours")
    with pytest.raises(BackendError, match=r"own\.onnx: tensorrt_rtx cannot take this graph: .*Frobnicate.*the_node"):
        build.compile(path, PROFILE, Options("tensorrt_rtx", compute=("SM86",)), trt)


def test_missing_profile(tmp_path):
    with pytest.raises(BackendError, match=r"built no engine: .*(profile|dynamic)"):
        build.compile(small(tmp_path / "x.onnx"), {}, Options("tensorrt_rtx", compute=("SM86",)), trt)


@pytest.mark.parametrize(
    "shapes",
    [((2, 3), (1, 3), (4, 3)), ((1, 3), (5, 3), (4, 3)), ((1, 3), (2, 3, 1), (4, 3)), ((1, 3), (2, 3), (4, 2))],
)
def test_a_profile_that_is_not_valid(tmp_path, shapes):
    with pytest.raises(BackendError, match=r"x\.onnx: (the profile .* is not valid|tensorrt_rtx built no engine)"):
        build.compile(small(tmp_path / "x.onnx"), {"x": shapes}, Options("tensorrt_rtx", compute=("SM86",)), trt)


def test_a_profile_for_an_unknown_input(tmp_path):
    profile = PROFILE | {"z": ((1,), (1,), (1,))}
    with pytest.raises(BackendError, match="the profile is for z, the graph takes x"):
        build.compile(small(tmp_path / "x.onnx"), profile, Options("tensorrt_rtx", compute=("SM86",)), trt)


def test_a_file_that_is_not_a_graph(tmp_path):
    (path := tmp_path / "x.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"x\.onnx: cannot be read as an ONNX graph"):
        build.compile(path, PROFILE, Options("tensorrt_rtx", compute=("SM86",)), trt)


def test_a_gpu_that_the_library_does_not_know(tmp_path):
    with pytest.raises(BackendError, match="cannot build for SM87; it builds for: .*SM86.*SM120"):
        build.compile(small(tmp_path / "x.onnx"), PROFILE, Options("tensorrt_rtx", compute=("SM86", "SM87")), trt)


def test_errors_of_one_build_do_not_appear_in_the_next(tmp_path):
    for name in ("First", "Second"):
        path = small(tmp_path / f"{name}.onnx", name, "of.ours")
        with pytest.raises(BackendError) as caught:
            build.compile(path, PROFILE, Options("tensorrt_rtx", compute=("SM86",)), trt)
        assert name in str(caught.value) and ("First" in str(caught.value)) == (name == "First")
    with pytest.raises(BackendError) as caught:
        build.compile(small(tmp_path / "x.onnx"), {}, Options("tensorrt_rtx", compute=("SM86",)), trt)
    assert "Second" not in str(caught.value)


@pytest.mark.long
@pytest.mark.slow
def test_a_good_build_logs_no_warning(bundle, caplog):
    caplog.set_level(logging.INFO)
    build.compile(
        bundle.path(FUSION_GPU), of_bundle(bundle.manifest, FUSION), Options("tensorrt_rtx", compute=("SM86",)), trt
    )
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"runtime": "tflite"}, "runtime 'tflite' is unknown; choose one of: tensorrt, tensorrt_rtx"),
        ({"precision": "int8"}, "precision 'int8' is unknown; choose one of: fp32, fp16, bf16"),
        ({"compute": ("SM86",)}, "TensorRT builds only for the GPU of the machine"),
        ({"max_batch": 0}, "--max-batch is 0"),
    ],
)
def test_options_that_do_not_fit(options, said):
    with pytest.raises(ConfigError, match=said):
        Options(**options)
    assert dataclasses.asdict(Options())["precision"] == "fp32"


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"tensorrt cannot be imported .*pip install 'emostream\[gpu\]'"):
        load_module("tensorrt")
    with pytest.raises(BackendError, match="'tensorflow' is unknown"):
        load_module("tensorflow")


def test_weights_that_half_precision_cannot_hold(tmp_path):
    weight = numpy_helper.from_array(np.full((3, 3), 1e6, np.float32), "w")
    arrays = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", arrays[:1], arrays[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "g.onnx")
    with pytest.raises(BackendError, match="float16"):
        build.compile(tmp_path / "g.onnx", PROFILE, Options("tensorrt_rtx", "fp16", ("SM86",)), trt)
