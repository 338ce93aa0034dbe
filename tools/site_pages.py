"""A hook of mkdocs.yml: documents outside docs/ become pages too, and a link to a file of the repository leads to a
page that shows that file. So the site does not depend on a hosted repository, and only links that name a host leave it.
A link to a missing file causes a warning, which ends the build."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
log = logging.getLogger("mkdocs.hooks.site_pages")

# documents outside docs/, and the pages that they are
PAGES = {
    "README.md": "readme.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
}
_DOCUMENTS = {page: document for document, page in PAGES.items()}
_LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")
_NESTED = re.compile(r"^  (?=- )", re.M)  # a list within a list: Python-Markdown wants four spaces, as of code
_LANGUAGES = {
    ".py": "python", ".c": "c", ".cpp": "cpp", ".js": "js", ".json": "json", ".toml": "toml", ".yml": "yaml",
    ".yaml": "yaml", ".sh": "bash",
}  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for document, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / document).read_text(encoding="utf-8")))
    documents = [file for file in files if file.src_uri.endswith(".md")]
    linked = {target for file in documents for target in _targets(file)}
    for path in sorted(linked):
        if not path.startswith("docs/") and path not in PAGES and (ROOT / path).is_file():
            files.append(File.generated(config, f"files/{path}.md", content=_shown(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links between files of the repository be links between pages of the site."""
    here = _document(page.file)

    def link(match: re.Match[str]) -> str:
        if ":" in match[0] or match[0].startswith("/"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[0]))
        target = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}.md")
        if files.get_file_from_path(target) is None:
            log.warning("%s: links to %s, which is no file of the repository", here, match[0])
        return posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    if page.file.src_uri.startswith("files/"):
        return markdown
    return _NESTED.sub("    ", _LINK.sub(link, markdown))


def _document(file: File) -> str:
    """A page's path in the repository."""
    return _DOCUMENTS.get(file.src_uri, f"docs/{file.src_uri}")


def _targets(file: File) -> set[str]:
    """Paths, in the repository, of what a document links to."""
    folder = posixpath.dirname(_document(file))
    return {posixpath.normpath(posixpath.join(folder, link)) for link in _LINK.findall(file.content_string)}


def _shown(path: str) -> str:
    """A page that shows a file of the repository."""
    text = (ROOT / path).read_text(encoding="utf-8").rstrip()
    language = _LANGUAGES.get(Path(path).suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n~~~~ {language}\n{text}\n~~~~\n"
