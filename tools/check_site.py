"""Check a built site: links lead somewhere, nothing is loaded from the network, names have texts.

python tools/check_site.py build/site
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("source", "src"), ("iframe", "src")}
"""Tags that a browser fetches by itself; an anchor waits for a click."""
NOT_FETCHED = {"canonical", "next", "prev", "alternate"}
NO_TEXT = re.compile(r'<div class="doc doc-contents[^"]*">\s*</div>')
"""What mkdocstrings shows below a name that has nothing to say."""


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[tuple[str, bool]] = []
        self.places: set[str] = set()
        text = path.read_text(encoding="utf-8")
        self.without_text = len(NO_TEXT.findall(text))
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one tag."""
        values = {name: value or "" for name, value in attrs}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        for name in ("href", "src"):
            if values.get(name):
                fetched = (tag, name) in LOADED and values.get("rel") not in NOT_FETCHED
                self.links.append((values[name], fetched))


def problems(site: Path) -> list[str]:
    """Return what is wrong, one sentence each.

    Args:
        site: Folder of HTML files.
    """
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        here = path.relative_to(site.resolve())
        if page.without_text:
            found.append(f"{here} shows {page.without_text} names without a text")
        for link, fetched in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                if fetched and url.scheme != "data":
                    found.append(f"{here} loads {link}")
                continue
            # Links of the page for errors begin at the root of a server.
            root = site.resolve() if path.name == "404.html" else path.parent
            target = (root / unquote(url.path).lstrip("/")).resolve() if url.path else path
            places = pages[target].places if target in pages else {url.fragment}
            if not target.exists():
                found.append(f"{here} links to {link}: no such file")
            elif url.fragment and url.fragment not in places and url.fragment[:2] != "__":
                found.append(f"{here} links to {link}: no such place")  # __ is of the theme
    return found


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    print("\n".join(wrong) or f"all links of {sys.argv[1]} lead somewhere, all names have texts")
    sys.exit(bool(wrong))
