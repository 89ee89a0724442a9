"""Grid: cells of the paper's tables as runs, including those that choose alpha."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from backlink_ray.paper.cells import Cell
from backlink_ray.paper.recipes import ALPHAS, PAPER, Budget, recipe, with_alpha
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Row

SELECTION_SEED, SELECTION_FRACTION = 0, 0.1
Rows = Sequence[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Cells with a budget, seeds, and candidate values of alpha (a single value is fixed)."""

    cells: tuple[Cell, ...]
    budget: Budget = PAPER
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    alphas: tuple[float, ...] = ALPHAS

    def candidates(self, cell: Cell) -> dict[float, RunConfig]:
        """Return the runs that choose a cell's alpha, on the training set without a held-out tenth; {} if there is no choice."""
        if not cell.propagation_length or len(self.alphas) == 1:
            return {}
        base = recipe(cell, self.budget).replace(validation_fraction=SELECTION_FRACTION, seed=SELECTION_SEED)
        return {alpha: with_alpha(base, alpha) for alpha in self.alphas}

    def alpha(self, cell: Cell, rows: Rows) -> float:
        """Return the alpha with the least held-out error, the smallest in a tie. The test error is not used.

        Returns:
            nan while selection runs are missing, or if all of them failed.
        """
        candidates = self.candidates(cell)
        if not candidates:
            return self.alphas[0] if cell.propagation_length else 1.0
        ended = {row["run_id"]: row for row in rows}
        found = {alpha: ended.get(config.run_id) for alpha, config in candidates.items()}
        errors = {a: row["val_error_pct"] for a, row in found.items() if row and row["status"] == "FINISHED"}
        if None in found.values() or not errors:
            return math.nan
        return min(errors, key=lambda alpha: (errors[alpha], alpha))

    def runs(self, cell: Cell, rows: Rows) -> tuple[RunConfig, ...]:
        """Return a cell's full runs, one per seed, on the whole training set; () while its alpha is unknown."""
        alpha = self.alpha(cell, rows)
        if math.isnan(alpha):
            return ()
        config = with_alpha(recipe(cell, self.budget), alpha)
        return tuple(config.replace(seed=seed) for seed in self.seeds)

    def todo(self, rows: Rows) -> tuple[RunConfig, ...]:
        """Return all runs of the grid so far, each once: selection runs, and full runs of cells whose alpha is known."""
        wanted = [c for cell in self.cells for c in (*self.candidates(cell).values(), *self.runs(cell, rows))]
        return tuple({config.run_id: config for config in wanted}.values())

    def undecided(self, rows: Rows) -> tuple[Cell, ...]:
        """Return the cells whose alpha is unknown."""
        return tuple(cell for cell in self.cells if math.isnan(self.alpha(cell, rows)))

    def tags(self, rows: Rows) -> dict[str, dict[str, str]]:
        """Return by run_id the cells that a run belongs to, and its kind: "full", or "selection" if it chooses alpha."""
        found: dict[str, dict[str, str]] = {}
        for cell in self.cells:
            kinds = {"selection": self.candidates(cell).values(), "full": self.runs(cell, rows)}
            for kind, runs in kinds.items():
                for run in runs:  # a run at alpha = 1 belongs to several cells
                    cells = f"{found.get(run.run_id, {}).get('cell', '')} {cell.address}".strip()
                    found[run.run_id] = {"cell": cells, "kind": kind}
        return found
