"""Results table: a study's runs on the terminal and in Markdown, with the paper's number beside every result."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from backlink_ray.paper.cells import published_error_pct
from backlink_ray.runs.results import Row, config_of, test_text
from backlink_ray.text import markdown_table
from backlink_ray.tuning.search import ordered

COLUMNS = (
    "method", "K", "l", "alpha", "eta", "val error %", "test error %", "paper %", "images/s", "epoch s", "MiB", "executor",
    "status",
)  # fmt: skip


def table_rows(rows: Sequence[Row], metric: str) -> list[list[str]]:
    """Return the cells of the table as text, the best run first, failed runs last."""
    return [_cells(row) for row in ordered(rows, metric)]


def _cells(row: Row) -> list[str]:
    config = config_of(row)
    modules = f"{config.num_modules}" + f" x {config.replicas}" * (config.replicas > 1)
    return [
        config.label, modules, str(config.propagation_length), f"{config.alpha:g}", f"{config.lr:.3g}",
        _number(row.get("val_error_pct")), _number(row.get("test_error_pct")), _number(published_error_pct(config)),
        _number(row.get("images_per_s"), 0), _number(row.get("epoch_s"), 1), _number(row.get("peak_memory_mib"), 0),
        row["executor"],
        f"FAILED: {row['reason']}" if row["status"] == "FAILED" else row["reason"],
    ]  # fmt: skip


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str) -> None:
    """Print a table across the terminal, or 150 characters wide where that is too narrow."""
    table = Table(*columns, title=title, title_justify="left")
    for cells in rows:
        table.add_row(*cells)
    console = Console()
    (console if console.width >= 110 else Console(width=150)).print(table)


def markdown(rows: Sequence[Row], metric: str, title: str) -> str:
    """Return the table as Markdown."""
    note = "One seed per row; the paper's numbers are means of 5 trials at its full budget."
    return f"# {title}\n\n{markdown_table([COLUMNS, *table_rows(rows, metric)])}\n\n{note}\n"


def best_line(rows: Sequence[Row], metric: str) -> str:
    """Return one line on the best finished run, with the paper's number beside it."""
    finished = [row for row in rows if row["status"] == "FINISHED" and row.get(metric) is not None]
    if not finished:
        return "best trial: none finished"
    best: dict[str, Any] = min(finished, key=lambda row: float(row[metric]))
    config = config_of(best)
    published = published_error_pct(config)
    paper = "no such run in the paper"
    if published is not None:
        paper = f"the paper's {published:.2f} % (200 epochs, all images)"
    return (
        f"best trial: {config.label} {config.run_name}, {metric} {best[metric]:.2f}, {test_text(best)} beside {paper}"
    )
