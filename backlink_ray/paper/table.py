"""Table: Tables II to IV in the paper's layout, each cell with the paper's number, ours, and the difference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from backlink_ray.paper.cells import Cell, addresses
from backlink_ray.paper.grid import Grid, Rows
from backlink_ray.paper.recipes import Budget
from backlink_ray.paper.scores import NO_RUNS, Entry, Scores, is_baseline
from backlink_ray.text import csv_table, markdown_table

TITLES = {
    2: "Table II: fully connected heads", 3: "Table III: convolutional heads", 4: "Table IV: long-tailed CIFAR-10",
}  # fmt: skip
NAMES = {
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "stl10": "STL-10", "svhn": "SVHN", "cifar10-lt": "long-tailed CIFAR-10",
    "alexnet": "AlexNet", "vgg16": "VGG16", "resnet32": "ResNet32", "resnet110": "ResNet110",
    "dgl": "DGL", "infopro": "InfoPro", "predsim": "PredSim", "dni": "DNI", "ddg": "DDG",
}  # fmt: skip
KS = (1, 2, 4, 8, 16)
LEGEND = (
    "BP and GLL: test error in percent. Other rows: improvement over GLL in percentage points; positive is better.",
    "Each cell: the paper's number · ours, mean ± standard deviation (seeds) · ours minus the paper's. Only the paper's number "
    "if ours has not run.",
    "≠ marks a difference of more than twice its standard error, assuming that the paper's 5 trials vary as our seeds do. "
    "Single seeds, which have no spread, and budgets below the paper's are not judged.",
    "Errors are those of the last epoch. The best epoch's error is listed below for information only.",
)
COPIED_LEGEND = (
    "DGL and InfoPro: the paper copied these numbers from the InfoPro paper, which has another recipe (160 epochs, "
    "batch 1024, eta 0.8). Ours are run under the common recipe of this table, so the two are not compared. "
    "DGL (mlp-sr) and PredSim (pool) have their own heads; our DGL updates its modules in lockstep, so it is GLL with that head."
)
_ORDER = ("bp", "gll", "dgl", "infopro", "backlink", "predsim", "dni", "ddg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row: a method with its l, and its entries by K."""

    network: str
    label: str
    entries: dict[int, Entry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One of the paper's tables with our recorded results.

    Attributes:
        number: 2, 3 or 4.
        budget: of our runs.
        alpha: how it was chosen, in words.
        sections: lines by data set.
        made_with: hardware and versions of the runs, in words.
    """

    number: int
    budget: Budget
    alpha: str
    sections: dict[str, list[Line]]
    made_with: Sequence[str] = ()

    @property
    def title(self) -> str:
        """Return the title, with the budget if it is not the paper's."""
        return TITLES[self.number] + ("" if self.budget.is_paper else f" -- {self.budget.text}")

    @property
    def legend(self) -> tuple[str, ...]:
        """Return how to read the cells."""
        return (*LEGEND, self.alpha, *((COPIED_LEGEND,) if self.number == 3 else ()))

    @property
    def entries(self) -> Iterator[Entry]:
        """Yield all cells in order."""
        for lines in self.sections.values():
            for line in lines:
                yield from line.entries.values()

    @property
    def run(self) -> list[Entry]:
        """Return the cells that have run."""
        return [entry for entry in self.entries if entry.error]


def build(number: int, grid: Grid, rows: Rows, made_with: Sequence[str] = ()) -> Table:
    """Return a table with all recorded results.

    Args:
        number: 2, 3 or 4. Our additional cells of Table III are included if they have run or the paper has a number.
    """
    scores = Scores(grid, rows)
    cells = sorted((cell for cell in addresses().values() if cell.table == number), key=_row_order)
    sections: dict[str, list[Line]] = {}
    for _, group in groupby(cells, key=_row_order):
        of_row = list(group)
        line = _line(of_row, scores)
        if any(entry.paper is not None or entry.error for entry in line.entries.values()):
            sections.setdefault(NAMES[of_row[0].dataset], []).append(line)
    alpha = _alpha_text(grid)
    return Table(number=number, budget=grid.budget, alpha=alpha, sections=sections, made_with=made_with)


def _alpha_text(grid: Grid) -> str:
    if len(grid.alphas) == 1:
        return f"alpha is {grid.alphas[0]:g} in every cell."
    values = ", ".join(f"{alpha:g}" for alpha in grid.alphas)
    return f"alpha of each cell: the one of {values} with the least error on a held-out tenth of the training images."


def _row_order(cell: Cell) -> tuple[int, int, int, str, int]:
    rows = list(dict.fromkeys(c.row for c in addresses().values()))
    datasets = list(dict.fromkeys(c.dataset for c in addresses().values() if c.table == cell.table))
    base = cell.rerun if cell.propagation_length else ""
    rank = len(_ORDER) if base else _ORDER.index(cell.method)  # BackLink on another base comes last
    return datasets.index(cell.dataset), rows.index(cell.row), rank, base, cell.propagation_length


def _line(cells: list[Cell], scores: Scores) -> Line:
    entries = {cell.num_modules: scores.entry(cell) for cell in sorted(cells, key=lambda cell: cell.num_modules)}
    return Line(network=NAMES[cells[0].network], label=_label(cells[0]), entries=entries)


def _label(cell: Cell) -> str:
    if is_baseline(cell):
        return cell.method.upper()
    note = " (the paper's copied from another recipe)" if cell.copied else " (ours, not in the paper)"
    if not cell.propagation_length:
        return NAMES[cell.rerun] + note
    base = f" on {NAMES[cell.rerun]}" if cell.rerun else ""
    return f"BackLink{base}, l={cell.propagation_length}" + note * bool(cell.rerun)


def _texts(entry: Entry) -> tuple[str, str, str]:
    """Return the paper's number, ours, and the difference with a mark if they disagree; "" for what is missing.

    Where GLL has not run at the cell's seeds there is no improvement, and ours is the error.
    """
    paper = "" if entry.paper is None else f"{entry.paper:.2f}"
    ours = str(entry.ours or (f"error {entry.error}, no GLL to compare with" if entry.error else ""))
    difference = "" if entry.difference is None else f"{entry.difference:+.2f}{' ≠' * entry.disagrees}"
    return paper, ours, difference


def _cell_text(entry: Entry | None) -> str:
    if entry is None:
        return ""
    paper, *ours = _texts(entry)
    return " · ".join(filter(None, (paper or "–", *ours))) if entry.error else paper


def markdown(table: Table) -> str:
    """Return the table as Markdown, with its legend and a list of the cells that have run."""
    budget = () if table.budget.is_paper else (f"> {table.budget.text[0].upper()}{table.budget.text[1:]}.",)
    blocks = [f"# {TITLES[table.number]}", *budget, "\n".join(f"* {line}" for line in table.legend)]
    head = ["Network", "Method", *(f"K={k}" for k in KS)]
    for dataset, found in table.sections.items():
        lines = [[line.network, line.label, *(_cell_text(line.entries.get(k)) for k in KS)] for line in found]
        blocks += [f"## {dataset}", markdown_table([head, *lines])]
    blocks += ["## Cells that have run", markdown_table([RUN_COLUMNS, *(run_cells(e) for e in table.run)])]
    if table.made_with:
        blocks += ["Measured with:", "\n".join(f"* {line}" for line in table.made_with)]
    return "\n\n".join(blocks) + "\n"


RUN_COLUMNS = ("cell", "test error %, last epoch", "test error %, best epoch", "alpha", "paper", "ours", "difference")


def run_cells(entry: Entry) -> tuple[str, ...]:
    """Return the values of RUN_COLUMNS."""
    alpha = f"{entry.alpha:g}" if entry.cell.propagation_length else ""
    return (entry.cell.address, str(entry.error or ""), str(entry.best or ""), alpha, *_texts(entry))


_CSV_COLUMNS = (
    "cell", "quantity", "paper", "ours", "std", "seeds", "difference", "disagrees",
    "error_pct", "error_std", "best_epoch_error_pct", "alpha", "copied", "budget",
)  # fmt: skip


def cells_csv(table: Table) -> str:
    """Return the table as CSV with one line per cell, including alpha and the errors of the last and the best epoch."""
    budget = "the paper's" if table.budget.is_paper else table.budget.text
    return csv_table([_CSV_COLUMNS, *([*_csv_line(entry), budget] for entry in table.entries)])


def _csv_line(entry: Entry) -> list[object]:
    cell = entry.cell
    ours, error, best = (spread or NO_RUNS for spread in (entry.ours, entry.error, entry.best))
    judged = entry.judged and ours.n > 1 and entry.paper is not None
    return [
        cell.address, entry.quantity, entry.paper, ours.mean, ours.std, ours.n or None, entry.difference,
        entry.disagrees if judged else None, error.mean, error.std, best.mean,
        entry.alpha if cell.propagation_length else None, cell.copied,
    ]  # fmt: skip
