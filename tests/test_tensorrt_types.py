"""engines/trt/backend.py and its stand-in use only what the real bindings have, by the types of TensorRT-RTX.

Its Python package can be imported on a machine without a GPU, and its API is that of TensorRT 11 except for CUDA
graphs. mypy's stubgen generates the stubs from the package.
"""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from emostream.files import write_atomically
from tests.recording_tensorrt import machine

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed; it is for x86-64 only")
ROOT = Path(__file__).parent.parent
DEVICE_CODE = "emostream/engines/trt/backend.py"
LOADED = "trt = load_module(runtime)"


@pytest.fixture(scope="module")
def stubs(pytestconfig: pytest.Config) -> Path:
    """A folder with ``tensorrt_rtx.pyi``, kept for as long as the package has this version."""
    folder = pytestconfig.cache.mkdir(f"tensorrt-rtx-{version('tensorrt-rtx-cu13')}")
    if (folder / "tensorrt_rtx.pyi").is_file():
        return folder
    stubgen = [sys.executable, "-c", "from mypy.stubgen import main; main()"]
    command = [*stubgen, "--inspect-mode", "-q", "-p", "tensorrt_rtx_bindings", "-o", folder]
    subprocess.run(command, check=True, timeout=100)
    text = (folder / "tensorrt_rtx_bindings/tensorrt_rtx.pyi").read_text()
    text = re.sub(r"^bool: DataType\n", "", text, flags=re.M)  # it hides the built-in type in every signature below
    text = re.sub(r"(= \.\.\., channel_axis: [\w.]+)\)", r"\1 = ...)", text)  # invalid: no default after a default
    text = text.replace("class Dims:", "class Dims:\n    def __iter__(self) -> collections.abc.Iterator[int]: ...")
    functions = "def nptype(trt_type: DataType) -> type: ...\n__version__: str\n"  # of the package's Python part
    write_atomically(folder / "tensorrt_rtx.pyi", "# mypy: ignore-errors\n" + text + functions)
    return folder


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the parts of emostream that the device code imports, and mypy's cache."""
    folder = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("stream", "train", "bundles", "__pycache__")
    shutil.copytree(ROOT / "emostream", folder / "emostream", ignore=ignore)  # follows the links
    others = "[mypy-emostream.stream.*,emostream.train.*,onnx.*]"  # which do not use the bindings
    skipped = "follow_imports = skip\nfollow_imports_for_stubs = True"
    (folder / "mypy.ini").write_text(f"[mypy]\n{others}\n{skipped}\n")
    return folder


def type_check(stubs: Path, source: str, folder: Path) -> str:
    """mypy's output for ``source`` in place of the device code, with the bindings' module typed."""
    assert LOADED in source
    (folder / DEVICE_CODE).write_text(source.replace(LOADED, "import tensorrt_rtx as trt"))
    command = [
        sys.executable, "-m", "mypy", "--ignore-missing-imports", "--follow-imports=silent",
        "--check-untyped-defs", "--config-file=mypy.ini", "--cache-dir", stubs / "mypy", DEVICE_CODE,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, env={"MYPYPATH": str(stubs)}, capture_output=True, text=True, timeout=100
    )
    return done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.process
def test_mypy_accepts_the_device_code(stubs: Path, copy: Path):
    output = type_check(stubs, (ROOT / DEVICE_CODE).read_text(), copy)
    assert "Success" in output, output


@pytest.mark.process
def test_mypy_would_notice_a_call_that_does_not_exist(stubs: Path, copy: Path):
    lines = (ROOT / DEVICE_CODE).read_text().splitlines()
    broken = set()
    for right, wrong in {
        "execute_async_v3(": "execute_async_v2(",
        "get_tensor_profile_shape(name, 0)": "get_tensor_profile_shape(0, name)",
        "trt.TensorIOMode.INPUT": "trt.TensorIOMode.INPUTS",
        "= trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE": "= 1",
        "trt.Runtime(": "trt.Runtime(1, ",
        "set_input_shape(name, shape)": "set_input_shape(shape, name)",
    }.items():
        (number,) = (number for number, line in enumerate(lines) if right in line)
        lines[number] = lines[number].replace(right, wrong)
        broken.add(number + 1)
    output = type_check(stubs, "\n".join(lines), copy)
    reported = {int(number) for number in re.findall(rf"^{DEVICE_CODE}:(\d+): error", output, flags=re.M)}
    assert reported == broken, output


def test_what_the_stubs_do_not_show():
    """Shapes are iterable, by the sequence protocol, and types have NumPy's names."""
    import tensorrt_rtx as trt

    assert tuple(trt.Dims((2, 3))) == (2, 3)
    for kind in ("float32", "int64", "uint8"):
        assert trt.nptype(getattr(trt, kind)) == np.dtype(kind).type


def parameters(stubs: Path) -> dict[str, dict[str, list[list[str]]]]:
    """By class in the stubs: its attributes, and for each method the parameters of every overload."""
    found: dict[str, dict[str, list[list[str]]]] = {}
    for node in ast.parse((stubs / "tensorrt_rtx.pyi").read_text()).body:
        if isinstance(node, ast.ClassDef):
            members = found.setdefault(node.name, {})
            for item in node.body:
                if isinstance(item, ast.FunctionDef):
                    members.setdefault(item.name, []).append([argument.arg for argument in item.args.args])
                elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    members[item.target.id] = []
    return found


@pytest.mark.slow
def test_the_stand_in_has_only_what_the_bindings_have(stubs: Path):
    real = parameters(stubs)
    with machine({}):
        ours = {name: kind for name, kind in vars(sys.modules["tensorrt_rtx"]).items() if inspect.isclass(kind)}
    assert {"Runtime", "ICudaEngine", "IExecutionContext", "ILogger"} <= set(ours)
    for name, kind in ours.items():
        for member, value in vars(kind).items():
            if member.startswith("_"):
                continue
            assert member in real[name], f"{name}.{member}"
            if inspect.isfunction(value):
                names = list(inspect.signature(value).parameters)
                assert names in real[name][member], f"{name}.{member}{names}: {real[name][member]}"
