"""Classes: test errors per class, for cells on imbalanced data sets."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backlink_ray.data.originals import CIFAR10_CLASSES, SVHN_CLASSES
from backlink_ray.errors import StorageError
from backlink_ray.files import read_json
from backlink_ray.output import say
from backlink_ray.paper.cells import Cell
from backlink_ray.paper.grid import Grid, Rows
from backlink_ray.paper.scores import NO_RUNS, Scores, Spread
from backlink_ray.paper.table import Table
from backlink_ray.runs.folder import RESULT, RUN_AGAIN
from backlink_ray.text import csv_table, markdown_table

IMBALANCED = ("cifar10-lt", "svhn")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassError:
    """One class of a cell that has run.

    Attributes:
        cell: its address.
        train_images: of the class, mean over the seeds; nan if not recorded.
        error: test error of the last epoch on the class in percent; None if it has no test images.
    """

    cell: str
    name: str
    train_images: float
    error: Spread | None


def class_errors(table: Table, grid: Grid, rows: Rows, folder: Path) -> list[ClassError]:
    """Return the classes of all cells on imbalanced data sets that have run, in the order of the table.

    Args:
        folder: of the study, with runs/ID/result.json, which has the values per class.
    """
    scores = Scores(grid, rows)
    cells = [entry.cell for entry in table.run if entry.cell.dataset in IMBALANCED]
    return [found for cell in cells for found in _classes(cell, grid, _results(scores.by_seed(cell), folder))]


def _results(by_seed: Mapping[int, Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    files = [folder / "runs" / str(row["run_id"]) / RESULT for row in by_seed.values()]
    results = [_result(file) for file in files]
    return [result for result in results if "class_error_pct" in result]


def _result(file: Path) -> dict[str, Any]:
    try:
        return read_json(file, RUN_AGAIN)
    except StorageError as error:  # costs its own run's classes alone
        say(str(error))
        return {}


def _classes(cell: Cell, grid: Grid, results: Sequence[dict[str, Any]]) -> list[ClassError]:
    names = SVHN_CLASSES if (grid.budget.dataset or cell.dataset) == "svhn" else CIFAR10_CLASSES
    return [_class(cell.address, name, i, results) for i, name in enumerate(names)] if results else []


def _class(address: str, name: str, index: int, results: Sequence[dict[str, Any]]) -> ClassError:
    counts = [result["class_train_images"][index] for result in results if "class_train_images" in result]
    errors = [result["class_error_pct"][index] for result in results]
    return ClassError(
        cell=address,
        name=name,
        train_images=statistics.fmean(counts) if counts else math.nan,
        error=Spread.of(error for error in errors if error is not None),
    )


def classes_csv(found: Sequence[ClassError], budget: str) -> str:
    """Return CSV with one line per class and cell; `budget` is repeated in each."""
    lines: list[tuple[object, ...]] = [("cell", "class", "train_images", "error_pct", "error_std", "seeds", "budget")]
    for one in found:
        error = one.error or NO_RUNS
        lines.append((one.cell, one.name, one.train_images, error.mean, error.std, error.n, budget))
    return csv_table(lines)


def classes_markdown(found: Sequence[ClassError]) -> str:
    """Return a section with one line per cell and one column per class, below the numbers of training images."""
    by_cell: dict[str, list[ClassError]] = {}
    for one in found:
        by_cell.setdefault(one.cell, []).append(one)
    first = next(iter(by_cell.values()))
    counts = ["" if math.isnan(one.train_images) else f"{one.train_images:,.0f}" for one in first]
    lines = [[cell, *(str(one.error or "") for one in classes)] for cell, classes in by_cell.items()]
    head = ["cell", *(one.name for one in first)]
    table = markdown_table([head, ["training images", *counts], *lines])
    return f"\n## Test error per class in percent, last epoch\n\n{table}\n"
