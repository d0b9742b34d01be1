"""The manual as `make docs` built it: it asks no other address for anything, no script or style is inside
a page, and every document is in it.

Shows that each of these can fail.
"""

import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

from service.settings import ServiceSettings
from tests.support import house

MANUAL = ServiceSettings().manual_dir
IS_BUILT = pytest.mark.skipif(
    not MANUAL.is_dir() and "CI" not in os.environ, reason="needs the manual: `make docs` builds it"
)
# What a browser asks for by itself when it shows a page. What a reader clicks at may lead anywhere.
LOADED: dict[str, tuple[str, ...]] = {
    "link": ("href",),
    "object": ("data",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
}
LOADED |= dict.fromkeys(("img", "script", "iframe", "source", "video", "audio"), ("src", "srcset", "poster"))
# Says where another page is, and is asked for only by a reader's click.
NOT_LOADED = {"next", "prev", "index", "search", "author", "copyright", "canonical"}
OTHER = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//", re.I)


class Page(HTMLParser):
    """Finds what a page should not have, as `found`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        loads = not (tag == "link" and set(values.get("rel", "").split()) <= NOT_LOADED)
        for name in LOADED.get(tag, ()):
            if loads and OTHER.match(values.get(name, "").strip()):
                self.found.append(f"{tag} {name}={values[name]}")
        if (tag == "script" and "src" not in values) or tag == "style":
            self.found.append(f"{tag} inside")
        self.found += [f"{tag} {name}" for name in values if name == "style" or name.startswith("on")]


def outside_addresses(style: str) -> Iterator[str]:
    """What a style sheet asks other addresses for."""
    for found in re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""", style):
        if OTHER.match(found):
            yield found


@pytest.mark.slow
@IS_BUILT
def test_no_page_asks_another_address_or_has_a_script_inside() -> None:
    pages = sorted(MANUAL.rglob("*.html"))
    assert {path.name: found for path in pages if (found := Page(path.read_text("utf-8")).found)} == {}
    styles = {path.name: list(outside_addresses(path.read_text("utf-8"))) for path in MANUAL.rglob("*.css")}
    assert {name: found for name, found in styles.items() if found} == {}
    assert len(pages) > 20
    assert styles


def test_every_document_has_a_place() -> None:
    """One that no table of contents names would fail the build."""
    docs = house.ROOT / "docs"
    named = {docs / "index.md"}
    for page in docs.rglob("*.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            lines = [line for line in block.splitlines() if line and not line.startswith(":")]
            named |= {(page.parent / f"{line}.md").resolve() for line in lines}
    assert sorted(map(str, set(docs.rglob("*.md")) ^ named)) == []
