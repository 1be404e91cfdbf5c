"""Look at the built site: links lead somewhere, and nothing comes from elsewhere.

Command: ``python .ci/check_site.py site``.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {
    "iframe": "src",
    "img": "src",
    "link": "href",
    "script": "src",
    "source": "src",
}
"""Tags whose address a browser opens by itself."""


class Page(HTMLParser):
    """The ids of a page, where it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in LOADED and LOADED[tag] in found:
            self.loads.append(found[LOADED[tag]])


def mistakes(site: Path) -> list[str]:
    """A sentence for each broken link and each address outside of the site."""
    pages = {
        path: Page(path.read_text())
        for path in site.rglob("*.html")
        if path.name != "404.html"
    }
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        for address in (*page.links, *page.loads):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.loads:
                    found.append(f"{name} loads {address}.")
                continue
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            goal = goal / "index.html" if goal.is_dir() else goal
            if not goal.is_file():
                found.append(f"{name} links to {address}, which is not there.")
            elif (
                parts.fragment
                and goal in pages
                and unquote(parts.fragment) not in pages[goal].ids
            ):
                found.append(f"{name} links to {address}, which has no such anchor.")
    for path in site.rglob("*.css"):
        if "url(http" in (text := path.read_text()) or "@import" in text:
            found.append(f"{path.relative_to(site)} loads from elsewhere.")
    if not pages:
        found.append(f"{site} holds no page.")
    return found


if __name__ == "__main__":
    said = mistakes(Path(sys.argv[1]).resolve())
    print("\n".join(said) or "Every link of the site leads somewhere.")
    sys.exit(bool(said))
