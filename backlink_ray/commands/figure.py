"""Figure: the command of a figure that makes its own measurements."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from backlink_ray import provenance
from backlink_ray.commands.command import Command, run_command
from backlink_ray.commands.exit_codes import RUN_ERRORS
from backlink_ray.commands.flags import CommonFlags, EngineFlags, check_device, choose_preset
from backlink_ray.commands.search import Picture
from backlink_ray.commands.trials import estimate
from backlink_ray.errors import ConfigError, first_line
from backlink_ray.figures.data import FigureData
from backlink_ray.figures.style import name_of
from backlink_ray.output import say
from backlink_ray.processes import usable_cores
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import engine_of
from backlink_ray.runs.results import Row, Value, columns_of
from backlink_ray.seeds import derive_seed
from backlink_ray.text import slug
from backlink_ray.tracking.tracker import NoTracker
from backlink_ray.tuning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class FigureFlags(CommonFlags):
    """Flags of a figure that makes its own measurements."""

    device: str = ""
    """Where to measure: cuda, cuda:1 or cpu; default: the GPU where there is one."""
    executor: Literal["auto", "threads", "ray"] = "auto"
    """Where the stages of figure 9 run; auto: both, one after the other."""
    engine: Annotated[EngineFlags, tyro.conf.arg(name="")] = field(default_factory=EngineFlags)

    @property
    def chosen_device(self) -> str:
        """Return the device."""
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a figure measures, and how.

    Attributes:
        presets: "paper" and "smoke"; their runs are measured.
        measure: checks what the runs need when called, before the folder is opened; then yields one row per measurement.
        picture: draws the figure from rows of one kind of hardware.
        refuse: returns why a run cannot be measured on a device, "" if it can.
        images: how many images are trained on to measure a run, for a dry run's estimate; none is printed if all are 0.
    """

    presets: dict[str, Plan]
    measure: Callable[[Sequence[RunConfig], "FigureCommand"], Iterator[Row]]
    picture: Picture
    refuse: Callable[[RunConfig, str], str] = field(default=lambda _run, _device: "")
    images: Callable[[RunConfig], int] = field(default=lambda _run: 0)


def figure_main(name: str, measurement: Measurement, description: str, arguments: Sequence[str] | None = None) -> int:
    """Run a figure from its command line: measure what is not recorded yet, then draw. Exit codes as in `guarded`."""
    return run_command(lambda flags: FigureCommand(name, measurement, flags), FigureFlags, name, description, arguments)


class FigureCommand(Command):
    """A figure that makes its own measurements.

    Attributes:
        device: to measure on.
        hardware: it and what is around it, in words; "" in a report.
    """

    flags: FigureFlags

    def __init__(self, name: str, measurement: Measurement, flags: FigureFlags) -> None:
        self._measurement, self._preset = measurement, choose_preset(measurement.presets, flags)
        plan = measurement.presets[self._preset]
        how = flags.engine.given
        base, *runs = (run.replace(seed=flags.seed + run.seed, **how) for run in (plan.base, *plan.runs))
        plan = dataclasses.replace(plan, base=base, runs=tuple(runs))
        super().__init__(flags, plan, name, self._preset, *flags.engine.names)
        self._runs = list({run.run_id: run for run in plan.runs}.values())
        self.device, self.hardware, self._num_failed = flags.chosen_device, "", 0

    def note(self) -> str:
        return f"{self.name}: a figure of the paper, measured again."

    def prepare(self) -> None:
        """Check the device, the runs and what measuring them needs."""
        check_device(self.device)
        engine_of(self.plan.base).check(torch.device(self.device), torch.float32)
        refused = {run.run_id: self._measurement.refuse(run, self.device) for run in self._runs}
        left = [run for run in self._runs if not refused[run.run_id]]
        if not left:
            raise ConfigError(
                f"device={self.device!r} can measure no run of this figure ({next(iter(refused.values()))}); give another "
                "--device, or use another machine"
            )
        self.hardware = provenance.hardware(self.device)
        self._new_rows = self._measurement.measure(left, self)

    @contextmanager
    def attempt(self, config: RunConfig) -> Iterator[None]:
        """Measure one configuration; if it diverges or does not fit into memory, that is counted, and the next one follows."""
        try:
            yield
        except RUN_ERRORS as error:
            self._num_failed += 1
            say(f"{name_of(config)} failed and is left out: {first_line(error)}")

    def row_id(self, config: RunConfig, suffix: str = "") -> str:
        """Return the id of a measurement: of a run on this hardware."""
        return slug(f"{config.run_id}-{derive_seed(0, self.hardware) % 10**8}{suffix}")

    def row(self, config: RunConfig, suffix: str = "", **measured: Value) -> Row:
        """Return a row of results: the configuration, what was measured, and on what."""
        return {
            **columns_of(config), "run_id": self.row_id(config, suffix), "status": "FINISHED",
            "reason": "done", **measured, "hardware": self.hardware, "device": self.device.split(":")[0],
            "commit": provenance.commit(), "date": time.strftime("%Y-%m-%d"),
        }  # fmt: skip

    def carry_out(self, tracker: NoTracker) -> None:
        results = self.results
        for row in self._new_rows:
            results.append(row)

    def write(self) -> Sequence[Path]:
        """Draw the rows of one kind of hardware: of this machine, or in a report of the newest row."""
        rows = self.results.rows()
        hardware = self.hardware or rows[-1]["hardware"]
        rows = [row for row in rows if row["hardware"] == hardware]
        return self._measurement.picture(FigureData(plan=self.plan, rows=rows, folder=self.folder)) if rows else ()

    def show(self) -> None:
        print(f"{self.name}: {len(self.results.done())} measurements recorded")

    def failed(self) -> int:
        return self._num_failed

    def dry_run(self) -> None:
        refuse = self._measurement.refuse
        for run in self._runs:
            reason = refuse(run, self.device)
            left_out = f"  left out: {reason}" if reason else ""
            print(f"{run.network}/{run.label}/{run.run_name}  tail {run.tail_memory}{left_out}")
        left = [run for run in self._runs if not refuse(run, self.device)]
        print(f"{len(left)} to measure on {self.device}, preset {self._preset}, batch {self.plan.base.batch_size}")
        work = [(run, self._measurement.images(run)) for run in left]
        if any(images for _, images in work):
            print(estimate(work))


def number_of_devices(device: str) -> int:
    """Return the number of devices of this kind: GPUs, or the cores that this process may use."""
    if device.startswith("cuda"):
        return torch.cuda.device_count()
    return usable_cores()
