"""Paper: the published test errors of Tables II to IV, each cell with its address."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from backlink_ray.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of the paper's tables: BP is K = 1, l = 0 and GLL is l = 0.

    Attributes:
        error_pct: published test error in percent, mean of 5 trials; for BackLink the table gives the improvement over
            GLL in points, so this is GLL's error minus it, rounded to 2 digits.
    """

    table: int
    dataset: str
    network: str
    head: str
    num_modules: int
    propagation_length: int
    error_pct: float

    @property
    def address(self) -> str:
        """Return the cell's name, for example table2/cifar10/resnet110/fc/K8/l4."""
        place = f"table{self.table}/{self.dataset}/{self.network}/{self.head}"
        return f"{place}/K{self.num_modules}/l{self.propagation_length}"


@cache
def cells() -> tuple[Cell, ...]:
    """Return all published runs of Tables II, III and IV: 12 BP, 47 GLL and 118 BackLink."""
    rows = json.loads((Path(__file__).parent / "paper_tables.json").read_text())
    return tuple(cell for row in rows for cell in _row_cells(row))


def _row_cells(row: dict[str, dict[str, float]]) -> Iterator[Cell]:
    place = {key: row[key] for key in ("table", "dataset", "network", "head")}

    def cell(num_modules: str, length: str, error: float) -> Cell:
        return Cell(**place, num_modules=int(num_modules), propagation_length=int(length), error_pct=round(error, 2))  # type: ignore[arg-type]

    yield cell("1", "0", row["bp"])  # type: ignore[arg-type]
    for k, gll in row["gll"].items():
        if gll is not None:
            yield cell(k, "0", gll)
        for length, improvements in row["improvement"].items():
            if improvements[k] is not None:  # type: ignore[index]
                yield cell(k, length, gll - improvements[k])  # type: ignore[index]


def published_error_pct(config: RunConfig) -> float | None:
    """Return the paper's test error for a run's network, data set, head, K and l; None where the paper has none."""
    if config.label not in ("bp", "gll", "backlink"):
        return None
    key = (config.dataset, config.network, config.head, config.num_modules, config.propagation_length)
    found = (c for c in cells() if (c.dataset, c.network, c.head, c.num_modules, c.propagation_length) == key)
    return next((cell.error_pct for cell in found), None)
