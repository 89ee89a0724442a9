"""Command: the one face of all studies: flags, presets, the dry run, exit codes and the last lines."""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from backlink_ray.config import ConfigError
from backlink_ray.data.datasets import Dataset, data_root, hold_out, load_dataset
from backlink_ray.data.loader import check_batch_size
from backlink_ray.files import write_whole
from backlink_ray.study.bench import images_per_s
from backlink_ray.study.face import (
    CommonFlags,
    SecondInterruptError,
    choose_preset,
    guarded,
    open_tracker,
    print_link,
    resume_line,
)
from backlink_ray.study.paper import published_error_pct
from backlink_ray.study.record import Record, Value
from backlink_ray.study.report import best_line, markdown, print_table
from backlink_ray.study.runner import start_ray
from backlink_ray.study.search import base_with
from backlink_ray.study.tracking import Tracker
from backlink_ray.study.trial import Places, cluster_places
from backlink_ray.study.tuning import Plan, Study, claim, only_driver


@dataclass(frozen=True, kw_only=True)
class Flags(CommonFlags):
    """Flags that every study has."""

    num_samples: int = 0
    """Trials of a search; 0 takes the preset's."""
    max_concurrent: int = 0
    """Trials at once; 0: as many as the GPUs allow, one on a CPU machine."""
    asha: bool = False
    """Stop the trials of a search early that rank low at an epoch (ASHA); best with several trials at once."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Go on with what the storage path holds: auto if there is something, never, or must."""
    gpus: float = 0.0
    """GPUs the cluster at --address can grow to, where it starts machines on demand; 0: those it has now."""
    gpus_per_stage: float = 1.0
    """GPUs one local module takes, where there are GPUs; a fraction lets modules share one."""
    executor: Literal["auto", "local", "threads", "ray"] = "auto"
    """Where a trial's local modules run; auto: one Ray actor each where the cluster has the places."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A study's record as its picture is drawn from: `rows` of the runs of `plan`, in `folder`, under `flags`."""

    name: str
    preset: str
    plan: Plan
    rows: list[dict[str, Value]]
    folder: Path
    tracker: Tracker


Picture = Callable[[Finished], Sequence[Path]]


def _no_picture(_finished: Finished) -> Sequence[Path]:
    return ()


def main(
    name: str,
    presets: dict[str, Plan],
    description: str,
    arguments: Sequence[str] | None = None,
    picture: Picture = _no_picture,
) -> int:
    """Run a study from its command line.

    Args:
        name: of the study, and of its folders.
        presets: "paper" and "smoke", and any others.
        description: shown by --help.
        arguments: the command line's if not given.
        picture: draws the study's figure, writes and tracks its files, and returns them.

    Returns:
        0 done; 1 done, but some trials failed; 2 bad arguments or configuration; 3 interrupted and resumable; 130 the same
        at a second Ctrl-C, with no time for a table.
    """
    flags = tyro.cli(Flags, prog=f"{name}.py", description=description, args=arguments)
    return guarded(lambda: _Command(name, presets, flags, picture).run())


def _check_numbers(flags: Flags) -> None:
    for field in ("num_samples", "max_concurrent", "gpus"):
        if not getattr(flags, field) >= 0:
            raise ConfigError(f"{field}={getattr(flags, field)} is out of range; allowed 0 (the default) or more")
    if not flags.gpus_per_stage > 0:
        raise ConfigError(f"gpus_per_stage={flags.gpus_per_stage} is out of range; allowed more than 0")
    if flags.gpus and not (flags.address or os.environ.get("RAY_ADDRESS")):
        raise ConfigError(f"gpus={flags.gpus:g} is for a cluster that grows; give its --address, or leave --gpus out")


class _Command:
    def __init__(self, name: str, presets: dict[str, Plan], flags: Flags, picture: Picture) -> None:
        self._flags, self._picture = flags, picture
        self._preset = choose_preset(presets, flags)
        plan = presets[self._preset]
        base = plan.base.replace(seed=flags.seed, executor=flags.executor)
        _check_numbers(flags)
        if flags.asha and not plan.space:
            raise ConfigError(
                f"--asha stops trials of a search; preset {self._preset!r} is a list of runs, each wanted whole"
            )
        self._plan = replace(plan, base=base, num_samples=flags.num_samples or plan.num_samples, asha=flags.asha)
        self._name = name if self._preset == "paper" else f"{name}-{self._preset}"
        self._folder = flags.storage / self._name

    def run(self) -> int:
        if self._flags.dry_run:
            return self._dry_run()
        if self._flags.report_only:
            return self._report()
        base, flags = self._plan.base, self._flags
        dataset = load_dataset(
            base.dataset, data_root(flags.data_root), train_images=base.train_images, test_images=base.test_images
        )
        check_batch_size(base.batch_size, len(hold_out(dataset, base.validation_fraction, base.seed)[0]))
        claim(self._folder, self._name, self._plan, flags.resume)
        with only_driver(self._folder):
            return self._carry_out(dataset)

    def _report(self) -> int:
        claim(self._folder, self._name, self._plan, "must")
        if not Record(self._folder).done():
            raise ConfigError(
                f"storage folder {str(self._folder)!r} has no finished run to report; run this without --report-only first"
            )
        return self._finish(Study(self._name, self._plan, self._folder, self._tracker()))

    def _carry_out(self, dataset: Dataset) -> int:
        study = Study(self._name, self._plan, self._folder, self._tracker())
        try:
            if study.left():
                self._fit(study, dataset)
            else:
                print("nothing left to run: every trial has its result", file=sys.stderr, flush=True)
        except BaseException:
            study.tracker.close()
            raise
        return self._finish(study)

    def _fit(self, study: Study, dataset: Dataset) -> None:
        places = self._places()
        try:
            study.run(dataset, places)
        except KeyboardInterrupt as error:  # Tune keeps the first one for itself, and ends its trials in order
            raise SecondInterruptError from error

    def _places(self) -> Places:
        start_ray(self._flags.address)
        places = self._grown(cluster_places())
        ks = self._plan.space.num_modules if self._plan.space else ()
        for choice in (*self._plan.cells, *self._plan.first, *({"K": k, "l": 1} for k in ks)):
            places.check(base_with(self._plan.base, choice))
        return places

    def _grown(self, places: Places) -> Places:
        flags = self._flags
        gpus = max(places.num_gpus, flags.gpus)
        return replace(places, num_gpus=gpus, max_concurrent=flags.max_concurrent, gpus_per_stage=flags.gpus_per_stage)

    def _tracker(self) -> Tracker:
        base = self._plan.base
        experiment = f"backlink-{self._name}-{base.dataset}-{base.network}-{base.head}"
        note = (
            f"{self._name}: {base.network} on {base.dataset}, {base.head} heads, {base.epochs} epochs. "
            "Lower `test_error_pct` is better. Group by `K`."
        )
        return open_tracker(self._flags, experiment, note)

    def _finish(self, study: Study) -> int:
        rows, metric = study.record.rows(), self._plan.metric
        title = f"{self._name}: {self._plan.base.network} on {self._plan.base.dataset}, {len(rows)} of {self._plan.size} trials"
        print_table(rows, metric, title)
        report = self._folder / "table.md"
        write_whole(report, markdown(rows, metric, title))
        with contextlib.suppress(
            ValueError
        ):  # a study that ended earlier, under another experiment or without its spool
            study.tracker.log_artifact(str(rows[-1]["run_id"]) if rows else "", report)
        pictures = self._draw(study, rows)
        study.tracker.close()
        print(best_line(rows, metric))
        print(f"results: {self._folder / 'results'} (Parquet), {', '.join(map(str, (report, *pictures)))}")
        print_link(study.tracker)
        print(f"resume: {resume_line()}")
        if study.missing() and not self._flags.report_only:
            print(f"interrupted with {study.missing()} trials left", file=sys.stderr)
            return 3
        return 1 if any(row["status"] == "FAILED" for row in rows) else 0

    def _draw(self, study: Study, rows: list[dict[str, Value]]) -> Sequence[Path]:
        finished = [row for row in rows if row["status"] == "FINISHED"]
        done = Finished(
            name=self._name, preset=self._preset, plan=self._plan, rows=finished, folder=self._folder, tracker=study.tracker
        )  # fmt: skip
        return self._picture(done) if finished else ()

    def _dry_run(self) -> int:
        plan = self._plan
        places = self._grown(Places(num_gpus=torch.cuda.device_count(), num_cpus=os.cpu_count() or 1))
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
        )
        print(self._cost())
        return 0

    def _cost(self) -> str:
        plan, device = self._plan, "cuda" if torch.cuda.is_available() else "cpu"
        if self._flags.gpus and device == "cpu":
            return "estimated: nothing, since there is no GPU here to measure on"
        first = base_with(plan.base, next(iter((*plan.cells, *plan.first)), {}))
        rate, images = images_per_s(first, device), round(plan.base.num_train_images * (1 - first.validation_fraction))
        hours = plan.size * plan.base.epochs * images / rate / 3600
        return (
            f"estimated: {hours:.3g} device-hours of training, at {rate:.0f} images/s "
            f"({first.label} {first.run_name}, measured now on one {device} device) and {images} images an epoch"
        )

    def _describe(self, choice: dict[str, object], places: Places) -> str:
        config = base_with(self._plan.base, choice)
        resolved = places.resolve(config)
        need = {kind: sum(b.get(kind, 0.0) for b in places.bundles(config)) for kind in ("CPU", "GPU")}
        try:
            places.check(config)
        except ConfigError as error:
            return f"{config.label}/{config.run_name}  refused: {error}"
        published = published_error_pct(config)
        paper = f"  paper {published:.2f} %" if published is not None else ""
        needs = f"executor {resolved.executor}  needs {need['CPU']:g} CPU, {need['GPU']:g} GPU"
        return f"{config.label}/{config.run_name}  {needs}{paper}"
