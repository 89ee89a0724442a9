"""Command: the one face of all studies: flags, presets, the dry run, exit codes and the last lines."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from backlink_ray.benchmarks.speed import images_per_s
from backlink_ray.commands.exit_codes import guarded, resume_line
from backlink_ray.commands.flags import Flags, choose_preset, open_tracker, print_link
from backlink_ray.commands.launch import check_numbers, describe, fit, resources_here
from backlink_ray.commands.results_table import best_line, markdown, print_table
from backlink_ray.data.datasets import data_root
from backlink_ray.data.images import Dataset
from backlink_ray.errors import ConfigError
from backlink_ray.figures.data import FigureData
from backlink_ray.files import write_whole
from backlink_ray.paper.cells import published_error_pct
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import load_for
from backlink_ray.runs.results import Results, Value, config_of
from backlink_ray.runs.tracked import track_files
from backlink_ray.tracking.tracker import Tracker
from backlink_ray.tuning.folder import claim, lock_study_folder
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.resources import ClusterResources
from backlink_ray.tuning.space import base_with
from backlink_ray.tuning.study import Study


@dataclass(frozen=True, kw_only=True)
class StudyFlags(Flags):
    """Flags of tuning studies, and of figures that train."""

    seeds: int = 1
    """Seeds of every run of a list, from --seed up; a later start may ask for more."""


# Minimised beside a search's own metric where its trade-off is asked for; on a CPU, memory is the process's.
TRADE_OFF = ("peak_memory_mib", "step_ms")
Picture = Callable[[FigureData], Sequence[Path]]
# Finds finished runs of other studies in a storage path that count as runs of a study with this base.
Elsewhere = Callable[[Path, RunConfig], list[dict[str, Value]]]


def _no_picture(_finished: FigureData) -> Sequence[Path]:
    return ()


def _nowhere(_storage: Path, _base: RunConfig) -> list[dict[str, Value]]:
    return []


def main(
    name: str,
    presets: dict[str, Plan],
    description: str,
    arguments: Sequence[str] | None = None,
    picture: Picture = _no_picture,
    elsewhere: Elsewhere = _nowhere,
) -> int:
    """Run a study from its command line.

    Args:
        name: of the study, and of its folders.
        presets: "paper" and "smoke", and any others.
        description: shown by --help.
        arguments: the command line's if not given.
        picture: draws the study's figure, writes and tracks its files, and returns them.
        elsewhere: finds runs that need not be run again; of a list, a run that differs in alpha alone counts as done.

    Returns:
        0 done; 1 done, but some trials failed; 2 bad arguments or configuration; 3 interrupted and resumable; 130 the same
        at a second Ctrl-C, with no time for a table.
    """
    flags = tyro.cli(StudyFlags, prog=f"{name}.py", description=description, args=arguments)
    return guarded(lambda: _Command(name, presets, flags, picture, elsewhere).run())


def estimate(config: RunConfig, images: float) -> str:
    """Return what training on some images costs at the speed of a run, which is measured here and now; takes seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = images_per_s(config, device)
    return (
        f"estimated: {images / rate / 3600:.3g} device-hours of training, at {rate:.0f} images/s "
        f"({config.label} {config.run_name}, measured now on one {device} device)"
    )


class _Command:
    def __init__(
        self, name: str, presets: dict[str, Plan], flags: StudyFlags, picture: Picture, elsewhere: Elsewhere
    ) -> None:
        self._flags, self._picture = flags, picture
        self._preset = choose_preset(presets, flags)
        plan = presets[self._preset]
        executor = plan.base.executor if flags.executor == "auto" else flags.executor
        base = plan.base.replace(seed=flags.seed, executor=executor)
        check_numbers(flags)
        if (flags.asha or flags.trade_off) and not plan.space:
            raise ConfigError(
                f"--asha and --trade-off are for a search; preset {self._preset!r} is a list of runs, each wanted whole"
            )
        objectives = (plan.metric, *TRADE_OFF) if flags.trade_off else plan.objectives
        if flags.asha and objectives:
            raise ConfigError("--asha ranks trials by one number, and --trade-off has three; leave one of them out")
        if flags.seeds < 1 or (plan.space and flags.seeds > 1):
            raise ConfigError(
                f"seeds={flags.seeds} cannot be run; allowed: 1 or more for a list of runs, 1 for a search"
            )
        self._earlier = elsewhere(flags.storage, base)
        more = ({"seed": flags.seed + i} | cell for i in range(1, flags.seeds) for cell in plan.cells)
        self._plan = replace(
            plan, base=base, num_samples=flags.num_samples or plan.num_samples, asha=flags.asha, objectives=objectives,
            cells=_not_among(map(config_of, self._earlier), (*plan.cells, *more), base),
        )  # fmt: skip
        self._name = name if self._preset == "paper" else f"{name}-{self._preset}"
        self._folder = flags.storage / self._name

    def run(self) -> int:
        if self._flags.dry_run:
            return self._dry_run()
        if self._flags.report_only:
            return self._report()
        flags = self._flags
        datasets = load_for(self._configs(), data_root(flags.data_root))
        claim(self._folder, self._name, self._plan, flags.resume)
        with lock_study_folder(self._folder):
            return self._carry_out(datasets)

    def _report(self) -> int:
        claim(self._folder, self._name, self._plan, "auto" if self._earlier else "must")
        if not self._earlier and not Results(self._folder).done():
            raise ConfigError(
                f"storage folder {str(self._folder)!r} has no finished run to report; run this without --report-only first"
            )
        return self._finish(Study(self._name, self._plan, self._folder, self._tracker()))

    def _carry_out(self, datasets: dict[str, Dataset]) -> int:
        study = Study(self._name, self._plan, self._folder, self._tracker())
        try:
            if study.left():
                fit(study, self._flags, self._configs(), datasets)
            else:
                print("nothing left to run: every trial has its result", file=sys.stderr, flush=True)
        except BaseException:
            study.tracker.close()
            raise
        return self._finish(study)

    def _configs(self) -> list[RunConfig]:
        """The runs of a list, or of a search one at each K and what it tries first."""
        plan = self._plan
        ks = plan.space.num_modules if plan.space else ()
        choices = (*plan.cells, *plan.first, *({"K": k, "l": 1} for k in ks))
        return [base_with(plan.base, choice) for choice in choices]

    def _tracker(self) -> Tracker:
        base = self._plan.base
        experiment = f"backlink-{self._name}-{base.dataset}-{base.network}-{base.head}"
        note = (
            f"{self._name}: {base.network} on {base.dataset}, {base.head} heads, {base.epochs} epochs. "
            "Lower `test_error_pct` is better. Group by `K`."
        )
        return open_tracker(self._flags, experiment, note)

    def _finish(self, study: Study) -> int:
        metric = self._plan.metric
        rows = list({row["run_id"]: row for row in (*self._earlier, *study.results.rows())}.values())
        place, total = f"{self._plan.base.network} on {self._plan.base.dataset}", self._plan.size + len(self._earlier)
        title = f"{self._name}: {place}, {len(rows)} of {total} trials"
        print_table(rows, metric, title)
        report = self._folder / "table.md"
        write_whole(report, markdown(rows, metric, title))
        track_files(study.tracker, self._folder, {}, (report,))
        pictures = self._draw(study, rows)
        study.tracker.close()
        print(best_line(rows, metric))
        print(f"results: {', '.join(map(str, (study.results.export(), report, *pictures)))}")
        print_link(study.tracker)
        print(f"resume: {resume_line()}")
        if study.missing() and not self._flags.report_only:
            print(f"interrupted with {study.missing()} trials left", file=sys.stderr)
            return 3
        return 1 if any(row["status"] == "FAILED" for row in rows) else 0

    def _draw(self, study: Study, rows: list[dict[str, Value]]) -> Sequence[Path]:
        finished = [row for row in rows if row["status"] == "FINISHED"]
        done = FigureData(
            name=self._name, preset=self._preset, plan=self._plan, rows=finished, folder=self._folder, tracker=study.tracker
        )  # fmt: skip
        return self._picture(done) if finished else ()

    def _dry_run(self) -> int:
        plan = self._plan
        places = resources_here(self._flags)
        for choice in plan.cells or plan.first:
            print(self._describe(choice, places))
        for k in plan.space.num_modules if plan.space else ():
            print(f"any K={k}: {self._describe({'K': k, 'l': 1}, places)}")
        if plan.space:
            space, rest = plan.space, plan.num_samples - len(plan.first)
            print(
                f"and {rest} trials that Optuna chooses: K in {space.num_modules}, "
                f"l in 1..{space.longest} within the smallest module, alpha in {space.alphas}, "
                f"eta in {space.lr[0]}..{space.lr[1]}"
            )
        print(
            f"{plan.size} trials of {plan.base.epochs} epochs, {plan.base.network} on {plan.base.dataset}, preset {self._preset}"
            + f"; {len(self._earlier)} finished runs of other studies count too" * bool(self._earlier)
        )
        print(self._cost())
        return 0

    def _cost(self) -> str:
        plan = self._plan
        if self._flags.gpus and not torch.cuda.is_available():
            return "estimated: nothing, since there is no GPU here to measure on"
        first = base_with(plan.base, next(iter((*plan.cells, *plan.first)), {}))
        images = round(plan.base.num_train_images * (1 - first.validation_fraction))
        return f"{estimate(first, plan.size * plan.base.epochs * images)} and {images} images an epoch"

    def _describe(self, choice: dict[str, object], places: ClusterResources) -> str:
        config = base_with(self._plan.base, choice)
        return describe(f"{config.label}/{config.run_name}", config, places, published_error_pct(config))


def _not_among(
    done: Iterable[RunConfig], cells: Iterable[dict[str, Any]], base: RunConfig
) -> tuple[dict[str, Any], ...]:
    """Return the cells that are not done; alpha does not count, since whoever ran them chose it."""
    known = {config.replace(alpha=base.alpha).run_id for config in done}
    return tuple(cell for cell in cells if base_with(base, cell).replace(alpha=base.alpha).run_id not in known)
