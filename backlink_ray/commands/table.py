"""Sweep: the command of a table study: its cells run on the cluster, over several data sets, and the table comes out."""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from backlink_ray.benchmarks.speed import images_per_s
from backlink_ray.commands.exit_codes import guarded, resume_line
from backlink_ray.commands.flags import Flags, choose_preset, open_tracker, print_link
from backlink_ray.commands.launch import check_numbers, describe, fit, resources_here
from backlink_ray.commands.publish import compare, print_cells, write
from backlink_ray.data.datasets import data_root
from backlink_ray.data.images import Dataset
from backlink_ray.errors import ConfigError
from backlink_ray.paper.cells import choose
from backlink_ray.paper.classes import class_errors
from backlink_ray.paper.grid import Grid, Rows, as_choice
from backlink_ray.paper.recipes import ALPHAS, PAPER, Budget, recipe
from backlink_ray.paper.table import TITLES, Table, build
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import load_for
from backlink_ray.runs.results import Results, made_with
from backlink_ray.runs.tracked import track_files
from backlink_ray.tracking.tracker import Tracker
from backlink_ray.tuning.folder import claim, lock_study_folder
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.study import Study


@dataclass(frozen=True, kw_only=True)
class TableFlags(Flags):
    """Flags of table studies."""

    cell: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A cell by its address, for example table2/cifar10/resnet110/fc/K8/l4 (GLL is l0, BP is K1/l0); may be repeated."""
    only: str = ""
    """Cells by a glob over addresses, for example 'table2/*/K4/l*'; in table 3 it may pick our own columns ('*/dgl')."""
    seeds: int = 0
    """Seeds a cell, from --seed up; 0: 5, in the smoke test 1."""
    alpha: str = "select"
    """select: for every BackLink cell by the error on a held-out tenth of the training images; or a number, 0..1."""
    retry_failed: bool = False
    """Run again what has failed."""
    budget: Annotated[Budget, tyro.conf.arg(name="")] = PAPER


ABOUT = (
    "Every cell is a run with an address; --dry-run lists them. The paper preset is its recipe (200 epochs, 5 seeds) and "
    "needs GPUs; the smoke preset runs a few cells on a few hundred real images; --epochs, --train-images and their like "
    "make a budget between."
)
SMOKE = Budget(dataset="cifar10-sample", epochs=1, train_images=160, test_images=100, batch_size=16, lr=0.05)
SMOKE_ALPHAS = (0.25, 0.75)


def main(number: int, smoke: Sequence[str], description: str, arguments: Sequence[str] | None = None) -> int:
    """Run a table study from its command line.

    Args:
        number: of the paper's table: 2, 3 or 4.
        smoke: addresses of the cells that its smoke test runs, at the budget SMOKE.
        description: shown by --help, and after it what the tables have in common.
        arguments: the command line's if not given.

    Returns:
        As `guarded`.
    """
    about = f"{description.strip()}\n\n{ABOUT}"

    def run() -> int:
        flags = tyro.cli(TableFlags, prog=f"table_{number}.py", description=about, args=arguments)
        return Sweep(number, smoke, flags).run()

    return guarded(run)


class Sweep:
    """One table, the part of its grid that is asked for, and the folder where its runs are recorded."""

    def __init__(self, number: int, smoke: Sequence[str], flags: TableFlags) -> None:
        _check(flags)
        self._number, self._flags = number, flags
        tiny = self._preset() == "smoke"
        wanted = flags.cell or (() if flags.only or not tiny else smoke)
        count = flags.seeds or (1 if tiny else 5)
        self.grid = Grid(
            cells=choose(number, wanted, flags.only),
            budget=flags.budget.over(SMOKE if tiny else PAPER),
            seeds=tuple(range(flags.seed, flags.seed + count)),
            alphas=_alphas(flags.alpha, SMOKE_ALPHAS if tiny else ALPHAS),
        )
        self._name = self._named(tiny)
        self._folder = flags.storage / self._name

    def _preset(self) -> str:
        flags = self._flags
        # A budget of one's own is a decision: it needs no GPU and no other preset.
        own = not (flags.budget.is_paper or flags.preset or flags.smoke_test)
        return "paper" if own else choose_preset(("paper", "smoke"), flags)

    def _named(self, tiny: bool) -> str:
        flags = self._flags
        alpha = "" if flags.alpha == "select" else f"alpha{self.grid.alphas[0]:g}"
        parts = (f"table_{self._number}", "smoke" if tiny else "", flags.budget.slug, alpha)
        return "-".join(part for part in parts if part)

    def run(self) -> int:
        """Do what the flags ask for; returns the exit code."""
        if self._flags.dry_run:
            return self._dry_run()
        if self._flags.report_only:
            return self._report()
        left, plan = self._left(_recorded(self._folder), self._flags.retry_failed)
        datasets = self._load(left)
        claim(self._folder, self._name, plan, self._flags.resume)
        with lock_study_folder(self._folder):
            return self._carry_out(datasets)

    def _load(self, configs: Iterable[RunConfig]) -> dict[str, Dataset]:
        return load_for(configs, data_root(self._flags.data_root))

    def _left(self, rows: Rows, retry_failed: bool) -> tuple[list[RunConfig], Plan]:
        """Return the runs that are wanted now and have not ended, and the plan that holds all that are wanted now."""
        todo = self.grid.todo(rows)
        ended = {row["run_id"] for row in rows if row["status"] == "FINISHED" or not retry_failed}
        budget = self.grid.budget
        base = RunConfig(
            executor=self._flags.executor, epochs=budget.epochs or 200, train_images=budget.train_images,
            test_images=budget.test_images, warmup_fraction=budget.warmup_fraction,
        )  # fmt: skip
        cells = tuple(as_choice(config, base) for config in todo)
        plan = Plan(base=base, cells=cells, metric="test_error_pct", retry_failed=retry_failed, tags=self._tags(rows))
        return [c.replace(executor=base.executor) for c in todo if c.run_id not in ended], plan

    def _tags(self, rows: Rows) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for cell in self.grid.cells:
            for kind, configs in (
                ("selection", self.grid.candidates(cell).values()),
                ("full", self.grid.runs(cell, rows)),
            ):
                for config in configs:  # a run at alpha = 1 serves several cells
                    cells = f"{found.get(config.run_id, {}).get('cell', '')} {cell.address}".strip()
                    found[config.run_id] = {"cell": cells, "kind": kind}
        return found

    def _carry_out(self, datasets: dict[str, Dataset]) -> int:
        tracker = self._tracker()
        try:
            study = self._fit(tracker, datasets)
        except BaseException:
            tracker.close()
            raise
        return self._finish(study)

    def _fit(self, tracker: Tracker, datasets: dict[str, Dataset]) -> Study:
        """First what needs no choice of alpha, and the runs that choose it; then the runs at the alpha chosen."""
        retry, ran = self._flags.retry_failed, False
        while True:
            left, plan = self._left(_recorded(self._folder), retry)
            study = Study(self._name, plan, self._folder, tracker)
            if not left:
                break
            fit(study, self._flags, left, self._load(left) if ran else datasets)
            retry, ran = False, True
            if study.missing():
                return study
        if not ran:
            print("nothing left to run: every run that was asked for has ended", file=sys.stderr, flush=True)
        return study

    def _tracker(self) -> Tracker:
        note = (
            f"{self._title()}. Lower `test_error_pct` is better; `vs_gll_pct` and `vs_paper_pct` are what it is above GLL's at "
            "the same seed and the paper's. Group the runs of kind `full` by `cell`; those of kind `selection` choose alpha."
        )
        return open_tracker(self._flags, f"backlink-{self._name}", note)

    def _title(self) -> str:
        budget = self.grid.budget
        return TITLES[self._number] + ("" if budget.is_paper else f", {budget.text}")

    def _report(self) -> int:
        rows = _recorded(self._folder)
        if not build(self._number, self.grid, rows).run:
            raise ConfigError(
                f"storage folder {str(self._folder)!r} has no finished run of table {self._number} to report; "
                "run this without --report-only first, or give the --storage-path and budget it ran with"
            )
        _, plan = self._left(rows, False)
        claim(self._folder, self._name, plan, "must")
        return self._finish(Study(self._name, plan, self._folder, self._tracker()))

    def _finish(self, study: Study) -> int:
        rows = study.results.rows()
        table = build(self._number, self.grid, rows, made_with(self._folder, rows))
        files = write(table, self._folder, class_errors(table, self.grid, rows, self._folder))
        compare(study.tracker, self._folder, self.grid, rows)
        track_files(study.tracker, self._folder, {}, files)
        study.tracker.close()
        print_cells(table)
        print(self._summary(table))
        print(f"results: {', '.join(map(str, (study.results.export(), *files)))}")
        # One line a cell, the mean of its seeds: an average over data sets or networks would say nothing.
        print_link(study.tracker, "tags.cell", "tags.kind = 'full'")
        print(f"resume: {resume_line()}")
        return 0 if self._flags.report_only else self._ending(study, rows)

    def _summary(self, table: Table) -> str:
        total = len(choose(self._number))
        ran, off = len([e for e in table.run if not e.cell.rerun]), sum(e.disagrees for e in table.run)
        judged = f", {off} off its number by more than twice the standard error"
        return f"{self._title()}: {ran} of the paper's {total} cells have run{judged * self.grid.budget.is_paper}"

    def _ending(self, study: Study, rows: Rows) -> int:
        if study.missing():
            print(f"interrupted with {study.missing()} trials left", file=sys.stderr)
            return 3
        wanted = {config.run_id for config in self.grid.todo(rows)}
        failed = sum(row["status"] == "FAILED" and row["run_id"] in wanted for row in rows)
        lost = self.grid.undecided(rows)
        if failed:
            cells = f"; no alpha for {', '.join(cell.address for cell in lost)}" if lost else ""
            print(f"{failed} runs failed{cells}; --retry-failed runs them again", file=sys.stderr)
        return 1 if failed else 0

    def _dry_run(self) -> int:
        places = resources_here(self._flags)
        for cell in self.grid.cells:
            config = recipe(cell, self.grid.budget).replace(executor=self._flags.executor)
            line = describe(cell.address, config, places, cell.error_pct)
            print(line + " (copied from another recipe)" * (cell.copied and "refused" not in line))
        chosen, seeds = self._selection(), len(self.grid.seeds)
        count = len(self.grid.cells)
        print(
            f"{count} cells of {seeds} seed{'s' * (seeds > 1)}, {count * seeds} runs, and {len(chosen)} that choose alpha: "
            f"{self._title()}"
        )
        print(
            self._cost([*chosen, *(recipe(cell, self.grid.budget) for cell in self.grid.cells for _ in range(seeds))])
        )
        return 0

    def _selection(self) -> list[RunConfig]:
        return list({c.run_id: c for cell in self.grid.cells for c in self.grid.candidates(cell).values()}.values())

    def _cost(self, configs: Sequence[RunConfig]) -> str:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if self._flags.gpus and device == "cpu":
            return "estimated: nothing, since there is no GPU here to measure on"
        rates = {c.network: images_per_s(c, device) for c in {c.network: c for c in configs}.values()}
        hours = math.fsum(_images(config) / rates[config.network] / 3600 for config in configs)
        measured = ", ".join(f"{network} {rate:.0f}" for network, rate in rates.items())
        return f"estimated: {hours:.3g} device-hours of training, at images/s of 32 x 32 measured now on one {device}: {measured}"


def _images(config: RunConfig) -> float:
    """Return the 32 x 32 images that a run trains on, in all epochs; one of STL-10 is as much work as nine."""
    area = 9 if config.dataset == "stl10" else 1
    return config.epochs * config.num_train_images * (1 - config.validation_fraction) * area


def _check(flags: TableFlags) -> None:
    check_numbers(flags)
    if flags.num_samples or flags.asha or flags.trade_off:
        raise ConfigError(
            "--num-samples, --asha and --trade-off are a search's; a table has --cell, --only and --seeds"
        )
    if flags.seeds < 0:
        raise ConfigError(f"seeds={flags.seeds} is out of range; allowed 0 (the default) or more")


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


def _recorded(folder: Path) -> Rows:
    return Results(folder).rows()
