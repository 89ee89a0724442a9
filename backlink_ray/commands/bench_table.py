"""Bench table: rows of measurements on the terminal, one table for each thing that was measured."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from backlink_ray.commands.pipeline_table import print_pipelines
from backlink_ray.commands.results_table import print_table
from backlink_ray.runs.results import Row

# Short, so that a row fits into a terminal.
_HEADINGS = {
    "num_modules": "K", "propagation_length": "l", "memory_format": "format", "images_per_s": "images/s",
    "peak_memory_mib": "MiB",
}  # fmt: skip
# In the title, or of use in the file alone.
_LEFT_OUT = ("what", "run_id", "weights_sha256", "dataset_digest", "memory_source")


def print_rows(rows: Sequence[Row]) -> None:
    """Print rows; what is the same in all of a table is in its title."""
    for what, group in groupby(rows, key=lambda row: row["what"]):
        if what == "pipeline":
            print_pipelines(list(group))
            continue
        title, columns, cells = table(list(group))
        print_table(columns, cells, f"{what}: {title}" if title else what)


def table(rows: Sequence[Row]) -> tuple[str, list[str], list[list[str]]]:
    """Return title, columns and cells; the minimum and maximum of a time are in the cell of its median."""
    names = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    names = dict.fromkeys(n for n in names if n not in _LEFT_OUT and not n.endswith(("_min", "_max")))
    same = [n for n in names if len(rows) > 1 and len({str(row.get(n)) for row in rows}) == 1]
    columns = [n for n in names if n not in same]
    title = ", ".join(f"{_heading(n)} {_number(rows[0][n])}" for n in same if rows[0].get(n) is not None)
    return title, [_heading(n) for n in columns], [[_cell(row, n) for n in columns] for row in rows]


def _heading(name: str) -> str:
    return _HEADINGS.get(name, name.replace("ratio_to_", "/ ").replace("_", " "))


def _cell(row: Row, name: str) -> str:
    text = _number(row.get(name))
    if f"{name}_min" in row and not name.startswith("ratio_to"):
        text += f" ({_number(row[f'{name}_min'])}..{_number(row[f'{name}_max'])})"
    return text


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)
