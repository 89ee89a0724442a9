"""Table: Tables II to IV in the paper's own form, each cell with the paper's number, ours, and the difference."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from backlink_ray.paper.cells import Cell, addresses
from backlink_ray.paper.grid import Grid, Rows
from backlink_ray.paper.recipes import Budget
from backlink_ray.paper.scores import Entry, Scores, Spread, is_baseline
from backlink_ray.text import markdown_table

TITLES = {
    2: "Table II: fully connected heads", 3: "Table III: convolutional heads", 4: "Table IV: long-tailed CIFAR-10",
}  # fmt: skip
NAMES = {
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "stl10": "STL-10", "svhn": "SVHN", "cifar10-lt": "long-tailed CIFAR-10",
    "alexnet": "AlexNet", "vgg16": "VGG16", "resnet32": "ResNet32", "resnet110": "ResNet110",
    "dgl": "DGL", "infopro": "InfoPro", "predsim": "PredSim", "dni": "DNI", "ddg": "DDG",
}  # fmt: skip
KS = (1, 2, 4, 8, 16)
COPIED = "the paper's copied from another recipe"
LEGEND = (
    "BP and GLL: test error in percent. Every other row: improvement over GLL in percentage points, positive is better.",
    "Each cell: the paper's number · ours, mean ± standard deviation (seeds) · ours less the paper's. Not run: the paper's.",
    "≠ marks a difference of more than twice its standard error, the paper's 5 trials being taken to spread as our seeds do. "
    "Not judged: one seed, which has no spread, and budgets below the paper's.",
    "Errors are those of the last epoch; the best epoch's, listed below, choose nothing.",
)
COPIED_LEGEND = (
    "DGL and InfoPro: the paper copied its numbers from the paper of InfoPro, which has another recipe (160 epochs, "
    "batch 1024, eta 0.8); ours are run under the one recipe of this table, so the two are not judged against each other. "
    "DGL (mlp-sr) and PredSim (pool) have heads of their own; DGL's modules keep step, so that it is GLL with those heads."
)
_ORDER = ("bp", "gll", "dgl", "infopro", "backlink", "predsim", "dni", "ddg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row: a method with its l, and what each K has of it."""

    network: str
    label: str
    note: str
    entries: dict[int, Entry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The rows of one data set."""

    dataset: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One of the paper's tables, filled with what has run.

    Attributes:
        number: 2, 3 or 4.
        budget: what the runs had; the paper's, or less.
        alpha: how it was chosen.
        made_with: hardware and versions of the runs, a line each.
    """

    number: int
    budget: Budget
    alpha: str
    sections: tuple[Section, ...]
    made_with: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Return the title, which says so where the budget is not the paper's."""
        return TITLES[self.number] + ("" if self.budget.is_paper else f" -- {self.budget.text}")

    @property
    def legend(self) -> tuple[str, ...]:
        """Return how the cells are read."""
        return (*LEGEND, self.alpha, *((COPIED_LEGEND,) if self.number == 3 else ()))

    @property
    def entries(self) -> Iterator[Entry]:
        """Yield every cell, in order."""
        for section in self.sections:
            for line in section.lines:
                yield from line.entries.values()

    @property
    def run(self) -> list[Entry]:
        """Return the cells that have run."""
        return [entry for entry in self.entries if entry.error]


def build(number: int, grid: Grid, rows: Rows, made_with: Sequence[str] = ()) -> Table:
    """Return a table filled with what is recorded.

    Args:
        number: 2, 3 or 4. Our own columns of Table III are there where they have run, or the paper has a number.
        grid: whose budget and alpha count.
        rows: of a record.
    """
    scores = Scores(grid, rows)
    cells = [cell for cell in addresses().values() if cell.table == number]
    sections = []
    for dataset, of_dataset in groupby(sorted(cells, key=_row_rank), key=lambda cell: cell.dataset):
        lines = [_line(list(group), scores) for _, group in groupby(of_dataset, key=_row_rank)]
        shown = tuple(line for line in lines if any(e.paper is not None or e.error for e in line.entries.values()))
        sections.append(Section(dataset=NAMES[dataset], lines=shown))
    return Table(
        number=number, budget=grid.budget, alpha=_alpha_text(grid), sections=tuple(sections), made_with=tuple(made_with)
    )  # fmt: skip


def _alpha_text(grid: Grid) -> str:
    if len(grid.alphas) == 1:
        return f"alpha is {grid.alphas[0]:g} in every cell."
    values = ", ".join(f"{alpha:g}" for alpha in grid.alphas)
    return f"alpha of each cell: the one of {values} with the least error on a held-out tenth of the training images."


def _row_rank(cell: Cell) -> tuple[int, int, int, str, int]:
    rows = list(dict.fromkeys(c.row for c in addresses().values()))
    datasets = list(dict.fromkeys(c.dataset for c in addresses().values() if c.table == cell.table))
    on = cell.rerun if cell.propagation_length else ""
    # Our BackLink on another method comes last.
    rank = len(_ORDER) if on else _ORDER.index(cell.method)
    return datasets.index(cell.dataset), rows.index(cell.row), rank, on, cell.propagation_length


def _line(cells: list[Cell], scores: Scores) -> Line:
    first = cells[0]
    note = COPIED if first.copied else "ours, not in the paper" if first.rerun else ""
    entries = {cell.num_modules: scores.entry(cell) for cell in sorted(cells, key=lambda cell: cell.num_modules)}
    return Line(network=NAMES[first.network], label=_label(first), note=note, entries=entries)


def _label(cell: Cell) -> str:
    if is_baseline(cell):
        return cell.method.upper()
    if not cell.propagation_length:
        return NAMES[cell.rerun]
    on = f" on {NAMES[cell.rerun]}" if cell.rerun else ""
    return f"BackLink{on}, l={cell.propagation_length}"


def paper_text(entry: Entry) -> str:
    """Return the paper's number, "" where it has none."""
    return "" if entry.paper is None else f"{entry.paper:.2f}"


def spread_text(spread: Spread | None) -> str:
    """Return for example "10.41 ± 0.12 (5)", "10.41 (1)" for one seed, "" for none."""
    if spread is None:
        return ""
    std = "" if math.isnan(spread.std) else f" ± {spread.std:.2f}"
    return f"{spread.mean:.2f}{std} ({spread.n})"


def ours_text(entry: Entry) -> str:
    """Return ours; where an improvement cannot be had, because GLL has not run at those seeds, the error instead."""
    if entry.ours is None and entry.error is not None:
        return f"error {spread_text(entry.error)}, no GLL to compare"
    return spread_text(entry.ours)


def difference_text(entry: Entry) -> str:
    """Return ours less the paper's, marked where the two disagree; "" where either is missing."""
    if entry.difference is None:
        return ""
    return f"{entry.difference:+.2f}{' ≠' * entry.disagrees}"


def _cell_text(entry: Entry | None) -> str:
    if entry is None:
        return ""
    if not entry.error:
        return paper_text(entry)
    return " · ".join(filter(None, (paper_text(entry) or "–", ours_text(entry), difference_text(entry))))


def markdown(table: Table) -> str:
    """Return the table as Markdown, with how it is read and a list of the cells that have run."""
    budget = () if table.budget.is_paper else (f"> {table.budget.text[0].upper()}{table.budget.text[1:]}.",)
    blocks = [f"# {TITLES[table.number]}", *budget, "\n".join(f"* {line}" for line in table.legend)]
    for section in table.sections:
        head = ["Network", "Method", *(f"K={k}" for k in KS)]
        lines = [[s.network, _full_label(s), *(_cell_text(s.entries.get(k)) for k in KS)] for s in section.lines]
        blocks += [f"## {section.dataset}", markdown_table([head, *lines])]
    blocks += ["## The cells that have run", markdown_table([RUN_COLUMNS, *(run_cells(e) for e in table.run)])]
    if table.made_with:
        blocks += ["Measured with:", "\n".join(f"* {line}" for line in table.made_with)]
    return "\n\n".join(blocks) + "\n"


def _full_label(line: Line) -> str:
    return f"{line.label} ({line.note})" if line.note else line.label


RUN_COLUMNS = ("cell", "test error %, last epoch", "test error %, best epoch", "alpha", "paper", "ours", "difference")


def run_cells(entry: Entry) -> tuple[str, ...]:
    """Return what RUN_COLUMNS name."""
    alpha = f"{entry.alpha:g}" if entry.cell.propagation_length else ""
    found = (entry.cell.address, spread_text(entry.error), spread_text(entry.best), alpha)
    return (*found, paper_text(entry), ours_text(entry), difference_text(entry))


def cells_csv(table: Table) -> str:
    """Return the table as CSV with a line a cell, errors of the last and the best epoch and alpha among them."""
    head = ["cell", "quantity", "paper", "ours", "std", "seeds", "difference", "disagrees"]
    more = ["error_pct", "error_std", "best_epoch_error_pct", "alpha", "copied", "budget"]
    return _csv([[*head, *more], *(_cell_line(entry, _budget_text(table)) for entry in table.entries)])


def _cell_line(entry: Entry, budget: str) -> list[object]:
    error, best = entry.error, entry.best
    errors = (
        [_or_empty(error.mean), _or_empty(error.std), _or_empty(best.mean) if best else ""] if error else ["", "", ""]
    )
    alpha = entry.alpha if entry.cell.propagation_length else math.nan
    start: list[object] = [entry.cell.address, entry.quantity]
    return [*start, *_numbers(entry), *errors, _or_empty(alpha), entry.cell.copied, budget]


def _numbers(entry: Entry | None) -> list[object]:
    if entry is None:
        return [""] * 6
    paper = "" if entry.paper is None else entry.paper
    if entry.ours is None:
        return [paper, *[""] * 5]
    difference = "" if entry.difference is None else _or_empty(entry.difference)
    ours = entry.ours
    judged = entry.disagrees if entry.judged and ours.n > 1 and entry.paper is not None else ""
    return [paper, _or_empty(ours.mean), _or_empty(ours.std), ours.n, difference, judged]


def _or_empty(value: float) -> object:
    return "" if math.isnan(value) else round(value, 6)


def _budget_text(table: Table) -> str:
    return "the paper's" if table.budget.is_paper else table.budget.text


def _csv(lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
