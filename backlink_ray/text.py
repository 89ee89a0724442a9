"""Text: safe names, programs as typed in a shell, tables as Markdown and CSV, HTML pages."""

import csv
import hashlib
import io
import math
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #8884; text-align: left; vertical-align: top; }
thead th { border-bottom-width: 2px; }
blockquote { border-left: 4px solid #D55E00; margin: 0; padding: .1rem .8rem; background: #8881; }
"""
_UNSAFE = re.compile(r"[^A-Za-z0-9._=+-]+")
_MAX_SLUG = 100  # leaves room for suffixes within the 255 bytes that common file systems allow


def slug(name: str) -> str:
    """Return a name that is safe as a file name, run name and experiment name.

    Args:
        name: any text, including `..`, slashes, backslashes, percent escapes or NUL.

    Returns:
        1 to 100 characters of `A-Z a-z 0-9 . _ = + -`, not starting with `.` or `-`. If the name had to be changed, a short
        hash of the original is appended, so that different names have different slugs.
    """
    cleaned = _UNSAFE.sub("-", name).rstrip("-").lstrip(".-")
    if cleaned == name and 0 < len(name) <= _MAX_SLUG:
        return name
    return f"{cleaned[: _MAX_SLUG - 9] or 'name'}-{short_hash(name)}"


def short_hash(text: str) -> str:
    """Return 8 hexadecimal digits of a text's sha256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def typed_program(program: str) -> str:
    """Return how to type a program of this Python's environment: its name if the shell finds that one, else its path."""
    here = Path(sys.executable).with_name(program)
    found = shutil.which(program)
    return program if not here.exists() or (found and Path(found).samefile(here)) else shlex.quote(str(here))


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as a Markdown table; the first line is the header."""
    head, *rest = lines
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rest))


def csv_table(lines: Iterable[Sequence[object]]) -> str:
    """Return lines of cells as CSV; None and nan are empty, and other floats are rounded to 6 decimals."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_csv_cell(value) for value in line] for line in lines)
    return text.getvalue()


def _csv_cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else round(value, 6)
    return value


def html_page(markdown: str) -> str:
    """Return Markdown with tables as a self-contained HTML page, titled by its first heading."""
    from markdown_it import MarkdownIt

    title = escape(markdown.splitlines()[0].lstrip("# "))
    body = MarkdownIt().enable("table").render(markdown)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    style = f"<style>{_STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}{style}</head><body>{body}</body></html>\n'
