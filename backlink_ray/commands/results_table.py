"""Report: a study's table, on the terminal and as Markdown, with the paper's number beside every result."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from backlink_ray.paper.cells import published_error_pct
from backlink_ray.runs.results import Value, config_of
from backlink_ray.text import markdown_table

COLUMNS = (
    "method",
    "K",
    "l",
    "alpha",
    "eta",
    "val error %",
    "test error %",
    "paper %",
    "images/s",
    "epoch s",
    "MiB",
    "executor",
    "status",
)


def table_rows(rows: Sequence[dict[str, Value]], metric: str) -> list[list[str]]:
    """Return the table's cells as text, best first, failed runs last."""
    ordered = sorted(rows, key=lambda row: (row["status"] != "FINISHED", float(row.get(metric) or 0)))
    return [_cells(row) for row in ordered]


def _cells(row: dict[str, Any]) -> list[str]:
    config = config_of(row)
    published = published_error_pct(config)
    return [
        config.label, str(config.num_modules), str(config.propagation_length), f"{config.alpha:g}", f"{config.lr:.3g}",
        _number(row.get("val_error_pct")), _number(row.get("test_error_pct")), _number(published),
        _number(row.get("images_per_s"), 0), _number(row.get("epoch_s"), 1), _number(row.get("peak_memory_mib"), 0),
        row["executor"],
        f"FAILED: {row['reason']}" if row["status"] == "FAILED" else row["reason"],
    ]  # fmt: skip


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def print_table(rows: Sequence[dict[str, Value]], metric: str, title: str) -> None:
    """Print the table as wide as the terminal allows."""
    table = Table(*COLUMNS, title=title, title_justify="left")
    for cells in table_rows(rows, metric):
        table.add_row(*cells)
    console = Console()
    console.print(table) if console.width >= 110 else Console(width=130).print(table)


def markdown(rows: Sequence[dict[str, Value]], metric: str, title: str) -> str:
    """Return the table as Markdown."""
    note = "One seed a row; the paper's numbers are means of 5 trials under its full budget."
    return f"# {title}\n\n{markdown_table([COLUMNS, *table_rows(rows, metric)])}\n\n{note}\n"


def best_line(rows: Sequence[dict[str, Value]], metric: str) -> str:
    """Return one line on the best finished run, and the paper's number beside it."""
    finished = [row for row in rows if row["status"] == "FINISHED" and row.get(metric) is not None]
    if not finished:
        return "best trial: none finished"
    best: dict[str, Any] = min(finished, key=lambda row: float(row[metric]))
    config = config_of(best)
    published = published_error_pct(config)
    paper = (
        f"the paper's {published:.2f} % (200 epochs, all images)"
        if published is not None
        else "no such run in the paper"
    )
    return (
        f"best trial: {config.label} {config.run_name}, {metric} {best[metric]:.2f}, "
        f"test error {best['test_error_pct']:.2f} % beside {paper}"
    )
