"""engines/inspect.py and the commands of ``stream-engines``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from emostream.engines import inspect
from emostream.engines.bundle import FACE, FUSION, FUSION_CPU, FUSION_GPU
from emostream.engines.commands.main import main
from emostream.engines.trt.profiles import of_bundle
from emostream.errors import BackendError


def weights(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def graph(path: Path, nodes: list, stored: list, shape: list) -> Path:
    arrays = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", shape), ("y", None))
    ]
    model = helper.make_graph(nodes, "g", arrays[:1], arrays[1:], stored)
    onnx.save(helper.make_model(model, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


CASES = {
    # operator: (its stored arrays, attributes, input shape, floating-point operations by hand, parameters)
    "MatMul": ([("w", 3, 4)], {}, (5, 3), 2 * 5 * 3 * 4, 12),
    "Gemm": ([("w", 4, 3), ("b", 4)], {"transB": 1}, (5, 3), 2 * 5 * 3 * 4, 16),
    # 6 rows in, kernel 3, no padding: 4 out; 2 groups of 2 channels in and 3 out
    "Conv": ([("w", 6, 2, 3)], {"group": 2}, (5, 4, 6), 2 * (5 * 6 * 4) * (2 * 3), 36),
    # 7 steps of 5 rows, 2 directions, 3 gates of 4 units that read 3 values and 4 states
    "GRU": ([("w", 2, 12, 3), ("r", 2, 12, 4)], {"hidden_size": 4, "direction": "bidirectional"}, (7, 5, 3),
            2 * 7 * 5 * 2 * 12 * (3 + 4), 168),
}  # fmt: skip


@pytest.mark.parametrize("op_type", CASES)
def test_operations_and_parameters_as_counted_by_hand(tmp_path, op_type):
    stored, attributes, shape, flops, parameters = CASES[op_type]
    node = helper.make_node(op_type, ["x", *(name for name, *_ in stored)], ["y"], **attributes)
    path = graph(tmp_path / "g.onnx", [node], [weights(*entry) for entry in stored], ["a", *shape[1:]])
    counted = inspect.facts(path, {"x": (shape, shape, (shape[0] * 2, *shape[1:]))})
    assert counted.flops == {"smallest": flops, "typical": flops, "largest": 2 * flops}
    assert counted.parameters == parameters and counted.operators == {op_type: 1}
    assert counted.inputs["x"].shape == ["a", *shape[1:]] and counted.inputs["x"].dtype == "float32"


@pytest.mark.slow
def test_facts_of_the_shipped_graphs(bundle):
    counted = {g: inspect.facts(bundle.path(g), of_bundle(bundle.manifest, g)) for g in (FUSION, FACE)}
    assert counted[FACE].flops["largest"] == 64 * counted[FACE].flops["smallest"]
    assert counted[FACE].parameters * 4 <= counted[FACE].size_bytes  # stored as float32
    assert counted[FUSION].operators["GRU"] == 6
    assert 0 < counted[FUSION].flops["smallest"] < counted[FUSION].flops["typical"] < counted[FUSION].flops["largest"]
    assert counted[FUSION].outputs["logits"].shape[1] == len(bundle.manifest.labels)


def test_the_graph_that_tensorrt_builds_costs_the_least(bundle):
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed; it is for x86-64 only")
    profile = of_bundle(bundle.manifest, FUSION)
    portable, gpu = (inspect.cost(bundle.path(name), profile, trt) for name in (FUSION, FUSION_GPU))
    cpu = inspect.cost(bundle.path(FUSION_CPU), profile)
    assert (portable.loops, gpu.loops, cpu.loops, cpu.layers) == (6, 1, None, None)
    assert portable.steps == 2 * cpu.steps > 2 * gpu.steps  # a GRU per direction, one for both, one for everything
    assert gpu.layers < 1000 < portable.layers
    assert cpu.nodes < gpu.nodes < portable.nodes


def test_a_file_that_is_no_graph(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"none")
    with pytest.raises(BackendError, match=r"x\.onnx: cannot be read as an ONNX graph"):
        inspect.facts(tmp_path / "x.onnx", {})


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EMOSTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.long
@pytest.mark.slow
def test_build_then_inspect(bundle, empty_cache, tmp_path, capsys):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed; it is for x86-64 only")
    report = tmp_path / "report.json"
    options = ["--runtime", "tensorrt_rtx", "--compute", "sm86,SM120", "--precision", "fp16", "--json", str(report)]
    assert main(["build", "ekman7", *options]) == 0
    shown = capsys.readouterr().out
    assert "SM86, SM120" in shown and "ahead of time" in shown
    fusion, face = json.loads(report.read_text())
    assert (fusion["graph"], face["graph"]) == (FUSION_GPU, FACE)
    assert fusion["origin"]["options"]["compute"] == ["SM86", "SM120"]
    assert str(face["report"]["layers"]) in shown and fusion["report"]["sha256"][:12][:6] in shown
    assert len(list((empty_cache / "engines").glob("*.engine"))) == 2

    assert main(["inspect", "ekman7", "--json", str(report)]) == 0
    shown = capsys.readouterr().out
    saved = json.loads(report.read_text())
    assert f"{saved['graphs'][FACE]['parameters']:,} parameters" in shown
    assert list(saved["costs"]) == [FUSION, FUSION_CPU, FUSION_GPU, FACE]
    assert "fusion-gpu.onnx (TensorRT builds this)" in shown and str(saved["costs"][FUSION_GPU]["layers"]) in shown
    assert "engine of face.onnx: tensorrt_rtx" in shown and "fp16, SM86+SM120" in shown
    (entry,) = inspect.cached(bundle.path(FACE))
    assert entry.report.size_bytes == face["report"]["size_bytes"]


@pytest.mark.slow
def test_inspect_without_tensorrt_says_so(empty_cache, monkeypatch, capsys):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["inspect", "ekman7"]) == 0
    shown = capsys.readouterr().out
    assert "loops and layers: not counted" in shown
    assert "engine of fusion-gpu.onnx: none in the cache" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["build", "ekman7", "--compute", "SM86"], 2, "TensorRT builds only for the GPU of the machine"),
        (["build", "ekman7", "--max-batch", "0"], 2, "--max-batch is 0"),
        (["build", "none", "--runtime", "tensorrt_rtx", "--compute", "SM86"], 1, "bundle 'none' not found"),
        (["inspect", "none"], 1, "bundle 'none' not found"),
        (["inspect", "ekman7", "--max-batch", "0"], 2, "--max-batch must be at least 1"),
        (["inspect", "ekman7", "--json", "/nowhere/x"], 1, "/nowhere/x: cannot be read or written"),
    ],
)
def test_what_fails_is_said_in_words(empty_cache, capsys, arguments, code, said):
    assert main(arguments) == code
    assert said in capsys.readouterr().err


def test_without_a_gpu_a_build_for_it_says_what_is_missing(empty_cache, monkeypatch, capsys):
    from emostream.engines.trt import cuda

    monkeypatch.setattr(cuda, "missing", lambda runtime: ["no NVIDIA driver"])
    assert main(["build", "ekman7"]) == 1
    said = capsys.readouterr().err
    assert "no NVIDIA driver" in said and "--runtime tensorrt_rtx --compute" in said


@pytest.mark.parametrize("wrong", [[], ["paint"], ["build"], ["build", "ekman7", "--compute", "SM86,"]])
def test_wrong_usage(wrong):
    assert main(wrong) == 2


def test_ctrl_c(monkeypatch, capsys):
    from emostream.engines.commands import inspect as inspect_command

    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_command, "_inspect", pressed)
    assert main(["inspect", "ekman7"]) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.process
def test_without_the_extra_every_command_says_what_installs_it():
    code = "import sys; sys.modules['onnx'] = None\nfrom emostream.engines.commands.main import main\n"
    code += "sys.exit(main(['inspect', 'ekman7']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "error: onnx is not installed: pip install 'emostream[engines]'\n"
