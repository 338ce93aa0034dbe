"""engines/trt/backend.py: its calls of TensorRT and PyCUDA, on a stand-in. Nothing here runs on a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from emostream.engines.bundle import FUSION_GPU, MODALITIES, Bundle
from emostream.engines.onnx import OnnxRuntime
from emostream.engines.trt import cuda
from emostream.engines.trt.backend import TensorRT
from emostream.errors import BackendError
from tests.recording import FREE, Arrays, Gpu, Graph, Misuse
from tests.recording_tensorrt import machine

PROFILE = {"x": ((1, 1, 3), (2, 10, 3), (4, 40, 3)), "x_len": ((1,), (2,), (4,)), "crops": ((1, 6), (2, 6), (4, 6))}
DTYPES = {"x": "float32", "x_len": "int64", "crops": "uint8", "sums": "float32"}
Load = Callable[..., TensorRT]


def sums(inputs: Arrays) -> Arrays:
    """Sum over the valid time of each row, plus its pixels: (rows, 3) float32."""
    valid = np.arange(inputs["x"].shape[1]) < inputs["x_len"][:, None]
    total = (inputs["x"] * valid[:, :, None]).sum(axis=1) + inputs["crops"].sum(axis=1)[:, None]
    return {"sums": total.astype(np.float32)}


def batch(rows: int, steps: int, seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    return {
        "x": random.standard_normal((rows, steps, 3), np.float32),
        "x_len": random.integers(0, steps + 1, rows),
        "crops": random.integers(0, 256, (rows, 6), np.uint8),
    }


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    graph = Graph(PROFILE, DTYPES, {"sums": lambda shapes: (shapes["x"][0], 3)}, sums)
    with machine({b"an engine": graph}) as gpu:
        yield gpu


@pytest.fixture
def load(tmp_path: Path) -> Load:
    path = tmp_path / "graph.engine"
    path.write_bytes(b"an engine")
    return lambda runtime="tensorrt", profile=PROFILE: TensorRT(path, profile, runtime)


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt_rtx"])
def test_results_are_those_of_the_graph(gpu: Gpu, load: Load, runtime: str):
    backend = load(runtime)
    assert backend.name == f"{runtime}/Pretended GPU"
    for rows, steps in [(1, 1), (4, 40), (3, 7), (2, 12), (1, 1)]:
        inputs = batch(rows, steps)
        np.testing.assert_allclose(backend.run(inputs)["sums"], sums(inputs)["sums"], rtol=1e-5)
    backend.close()
    assert gpu.nothing_is_left()


def test_a_batch_above_the_maximum_is_split(gpu: Gpu, load: Load):
    inputs = batch(10, 9)
    np.testing.assert_allclose(load().run(inputs)["sums"], sums(inputs)["sums"], rtol=1e-5)
    assert [shapes["x"] for shapes in gpu.executed] == [(4, 16, 3), (4, 16, 3), (2, 16, 3)]


def test_results_stay_when_the_buffers_are_used_again(gpu: Gpu, load: Load):
    backend = load()
    first = backend.run(batch(2, 5, seed=1))["sums"]
    kept = first.copy()
    backend.run(batch(2, 5, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_fusion_graph_is_the_same_padded_and_split(bundle: Bundle, load: Load):
    """The shipped graph, run by ONNX Runtime instead of a GPU: the backend's padding and splitting change nothing."""
    reference = OnnxRuntime(bundle.path(FUSION_GPU))
    dims = {m: getattr(bundle.manifest, m).dim for m in MODALITIES}
    limits = {"audio": (dims["audio"], 40), "video": (dims["video"], 20), "text": (dims["text"], 10)}
    profile = {}
    for name, (dim, longest) in limits.items():
        profile[name] = ((1, 1, dim), (1, longest, dim), (3, longest, dim))
        profile[f"{name}_len"] = ((1,), (1,), (3,))
    dtypes = {name: "int64" if name.endswith("_len") else "float32" for name in profile} | {"logits": "float32"}
    graph = Graph(profile, dtypes, {"logits": lambda shapes: (shapes["audio"][0], 7)}, reference.run)
    random = np.random.default_rng(0)
    with machine({b"an engine": graph}) as gpu:
        backend = load(profile=profile)
        for lengths in ([33], [0], [0]), ([11, 0, 30, 5], [9, 3, 0, 17], [3, 0, 0, 0]):
            inputs: Arrays = {}
            for (name, (dim, _)), values in zip(limits.items(), lengths, strict=True):
                inputs[f"{name}_len"] = np.array(values, np.int64)
                inputs[name] = random.standard_normal((len(values), max(1, *values), dim), np.float32)
            np.testing.assert_allclose(backend.run(inputs)["logits"], reference.run(inputs)["logits"], atol=1e-5)
        assert gpu.executed[0]["video"] == (1, 1, 128)  # absent
        assert [shapes["audio"][0] for shapes in gpu.executed] == [1, 3, 1]
        backend.close()


def test_order_of_a_run(gpu: Gpu, load: Load):
    backend = load()
    gpu.calls.clear()
    backend.run(batch(2, 5))
    assert gpu.calls == [
        "push", *["memcpy_htod_async", "set_input_shape"] * 3, "infer_shapes", "execute_async_v3",
        "memcpy_dtoh_async", "synchronize", "pop",
    ]  # fmt: skip


def test_release_is_in_the_reverse_order(gpu: Gpu, load: Load):
    backend = load()
    gpu.calls.clear()
    backend.close()
    assert gpu.calls == [
        "push", "synchronize", *["free"] * 4, "~IExecutionContext", "~IRuntimeConfig", "~ICudaEngine", "~Runtime",
        "~Stream", "pop",
    ]  # fmt: skip
    backend.close()
    assert gpu.nothing_is_left()
    with pytest.raises(BackendError, match="closed"):
        backend.run(batch(1, 1))


def test_buffers_have_the_size_of_the_profiles_largest(gpu: Gpu, load: Load):
    backend = load()
    largest = [4 * 40 * 3 * 4, 4 * 8, 4 * 6, 4 * 3 * 4]
    assert [len(allocation.bytes) for allocation in gpu.device.values()] == largest
    assert list(gpu.host.values()) == largest
    allocations = gpu.allocations
    backend.run(batch(9, 40))
    assert gpu.allocations == allocations


def test_another_context_stays_current(gpu: Gpu, load: Load):
    other = gpu.driver.Device(0).make_context()
    backend = load()
    assert gpu.contexts == [other]
    backend.run(batch(2, 5))
    assert gpu.contexts == [other]
    backend.close()
    assert gpu.contexts == [other]


def test_a_forgotten_backend_is_released(gpu: Gpu, load: Load):
    backend = load()
    assert backend._release.atexit
    del backend
    gc.collect()
    assert gpu.nothing_is_left()


@pytest.mark.slow
def test_out_of_memory_names_the_allocation(gpu: Gpu, load: Load):
    load().close()
    assert gpu.allocations == 1 + 2 * len(DTYPES)  # the stream, then page-locked and device memory for each tensor
    said = []
    for gpu.exhausted_at in range(1, 2 + 2 * len(DTYPES)):
        gpu.allocations = 0
        with pytest.raises(BackendError, match="out of memory") as caught:
            load()
        said.append(str(caught.value))
        del caught
        gc.collect()
        assert gpu.nothing_is_left()
    kinds = [(kind, name) for name in DTYPES for kind in ("page-locked host memory", "GPU memory")]
    for (kind, name), message in zip(kinds, said[1:], strict=True):
        assert f"of {kind} for {name}" in message and f"{FREE:,} of the GPU's" in message
    assert "1,920 bytes" in said[1] and "32 bytes" in said[3]


@pytest.mark.slow
def test_nothing_is_left_whichever_driver_call_fails(gpu: Gpu, load: Load):
    calls = 1 + 2 * len(DTYPES) + 2 * (3 + 1 + 1)  # stream, buffers, two runs of copies and a wait
    for gpu.fail in range(1, calls + 1):
        gpu.driver_calls, backend = 0, None
        with pytest.raises(BackendError, match="the GPU failed: .* pretended") as caught:
            backend = load()
            backend.run(batch(6, 5))
        del caught
        gc.collect()
        assert gpu.nothing_is_left(), gpu.fail
        if backend:
            with pytest.raises(BackendError, match="closed"):
                backend.run(batch(1, 1))
    gpu.driver_calls, gpu.fail = 0, calls + 1
    load().run(batch(6, 5))
    assert gpu.driver_calls == calls + 1  # the last is the wait before the release


def test_a_gpu_that_fails_at_release_is_logged(gpu: Gpu, load: Load, caplog: pytest.LogCaptureFixture):
    backend = load()
    gpu.fail = "synchronize"
    backend.close()
    assert gpu.nothing_is_left()
    assert "failed while its memory was freed: synchronize failed" in caplog.text


@pytest.mark.parametrize(
    "call, message",
    [
        ("deserialize_cuda_engine", "cannot read this engine"),
        ("create_execution_context", "123,456 bytes of GPU memory to execute in are not free"),
        ("set_input_shape", r"refuses shape \(4, 40, 3\) for x"),
        ("infer_shapes", "cannot infer the shapes"),
        ("set_tensor_address", "refuses the buffer of x"),
    ],
)
def test_what_tensorrt_refuses_at_loading(gpu: Gpu, load: Load, call: str, message: str):
    gpu.fail = call
    with pytest.raises(BackendError, match=message) as caught:
        load()
    assert f"reason of {call}" in str(caught.value)
    del caught
    gc.collect()
    assert gpu.nothing_is_left()


@pytest.mark.parametrize("call", ["set_input_shape", "infer_shapes", "execute_async_v3"])
def test_what_tensorrt_refuses_in_a_run_closes_the_backend(gpu: Gpu, load: Load, call: str):
    backend = load()
    gpu.fail = call
    with pytest.raises(BackendError, match=f"reason of {call}"):
        backend.run(batch(2, 5))
    assert not gpu.device and not gpu.streams and not gpu.contexts


def test_shapes_that_tensorrt_cannot_infer_are_named(gpu: Gpu, load: Load):
    gpu.fail = "some shapes"
    with pytest.raises(BackendError, match="lacks the shapes of x"):
        load()


def test_inputs_that_do_not_fit_do_no_harm(gpu: Gpu, load: Load):
    backend = load()
    with pytest.raises(BackendError, match="x is float64"):
        backend.run(batch(2, 5) | {"x": np.zeros((2, 5, 3))})
    with pytest.raises(BackendError, match=r"x has shape \(2, 41, 3\)"):
        backend.run(batch(2, 41))
    assert backend.run(batch(2, 5))["sums"].shape == (2, 3)


def test_an_engine_of_another_profile_is_refused(gpu: Gpu, load: Load):
    with pytest.raises(BackendError, match="built for"):
        load(profile=PROFILE | {"x": ((1, 1, 3), (2, 10, 3), (4, 41, 3))})
    gc.collect()
    assert gpu.nothing_is_left()


def test_the_error_names_what_is_missing(gpu: Gpu, load: Load, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda, "missing", lambda runtime: ["no this", "no that"])
    with pytest.raises(BackendError, match="tensorrt cannot run here: no this; no that"):
        load()


def test_the_stand_in_is_strict(gpu: Gpu, load: Load):
    backend = load()
    loaded = backend._loaded
    with pytest.raises(AttributeError):
        loaded.execution.execute_v2([])
    with pytest.raises(AttributeError):
        loaded.config.cuda_graph_strategy = 1  # of tensorrt_rtx only
    with pytest.raises(Misuse, match="outside of the primary context"):
        loaded.execution.infer_shapes()
    with cuda.current():
        with pytest.raises(Misuse, match="before they are inferred"):
            loaded.execution.set_input_shape("x", (1, 1, 3))
            loaded.execution.get_tensor_shape("sums")
        with pytest.raises(Misuse, match="inferred shapes"):
            loaded.execution.execute_async_v3(loaded.stream.handle)
        with pytest.raises(Misuse, match="no stream"):
            loaded.execution.execute_async_v3(0)
        with pytest.raises(Misuse, match="not allocated"):
            loaded.execution.set_tensor_address("x", 1)
        with pytest.raises(Misuse, match="page-locked"):
            gpu.driver.memcpy_htod_async(loaded.device["x"], np.zeros(3, np.float32), loaded.stream)
        with pytest.raises(Misuse, match="no stream of ours"):
            gpu.driver.memcpy_htod_async(loaded.device["x"], loaded.host["x"], None)
        with pytest.raises(Misuse, match="while work waits"):
            gpu.driver.memcpy_htod_async(loaded.device["x"], loaded.host["x"], loaded.stream)
            loaded.device["x"].free()
        loaded.stream.synchronize()
