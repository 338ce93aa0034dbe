"""The documents as a site: it builds without a warning, is whole, and asks no other host for anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import emostream

for package in ("mkdocs", "material", "mkdocstrings"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install '.[docs]'")
from tools import check_site, site_pages

ROOT = Path(__file__).parent.parent
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built by the recipe of ``make site``, which also checks it."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        "make",
        "--old-file=.venv/.ready-to-test",
        f"BIN={Path(sys.executable).parent}",
        f"SITE={folder}",
        "site",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING -" not in done.stderr
    assert "every link, anchor and file is there; nothing is fetched from another host" in done.stdout
    return folder


@pytest.mark.process
@pytest.mark.slow
def test_every_document_is_a_page(site):
    pages = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    documents = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in ROOT.glob("docs/**/*.md")}
    assert {str(path).replace("README.html", "index.html") for path in documents} < pages
    assert {"readme.html", "security.html", "contributing.html", "changelog.html", "examples.html"} < pages
    for path in site.rglob(
        "*.html"
    ):  # which Python-Markdown makes of lists and tables without an empty line before them
        assert not re.search(r"<p>(?:(?!</p>).)*\n(?:- |\|)", path.read_text(encoding="utf-8"), re.DOTALL), path
    assert "files/examples/produce.cpp.html" in pages and "files/config.toml.html" in pages


@pytest.mark.process
@pytest.mark.slow
def test_every_public_name_is_in_the_reference_with_its_docstring(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    anchors = check_site.read(site / "api.html").anchors
    for name in set(emostream.__all__) - {"__version__", "EmostreamError"}:
        assert f"emostream.{name}" in anchors
        assert (getattr(emostream, name).__doc__ or "").partition("`")[0].partition("\n")[0].strip() in page
    assert "emostream.errors.EmostreamError" in anchors and "emostream.errors.SourceError" in anchors


@pytest.mark.long
@pytest.mark.process
@pytest.mark.slow
def test_a_browser_reads_and_searches_it_from_the_disk(site):
    """It requests only its own files, and on a phone it does not scroll sideways."""
    if BROWSER is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    asked: list[str] = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport=PHONE)
        page.on("request", lambda request: asked.append(request.url))
        for name in ("deploy.html", "api.html", "index.html"):
            page.goto((site / name).as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        page.set_viewport_size({"width": 1280, "height": 900})
        page.fill("[data-md-component=search-query]", "pulse")
        page.wait_for_selector(".md-search-result__link[href*='microphone.html']", timeout=20_000)
        browser.close()
    assert len(asked) > 10 and [url for url in asked if not url.startswith((site.as_uri(), "data:", "blob:"))] == []


def small_site(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Build a site of three pages with our configuration, except for its navigation."""
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[0]
    for name, content in (
        ("mkdocs.yml", f"{settings}\nnav: [index.md, other.md, {', '.join(site_pages.PAGES.values())}]\n"),
        ("docs/index.md", f"# A page\n\n[file](../examples/a.py) {text}\n"),
        ("docs/other.md", "# Another\n\n[page](../README.md#name)\n"),
        ("examples/a.py", "print()\n"),
        *((document, "# Name\n\n") for document in site_pages.PAGES),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    shutil.copytree(ROOT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder / "site")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)


@pytest.mark.long
@pytest.mark.process
@pytest.mark.slow
def test_what_is_wrong_in_the_documents_ends_the_build(tmp_path):
    good = small_site(tmp_path / "good", "[b](other.md#another) [c](https://example.org/)")
    assert good.returncode == 0 and "WARNING -" not in good.stderr, good.stderr
    (tmp_path / "bad/docs").mkdir(parents=True)
    (tmp_path / "bad/docs/alone.md").write_text("# Not in the navigation\n")
    bad = small_site(tmp_path / "bad", "[b](other.md#gone) [c](gone.md) [d](../gone/away.py) [e](/absolute.md)")
    assert bad.returncode == 1
    for part in ("other.md#gone", "gone.md", "../gone/away.py, which is no file", "/absolute.md", "alone.md"):
        assert part in bad.stderr, bad.stderr


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="other.html#part">', None),
        ('<a href="https://example.org/">', None),
        ('<a href="#here"><p id="here">', None),
        ('<img src="data:image/gif;base64,AA">', None),
        ('<a href="folder/">', None),
        ('<a href="other.html#gone">', "no such anchor"),
        ('<a href="#gone">', "no such anchor"),
        ('<a href="gone.html">', "leads nowhere"),
        ('<a href="../outside.html">', "leads nowhere"),
        ('<a href="/other.html">', "leads nowhere where the site is read from a disk"),
        ('<img src="gone.png">', "leads nowhere"),
        ('<script src="https://example.org/x.js">', "from another host"),
        ('<script src="//example.org/x.js">', "from another host"),
        ('<link rel="stylesheet" href="https://example.org/x.css">', "from another host"),
        ('<img srcset="other.html 1x, https://example.org/x.png 2x">', "from another host"),
        ("<style>@font-face {src: url('https://example.org/x.woff2')}</style>", "from another host"),
        ('<p style="background: url(https://example.org/x.png)">', "from another host"),
        ('<pre class="mermaid">', "from another host"),
        ('<a href="javascript:alert(1)">', "no link within the site"),
    ],
)
def test_the_check_of_a_site(tmp_path, html, problem):
    site = tmp_path / "site"
    (site / "folder").mkdir(parents=True)
    (tmp_path / "outside.html").write_text("")
    (site / "other.html").write_text('<h2 id="part">')
    (site / "folder/index.html").write_text('<a href="../other.html">')
    (site / "page.html").write_text(html)
    found = check_site.problems(site)
    assert found == [] if problem is None else len(found) == 1 and found[0].endswith(problem)


def test_a_style_sheet_fetches_nothing_from_elsewhere(tmp_path):
    (tmp_path / "index.html").write_text("")
    (tmp_path / "site.css").write_text('@import "https://example.org/a.css"; p { background: url(gone.png) }')
    assert [problem.partition(": ")[2] for problem in check_site.problems(tmp_path)] == [
        "fetches https://example.org/a.css from another host",
        "gone.png leads nowhere",
    ]
