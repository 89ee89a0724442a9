"""Search: the command of a study that Optuna searches, or that runs a list of runs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backlink_ray.commands.command import Command, run_command
from backlink_ray.commands.flags import TrialFlags, choose_preset, not_negative
from backlink_ray.commands.results_table import COLUMNS, best_line, markdown, print_table, table_rows
from backlink_ray.commands.trials import check_here, describe, estimate, local_cluster, run_with_flags, training_images
from backlink_ray.data.datasets import data_root
from backlink_ray.errors import ConfigError
from backlink_ray.figures.data import FigureData
from backlink_ray.files import write_whole
from backlink_ray.output import say
from backlink_ray.paper.cells import published_error_pct
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Row, config_of
from backlink_ray.tracking.tracker import NoTracker
from backlink_ray.tuning.folder import MANIFEST, check_study_folder, open_study_folder
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.search import prepare
from backlink_ray.tuning.study import Study


@dataclass(frozen=True, kw_only=True)
class SearchFlags(TrialFlags):
    """Flags of searches, and of figures made from trained runs."""

    num_samples: int = 0
    """Trials of a search; 0 takes the preset's."""
    asha: bool = False
    """Stop trials of a search early if they rank low at an epoch (ASHA); best with several trials at once."""
    trade_off: bool = False
    """Search for the trade-off of error, memory and step time instead of the error alone."""
    seeds: int = 1
    """Seeds per run of a list, from --seed up; a later start may ask for more."""

    def check(self) -> None:
        super().check()
        not_negative(self, "num_samples")


# Minimised together with a search's own metric by --trade-off; on a CPU, memory is that of the process.
TRADE_OFF = ("peak_memory_mib", "step_ms")
Picture = Callable[[FigureData], Sequence[Path]]
# Finds finished runs of other studies in a storage path that count as runs of a study with this base.
Elsewhere = Callable[[Path, RunConfig], list[Row]]


def main(
    name: str,
    presets: dict[str, Plan],
    description: str,
    arguments: Sequence[str] | None = None,
    picture: Picture = lambda _data: (),
    elsewhere: Elsewhere = lambda _storage, _base: [],
) -> int:
    """Run a search or a list of runs from its command line; return the exit code as `guarded` does.

    Args:
        name: of the study and of its folder.
        presets: "paper" and "smoke", and any others.
        picture: draws the study's figure, writes its files and returns them.
        elsewhere: finds runs of other studies, which are not repeated; in a list, a run that differs only in alpha counts too.
    """
    return run_command(
        lambda flags: SearchCommand(name, presets, flags, picture, elsewhere), SearchFlags, name, description, arguments
    )


class SearchCommand(Command):
    """A search, or a list of runs."""

    flags: SearchFlags
    only = "params.`K` != ''"  # leaves out the run that holds the study's files

    def __init__(
        self, name: str, presets: dict[str, Plan], flags: SearchFlags, picture: Picture, elsewhere: Elsewhere
    ) -> None:
        flags.check()
        self._preset = choose_preset(presets, flags)
        plan = _with_flags(presets[self._preset], flags, self._preset)
        self._picture, self._earlier = picture, elsewhere(flags.storage, plan.base)
        plan = replace(plan, runs=_not_among(map(config_of, self._earlier), plan.runs))
        super().__init__(flags, plan, name, self._preset)

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
        if not self._earlier:
            super().check_report()
        elif (self.folder / MANIFEST).exists():
            check_study_folder(self.folder, self.name, self.plan)
        else:  # runs of other studies are enough for a report, in a folder that this study can use later
            with open_study_folder(self.folder, self.name, self.plan, "auto"):
                pass

    def prepare(self) -> None:
        check_here(self.flags, self.plan.examples)
        self.plan, self._datasets = prepare(self.plan, data_root(self.flags.data_root))

    def carry_out(self, tracker: NoTracker) -> None:
        study = Study(self.name, self.plan, self.folder, tracker)
        if study.left():
            self.missing = run_with_flags(study, self.flags, self._datasets)
        else:
            say("nothing left to run: every trial has a result")

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
        print_table(COLUMNS, table_rows(self._rows, self.plan.metric), self._title)
        print(best_line(self._rows, self.plan.metric))

    def failed(self) -> int:
        return sum(row["status"] == "FAILED" for row in self._rows)

    def dry_run(self) -> None:
        plan, cluster = self.plan, local_cluster(self.flags)
        listed = (*plan.runs, *plan.first)
        for i, run in enumerate(plan.examples):
            prefix = "" if i < len(listed) else f"any K={run.num_modules}: "
            print(describe(f"{prefix}{run.label}/{run.run_name}", run, cluster, published_error_pct(run)))
        if plan.space:
            print(f"and {plan.num_samples - len(plan.first)} trials that Optuna chooses: {plan.space.text}")
        base, earlier = plan.base, f"; {len(self._earlier)} finished runs of other studies count too"
        print(
            f"{plan.size} trials of {base.epochs} epochs, {base.network} on {base.dataset}, preset {self._preset}"
            + earlier * bool(self._earlier)
        )
        runs = plan.runs or (*listed, base)[:1] * plan.size
        if base.import_paths:
            print("no estimate: this study has parts of your own, which are not measured")
        else:
            print(estimate([(run, training_images(run)) for run in runs], self.flags.gpus))


def _with_flags(plan: Plan, flags: SearchFlags, preset: str) -> Plan:
    """Return a preset's plan, changed by the flags."""
    if (flags.asha or flags.trade_off) and not plan.space:
        raise ConfigError(
            f"--asha and --trade-off are for a search; preset {preset!r} is a list of runs, each trained to its end"
        )
    objectives = (plan.metric, *TRADE_OFF) if flags.trade_off else plan.objectives
    if flags.asha and objectives:
        raise ConfigError("--asha ranks trials by one number, and --trade-off has three; leave one of the two out")
    if flags.seeds < 1 or (plan.space and flags.seeds > 1):
        raise ConfigError(f"seeds={flags.seeds} cannot be run; allowed: 1 or more for a list of runs, 1 for a search")

    def adapted(run: RunConfig, seed: int = 0) -> RunConfig:
        executor = run.executor if flags.executor == "auto" else flags.executor
        return run.replace(seed=flags.seed + run.seed + seed, executor=executor, **flags.engine.given)

    return replace(
        plan,
        base=adapted(plan.base),
        runs=tuple(adapted(run, seed) for seed in range(flags.seeds) for run in plan.runs),
        first=tuple(map(adapted, plan.first)),
        num_samples=flags.num_samples or plan.num_samples,
        asha=flags.asha,
        objectives=objectives,
    )


def _not_among(done: Iterable[RunConfig], runs: Iterable[RunConfig]) -> tuple[RunConfig, ...]:
    """Return the runs that are not done; alpha is ignored, since the study that ran them chose it."""
    known = {_any_alpha(run) for run in done}
    return tuple(run for run in runs if _any_alpha(run) not in known)


def _any_alpha(run: RunConfig) -> str:
    return run.replace(alpha=0.5).run_id if run.method == "backlink" else run.run_id
