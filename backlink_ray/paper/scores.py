"""Scores: the recorded runs of a cell as mean, standard deviation and number of seeds, with the paper's number."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from backlink_ray.paper.cells import Cell, cells
from backlink_ray.paper.grid import Grid, Rows
from backlink_ray.paper.recipes import recipe, with_alpha
from backlink_ray.runs.results import config_of

PAPER_TRIALS = 5
# The paper gives two decimals; smaller differences are meaningless.
_ROUNDING = 0.005


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread of a quantity over n seeds: mean and sample standard deviation, which is nan for one seed."""

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """Return the spread of the values; None if there are none."""
        found = list(values)
        if not found:
            return None
        std = statistics.stdev(found) if len(found) > 1 else math.nan
        return cls(statistics.fmean(found), std, len(found))

    def __str__(self) -> str:
        """Return for example "10.41 ± 0.12 (5)", or "10.41 (1)" for one seed."""
        std = "" if math.isnan(self.std) else f" ± {self.std:.2f}"
        return f"{self.mean:.2f}{std} ({self.n})"

    def tolerance(self, trials: float = math.inf) -> float:
        """Return by how much the mean may differ from a number by chance: twice the standard error of their difference.

        2 std sqrt(1 / n + 1 / trials), and at least the rounding error of the paper's numbers; nan for one seed.

        Args:
            trials: number of trials that the other number is a mean of. The paper gives no spread, so its trials are assumed
                to vary as ours do. Infinity for an exact number, for example 0.
        """
        return math.nan if self.n < 2 else max(2 * self.std * math.sqrt(1 / self.n + 1 / trials), _ROUNDING)


NO_RUNS = Spread(math.nan, math.nan, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The content of a table's cell: the test error in percent for BP and GLL, otherwise the improvement over GLL in points.

    Attributes:
        paper, ours: that quantity; None if there is none. Our improvement is a mean over the seeds of both the cell and GLL.
        error, best: test error in percent of the last epoch, and of the best epoch, which is for information only.
        alpha: of the recorded runs; nan if unknown.
        judged: whether ours can be compared with the paper's: same budget, and not a number copied from another recipe.
    """

    cell: Cell
    paper: float | None
    ours: Spread | None
    error: Spread | None
    best: Spread | None
    alpha: float
    judged: bool

    @property
    def quantity(self) -> str:
        """Return the quantity of `paper` and `ours`, with its unit."""
        return "error, %" if is_baseline(self.cell) else "improvement over GLL, points"

    @property
    def difference(self) -> float | None:
        """Return ours minus the paper's."""
        return None if self.ours is None or self.paper is None else self.ours.mean - self.paper

    @property
    def disagrees(self) -> bool:
        """Return whether ours differs from the paper's by more than chance (`Spread.tolerance`); False if not judged."""
        if self.ours is None or self.difference is None or not self.judged:
            return False
        return abs(self.difference) > self.ours.tolerance(PAPER_TRIALS)  # False for one seed, whose tolerance is nan


def is_baseline(cell: Cell) -> bool:
    """Return whether the cell is BP or GLL, for which the tables give errors instead of improvements."""
    return not cell.rerun and cell.propagation_length == 0


def gll_of(cell: Cell) -> Cell:
    """Return the GLL cell that a cell's improvement refers to."""
    return next(c for c in cells() if c.row == cell.row and c.num_modules == cell.num_modules and is_baseline(c))


class Scores:
    """The finished full runs with a grid's recipes and alpha, for all seeds; all other rows are ignored."""

    def __init__(self, grid: Grid, rows: Rows) -> None:
        self._grid, self._rows = grid, rows
        self._alphas: dict[Cell, float] = {}
        self._by_recipe: dict[str, dict[int, Mapping[str, Any]]] = {}
        for row in rows:
            if row["status"] == "FINISHED":
                config = config_of(dict(row))
                self._by_recipe.setdefault(config.replace(seed=0).run_id, {})[config.seed] = row

    def alpha(self, cell: Cell) -> float:
        """Return the alpha of a cell's runs; nan if unknown."""
        if cell not in self._alphas:
            self._alphas[cell] = self._grid.alpha(cell, self._rows)
        return self._alphas[cell]

    def by_seed(self, cell: Cell) -> dict[int, Mapping[str, Any]]:
        """Return a cell's rows by seed; {} if nothing has run."""
        if self._grid.budget.dataset and cell not in self._grid.cells:
            return {}  # with one data set instead of all others, one run would count for many cells
        alpha = self.alpha(cell)
        if math.isnan(alpha):
            return {}
        return self._by_recipe.get(with_alpha(recipe(cell, self._grid.budget), alpha).run_id, {})

    def gains(self, cell: Cell, over: Cell) -> Spread | None:
        """Return the improvement of `cell` on `over` in points of error, over their common seeds."""
        mine, theirs = self.by_seed(cell), self.by_seed(over)
        both = sorted(mine.keys() & theirs.keys())
        return Spread.of(theirs[seed]["test_error_pct"] - mine[seed]["test_error_pct"] for seed in both)

    def error(self, cell: Cell, column: str = "test_error_pct") -> Spread | None:
        """Return a cell's test error in percent."""
        return Spread.of(row[column] for row in self.by_seed(cell).values())

    def entry(self, cell: Cell) -> Entry:
        """Return a cell's entry in a table."""
        baseline = is_baseline(cell)
        return Entry(
            cell=cell,
            paper=cell.error_pct if baseline else published_gain(cell, gll_of(cell)),
            ours=self.error(cell) if baseline else self.gains(cell, gll_of(cell)),
            error=self.error(cell),
            best=self.error(cell, "best_test_error_pct"),
            alpha=self.alpha(cell),
            judged=self._grid.budget.is_paper and not cell.copied,
        )


def published_gain(cell: Cell, over: Cell) -> float | None:
    """Return the paper's improvement of `cell` on `over` in points of error; None if a number is missing."""
    if cell.error_pct is None or over.error_pct is None:
        return None
    return round(over.error_pct - cell.error_pct, 2)
