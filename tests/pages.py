"""What the tests of pages share: a strict parser, and the check that a page refers to nothing outside itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks nesting and collects the addresses a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.stack == [], f"not closed: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.stack[-1:] == [tag], f"{tag} closed in the wrong place"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if self.stack[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        """What a reader reads, blanks made single."""
        return " ".join(" ".join(self.words).split())


def assert_self_contained(text: str) -> Page:
    """The page, parsed, after a check that it fetches nothing."""
    page = Page(text)
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not re.search(r"(src|href)=[\"']?https?:|@import|url\(", text)
    return page
