"""Table: the command of a table study, which runs the table's cells on a cluster and writes the table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from backlink_ray.commands.command import Command, run_command
from backlink_ray.commands.flags import TrialFlags, choose_preset, not_negative
from backlink_ray.commands.results_table import print_table
from backlink_ray.commands.trials import check_here, describe, estimate, local_cluster, run_with_flags, training_images
from backlink_ray.data.datasets import data_root
from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import ConfigError
from backlink_ray.files import write_whole
from backlink_ray.output import say
from backlink_ray.paper.cells import choose, published_error_pct
from backlink_ray.paper.classes import ClassError, class_errors, classes_csv, classes_markdown
from backlink_ray.paper.grid import Grid
from backlink_ray.paper.recipes import ALPHAS, PAPER, Budget, recipe
from backlink_ray.paper.scores import Scores, gll_of, is_baseline
from backlink_ray.paper.table import RUN_COLUMNS, TITLES, Table, build, cells_csv, markdown, run_cells
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import load_for
from backlink_ray.runs.results import Row, config_of, made_with
from backlink_ray.runs.tracked import derive, track
from backlink_ray.text import html_page
from backlink_ray.tracking.tracker import NoTracker
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetFlags(Budget):
    """The flags of a budget, which are not all of its fields: only a smoke test changes the data set."""

    dataset: Annotated[str, tyro.conf.Suppress] = ""
    engine: Annotated[Mapping[str, Any], tyro.conf.Suppress] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TableFlags(TrialFlags):
    """Flags of table studies."""

    cell: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Address of a cell, for example table2/cifar10/resnet110/fc/K8/l4 (GLL is l0, BP is K1/l0); may be repeated."""
    only: str = ""
    """Cells by a glob over addresses, for example 'table2/*/K4/l*'; in table 3 it may pick our own columns ('*/dgl')."""
    seeds: int = 0
    """Seeds per cell, from --seed up; 0: 5, or 1 in the smoke test."""
    alpha: str = "select"
    """select: chosen for each BackLink cell by the error on a held-out tenth of the training images; or a number, 0..1."""
    retry_failed: bool = False
    """Run failed runs again."""
    budget: Annotated[BudgetFlags, tyro.conf.arg(name="")] = BudgetFlags()

    def check(self) -> None:
        super().check()
        not_negative(self, "seeds")


ABOUT = (
    "Every cell is a run with an address; --dry-run lists them. The paper preset uses the paper's recipe (200 epochs, 5 "
    "seeds) and needs GPUs; the smoke preset runs a few cells on a few hundred real images; --epochs, --train-images and "
    "similar flags set a budget between the two."
)
SMOKE = Budget(dataset="cifar10-sample", epochs=1, train_images=160, test_images=100, batch_size=16, lr=0.05)
SMOKE_ALPHAS = (0.25, 0.75)


def main(number: int, smoke: Sequence[str], description: str, arguments: Sequence[str] | None = None) -> int:
    """Run a table study from its command line; return the exit code as `guarded` does.

    Args:
        smoke: addresses of the cells that its smoke test runs, at the budget SMOKE.
        description: shown by --help, followed by what all tables have in common.
    """
    about = f"{description.strip()}\n\n{ABOUT}"
    return run_command(
        lambda flags: TableCommand(number, smoke, flags), TableFlags, f"table_{number}", about, arguments
    )


class TableCommand(Command):
    """One table, and the requested part of its grid."""

    flags: TableFlags
    # One line per cell, the mean of its seeds: an average over data sets or networks would be meaningless.
    group_by, only = "tags.cell", "tags.kind = 'full'"

    def __init__(self, number: int, smoke: Sequence[str], flags: TableFlags) -> None:
        flags.check()
        self._number = number
        preset = _preset(flags)
        is_smoke = preset == "smoke"
        addresses = flags.cell or (smoke if is_smoke and not flags.only else ())
        count = flags.seeds or (1 if is_smoke else 5)
        self.grid = Grid(
            cells=choose(number, addresses, flags.only),
            budget=replace(flags.budget.over(SMOKE if is_smoke else PAPER), engine=flags.engine.changed),
            seeds=tuple(range(flags.seed, flags.seed + count)),
            alphas=_alphas(flags.alpha, SMOKE_ALPHAS if is_smoke else ALPHAS),
        )
        alpha = "" if flags.alpha == "select" else f"alpha{self.grid.alphas[0]:g}"
        plan = Plan(base=self._base(), metric="test_error_pct")
        super().__init__(flags, plan, f"table_{number}", preset, flags.budget.slug, *flags.engine.names, alpha)

    def _base(self) -> RunConfig:
        """Return what all cells have in common: their budget."""
        budget = self.grid.budget
        return RunConfig(
            epochs=budget.epochs or 200, train_images=budget.train_images, test_images=budget.test_images,
            warmup_fraction=budget.warmup_fraction, **budget.engine,
        )  # fmt: skip

    def note(self) -> str:
        return (
            f"{self._title}. Lower `test_error_pct` is better; `vs_gll_pct` and `vs_paper_pct` are its difference from GLL's at "
            "the same seed and from the paper's. Group the runs of kind `full` by `cell`; those of kind `selection` choose alpha."
        )

    @property
    def _title(self) -> str:
        budget = self.grid.budget
        return TITLES[self._number] + ("" if budget.is_paper else f", {budget.text}")

    def check_report(self) -> None:
        super().check_report()
        if not self._table().run:
            raise ConfigError(
                f"storage folder {str(self.folder)!r} has no finished run of table {self._number} to report; "
                "run this without --report-only first, or give the --storage-path and budget of that run"
            )

    def prepare(self) -> None:
        left = self._left(self.flags.retry_failed)
        check_here(self.flags, left)
        self._datasets = self._load(left)

    def _load(self, runs: Sequence[RunConfig]) -> dict[str, Dataset]:
        return load_for(runs, data_root(self.flags.data_root))

    def carry_out(self, tracker: NoTracker) -> None:
        """Run first what needs no choice of alpha, and the runs that choose it; then the runs at the chosen alpha."""
        retry, datasets = self.flags.retry_failed, self._datasets
        if not self._left(retry):
            say("nothing left to run: every requested run has ended")
        while not self.missing and (left := self._left(retry)):
            study = Study(self.name, self._plan(retry), self.folder, tracker)
            self.missing = run_with_flags(study, self.flags, datasets or self._load(left))
            retry, datasets = False, {}  # failed runs are repeated once, and later runs may need other data
        for run_id, found in differences(self.grid, self._rows).items():
            if derive(self.folder / "runs" / run_id, found):
                track(tracker, self.folder / "runs" / run_id)

    def _plan(self, retry_failed: bool) -> Plan:
        rows = self._rows
        runs = tuple(run.replace(executor=self.flags.executor) for run in self.grid.todo(rows))
        tags = self.grid.tags(rows)
        return Plan(base=self.plan.base, runs=runs, metric=self.plan.metric, retry_failed=retry_failed, tags=tags)

    def _left(self, retry_failed: bool) -> list[RunConfig]:
        return self._plan(retry_failed).runs_left(self._rows)

    @property
    def _rows(self) -> list[Row]:
        return self.results.rows()

    def _table(self) -> Table:
        rows = self._rows
        return build(self._number, self.grid, rows, made_with(self.folder, rows))

    def write(self) -> Sequence[Path]:
        table = self._table()
        found = contents(table, class_errors(table, self.grid, self._rows, self.folder))
        for name, content in found.items():
            write_whole(self.folder / name, content)
        return tuple(self.folder / name for name in found)

    def show(self) -> None:
        table = self._table()
        print_table(RUN_COLUMNS, map(run_cells, table.run), table.title)
        total = len(choose(self._number))
        ran, off = len([e for e in table.run if not e.cell.rerun]), sum(e.disagrees for e in table.run)
        judged = f", {off} off its number by more than twice the standard error"
        print(f"{self._title}: {ran} of the paper's {total} cells have run{judged * self.grid.budget.is_paper}")

    def failed(self) -> int:
        rows = self._rows
        requested = {run.run_id for run in self.grid.todo(rows)}
        failed = len([row for row in rows if row["status"] == "FAILED" and row["run_id"] in requested])
        if failed:
            undecided = ", ".join(cell.address for cell in self.grid.undecided(rows))
            cells = f"; no alpha for {undecided}" if undecided else ""
            say(f"{failed} runs failed{cells}; --retry-failed runs them again")
        return failed

    def dry_run(self) -> None:
        cluster, grid = local_cluster(self.flags), self.grid
        for cell in grid.cells:
            run = recipe(cell, grid.budget).replace(executor=self.flags.executor)
            line = describe(cell.address, run, cluster, cell.error_pct)
            print(line + " (copied from another recipe)" * (cell.copied and "refused" not in line))
        chosen = list({c.run_id: c for cell in grid.cells for c in grid.candidates(cell).values()}.values())
        seeds, count = len(grid.seeds), len(grid.cells)
        print(
            f"{count} cells of {seeds} seed{'s' * (seeds > 1)}, {count * seeds} runs, and {len(chosen)} that choose alpha: "
            f"{self._title}"
        )
        runs = [*chosen, *(recipe(cell, grid.budget) for cell in grid.cells for _ in range(seeds))]
        print(estimate([(run, training_images(run)) for run in runs], self.flags.gpus))


def contents(table: Table, classes: Sequence[ClassError]) -> dict[str, str]:
    """Return a table's files by name: the table, one line per cell and, if they were measured, one line per class."""
    found = {"table.md": markdown(table), "cells.csv": cells_csv(table)}
    if classes:
        found["table.md"] += classes_markdown(classes)
        found["classes.csv"] = classes_csv(classes, "the paper's" if table.budget.is_paper else table.budget.text)
    return found | {"table.html": html_page(found["table.md"])}


def differences(grid: Grid, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return how much the test error of each full run, by run_id, differs from GLL's at the same seed and from the paper's.

    The metrics vs_gll_pct and vs_paper_pct are in percentage points, negative is better; the second exists only at the
    paper's budget.
    """
    scores, found = Scores(grid, rows), {}
    for cell in grid.cells:
        gll = {} if is_baseline(cell) else scores.by_seed(gll_of(cell))
        for seed, row in scores.by_seed(cell).items():
            published = published_error_pct(config_of(row)) if grid.budget.is_paper else None
            others = {"vs_gll_pct": gll[seed]["test_error_pct"] if seed in gll else None, "vs_paper_pct": published}
            found[row["run_id"]] = {
                n: row["test_error_pct"] - other for n, other in others.items() if other is not None
            }
    return found


def _preset(flags: TableFlags) -> str:
    # A budget on the command line is a decision: it overrides the choice of a preset, GPU or not.
    has_own_budget = not (flags.budget.is_paper or flags.preset or flags.smoke_test)
    return "paper" if has_own_budget else choose_preset(("paper", "smoke"), flags)


def _alphas(flag: str, choices: tuple[float, ...]) -> tuple[float, ...]:
    if flag == "select":
        return choices
    try:
        alpha = float(flag)
    except ValueError:
        alpha = math.nan
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha={flag!r} is not known; allowed: select, or a number in 0..1")
    return (alpha,)
