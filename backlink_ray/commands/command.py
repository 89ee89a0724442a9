"""Command: what searches, tables and figures have in common, from their flags to their last line."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

import tyro

from backlink_ray.commands.exit_codes import guarded, resume_line
from backlink_ray.commands.flags import CommonFlags, parse
from backlink_ray.errors import ConfigError
from backlink_ray.output import say
from backlink_ray.runs.results import Results
from backlink_ray.runs.tracked import track_files
from backlink_ray.tracking.run import ExperimentInfo
from backlink_ray.tracking.tracker import NoTracker, open_tracker
from backlink_ray.tuning.folder import check_study_folder, closed_to_others, open_study_folder
from backlink_ray.tuning.plan import Plan

Flags = TypeVar("Flags", bound=CommonFlags)


class Command(ABC):
    """One study, run from its command line. A subclass says what is prepared, run and written.

    Attributes:
        flags: of the command line.
        name: of the study and of its folder: the parts that are given, without the preset "paper", which is the default.
        plan: what the study runs; its base and metric distinguish one study from another.
        folder: the study's, below the storage path.
        missing: how many trials an interruption left.
        group_by, only: how the link to MLflow groups runs, and which of them it shows.
    """

    missing = 0
    group_by, only = "K", ""

    def __init__(self, flags: CommonFlags, plan: Plan, *names: str) -> None:
        self.flags, self.plan = flags, plan
        self.name = "-".join(name for name in names if name not in ("", "paper"))
        self.folder = flags.storage / self.name

    def run(self) -> int:
        """Do what the flags ask for; return the exit code."""
        if self.flags.dry_run:
            self.dry_run()
            return 0
        if self.flags.report_only:
            return self._report()
        self.prepare()
        info = ExperimentInfo(name=self.experiment(), note=self.note())
        with open_study_folder(self.folder, self.name, self.plan, self.flags.resume):
            with closing(open_tracker(self.flags.tracking_uri, info, self.flags.storage)) as tracker:
                self.carry_out(tracker)
                files = self.write()
                track_files(tracker, self.folder, files)
            self._last_lines((self.results.export(), *files), tracker)
        return self._exit_code()

    def _report(self) -> int:
        self.check_report()
        files: Sequence[Path] = ()
        if os.access(self.folder, os.W_OK, effective_ids=True):
            with closed_to_others():
                files = (self.results.export(), *self.write())
        else:
            say(f"{self.folder} is not writable, so its tables and figures are not updated")
        self._last_lines(files, NoTracker())
        return self._exit_code()

    def check_report(self) -> None:
        """Check that something is recorded to report on; ConfigError names the folder."""
        check_study_folder(self.folder, self.name, self.plan)
        if not self.results.done():
            raise ConfigError(
                f"storage folder {str(self.folder)!r} has no finished run to report; run this without --report-only first"
            )

    @abstractmethod
    def dry_run(self) -> None:
        """Print what would run."""

    @abstractmethod
    def prepare(self) -> None:
        """Check and load what the work needs, before the study's folder is opened."""

    @abstractmethod
    def carry_out(self, tracker: NoTracker) -> None:
        """Run or measure what is left."""

    @abstractmethod
    def write(self) -> Sequence[Path]:
        """Write tables and figures from what is recorded; return the files."""

    @abstractmethod
    def show(self) -> None:
        """Print what is recorded, and a summary."""

    @abstractmethod
    def note(self) -> str:
        """Return the description of the experiment in MLflow."""

    def failed(self) -> int:
        """Return how many runs or measurements failed; the place to print how to repeat them."""
        return 0

    def experiment(self) -> str:
        """Return the name of the experiment in MLflow."""
        return f"backlink-{self.name}"

    @property
    def results(self) -> Results:
        """Return the study's results."""
        return Results(self.folder)

    def _exit_code(self) -> int:
        if self.missing:
            say(f"interrupted with {self.missing} trials left")
            return 3
        return 1 if self.failed() else 0

    def _last_lines(self, files: Sequence[Path], tracker: NoTracker) -> None:
        self.show()
        print(f"results: {', '.join(map(str, files or (self.folder,)))}")
        if page := tracker.page(self.group_by, self.only):
            print(page)
        print(resume_line(), flush=True)


def run_command(
    make: Callable[[Flags], Command],
    flags: type[Flags],
    name: str,
    description: str | None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the command line of the script NAME.py, run its command, and return the exit code as `guarded` does."""

    def run() -> int:
        read = partial(tyro.cli, flags, prog=f"{name}.py", description=description)
        return make(parse(read, sys.argv[1:] if arguments is None else arguments)).run()

    return guarded(run, resume_line)
