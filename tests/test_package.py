"""One import package over the folders of the checkout."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


# Modules that were loaded under two names, by the real path of their file.
TWICE = """
import os, runpy, sys
sys.argv = [{module!r}, *{arguments!r}]
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit:
    pass
places = {{}}
for name, module in list(sys.modules.items()):
    if file := getattr(module, "__file__", None):
        places.setdefault(os.path.realpath(file), set()).add(name)
print("TWICE", *sorted(file for file, names in places.items() if len(names) > 1), sep="\\n")
print("loaded", "emostream.{module}.commands.main" in sys.modules)
"""


@pytest.mark.process
@pytest.mark.parametrize(("module", "arguments"), [("train", ["card", "ekman7"]), ("engines", ["inspect", "ekman7"])])
def test_no_module_is_loaded_twice_in_a_checkout(module, arguments):
    """``python -m train`` loads the folder's own empty __init__.py, and everything else by its one name."""
    code = TWICE.format(module=module, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *twice, loaded = done.stdout.rpartition("TWICE\n")[2].splitlines()
    assert loaded == "loaded True"
    ours = [Path(file) for file in twice if Path(file).is_relative_to(ROOT) and ".venv" not in file]
    assert ours == [ROOT / module / "__init__.py"]
    source = (ROOT / module / "__init__.py").read_text()
    assert source.startswith('"""') and source.count('"""') == 2 and source.endswith('"""\n')  # nothing but a docstring


@pytest.mark.process
def test_a_bare_import_is_a_lint_error(tmp_path):
    odd = tmp_path / "odd.py"
    odd.write_text("from stream.bus import Inbox\nimport engines.load\n\nprint(Inbox, engines)\n")
    ruff = [sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", "--output-format", "concise"]
    done = subprocess.run([*ruff, odd], capture_output=True, text=True, check=False)
    assert done.stdout.count("TID251") == 2, done.stdout + done.stderr


@pytest.mark.process
@pytest.mark.parametrize("module", ["train", "engines", "emostream.train", "emostream.engines"])
def test_commands_run_as_modules_of_a_checkout(module):
    done = subprocess.run([sys.executable, "-m", module, "--version"], cwd=ROOT, capture_output=True, text=True)
    name = module.rpartition(".")[2]
    assert done.returncode == 0 and done.stdout.startswith(f"stream-{name} "), done.stderr


# Imports


def imported(path: Path) -> set[str]:
    """Our modules that a module imports, also within functions, but not those for types alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("emostream"):
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                names.add(module if module in MODULES else str(node.module))
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name in MODULES}
    return names


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("emostream", "emostream/stream", "emostream/engines", "emostream/train")
    for path in (ROOT / folder).rglob("*.py")
}


@functools.cache
def imports() -> dict[str, set[str]]:
    return {name: imported(path) - {name} for name, path in MODULES.items()}


@pytest.mark.slow
def test_there_is_no_circle_of_imports():
    assert len(imports()) > 100 and "emostream.stream.bus" in imports()["emostream.stream.nodes.runtime"]
    TopologicalSorter(imports()).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize(("lower", "upper"), [("engines", "stream"), ("engines", "train"), ("stream", "train")])
@pytest.mark.slow
def test_imports_point_one_way(lower, upper):
    up = {
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if name.startswith(f"emostream.{lower}") and other.startswith(f"emostream.{upper}")
    }
    assert up == set()


def test_nothing_live_imports_torch():
    """Except in the backend of that name."""
    using = {
        name
        for name, path in MODULES.items()
        if not name.startswith("emostream.train") and re.search(r"^\s*(import|from) torch\b", path.read_text(), re.M)
    }
    assert using == {"emostream.engines.torch", "emostream.engines.torch_static"}
