"""Evidence: what the records below some storage folders say for a claim, whatever study ran it."""

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from backlink_ray.config import ConfigError, RunConfig
from backlink_ray.study.grid import ALPHAS, Budget, Grid, Rows, recipe
from backlink_ray.study.paper import Cell
from backlink_ray.study.record import Record
from backlink_ray.study.report import config_of
from backlink_ray.study.score import Scores
from backlink_ray.study.table import spread_text

Row = Mapping[str, Any]


class Evidence:
    """All finished training runs of some storage folders, and the figures that were measured there.

    Args:
        folders: storage folders of studies; each study is a folder in one.

    Raises:
        ConfigError: a folder that is not there.
        ValueError: a record that cannot be read; names the file.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise ConfigError(f"storage_path={str(folder)!r} is no folder; give the --storage-path of a study")
        self._folders = tuple(folders)
        self._rows = _training_rows(folders)
        self.scores = _scores(Budget(), self._rows)

    @property
    def source(self) -> str:
        """Return what was read."""
        return f"{len(self._rows)} training runs recorded in {', '.join(map(str, self._folders)) or 'no folder'}"

    def smaller(self, better: Cell, worse: Cell) -> str:
        """Return the gain at budgets below the paper's, in words; "" where there is none."""
        found = []
        for budget in _budgets(self._rows):
            gain = _scores(budget, self._rows).gains(better, worse)
            if gain:
                found.append(f"{spread_text(gain)} points, {budget.text}")
        return "; ".join(found)

    def figures(self, name: str) -> list[Path]:
        """Return the files of a figure's data, one for each preset that was drawn."""
        return [path for folder in self._folders for path in sorted(folder.glob(f"{name}*/{name}.parquet"))]

    def on_gpu(self, claim: Mapping[str, Any]) -> bool:
        """Return whether every point of a claim's figure was measured on GPUs."""
        rows = self._points(claim)
        return bool(rows) and all(str(row.get("device", "")).startswith("cuda") for row in rows)

    def changes_pct(self, claim: Mapping[str, Any]) -> list[float]:
        """Return by how much a method costs more than another, in percent, for each network, K and l; < 0 is less.

        Args:
            claim: with figure, column, network (a glob), of, over, and maybe num_modules and hardware (a glob).
        """
        rows = self._points(claim)
        mine = [row for row in rows if row["method"] == claim["of"]]
        chosen = [row for row in mine if claim.get("num_modules", row["num_modules"]) == row["num_modules"]]
        return [100 * (_value(row, claim) / base - 1) for row in chosen for base in _bases(row, rows, claim)]

    def _points(self, claim: Mapping[str, Any]) -> list[Row]:
        rows = [row for path in self.figures(claim["figure"]) for row in pq.read_table(path).to_pylist()]
        return [row for row in rows if _is_point(row, claim)]


def _is_point(row: Row, claim: Mapping[str, Any]) -> bool:
    """A point of the claim's networks and hardware; of BackLink, with the tail's graph retained as the paper has it."""
    named = all(fnmatch.fnmatch(str(row.get(name)), claim.get(name, "*")) for name in ("network", "hardware"))
    return named and row.get(claim["column"]) is not None and row.get("tail_memory", "retain") == "retain"


def _value(row: Row, claim: Mapping[str, Any]) -> float:
    return float(row[claim["column"]])


def _bases(row: Row, rows: Sequence[Row], claim: Mapping[str, Any]) -> list[float]:
    """What a point is compared with: the other method at its K, BP at K = 1; the time of BP is 1 in a ratio to it."""
    if claim["over"] == "bp" and claim["column"] == "time_ratio":
        return [1.0]
    same = ["network", "head", "batch_size", "device", "hardware"]
    same += [] if claim["over"] == "bp" else ["num_modules", "executor"]
    others = (other for other in rows if other["method"] == claim["over"])
    return [_value(other, claim) for other in others if all(row.get(name) == other.get(name) for name in same)]


def _training_rows(folders: Sequence[Path]) -> Rows:
    found = {}
    for study in (path.parent for folder in folders for path in sorted(folder.glob("*/results"))):
        for row in Record(study).rows():
            if row.get("status") in ("FINISHED", "FAILED") and ("test_error_pct" in row or row["status"] == "FAILED"):
                found[row["run_id"]] = row
    return list(found.values())


def _scores(budget: Budget, rows: Rows) -> Scores:
    return Scores(_AnyAlpha(cells=(), budget=budget, alphas=ALPHAS), rows)


class _AnyAlpha(Grid):
    """A grid that takes a cell's alpha as it was chosen, or where none was chosen the one alpha that there are runs of."""

    def alpha(self, cell: Cell, rows: Rows) -> float:
        chosen = Grid.alpha(self, cell, rows)
        if not math.isnan(chosen):
            return chosen
        found = {row["alpha"] for row in rows if _is_run_of(row, cell, self.budget)}
        return float(found.pop()) if len(found) == 1 else math.nan  # of several, the test error would have to choose


def _is_run_of(row: Row, cell: Cell, budget: Budget) -> bool:
    place = ("method", "network", "num_modules", "propagation_length")
    if row["status"] != "FINISHED" or any(row[name] != getattr(cell, name) for name in place):
        return False
    config = config_of(dict(row))
    return config.replace(alpha=0.5, seed=0).run_id == recipe(cell, budget).replace(alpha=0.5).run_id


def _budgets(rows: Rows) -> Iterator[Budget]:
    """Yield the budgets below the paper's that runs were given, each once."""
    usual = RunConfig()
    found = {}
    for row in rows:
        full = row["status"] == "FINISHED" and not row["validation_fraction"]
        if full and (row["epochs"] != usual.epochs or row["train_images"] or row["test_images"]):
            budget = Budget(
                epochs=row["epochs"], train_images=row["train_images"], test_images=row["test_images"],
                batch_size=row["batch_size"], lr=row["lr"], warmup_fraction=row["warmup_fraction"],
            )  # fmt: skip
            found[budget.slug] = budget
    yield from found.values()
