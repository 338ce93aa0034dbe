"""What the project's files say about each other is true: paths, links, commands, the citation, the templates."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import emostream

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob(".github/**/*.md")]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (document.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_paths_in_the_layout_table_exist(document):
    """The paths in backticks, in any column."""
    text = (ROOT / document).read_text(encoding="utf-8")
    table = re.search(r"^## Layout\n(?:[^|#].*\n|\n)*((?:\|.*\n)+)", text, re.M)
    assert table is not None
    paths = re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)`", table[1])
    paths = [path for path in paths if "/" in path]
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_paths_in_the_steps_of_contributing_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = {p for p in re.findall(r"`([\w./-]+\.(?:py|md|toml))`", text) if "/" in p and "NAME" not in p}
    assert len(paths) > 15
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("stream/sources/base.py", ("class Source(Protocol)", "open", "items", "close", "name", "live", "counters")),
        ("stream/sources/__init__.py", ("def make_source",)),
        ("stream/sink.py", ("class Sink(Protocol)", "send", "set_status", "close", "def sink_options", "def run_sink")),
        ("stream/speech/recognizer.py", ("class Recognizer(Protocol)", "begin", "push", "partial", "finish", "reset")),
        ("stream/speech/recognizer.py", ("def make_recognizer",)),
        ("stream/models.py", ("MODELS = ",)),
        ("engines/backend.py", ("class Backend(Protocol)", "BACKENDS = ", "run", "close")),
        ("engines/load.py", ("_PACKAGES = ", "def _load")),
        ("tests/test_backends.py", ("CLASSES = ",)),
        ("train/corpora/recorded.py", ("CORPORA = ", "def read_corpus")),
        ("train/bundle/recipe.py", ("def load_all",)),
    ],
)
def test_names_in_the_steps_of_contributing_exist(path, names):
    steps = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    source = (ROOT / path).read_text(encoding="utf-8")
    for name in names:
        assert name in source
        assert f"`{re.sub(r'^(class|def) |[ (=].*$', '', name)}`" in steps


def test_every_decision_is_in_the_list():
    folder = ROOT / "docs/decisions"
    pages = sorted(path.name for path in folder.glob("0*.md"))
    listed = re.findall(r"\((0[\w-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert listed == pages
    for number, page in enumerate(pages, 1):
        text = (folder / page).read_text(encoding="utf-8")
        assert text.startswith(f"# {number}. ")
        headings = re.findall(r"^## (.+)$", text, re.M)
        assert headings == ["Situation", "Decision", "What speaks against it", "Think again when"]


def test_the_citation_is_of_this_software_and_its_paper():
    assert CITATION["cff-version"] == "1.2.0" and CITATION["message"]
    assert (CITATION["version"], CITATION["license"]) == (emostream.__version__, PROJECT["license"])
    assert CITATION["title"] == PROJECT["name"] and CITATION["authors"]
    (paper,) = CITATION["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Rajan", "Brutti", "Cavallaro"]
    assert paper["doi"] == "10.1109/ICASSP43922.2022.9746924"
    assert paper["title"].startswith("Is cross-attention preferable to self-attention")


def test_the_changelog_has_this_version():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0].split(",")[0] in ("Unreleased", emostream.__version__)
    assert emostream.__version__ in {heading.split(",")[0] for heading in headings}


@pytest.mark.parametrize("form", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")), ids=name)
def test_issue_forms_are_forms(form):
    """By GitHub's rules: a name, a description, and a body whose fields have ids and labels."""
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert content["name"] and content["description"]
    ids = [field["id"] for field in content["body"]]
    assert len(ids) == len(set(ids))
    assert all(field["attributes"]["label"] for field in content["body"])


def test_a_bug_report_asks_for_what_is_needed():
    content = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug_report.yml").read_text(encoding="utf-8"))
    required = {field["id"] for field in content["body"] if field.get("validations", {}).get("required")}
    assert {"command", "doctor", "log"} <= required


def test_commit_hooks_are_those_of_make_lint():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    tools = {hook["entry"].split()[0] for hook in hooks}
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert recipe is not None
    assert tools == {f".venv/bin/{tool}" for tool in re.findall(r"\$\(BIN\)/(\w+)", recipe[1])}


@pytest.mark.process
def test_the_c_example_builds_as_it_says(tmp_path):
    if shutil.which("cc") is None or shutil.which("pkg-config") is None:
        pytest.skip("no C compiler or no pkg-config")
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "libzmq"], capture_output=True, text=True)
    if flags.returncode:
        pytest.skip("libzmq3-dev is not installed")
    command = "cc -Wall -O2 -o subscribe subscribe.c $(pkg-config --cflags --libs libzmq)"
    assert command in (ROOT / "examples/README.md").read_text(encoding="utf-8")
    assert command in (ROOT / "examples/subscribe.c").read_text(encoding="utf-8")
    shutil.copy(ROOT / "examples/subscribe.c", tmp_path)
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
