"""Evidence: the recorded runs and measurements for the paper's claims, from all studies of some storage folders."""

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from backlink_ray.errors import ConfigError
from backlink_ray.paper.cells import Cell
from backlink_ray.paper.grid import Grid, Rows
from backlink_ray.paper.recipes import ALPHAS, Budget, recipe
from backlink_ray.paper.scores import Scores
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import RESULTS, Results, Row, config_of


class Evidence:
    """The finished training runs and the measurements of figures in some storage folders, with one folder per study.

    Raises:
        ConfigError: a folder that does not exist.
        ValueError: a record that cannot be read; names the file.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise ConfigError(f"storage_path={str(folder)!r} is not a folder; give the --storage-path of a study")
        self._folders = tuple(folders)
        self._studies = _studies(folders)
        rows = _ended(row for study in self._studies.values() for row in study)
        self._rows = [row for row in rows if row["status"] == "FAILED" or "test_error_pct" in row]
        self.scores = _scores(Budget(), self._rows)

    @property
    def source(self) -> str:
        """Return in words what was read."""
        return f"{len(self._rows)} training runs recorded in {', '.join(map(str, self._folders)) or 'no folder'}"

    def smaller(self, better: Cell, worse: Cell) -> str:
        """Return the gains at budgets below the paper's, in words; "" if there are none."""
        gains = ((_scores(budget, self._rows).gains(better, worse), budget) for budget in _budgets(self._rows))
        return "; ".join(f"{gain} points, {budget.text}" for gain, budget in gains if gain)

    def undecided(self, *cells: Cell) -> str:
        """Return in words which cells ran at the paper's budget with several alphas but none chosen; "" if there are none."""
        found = {
            cell.address: _alphas(cell, Budget(), self._rows) for cell in cells if math.isnan(self.scores.alpha(cell))
        }
        texts = (
            f"{address} ran with alpha {', '.join(f'{alpha:g}' for alpha in sorted(alphas))}, but no runs on held-out images "
            "choose one"
            for address, alphas in found.items() if len(alphas) > 1
        )  # fmt: skip
        return "; ".join(texts)

    def points(self, claim: Mapping[str, Any]) -> list[Row]:
        """Return the rows of a claim's figure, preset "paper", for the networks, data set and hardware of the claim.

        Of repeated measurements on one machine, the newest counts.
        """
        return [row for row in _ended(self._studies.get(claim["figure"], ())) if _matches(row, claim)]

    def on_gpu(self, claim: Mapping[str, Any]) -> bool:
        """Return whether a claim's memory or time was measured on GPUs."""
        return any(map(_on_gpu, self.points(claim)))

    def changes_pct(self, claim: Mapping[str, Any]) -> list[float]:
        """Return how much more one method costs than another, in percent, for each network, K and l; negative if less.

        Measured on GPUs, or on CPUs if there are no GPU measurements.

        Args:
            claim: with figure, column, network (a glob), of, over; optionally hardware (a glob), num_modules and
                propagation_length of the first method, and over_length of the second.
        """
        return [100 * (_value(row, claim) / base - 1) for row, base in self._compared(claim)]

    def cases(self, claim: Mapping[str, Any]) -> set[tuple[str, int, int]]:
        """Return the network, K and l of every case of `changes_pct`."""
        return {(row["network"], row["num_modules"], row["propagation_length"]) for row, _ in self._compared(claim)}

    def _compared(self, claim: Mapping[str, Any]) -> list[tuple[Row, float]]:
        found = self.points(claim)
        rows = [row for row in found if _on_gpu(row)] or found
        mine = [row for row in rows if row["method"] == claim["of"] and _is_case_of(row, claim)]
        return [(row, base) for row in mine for base in _bases(row, rows, claim)]

    def best(self, claim: Mapping[str, Any]) -> dict[str, tuple[float, int]]:
        """Return for each line of a figure the value with the least mean error, and the smallest number of seeds of a point.

        A failed run counts as infinite error. Lines with a value that has not run are left out.

        Args:
            claim: with figure, column, values of that column, and lists num_modules and propagation_length for the lines.
        """
        rows = self.points(claim)
        found = {}
        for k, length in product(claim["num_modules"], claim["propagation_length"]):
            lengths = (length, 0) if claim["column"] == "alpha" else (length,)  # GLL is alpha = 1 for every l
            line = [row for row in rows if row["num_modules"] == k and row["propagation_length"] in lengths]
            errors = {v: [_error(row) for row in line if row[claim["column"]] == v] for v in claim["values"]}
            if all(errors.values()):
                least = min(errors, key=lambda value: fmean(errors[value]))
                found[f"K = {k}, l = {length}"] = (least, min(map(len, errors.values())))
        return found


def _studies(folders: Sequence[Path]) -> dict[str, list[Row]]:
    """Return the recorded rows by study name, over all folders."""
    found: dict[str, list[Row]] = {}
    for path in (path for folder in folders for path in _with_results(folder)):
        found.setdefault(path.name, []).extend(Results(path).rows())
    return found


def _with_results(storage: Path) -> list[Path]:
    """Return the studies of a storage folder, also those of version 0.1.0 ("results"), which `Results` refuses."""
    return sorted({file.parent for name in (RESULTS, "results") for file in storage.glob(f"*/{name}")})


def _ended(rows: Iterable[Row]) -> list[Row]:
    """Return one row per run: the newest finished one, else the newest failed one."""
    ended = [row for row in rows if row.get("status") in ("FAILED", "FINISHED")]
    return list({row["run_id"]: row for row in sorted(ended, key=lambda row: row["status"] == "FINISHED")}.values())


def _matches(row: Row, claim: Mapping[str, Any]) -> bool:
    """Return whether a row is a full run that matches a claim; BackLink with the tail's graph retained, as in the paper."""
    named = all(
        fnmatch.fnmatch(str(row.get(name)), claim.get(name, "*")) for name in ("network", "dataset", "hardware")
    )
    return named and row.get(claim["column"]) is not None and row.get("tail_memory") == "retain" and _is_full(row)


def _is_full(row: Row) -> bool:
    return row["epochs"] == RunConfig().epochs and not any(row[name] for name in _PARTS)


_PARTS = ("train_images", "test_images", "validation_fraction")


def _is_case_of(row: Row, claim: Mapping[str, Any]) -> bool:
    return all(claim.get(name, row[name]) == row[name] for name in ("num_modules", "propagation_length"))


def _on_gpu(row: Row) -> bool:
    return str(row.get("device")).startswith("cuda")


def _error(row: Row) -> float:
    return float(row["test_error_pct"]) if row["status"] == "FINISHED" else math.inf


def _value(row: Row, claim: Mapping[str, Any]) -> float:
    return float(row[claim["column"]])


def _bases(row: Row, rows: Sequence[Row], claim: Mapping[str, Any]) -> list[float]:
    """Return what a point is compared with: the other method at its K, or BP, whose time ratio is 1."""
    if claim["over"] == "bp" and claim["column"] == "time_ratio":
        return [1.0]
    same = ["network", "head", "batch_size", "device", "hardware"]
    same += [] if claim["over"] == "bp" else ["num_modules", "executor"]
    others = (o for o in rows if o["method"] == claim["over"] and o is not row)
    lengths = (o for o in others if claim.get("over_length", o["propagation_length"]) == o["propagation_length"])
    return [_value(other, claim) for other in lengths if all(row.get(name) == other.get(name) for name in same)]


def _scores(budget: Budget, rows: Rows) -> Scores:
    return Scores(_AnyAlpha(cells=(), budget=budget, alphas=ALPHAS), rows)


class _AnyAlpha(Grid):
    """A grid with the chosen alpha of each cell, else the only alpha that has runs."""

    def alpha(self, cell: Cell, rows: Rows) -> float:
        chosen = Grid.alpha(self, cell, rows)
        if not math.isnan(chosen):
            return chosen
        found = _alphas(cell, self.budget, rows)
        return found.pop() if len(found) == 1 else math.nan  # choosing among several would use the test error


def _alphas(cell: Cell, budget: Budget, rows: Rows) -> set[float]:
    return {float(row["alpha"]) for row in rows if _is_run_of(row, cell, budget)}


def _is_run_of(row: Row, cell: Cell, budget: Budget) -> bool:
    place = ("method", "network", "num_modules", "propagation_length")
    if row["status"] != "FINISHED" or any(row[name] != getattr(cell, name) for name in place):
        return False
    config = config_of(dict(row))
    return config.replace(alpha=0.5, seed=0).run_id == recipe(cell, budget).replace(alpha=0.5).run_id


def _budgets(rows: Rows) -> Iterable[Budget]:
    """Return each budget below the paper's that has runs."""
    names = ("epochs", "train_images", "test_images", "batch_size", "lr", "warmup_fraction")
    smaller = (r for r in rows if r["status"] == "FINISHED" and not r["validation_fraction"] and not _is_full(r))
    budgets = (Budget(**{name: row[name] for name in names}) for row in smaller)
    return {budget.slug: budget for budget in budgets}.values()
