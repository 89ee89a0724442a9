"""Text: names that are safe everywhere, programs as they can be typed, tables in Markdown."""

import hashlib
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
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
_MAX_SLUG = 100  # bytes; leaves room for our suffixes below the 255 bytes of common file systems


def slug(name: str) -> str:
    """A name that is safe as a file name, a run name and an experiment name.

    Args:
        name: Any text, also with `..`, slashes, backslashes, percent escapes or NUL.

    Returns:
        1 to 100 characters out of `A-Z a-z 0-9 . _ = + -`, beginning with neither `.` nor `-`. A name that had to be
        changed carries a short hash of the original, so that two changed names do not meet in one slug.
    """
    cleaned = _UNSAFE.sub("-", name).rstrip("-").lstrip(".-")
    if cleaned == name and 0 < len(name) <= _MAX_SLUG:
        return name
    return f"{cleaned[: _MAX_SLUG - 9] or 'name'}-{short_hash(name)}"


def short_hash(text: str) -> str:
    """Return 8 hexadecimal digits of a text's sha256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def typed_program(program: str) -> str:
    """The name under which a program of this Python's environment can be typed: bare where the shell finds it, else its path."""
    here = Path(sys.executable).with_name(program)
    found = shutil.which(program)
    return program if not here.exists() or (found and Path(found).samefile(here)) else shlex.quote(str(here))


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells, the first one the head, as a Markdown table."""
    head, *rest = lines
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rest))


def html_page(markdown: str) -> str:
    """Return a Markdown text with tables as one self-contained HTML page, titled by its first heading."""
    from markdown_it import MarkdownIt

    title = escape(markdown.splitlines()[0].lstrip("# "))
    body = MarkdownIt().enable("table").render(markdown)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    style = f"<style>{_STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}{style}</head><body>{body}</body></html>\n'
