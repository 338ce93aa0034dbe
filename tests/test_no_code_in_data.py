"""Data that is read cannot run: no pickle, no eval, no shell, in anything that the project ships."""

from __future__ import annotations

import ast

import pytest

from tests.processes import ROOT

_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
_CALLS = {"eval", "exec", "compile", "__import__"}
_METHODS = {"os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "torch.load"}
_SAFE = {"torch.load": ("weights_only", True)}


def dangers(source: str) -> list[str]:
    """Code that could execute what it reads, as ``line: what``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names if alias.name.split(".")[0] in _MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _MODULES:
            found.append((node, node.module))
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in _CALLS or (called in _METHODS and not _is_safe(called, node)):
                found.append((node, called))
            found += [(node, f"{word.arg}=True") for word in node.keywords if _allows_code(word)]
    return [f"{node.lineno}: {what}" for node, what in found]


def _allows_code(word: ast.keyword) -> bool:
    dangerous = word.arg in ("shell", "allow_pickle", "trust_remote_code")
    return dangerous and not (isinstance(word.value, ast.Constant) and word.value.value is False)


def _is_safe(called: str, node: ast.Call) -> bool:
    name, value = _SAFE.get(called, ("", None))
    return any(
        word.arg == name and isinstance(word.value, ast.Constant) and word.value.value is value
        for word in node.keywords
    )


@pytest.mark.parametrize("folder", ["emostream", "stream", "engines", "train", "benchmarks", "tools"])
@pytest.mark.slow
def test_nothing_that_is_read_can_run(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    assert {str(path.relative_to(ROOT)): found for path in files if (found := dangers(path.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "import marshal as m", "eval(x)", "exec(x)", "os.system(x)",
        "torch.load(x)", "torch.load(x, weights_only=False)", "np.load(x, allow_pickle=True)",
        "subprocess.run(x, shell=True)", "subprocess.run(x, shell=y)",
    ],
)  # fmt: skip
def test_what_could_is_found(source):
    assert dangers(source)


def test_what_could_not_is_let_through():
    assert not dangers("model.eval()\nre.compile(x)\ntorch.load(x, weights_only=True)\nnp.load(x)")
