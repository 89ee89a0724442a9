"""Measuring: the command of a figure that measures by itself, on the face and the record that studies have."""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from backlink_ray import provenance
from backlink_ray.commands.exit_codes import first_line, guarded, resume_line
from backlink_ray.commands.flags import RUN_ERRORS, CommonFlags, choose_preset, open_tracker, print_link
from backlink_ray.commands.search import Picture, estimate
from backlink_ray.errors import ConfigError
from backlink_ray.figures.data import FigureData
from backlink_ray.figures.style import name_of
from backlink_ray.provenance import hardware
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Results, Value
from backlink_ray.seeds import derive_seed
from backlink_ray.text import slug
from backlink_ray.tracking.tracker import Tracker
from backlink_ray.tuning.folder import claim, lock_study_folder
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.space import base_with

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class FigureFlags(CommonFlags):
    """Flags of a figure that measures by itself."""

    device: str = ""
    """Where to measure: cuda, cuda:1 or cpu; default: the GPU where there is one."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Go on with what the storage path holds: auto if there is something, never, or must."""
    executor: Literal["auto", "threads", "ray"] = "auto"
    """Where the stages of figure 9 run; auto: as threads, and then as Ray actors."""

    @property
    def place(self) -> str:
        """Return the device."""
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, kw_only=True)
class MeasurementContext:
    """Where a figure measures: under which flags, in which folder, on which hardware; and what failed there."""

    flags: FigureFlags
    folder: Path
    device: str
    hardware: str
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def attempt(self, config: RunConfig) -> Iterator[None]:
        """Measure a configuration; one that diverges or does not fit into memory is noted, and the next one has its turn."""
        try:
            yield
        except RUN_ERRORS as error:
            self.failed.append(name_of(config))
            print(f"{name_of(config)} failed and is left out: {first_line(error)}", file=sys.stderr, flush=True)

    def run_id(self, config: RunConfig, suffix: str = "") -> str:
        """Return the name of a measurement in the record: of the run, and of what it is measured on."""
        hash_of = derive_seed(0, self.hardware) % 10**8
        return slug(f"{config.run_id}-{hash_of}{suffix}")


# Checks what the configurations need before anything is claimed; then yields a row a measurement, named by Room.run_id.
Measure = Callable[[Sequence[RunConfig], MeasurementContext], Iterator[Row]]
# Says why a configuration cannot be measured on a device, "" where it can.
Refuse = Callable[[RunConfig, str], str]
# Says how many images a configuration's measuring trains on.
Images = Callable[[RunConfig], int]


def _never(_config: RunConfig, _device: str) -> str:
    return ""


def _few(_config: RunConfig) -> int:
    return 0


def figure_main(
    name: str, presets: dict[str, Plan], measure: Measure, picture: Picture, description: str,
    arguments: Sequence[str] | None = None, *, refuse: Refuse = _never, images: Images = _few,
) -> int:  # fmt: skip
    """Run a figure that measures from its command line: measure what is not recorded yet, then draw.

    Args:
        name: of the figure, its folder and its files.
        presets: "paper" and "smoke"; their cells are what is measured.
        measure: does it.
        picture: draws it from the rows of one kind of hardware.
        description: shown by --help.
        arguments: the command line's if not given.
        refuse: leaves out what cannot be measured on a device.
        images: what a dry run's estimate is made from; where it is 0 for all, there is none.

    Returns:
        0 done; 1 done, but a measurement failed; 2 bad arguments or configuration; 3 interrupted and resumable.
    """
    flags = tyro.cli(FigureFlags, prog=f"{name}.py", description=description, args=arguments)
    return guarded(lambda: _FigureCommand(name, presets, measure, picture, flags, refuse, images).run())


def row_of(config: RunConfig, room: MeasurementContext, suffix: str = "", **measured: Value) -> Row:
    """Return a record's row: the configuration, what was measured, and with what."""
    return {
        **dataclasses.asdict(config), "run_id": room.run_id(config, suffix), "status": "FINISHED",
        "reason": "done", **measured, "hardware": room.hardware, "device": room.device.split(":")[0],
        "commit": provenance.commit(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


class _FigureCommand:
    def __init__(
        self, name: str, presets: dict[str, Plan], measure: Measure, picture: Picture, flags: FigureFlags,
        refuse: Refuse, images: Images,
    ) -> None:  # fmt: skip
        self._flags, self._measure, self._picture = flags, measure, picture
        self._refuse, self._images = refuse, images
        self._failed: list[str] = []
        self._preset = choose_preset(presets, flags)
        plan = presets[self._preset]
        self._plan = dataclasses.replace(plan, base=plan.base.replace(seed=flags.seed))
        self._name = name if self._preset == "paper" else f"{name}-{self._preset}"
        self._folder = flags.storage / self._name
        self._configs = list({c.run_id: c for c in (base_with(self._plan.base, x) for x in plan.cells)}.values())

    def run(self) -> int:
        if self._flags.dry_run:
            return self._dry_run()
        measured = None if self._flags.report_only else self._start()
        claim(self._folder, self._name, self._plan, "must" if self._flags.report_only else self._flags.resume)
        with lock_study_folder(self._folder):
            note = f"{self._name}: a figure of the paper, measured anew."
            tracker = open_tracker(self._flags, f"backlink-{self._name}", note)  # first: a wrong URI costs no measuring
            try:
                paths = self._draw(self._rows(Results(self._folder), measured), tracker)
            finally:
                tracker.close()
        return self._finish(paths, tracker)

    def _start(self) -> Iterator[Row]:
        """Check device, configurations and what measuring needs; return what measures."""
        self._check_device()
        place = self._flags.place
        refused = {config.run_id: self._refuse(config, place) for config in self._configs}
        left = [config for config in self._configs if not refused[config.run_id]]
        if not left:
            raise ConfigError(
                f"device={place!r} can measure nothing of this figure ({next(iter(refused.values()))}); give another "
                "--device, or use another machine"
            )
        room = MeasurementContext(
            flags=self._flags, folder=self._folder, device=place, hardware=hardware(place), failed=self._failed
        )  # fmt: skip
        return self._measure(left, room)

    def _dry_run(self) -> int:
        place = self._flags.place
        for config in self._configs:
            why = self._refuse(config, place)
            ending = f"  left out: {why}" if why else ""
            print(f"{config.network}/{config.label}/{config.run_name}  tail {config.tail_memory}{ending}")
        left = [config for config in self._configs if not self._refuse(config, place)]
        print(f"{len(left)} to measure on {place}, preset {self._preset}, batch {self._plan.base.batch_size}")
        total = sum(map(self._images, left))
        if total:
            print(estimate(left[0], total))
        return 0

    def _rows(self, record: Results, measured: Iterator[Row] | None) -> list[dict[str, Value]]:
        """Return the rows of one kind of hardware: this one's, after measuring what it lacks, or the newest row's."""
        for row in measured or ():
            record.append(row)
        rows = record.rows()
        wanted = hardware(self._flags.place) if measured is not None else rows[-1]["hardware"] if rows else ""
        return [row for row in rows if row["hardware"] == wanted]

    def _check_device(self) -> None:
        try:
            torch.empty(1, device=self._flags.place)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"device={self._flags.place!r} cannot be used ({first_line(error)}); give another --device"
            ) from error

    def _draw(self, rows: list[dict[str, Value]], tracker: Tracker) -> Sequence[Path]:
        if not rows and not self._failed:
            raise ConfigError(
                f"storage folder {str(self._folder)!r} has nothing recorded to draw; run this without --report-only first"
            )
        done = FigureData(
            name=self._name, preset=self._preset, plan=self._plan, rows=rows, folder=self._folder, tracker=tracker
        )  # fmt: skip
        return self._picture(done) if rows else ()

    def _finish(self, paths: Sequence[Path], tracker: Tracker) -> int:
        print(f"figure: {', '.join(map(str, paths))}")
        print(f"results: {Results(self._folder).export()}")
        print_link(tracker)
        print(f"resume: {resume_line()}", flush=True)
        return 1 if self._failed else 0


def recorded(room: MeasurementContext) -> set[str]:
    """Return the run_ids that this figure's record has; what is there is not measured again."""
    return Results(room.folder).done()


def number_of_devices(device: str) -> int:
    """Return how many devices of this kind there are: GPUs, or the cores that this process may use."""
    if device.startswith("cuda"):
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
