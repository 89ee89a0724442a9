"""Face: what the commands of studies and of figures have in common: flags, the choice of a preset, exit codes, tracking."""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from backlink_ray.errors import ConfigError, NonFiniteLossError, StageError
from backlink_ray.tracking.tracker import ExperimentInfo, NoTracker, Tracker
from backlink_ray.tracking.uri import default_tracking_uri, redact

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
        ConfigError: a tracking URI of no kind that MLflow takes.
    """
    flag, env = flags.tracking_uri, os.environ.get("MLFLOW_TRACKING_URI", "")
    uri = flag or env or default_tracking_uri(flags.storage)
    source = "--tracking-uri" if flag else "$MLFLOW_TRACKING_URI" if env else "the storage path"
    print(f"tracking to {redact(uri)} (from {source})", file=sys.stderr, flush=True)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment
    return Tracker(uri, ExperimentInfo(name=name, note=note), flags.storage)


def print_link(tracker: NoTracker, group_by: str = "K", only: str = "") -> None:
    """Print the MLflow command, where a server has to be started, and the link, as `Tracker.link` makes it."""
    link, command = tracker.link(group_by, only), tracker.command()
    print(f"MLflow: {command + '  then open ' if command else ''}{link}")


@dataclass(frozen=True, kw_only=True)
class Flags(CommonFlags):
    """Flags that every study has."""

    num_samples: int = 0
    """Trials of a search; 0 takes the preset's."""
    max_concurrent: int = 0
    """Trials at once; 0: as many as the GPUs allow, one on a CPU machine."""
    asha: bool = False
    """Stop the trials of a search early that rank low at an epoch (ASHA); best with several trials at once."""
    trade_off: bool = False
    """Search for the trade-off of error, memory and step time (NSGA-II) instead of the error alone (TPE)."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Go on with what the storage path holds: auto if there is something, never, or must."""
    gpus: float = 0.0
    """GPUs the cluster at --address can grow to, where it starts machines on demand; 0: those it has now."""
    gpus_per_stage: float = 1.0
    """GPUs one local module takes, where there are GPUs; a fraction lets modules share one."""
    executor: Literal["auto", "local", "threads", "ray"] = "auto"
    """Where a trial's local modules run; auto: one Ray actor each where the cluster has the places."""
