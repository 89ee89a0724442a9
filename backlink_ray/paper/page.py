"""Page: a table as one self-contained HTML page."""

from html import escape

from backlink_ray.paper.scores import Entry
from backlink_ray.paper.table import (
    KS,
    RUN_COLUMNS,
    Line,
    Section,
    Table,
    difference_text,
    ours_text,
    paper_text,
    run_cells,
)  # fmt: skip

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --mark: #D55E00; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .3rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
ul { padding-left: 1.2rem; } li { margin: .15rem 0; }
.budget { border-left: 4px solid var(--mark); padding: .4rem .8rem; background: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); } tr.first > * { border-top: 2px solid var(--line); }
table.paper { table-layout: fixed; min-width: 58rem; } table.paper th:first-child { width: 6rem; }
table.paper th:nth-child(2) { width: 13rem; } .ours { display: block; font-weight: 600; }
.difference { display: block; font-size: .87em; opacity: .75; } .off { color: var(--mark); opacity: 1; font-weight: 600; }
.note { display: block; font-size: .82em; opacity: .75; font-weight: normal; max-width: 15rem; }
footer { margin-top: 2rem; font-size: .87em; opacity: .8; }
"""


def html(table: Table) -> str:
    """Return the page: what the table is, how it is read, the table by data set, and the cells that have run."""
    budget = "" if table.budget.is_paper else f'<p class="budget">{escape(_sentence(table.budget.text))}</p>'
    legend = "".join(f"<li>{escape(line)}</li>" for line in table.legend)
    made = "".join(f"<li>{escape(line)}</li>" for line in table.made_with)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(table.title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(table.title.split(' -- ')[0])}</h1>{budget}<ul>{legend}</ul>"
        + "".join(_section(section) for section in table.sections)
        + _runs(table)
        + (f"<footer>Measured with:<ul>{made}</ul></footer>" if made else "")
        + "</body></html>\n"
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _section(section: Section) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("Network", "Method", *(f"K = {k}" for k in KS)))
    networks = [line.network for line in section.lines]
    rows = (_row(line, networks.index(line.network) == i) for i, line in enumerate(section.lines))
    return f"<h2>{escape(section.dataset)}</h2>{_wide(head, ''.join(rows), 'paper')}"


def _wide(head: str, body: str, kind: str = "runs") -> str:
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(line: Line, first: bool) -> str:
    note = f'<span class="note">{escape(line.note)}</span>' if line.note else ""
    network = escape(line.network) if first else ""
    cells = "".join(_cell(line.entries.get(k)) for k in KS)
    row = '<tr class="first">' if first else "<tr>"
    return f"{row}<th>{network}</th><th>{escape(line.label)}{note}</th>{cells}</tr>"


def _cell(entry: Entry | None) -> str:
    if entry is None or not (entry.error or paper_text(entry)):
        return "<td></td>"
    shown = paper_text(entry) or ("–" if entry.error else "")
    if not entry.error:
        return f'<td class="cell">{shown}</td>'
    off = " off" * entry.disagrees
    difference = f'<span class="difference{off}">{escape(difference_text(entry))}</span>'
    title = escape(f"{entry.cell.address}, {entry.quantity}")
    return (
        f'<td class="cell" title="{title}">{shown}<span class="ours">{escape(ours_text(entry))}</span>{difference}</td>'
    )


def _runs(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in RUN_COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in run_cells(entry)) + "</tr>" for entry in table.run
    )
    return f"<h2>The cells that have run</h2>{_wide(head, rows)}"
