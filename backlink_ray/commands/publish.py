"""Publish: a table written in all its forms, tracked, and shown on the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as Screen

from backlink_ray.files import write_whole
from backlink_ray.paper.cells import published_error_pct
from backlink_ray.paper.classes import ClassError, classes_csv, classes_markdown
from backlink_ray.paper.grid import Grid, Rows
from backlink_ray.paper.page import html
from backlink_ray.paper.scores import Scores, gll_of, is_baseline
from backlink_ray.paper.table import RUN_COLUMNS, Table, cells_csv, markdown, paper_csv, run_cells
from backlink_ray.runs.results import config_of
from backlink_ray.runs.tracked import derive, track
from backlink_ray.tracking.tracker import NoTracker


def write(table: Table, folder: Path, classes: Sequence[ClassError] = ()) -> tuple[Path, ...]:
    """Write a table in all its forms; returns their paths.

    table.md, table.csv (the paper's form), cells.csv (a line a cell), table.html; and classes.csv (a line a class of a cell)
    where there are classes to tell of.
    """
    contents = {
        "table.md": markdown(table), "table.csv": paper_csv(table), "cells.csv": cells_csv(table), "table.html": html(table),
    }  # fmt: skip
    if classes:
        contents["table.md"] += classes_markdown(classes)
        contents["classes.csv"] = classes_csv(classes, "the paper's" if table.budget.is_paper else table.budget.text)
    for name, content in contents.items():
        write_whole(folder / name, content)
    return tuple(folder / name for name in contents)


def compare(tracker: NoTracker, folder: Path, grid: Grid, rows: Rows) -> None:
    """Add to the full runs of cells, in a study's folder, their test error less that of GLL at their seed, and less the paper's.

    The metrics vs_gll_pct and vs_paper_pct are in points, below 0 is better; the paper's number counts at its budget alone.
    """
    scores = Scores(grid, rows)
    for cell in grid.cells:
        gll = {} if is_baseline(cell) else scores.by_seed(gll_of(cell))
        for seed, row in scores.by_seed(cell).items():
            published = published_error_pct(config_of(dict(row))) if grid.budget.is_paper else None
            others = {"vs_gll_pct": gll[seed]["test_error_pct"] if seed in gll else None, "vs_paper_pct": published}
            found = {name: row["test_error_pct"] - other for name, other in others.items() if other is not None}
            run = folder / "runs" / row["run_id"]
            if derive(run, found):
                track(tracker, run)


def print_cells(table: Table) -> None:
    """Print the cells that have run, as wide as the terminal allows."""
    screen = Screen(*RUN_COLUMNS, title=table.title, title_justify="left")
    for entry in table.run:
        screen.add_row(*run_cells(entry))
    console = Console()
    console.print(screen) if console.width >= 110 else Console(width=150).print(screen)
