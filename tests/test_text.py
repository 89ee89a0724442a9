"""Text: a Markdown page as HTML that stands alone."""

from html.parser import HTMLParser

from backlink_ray.text import html_page, markdown_table


class Page(HTMLParser):
    """Collects what a page loads from elsewhere, its tags and its cells."""

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


def test_a_page_stands_alone_is_whole_and_escapes_what_it_shows() -> None:
    page = Page()
    page.feed(html_page(f"# A & B\n\n> small\n\n{markdown_table([['a', 'b'], ['1 < 2', '≠']])}\n"))
    assert page.open == []
    assert page.foreign == []
    assert page.cells == ["a", "b", "1 < 2", "≠"]
    assert {"h1", "blockquote", "table", "title"} <= page.seen
