"""Is a built site whole, and does it ask no other host for anything? Each link, anchor, picture, script and style in
the HTML and CSS is followed within the folder.

python tools/check_site.py [build/site]     prints what is wrong, one line each; exit code 1 if anything is
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# elements that make a browser fetch something, and the attributes that say what
_FETCHED = {
    "audio": ("src",), "embed": ("src",), "iframe": ("src",), "image": ("href", "xlink:href"), "img": ("src", "srcset"),
    "input": ("src",), "link": ("href",), "object": ("data",), "script": ("src",), "source": ("src", "srcset"),
    "track": ("src",), "use": ("href", "xlink:href"), "video": ("src", "poster"),
}  # fmt: skip
_CSS_URL = re.compile(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""")
_LEADS_OUT = ("http", "https", "mailto")


@dataclass
class Html(HTMLParser):
    """What a page refers to: ``links`` are followed when somebody clicks, ``fetched`` is fetched with the page."""

    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=lambda: {"", "top"})
    _in_style: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag in ("a", "area") and "href" in values:
            self.links.append(values["href"])
        for name in _FETCHED.get(tag, ()):
            if name in values:
                parts = values[name].split(",") if name == "srcset" else [values[name]]
                self.fetched += [part.split()[0] for part in parts if part.strip()]
        self.fetched += css_urls(values.get("style", ""))
        if "mermaid" in values.get("class", "").split():
            self.fetched.append("https://unpkg.com/mermaid")  # by the theme's script
        self._in_style = tag == "style"

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.fetched += css_urls(data)


def css_urls(text: str) -> list[str]:
    """What a style sheet fetches."""
    return [one or other for one, other in _CSS_URL.findall(text)]


def read(path: Path) -> Html:
    page = Html()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    return page


def problems(site: Path) -> list[str]:
    """One line for each link that leads nowhere and each thing that is fetched from elsewhere."""
    pages = {path: read(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        return [f"{site}: no pages"]
    found = []
    for path, page in pages.items():
        for link in page.links:
            if urlsplit(link).scheme not in _LEADS_OUT:
                found += _follow(site, path, link, pages)
        for link in page.fetched:
            found += _fetch(site, path, link, pages)
    for path in sorted(site.rglob("*.css")):
        for link in css_urls(path.read_text(encoding="utf-8")):
            found += _fetch(site, path, link, pages)
    return found


def _fetch(site: Path, path: Path, link: str, pages: dict[Path, Html]) -> list[str]:
    parts = urlsplit(link)
    if parts.scheme == "data":
        return []
    if parts.scheme or parts.netloc:
        return [f"{path.relative_to(site)}: fetches {link} from another host"]
    return _follow(site, path, link, pages)


def _follow(site: Path, path: Path, link: str, pages: dict[Path, Html]) -> list[str]:
    parts = urlsplit(link)
    here = path.relative_to(site)
    if parts.scheme or parts.netloc:
        return [f"{here}: {link} is no link within the site"]
    target = path if not parts.path else path.parent / unquote(parts.path)
    if parts.path.startswith("/"):
        if here != Path("404.html"):  # which a server gives at any address
            return [f"{here}: {link} leads nowhere where the site is read from a disk"]
        target = site / unquote(parts.path).lstrip("/")
    target = target.resolve()
    if target.is_dir():
        target /= "index.html"
    if not target.is_relative_to(site.resolve()) or not target.is_file():
        return [f"{here}: {link} leads nowhere"]
    linked = pages.get(site / target.relative_to(site.resolve()))
    if linked is not None and unquote(parts.fragment) not in linked.anchors:
        return [f"{here}: {link}: no such anchor"]
    return []


def main() -> int:
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "build/site")
    found = problems(site)
    print("\n".join(found) or f"{site}: every link, anchor and file is there; nothing is fetched from another host")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
