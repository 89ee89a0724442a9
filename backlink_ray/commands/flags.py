"""Face: what the commands of studies and of figures have in common: flags, the choice of a preset, exit codes, tracking."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from ray.tune import TuneError

from backlink_ray.pipeline.controller import StageError
from backlink_ray.runs.config import ConfigError
from backlink_ray.tracking.tracker import Tracker, default_tracking_uri, redact
from backlink_ray.train.checkpoint import CheckpointError
from backlink_ray.train.executor import NonFiniteLossError

# What ends one run or measurement, and says nothing about the next.
RUN_ERRORS = (NonFiniteLossError, StageError, torch.OutOfMemoryError)


@dataclass(frozen=True, kw_only=True)
class CommonFlags:
    """Flags that studies and figures have."""

    smoke_test: bool = False
    """Under 2 minutes on 2 CPU cores, on the embedded real sample, no download."""
    dry_run: bool = False
    """Print what would run, what each part needs, and stop."""
    report_only: bool = False
    """Run nothing: make the table and the picture from what is recorded already."""
    preset: str = ""
    """One of the presets by name; default: the paper's budget with a GPU, the smoke test without."""
    storage_path: str = "results"
    """Folder of studies and figures: records, checkpoints, Optuna's and MLflow's databases."""
    tracking_uri: str = ""
    """MLflow; default $MLFLOW_TRACKING_URI, else sqlite in the storage path."""
    seed: int = 0
    """Of weights, data order, augmentation and search."""
    address: str = ""
    """Ray cluster; default $RAY_ADDRESS, else a private one on this machine."""
    data_root: str = ""
    """Folder of the data sets; default $BACKLINK_RAY_DATA, else ~/.cache/backlink_ray."""

    @property
    def storage(self) -> Path:
        """Return the storage path, absolute."""
        return Path(self.storage_path).expanduser().absolute()


class SecondInterruptError(KeyboardInterrupt):
    """Ctrl-C while the trials were already being ended after an earlier one."""


def guarded(run: Callable[[], int]) -> int:
    """Return run()'s exit code; an error becomes one line on stderr.

    Returns:
        0 done; 1 done, but some trials failed, or a failure ended it all; 2 bad arguments or configuration; 3 interrupted
        and resumable; 130 the same at a second Ctrl-C.
    """
    try:
        return run()
    except (*RUN_ERRORS, CheckpointError) as error:
        return _say(f"failed: {first_line(error)}; resume: {resume_line()}", 1)
    # ConfigError, DataError, a tracking URI; no cluster at the address, a full disk
    except (ValueError, OSError) as error:
        return _say(f"error: {error}", 2)
    except TuneError as error:
        return _say(f"failed: {str(error).strip().splitlines()[-1]}; resume: {resume_line()}", 1)
    except KeyboardInterrupt as error:
        return _say(f"interrupted; resume: {resume_line()}", 130 if isinstance(error, SecondInterruptError) else 3)


def first_line(error: BaseException) -> str:
    """Return what an error says first; CUDA's go on with advice on its allocator."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr, flush=True)
    return code


def resume_line() -> str:
    """Return the command that goes on with what this process was asked for, as the user typed it."""
    line = shlex.join([sys.orig_argv[0], *sys.argv])  # the Python as the user typed it
    return re.sub(r" --resume[ =]\w+", "", line) + " --resume auto"


def choose_preset(presets: Iterable[str], flags: CommonFlags) -> str:
    """Return the preset that the flags and this machine ask for: "paper" where there is a GPU, else "smoke", which is said.

    Raises:
        ConfigError: a preset that there is not, or one beside --smoke-test.
    """
    if flags.smoke_test:
        if flags.preset not in ("", "smoke"):
            raise ConfigError(f"--smoke-test is the preset 'smoke'; leave out --preset {flags.preset!r}")
        return "smoke"
    if flags.preset:
        if flags.preset not in presets:
            raise ConfigError(f"preset={flags.preset!r} is not known; allowed: {', '.join(presets)}")
        return flags.preset
    if torch.cuda.is_available() or flags.address or os.environ.get("RAY_ADDRESS") or flags.dry_run:
        return "paper"
    print(
        "no GPU here: the paper's budget needs one, so this runs the smoke preset (--preset paper insists)",
        file=sys.stderr,
    )
    return "smoke"


def open_tracker(flags: CommonFlags, experiment: str, note: str) -> Tracker:
    """Open the tracker of an experiment, and say where it tracks to: the flag, else MLflow's variable, else the storage path.

    Raises:
        ValueError: a tracking URI of no kind that MLflow takes.
        OSError: the spool cannot be written.
    """
    flag, env = flags.tracking_uri, os.environ.get("MLFLOW_TRACKING_URI", "")
    uri = flag or env or default_tracking_uri(flags.storage)
    source = "--tracking-uri" if flag else "$MLFLOW_TRACKING_URI" if env else "the storage path"
    print(f"tracking to {redact(uri)} (from {source})", file=sys.stderr, flush=True)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment
    return Tracker(flags.storage / "spool", uri, experiment=name, note=note)


def print_link(tracker: Tracker, group_by: str = "K", only: str = "") -> None:
    """Print the MLflow command, where a server has to be started, and the link, as `Tracker.link` makes it."""
    link, command = tracker.link(group_by, only), tracker.command()
    print(f"MLflow: {command + '  then open ' if command else ''}{link}")
