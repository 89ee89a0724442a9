"""Flags that commands share, and the choice of a preset."""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from backlink_ray.errors import ConfigError
from backlink_ray.pipeline.resources import STAGE, StageResources


@dataclass(frozen=True, kw_only=True)
class CommonFlags:
    """Flags of searches, tables and figures."""

    smoke_test: bool = False
    """Under 2 minutes on 2 CPU cores, on the embedded real sample, no download."""
    dry_run: bool = False
    """Print what would run, what each part needs, and stop."""
    report_only: bool = False
    """Run nothing: make the table and the picture from what is recorded already."""
    preset: str = ""
    """One of the presets by name; default: the paper's budget with a GPU, the smoke test without."""
    storage_path: str = "results"
    """Folder of studies and figures: results, checkpoints, Optuna's and MLflow's databases."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Go on with what the storage path holds: auto if there is something, never, or must."""
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


@dataclass(frozen=True, kw_only=True)
class TrialFlags(CommonFlags):
    """Flags of what runs trials on a cluster: searches and tables."""

    max_concurrent: int = 0
    """Trials at once; 0: as many as the GPUs allow, one on a CPU machine."""
    gpus: float = 0.0
    """GPUs the cluster at --address can grow to, where it starts machines on demand; 0: those it has now."""
    stage: Annotated[StageResources, tyro.conf.arg(name="")] = STAGE
    executor: Literal["auto", "local", "threads", "ray"] = "auto"
    """Where a trial's local modules run; auto: one Ray actor each where the cluster has the places."""

    def check(self) -> None:
        """Refuse numbers out of range, by name; ConfigError says what is allowed."""
        not_negative(self, "max_concurrent", "gpus")
        if self.gpus and not (self.address or os.environ.get("RAY_ADDRESS")):
            raise ConfigError(
                f"gpus={self.gpus:g} is for a cluster that grows; give its --address, or leave --gpus out"
            )


def not_negative(flags: object, *names: str) -> None:
    """Refuse numbers below 0, where 0 stands for a default, by name."""
    for name in names:
        if not getattr(flags, name) >= 0:
            raise ConfigError(f"{name}={getattr(flags, name)} is out of range; allowed 0 (the default) or more")


def choose_preset(presets: Iterable[str], flags: CommonFlags) -> str:
    """Return the preset that the flags and this machine ask for: "paper" where there is a GPU, else "smoke", which is said.

    Raises:
        ConfigError: a preset that does not exist, or one beside --smoke-test.
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
