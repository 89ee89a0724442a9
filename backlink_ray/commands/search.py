"""Search: the command of a study that Optuna searches, or that runs a list."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from backlink_ray.benchmarks.speed import images_per_s
from backlink_ray.commands.cluster import carry_out, cluster_here, describe
from backlink_ray.commands.command import Command
from backlink_ray.commands.exit_codes import guarded, resume_line
from backlink_ray.commands.flags import TrialFlags, choose_preset, not_negative
from backlink_ray.commands.results_table import best_line, markdown, print_table
from backlink_ray.data.datasets import data_root
from backlink_ray.errors import ConfigError
from backlink_ray.figures.data import FigureData
from backlink_ray.files import make_folder, write_whole
from backlink_ray.paper.cells import published_error_pct
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import load_for
from backlink_ray.runs.results import Row, config_of
from backlink_ray.tracking.tracker import NoTracker
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.study import Study


@dataclass(frozen=True, kw_only=True)
class SearchFlags(TrialFlags):
    """Flags of searches, and of figures that train."""

    num_samples: int = 0
    """Trials of a search; 0 takes the preset's."""
    asha: bool = False
    """Stop the trials of a search early that rank low at an epoch (ASHA); best with several trials at once."""
    trade_off: bool = False
    """Search for the trade-off of error, memory and step time (NSGA-II) instead of the error alone (TPE)."""
    seeds: int = 1
    """Seeds of every run of a list, from --seed up; a later start may ask for more."""

    def check(self) -> None:
        super().check()
        not_negative(self, "num_samples")


# Minimised beside a search's own metric where its trade-off is asked for; on a CPU, memory is the process's.
TRADE_OFF = ("peak_memory_mib", "step_ms")
Picture = Callable[[FigureData], Sequence[Path]]
# Finds finished runs of other studies in a storage path that count as runs of a study with this base.
Elsewhere = Callable[[Path, RunConfig], list[Row]]


def _no_picture(_data: FigureData) -> Sequence[Path]:
    return ()


def _nowhere(_storage: Path, _base: RunConfig) -> list[Row]:
    return []


def main(
    name: str,
    presets: dict[str, Plan],
    description: str,
    arguments: Sequence[str] | None = None,
    picture: Picture = _no_picture,
    elsewhere: Elsewhere = _nowhere,
) -> int:
    """Run a search or a list of runs from its command line.

    Args:
        name: of the study, and of its folders.
        presets: "paper" and "smoke", and any others.
        description: shown by --help.
        arguments: the command line's if not given.
        picture: draws the study's figure, writes its files and returns them.
        elsewhere: finds runs that need not be run again; of a list, a run that differs in alpha alone counts as done.

    Returns:
        As `guarded`; 130 leaves no time for a table.
    """

    def run() -> int:
        flags = tyro.cli(SearchFlags, prog=f"{name}.py", description=description, args=arguments)
        return SearchCommand(name, presets, flags, picture, elsewhere).run()

    return guarded(run, resume_line)


def estimate(config: RunConfig, images: float) -> str:
    """Return what training on some images costs at the speed of a run, which is measured here and now; takes seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = images_per_s(config, device)
    return (
        f"estimated: {images / rate / 3600:.3g} device-hours of training, at {rate:.0f} images/s "
        f"({config.label} {config.run_name}, measured now on one {device} device)"
    )


class SearchCommand(Command):
    """A search, or a list of runs."""

    flags: SearchFlags
    only = "params.`K` != ''"  # not the run that has the study's files

    def __init__(
        self, name: str, presets: dict[str, Plan], flags: SearchFlags, picture: Picture, elsewhere: Elsewhere
    ) -> None:
        flags.check()
        self._preset = choose_preset(presets, flags)
        plan = _with_flags(presets[self._preset], flags, self._preset)
        self._picture, self._earlier = picture, elsewhere(flags.storage, plan.base)
        plan = replace(plan, runs=_not_among(map(config_of, self._earlier), plan.runs))
        super().__init__(flags, name if self._preset == "paper" else f"{name}-{self._preset}", plan)

    def experiment(self) -> str:
        base = self.plan.base
        return f"backlink-{self.name}-{base.dataset}-{base.network}-{base.head}"

    def note(self) -> str:
        base = self.plan.base
        return (
            f"{self.name}: {base.network} on {base.dataset}, {base.head} heads, {base.epochs} epochs. "
            "Lower `test_error_pct` is better. Group by `K`."
        )

    def check_report(self) -> None:
        if self._earlier:  # runs of other studies are enough
            make_folder(self.folder, "storage_path")
        else:
            super().check_report()

    def prepare(self) -> None:
        self._datasets = load_for(self.plan.examples, data_root(self.flags.data_root))

    def carry_out(self, tracker: NoTracker) -> None:
        study = Study(self.name, self.plan, self.folder, tracker)
        if study.left():
            carry_out(study, self.flags, self.plan.examples, self._datasets)
        else:
            print("nothing left to run: every trial has its result", file=sys.stderr, flush=True)
        self._missing = study.missing()

    @property
    def _rows(self) -> list[Row]:
        return list({row["run_id"]: row for row in (*self._earlier, *self.results.rows())}.values())

    @property
    def _title(self) -> str:
        base, total = self.plan.base, self.plan.size + len(self._earlier)
        return f"{self.name}: {base.network} on {base.dataset}, {len(self._rows)} of {total} trials"

    def write(self) -> Sequence[Path]:
        rows, table = self._rows, self.folder / "table.md"
        write_whole(table, markdown(rows, self.plan.metric, self._title))
        finished = [row for row in rows if row["status"] == "FINISHED"]
        data = FigureData(plan=self.plan, rows=finished, folder=self.folder)
        return (table, *(self._picture(data) if finished else ()))

    def show(self) -> None:
        print_table(self._rows, self.plan.metric, self._title)
        print(best_line(self._rows, self.plan.metric))

    def ending(self) -> int:
        if self._missing:
            print(f"interrupted with {self._missing} trials left", file=sys.stderr)
            return 3
        return 1 if any(row["status"] == "FAILED" for row in self._rows) else 0

    def dry_run(self) -> None:
        plan, cluster = self.plan, cluster_here(self.flags)
        for run in (*plan.runs, *plan.first):
            print(describe(f"{run.label}/{run.run_name}", run, cluster, published_error_pct(run)))
        for run in plan.examples[len(plan.runs) + len(plan.first) :]:
            name = f"any K={run.num_modules}: {run.label}/{run.run_name}"
            print(describe(name, run, cluster, published_error_pct(run)))
        if plan.space:
            print(f"and {plan.num_samples - len(plan.first)} trials that Optuna chooses: {plan.space.text}")
        base, more = plan.base, f"; {len(self._earlier)} finished runs of other studies count too"
        print(
            f"{plan.size} trials of {base.epochs} epochs, {base.network} on {base.dataset}, preset {self._preset}"
            + more * bool(self._earlier)
        )
        print(self._cost())

    def _cost(self) -> str:
        if self.flags.gpus and not torch.cuda.is_available():
            return "estimated: nothing, since there is no GPU here to measure on"
        plan = self.plan
        first = next(iter((*plan.runs, *plan.first)), plan.base)
        images = round(plan.base.num_train_images * (1 - first.validation_fraction))
        return f"{estimate(first, plan.size * plan.base.epochs * images)} and {images} images an epoch"


def _with_flags(plan: Plan, flags: SearchFlags, preset: str) -> Plan:
    """Return a preset's plan as the flags want it."""
    if (flags.asha or flags.trade_off) and not plan.space:
        raise ConfigError(
            f"--asha and --trade-off are for a search; preset {preset!r} is a list of runs, each wanted whole"
        )
    objectives = (plan.metric, *TRADE_OFF) if flags.trade_off else plan.objectives
    if flags.asha and objectives:
        raise ConfigError("--asha ranks trials by one number, and --trade-off has three; leave one of them out")
    if flags.seeds < 1 or (plan.space and flags.seeds > 1):
        raise ConfigError(f"seeds={flags.seeds} cannot be run; allowed: 1 or more for a list of runs, 1 for a search")

    def given(run: RunConfig, seed: int = 0) -> RunConfig:
        executor = run.executor if flags.executor == "auto" else flags.executor
        return run.replace(seed=flags.seed + run.seed + seed, executor=executor)

    return replace(
        plan,
        base=given(plan.base),
        runs=tuple(given(run, seed) for seed in range(flags.seeds) for run in plan.runs),
        first=tuple(map(given, plan.first)),
        num_samples=flags.num_samples or plan.num_samples,
        asha=flags.asha,
        objectives=objectives,
    )


def _not_among(done: Iterable[RunConfig], runs: Iterable[RunConfig]) -> tuple[RunConfig, ...]:
    """Return the runs that are not done; alpha does not count, since whoever ran them chose it."""
    known = {_any_alpha(run) for run in done}
    return tuple(run for run in runs if _any_alpha(run) not in known)


def _any_alpha(run: RunConfig) -> str:
    return run.replace(alpha=0.5).run_id if run.method == "backlink" else run.run_id
