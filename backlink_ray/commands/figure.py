"""Figure: the command of a figure that measures by itself."""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro

from backlink_ray import provenance
from backlink_ray.commands.command import Command
from backlink_ray.commands.exit_codes import RUN_ERRORS, first_line, guarded, resume_line
from backlink_ray.commands.flags import CommonFlags, choose_preset
from backlink_ray.commands.search import Picture, estimate
from backlink_ray.errors import ConfigError
from backlink_ray.figures.data import FigureData
from backlink_ray.figures.style import name_of
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Results, Row, Value
from backlink_ray.seeds import derive_seed
from backlink_ray.text import slug
from backlink_ray.tracking.tracker import NoTracker
from backlink_ray.tuning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class FigureFlags(CommonFlags):
    """Flags of a figure that measures by itself."""

    device: str = ""
    """Where to measure: cuda, cuda:1 or cpu; default: the GPU where there is one."""
    executor: Literal["auto", "threads", "ray"] = "auto"
    """Where the stages of figure 9 run; auto: as threads, and then as Ray actors."""

    @property
    def chosen_device(self) -> str:
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

    def row_id(self, config: RunConfig, suffix: str = "") -> str:
        """Return the name of a measurement: of the run, and of what it is measured on."""
        return slug(f"{config.run_id}-{derive_seed(0, self.hardware) % 10**8}{suffix}")

    def row(self, config: RunConfig, suffix: str = "", **measured: Value) -> Row:
        """Return a row of results: the configuration, what was measured, and with what."""
        return {
            **dataclasses.asdict(config), "run_id": self.row_id(config, suffix), "status": "FINISHED",
            "reason": "done", **measured, "hardware": self.hardware, "device": self.device.split(":")[0],
            "commit": provenance.commit(), "date": time.strftime("%Y-%m-%d"),
        }  # fmt: skip

    def measured(self) -> set[str]:
        """Return the names of what is recorded: it is not measured again."""
        return Results(self.folder).done()


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a figure measures, and how.

    Attributes:
        presets: "paper" and "smoke"; their runs are what is measured.
        measure: checks what the runs need before anything is claimed; then yields a row per measurement.
        picture: draws it from the rows of one kind of hardware.
        refuse: says why a run cannot be measured on a device, "" where it can.
        images: how many images a run's measuring trains on, for a dry run's estimate; where it is 0 for all, there is none.
    """

    presets: dict[str, Plan]
    measure: Callable[[Sequence[RunConfig], MeasurementContext], Iterator[Row]]
    picture: Picture
    refuse: Callable[[RunConfig, str], str] = field(default=lambda _run, _device: "")
    images: Callable[[RunConfig], int] = field(default=lambda _run: 0)


def figure_main(name: str, measurement: Measurement, description: str, arguments: Sequence[str] | None = None) -> int:
    """Run a figure that measures from its command line: measure what is not recorded yet, then draw.

    Args:
        name: of the figure, its folder and its files.
        measurement: what and how.
        description: shown by --help.
        arguments: the command line's if not given.

    Returns:
        As `guarded`.
    """

    def run() -> int:
        flags = tyro.cli(FigureFlags, prog=f"{name}.py", description=description, args=arguments)
        return FigureCommand(name, measurement, flags).run()

    return guarded(run, resume_line)


class FigureCommand(Command):
    """A figure that measures by itself."""

    flags: FigureFlags

    def __init__(self, name: str, measurement: Measurement, flags: FigureFlags) -> None:
        self._measurement, self._preset = measurement, choose_preset(measurement.presets, flags)
        plan = measurement.presets[self._preset]

        def given(run: RunConfig) -> RunConfig:
            return run.replace(seed=flags.seed + run.seed)

        plan = dataclasses.replace(plan, base=given(plan.base), runs=tuple(map(given, plan.runs)))
        super().__init__(flags, name if self._preset == "paper" else f"{name}-{self._preset}", plan)
        self._runs = list({run.run_id: run for run in plan.runs}.values())
        self._hardware, self._failed = "", list[str]()

    def note(self) -> str:
        return f"{self.name}: a figure of the paper, measured anew."

    def prepare(self) -> None:
        """Check device, runs and what measuring needs."""
        device = self.flags.chosen_device
        _check_device(device)
        refused = {run.run_id: self._measurement.refuse(run, device) for run in self._runs}
        left = [run for run in self._runs if not refused[run.run_id]]
        if not left:
            raise ConfigError(
                f"device={device!r} can measure nothing of this figure ({next(iter(refused.values()))}); give another "
                "--device, or use another machine"
            )
        self._hardware = provenance.hardware(device)
        context = MeasurementContext(
            flags=self.flags, folder=self.folder, device=device, hardware=self._hardware, failed=self._failed
        )
        self._rows_to_come = self._measurement.measure(left, context)

    def carry_out(self, tracker: NoTracker) -> None:
        results = self.results
        for row in self._rows_to_come:
            results.append(row)

    def write(self) -> Sequence[Path]:
        """Draw the rows of one kind of hardware: this one's, or in a report the newest row's."""
        rows = self.results.rows()
        hardware = self._hardware or rows[-1]["hardware"]
        rows = [row for row in rows if row["hardware"] == hardware]
        return self._measurement.picture(FigureData(plan=self.plan, rows=rows, folder=self.folder)) if rows else ()

    def show(self) -> None:
        print(f"{self.name}: {len(self.results.done())} measurements recorded")

    def ending(self) -> int:
        return 1 if self._failed else 0

    def dry_run(self) -> None:
        device, refuse = self.flags.chosen_device, self._measurement.refuse
        for run in self._runs:
            why = refuse(run, device)
            ending = f"  left out: {why}" if why else ""
            print(f"{run.network}/{run.label}/{run.run_name}  tail {run.tail_memory}{ending}")
        left = [run for run in self._runs if not refuse(run, device)]
        print(f"{len(left)} to measure on {device}, preset {self._preset}, batch {self.plan.base.batch_size}")
        total = sum(map(self._measurement.images, left))
        if total:
            print(estimate(left[0], total))


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={device!r} cannot be used ({first_line(error)}); give another --device") from error


def number_of_devices(device: str) -> int:
    """Return how many devices of this kind there are: GPUs, or the cores that this process may use."""
    if device.startswith("cuda"):
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
