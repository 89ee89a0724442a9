"""Measuring: the command of a figure that measures by itself, on the face and the record that studies have."""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from backlink_ray import environment
from backlink_ray.config import ConfigError, RunConfig
from backlink_ray.study.command import Finished, Picture
from backlink_ray.study.face import CommonFlags, choose_preset, guarded, open_tracker, print_link, resume_line
from backlink_ray.study.figure import budget, hardware
from backlink_ray.study.record import Record, Value
from backlink_ray.study.search import base_with
from backlink_ray.study.spool import slug
from backlink_ray.study.tracking import Tracker
from backlink_ray.study.tuning import Plan, claim, only_driver

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class FigureFlags(CommonFlags):
    """Flags of a figure that measures by itself."""

    device: str = ""
    """Where to measure: cuda, cuda:1 or cpu; default: the GPU where there is one."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Go on with what the storage path holds: auto if there is something, never, or must."""
    executor: Literal["auto", "local", "threads", "ray"] = "auto"
    """Where local modules run, in figures where that matters; auto: what the figure compares."""

    @property
    def place(self) -> str:
        """Return the device."""
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, kw_only=True)
class Room:
    """Where a figure measures: under which flags, in which folder, on which hardware."""

    flags: FigureFlags
    folder: Path
    device: str
    hardware: str


# Yields one row after another for the configurations that are to be measured; a row has the run_id of its record.
Measure = Callable[[Sequence[RunConfig], Room], Iterator[Row]]


def figure_main(
    name: str, presets: dict[str, Plan], measure: Measure, picture: Picture, description: str,
    arguments: Sequence[str] | None = None,
) -> int:  # fmt: skip
    """Run a figure that measures from its command line: measure what is not recorded yet, then draw.

    Args:
        name: of the figure, its folder and its files.
        presets: "paper" and "smoke"; their cells are what is measured.
        measure: does it.
        picture: draws it from the rows of one kind of hardware.
        description: shown by --help.
        arguments: the command line's if not given.

    Returns:
        0 done; 2 bad arguments or configuration; 3 interrupted and resumable.
    """
    flags = tyro.cli(FigureFlags, prog=f"{name}.py", description=description, args=arguments)
    return guarded(lambda: _FigureCommand(name, presets, measure, picture, flags).run())


def row_of(config: RunConfig, room: Room, suffix: str = "", **measured: Value) -> Row:
    """Return a record's row: the configuration, what was measured, and with what."""
    hash_of = environment.derive_seed(0, room.hardware) % 10**8
    return {
        **dataclasses.asdict(config), "run_id": slug(f"{config.run_id}-{hash_of}{suffix}"), "status": "FINISHED",
        "reason": "done", **measured, "hardware": room.hardware, "device": room.device.split(":")[0],
        "commit": environment.commit(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


class _FigureCommand:
    def __init__(
        self, name: str, presets: dict[str, Plan], measure: Measure, picture: Picture, flags: FigureFlags
    ) -> None:
        self._flags, self._measure, self._picture = flags, measure, picture
        self._preset = choose_preset(presets, flags)
        plan = presets[self._preset]
        self._plan = dataclasses.replace(plan, base=plan.base.replace(seed=flags.seed))
        self._name = name if self._preset == "paper" else f"{name}-{self._preset}"
        self._folder = flags.storage / self._name
        self._configs = list({c.run_id: c for c in (base_with(self._plan.base, x) for x in plan.cells)}.values())

    def run(self) -> int:
        if self._flags.dry_run:
            return self._dry_run()
        if not self._flags.report_only:
            self._check_device()
        claim(self._folder, self._name, self._plan, "must" if self._flags.report_only else self._flags.resume)
        with only_driver(self._folder):
            note = f"{self._name}: a figure of the paper, measured anew."
            tracker = open_tracker(self._flags, f"backlink-{self._name}", note)  # first: a wrong URI costs no measuring
            try:
                paths = self._draw(self._rows(Record(self._folder)), tracker)
            finally:
                tracker.close()
        return self._finish(paths, tracker)

    def _dry_run(self) -> int:
        for config in self._configs:
            print(f"{config.network}/{config.label}/{config.run_name}  tail {config.tail_memory}")
        print(
            f"{len(self._configs)} to measure on {self._flags.place}, preset {self._preset}; {budget(self._plan.base)}"
        )
        return 0

    def _rows(self, record: Record) -> list[dict[str, Value]]:
        """Return the rows of one kind of hardware: this one's, after measuring what it lacks, or the newest row's."""
        if not self._flags.report_only:
            place = self._flags.place
            room = Room(flags=self._flags, folder=self._folder, device=place, hardware=hardware(place))
            for row in self._measure(self._configs, room):
                record.append(row)
            return [row for row in record.rows() if row["hardware"] == room.hardware]
        rows = record.rows()
        return [row for row in rows if row["hardware"] == rows[-1]["hardware"]]

    def _check_device(self) -> None:
        try:
            torch.empty(1, device=self._flags.place)
        except (RuntimeError, AssertionError) as error:
            line = str(error).splitlines()[0]
            raise ConfigError(f"device={self._flags.place!r} cannot be used ({line}); give another --device") from error

    def _draw(self, rows: list[dict[str, Value]], tracker: Tracker) -> Sequence[Path]:
        if not rows:
            raise ConfigError(
                f"storage folder {str(self._folder)!r} has nothing recorded to draw; run this without --report-only first"
            )
        return self._picture(
            Finished(
                name=self._name, preset=self._preset, plan=self._plan, rows=rows, folder=self._folder, tracker=tracker
            )
        )  # fmt: skip

    def _finish(self, paths: Sequence[Path], tracker: Tracker) -> int:
        print(f"figure: {', '.join(map(str, paths))}")
        print(f"results: {self._folder / 'results'} (Parquet)")
        print_link(tracker)
        print(f"resume: {resume_line()}", flush=True)
        return 0


def recorded(room: Room) -> set[str]:
    """Return the run_ids that this figure's record has; what is there is not measured again."""
    return Record(room.folder).done()


def number_of_devices(device: str) -> int:
    """Return how many devices of this kind there are: GPUs, or the cores that this process may use."""
    if device.startswith("cuda"):
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
