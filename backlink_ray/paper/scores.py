"""Score: a cell's recorded runs as mean, spread and number of seeds, beside the paper's number."""

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
# The paper gives 2 digits, so that a smaller difference says nothing.
_ROUNDING = 0.005


@dataclass(frozen=True, slots=True)
class Spread:
    """Seeds in one number.

    Attributes:
        mean: over seeds.
        std: of the seeds, with n - 1; nan for one seed.
        n: seeds.
    """

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """Return the spread of some values, None if there are none."""
        found = list(values)
        if not found:
            return None
        std = statistics.stdev(found) if len(found) > 1 else math.nan
        return cls(statistics.fmean(found), std, len(found))

    def tolerance(self, trials: float = math.inf) -> float:
        """Return how far the mean may be off a number by chance: twice the standard error of the two's difference.

        2 std sqrt(1 / n + 1 / trials), at least the rounding of the paper's numbers; nan for one seed.

        Args:
            trials: whose mean the number is. The paper gives no spread, so its trials are taken to spread as ours do; a
                number that has none, like 0, is one of infinitely many.
        """
        return math.nan if self.n < 2 else max(2 * self.std * math.sqrt(1 / self.n + 1 / trials), _ROUNDING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a table shows of a cell: the test error in percent of BP and GLL, else the improvement over GLL in points.

    Attributes:
        paper, ours: in that quantity; None where there is none. Improvements are taken seed by seed, over the seeds that
            both the cell and GLL have.
        error, best: test errors in percent of the last epoch, and of the best one, which chooses nothing.
        alpha: of the recorded runs; nan where it is not known.
        judged: whether ours is held against the paper's: at its budget, and where it copied no number from another recipe.
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
        """Return what `paper` and `ours` are."""
        return "error, %" if is_baseline(self.cell) else "improvement over GLL, points"

    @property
    def difference(self) -> float | None:
        """Return ours less the paper's."""
        return None if self.ours is None or self.paper is None else self.ours.mean - self.paper

    @property
    def disagrees(self) -> bool:
        """Return whether ours is off the paper's by more than chance (`Spread.tolerance`); never where it is not judged."""
        if self.ours is None or self.difference is None or not self.judged:
            return False
        return abs(self.difference) > self.ours.tolerance(PAPER_TRIALS)  # False where one seed has no spread


def is_baseline(cell: Cell) -> bool:
    """Return whether the cell is BP or GLL, whose errors the tables give."""
    return not cell.rerun and cell.propagation_length == 0


def gll_of(cell: Cell) -> Cell:
    """Return the GLL cell that a cell's improvement counts from."""
    return next(c for c in cells() if c.row == cell.row and c.num_modules == cell.num_modules and is_baseline(c))


class Scores:
    """The finished full runs of a grid's budget and alpha, whatever their seeds.

    Args:
        grid: whose recipe counts; rows of other recipes, and selection runs, are left out.
        rows: of a record.
    """

    def __init__(self, grid: Grid, rows: Rows) -> None:
        self._grid, self._rows = grid, rows
        self._alphas: dict[Cell, float] = {}
        self._by_recipe: dict[str, dict[int, Mapping[str, Any]]] = {}
        for row in rows:
            if row["status"] == "FINISHED":
                config = config_of(dict(row))
                self._by_recipe.setdefault(config.replace(seed=0).run_id, {})[config.seed] = row

    def alpha(self, cell: Cell) -> float:
        """Return the alpha of a cell's runs; nan where it is not known."""
        if cell not in self._alphas:
            self._alphas[cell] = self._grid.alpha(cell, self._rows)
        return self._alphas[cell]

    def by_seed(self, cell: Cell) -> dict[int, Mapping[str, Any]]:
        """Return a cell's rows by seed; {} where nothing has run."""
        if self._grid.budget.dataset and cell not in self._grid.cells:
            return {}  # on one data set in place of all others, one run would stand for many cells
        alpha = self.alpha(cell)
        if math.isnan(alpha):
            return {}
        return self._by_recipe.get(with_alpha(recipe(cell, self._grid.budget), alpha).run_id, {})

    def gains(self, cell: Cell, over: Cell) -> Spread | None:
        """Return by how many points of error `cell` is better than `over`, seed by seed."""
        mine, theirs = self.by_seed(cell), self.by_seed(over)
        both = sorted(mine.keys() & theirs.keys())
        return Spread.of(theirs[seed]["test_error_pct"] - mine[seed]["test_error_pct"] for seed in both)

    def error(self, cell: Cell, column: str = "test_error_pct") -> Spread | None:
        """Return a cell's test error in percent."""
        return Spread.of(row[column] for row in self.by_seed(cell).values())

    def entry(self, cell: Cell) -> Entry:
        """Return what a table shows of a cell."""
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
    """Return by how many points of error the paper's `cell` is better than its `over`."""
    if cell.error_pct is None or over.error_pct is None:
        return None
    return round(over.error_pct - cell.error_pct, 2)
