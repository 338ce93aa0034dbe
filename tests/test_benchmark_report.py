"""benchmarks/report.py: the page, the history and README's table from results that were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import report

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of two benchmarks, the second of which has a fault."""
    machine = {"cpu": "A CPU", "cores": 2}
    faster = {"published, torch eager": 9.5, "published, onnxruntime": 1.5}
    results = {
        "networks": {"figures": {"faster than": {"p50": faster}}, "faults": []},
        "startup": {"figures": {"warm": {"all nodes ready": {"p50": 900.0}}}, "faults": ["a node died"]},
    }
    for name, result in results.items():
        result |= {"when": "2026-01-02T03:04:05", "machine": machine, "versions": {"commit": "abc"}}
        result["settings"] = {"quick": False}
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
        (tmp_path / f"{name}.md").write_text(f"# {name}\n\ntable of {name}\n\n![{name}]({name}.png)\n")
        (tmp_path / f"{name}.png").write_bytes(b"picture")
    return tmp_path


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    return path


def test_the_page_has_each_table_and_picture_and_the_history(folder, readme, tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    for runs in (1, 2):
        report.write(folder, ["networks", "startup"], docs, readme)
        history = json.loads((docs / "benchmarks-history.json").read_text())
        assert len(history) == runs
    page = (docs / "benchmarks.md").read_text()
    for name in ("networks", "startup"):
        assert f"## {name}\n\n`python benchmarks/{name}.py`" in page and f"table of {name}" in page
        assert f"](benchmarks/{name}.png)" in page and (docs / f"benchmarks/{name}.png").read_bytes() == b"picture"
    assert page.count("| 2026-01-02T03:04 | abc | A CPU, 2 cores | full |") == 2


def test_figures_of_a_run_with_faults_are_not_quoted(folder, readme, tmp_path):
    report.write(folder, ["networks", "startup"], tmp_path, readme)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| 9.5 | `python benchmarks/networks.py` |" in text
    assert "startup" not in text
    (entry,) = json.loads((tmp_path / "benchmarks-history.json").read_text())
    assert len(entry["figures"]) == 2


def test_quick_figures_stay_out_of_the_readme(folder, readme, tmp_path):
    result = json.loads((folder / "networks.json").read_text())
    result["settings"]["quick"] = True
    (folder / "networks.json").write_text(json.dumps(result))
    before = readme.read_text()
    report.write(folder, ["networks"], tmp_path, readme)
    assert readme.read_text() == before
    assert "| quick |" in (tmp_path / "benchmarks.md").read_text()


def test_a_readme_without_marks():
    with pytest.raises(ValueError, match="has no <!-- benchmarks: begin -->"):
        report.into_readme("no marks", {})


def test_every_benchmark_is_there_and_explains_itself():
    for name in report.NAMES:
        text = (ROOT / "benchmarks" / f"{name}.py").read_text()
        assert f"python benchmarks/{name}.py" in text
    assert {name for name, *_ in report.KEYS.values()} <= set(report.NAMES)


def test_readmes_table_is_that_of_a_run_in_the_history():
    """Nobody has written figures into it by hand."""
    table = re.search(f"{report.BEGIN}.*{report.END}", (ROOT / "README.md").read_text(), re.S)
    assert table is not None
    history = json.loads((ROOT / "docs/benchmarks-history.json").read_text())
    assert table.group() in {report.readme_table(entry["figures"]) for entry in history if not entry["quick"]}
