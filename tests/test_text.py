"""Text: CSV cells, and a Markdown page as self-contained HTML."""

import math
from html.parser import HTMLParser

from backlink_ray.text import csv_table, html_page, markdown_table


class Page(HTMLParser):
    """Collects external references, tags and table cells of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.foreign += [str(value) for name, value in attrs if name in ("src", "href")]
        self.seen.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def test_a_page_is_self_contained_complete_and_escaped() -> None:
    page = Page()
    page.feed(html_page(f"# A & B\n\n> small\n\n{markdown_table([['a', 'b'], ['1 < 2', '≠']])}\n"))
    assert page.open == []
    assert page.foreign == []
    assert page.cells == ["a", "b", "1 < 2", "≠"]
    assert {"h1", "blockquote", "table", "title"} <= page.seen


def test_csv_has_empty_cells_for_missing_numbers_and_rounds_the_others() -> None:
    assert csv_table([("a", "b, c"), (None, math.nan), (1 / 3, 2), (True, "")]) == 'a,"b, c"\n,\n0.333333,2\nTrue,\n'
