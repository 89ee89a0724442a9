"""Text: CSV cells, and a Markdown page as self-contained HTML."""

import math

from backlink_ray.text import csv_table, html_page, markdown_table


def test_a_page_is_self_contained_complete_and_escaped() -> None:
    page = html_page(f"# A & B\n\n> small\n\n{markdown_table([['a', 'b'], ['1 < 2', '≠']])}\n")
    assert [part for part in ("src=", "href=", "<script", "@import", "url(") if part in page] == []
    for part in ("<title>A &amp; B</title>", "<h1>A &amp; B</h1>", "<blockquote>", "<td>1 &lt; 2</td>", "<td>≠</td>"):
        assert part in page


def test_csv_has_empty_cells_for_missing_numbers_and_rounds_the_others() -> None:
    assert csv_table([("a", "b, c"), (None, math.nan), (1 / 3, 2), (True, "")]) == 'a,"b, c"\n,\n0.333333,2\nTrue,\n'
