"""Flags that commands share, and the choice of a preset."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro

from backlink_ray.errors import ConfigError, first_line
from backlink_ray.files import local_path
from backlink_ray.local.engine import DEFAULT
from backlink_ray.output import say
from backlink_ray.pipeline.resources import STAGE, StageResources
from backlink_ray.runs.executors import check_transport
from backlink_ray.runs.options import DEFAULT as RUN
from backlink_ray.runs.options import RunOptions
from backlink_ray.tracking.uri import redact
from backlink_ray.tuning.resources import read_runs_per_gpu

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, kw_only=True)
class CommonFlags:
    """Flags of searches, tables and figures."""

    smoke_test: bool = False
    """Run a small version: under 2 minutes on 2 CPU cores, on the embedded real sample, without a download."""
    dry_run: bool = False
    """Print what would run, what each part needs, and stop."""
    report_only: bool = False
    """Run nothing: write tables and figures from what is already recorded."""
    preset: str = ""
    """Name of a preset; default: paper if there is a GPU, else smoke."""
    storage_path: str = "results"
    """Folder of studies and figures: results, checkpoints, Optuna's and MLflow's databases."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Resume what the storage path holds: auto (if there is anything), never, or must."""
    tracking_uri: str = ""
    """MLflow's URI; default $MLFLOW_TRACKING_URI, else SQLite in the storage path."""
    seed: int = 0
    """Seed of weights, data order, augmentation and search."""
    address: str = ""
    """Ray cluster; default $RAY_ADDRESS, else a private one on this machine."""
    data_root: str = ""
    """Folder of the data sets; default $BACKLINK_RAY_DATA, else ~/.cache/backlink_ray."""

    @property
    def storage(self) -> Path:
        """Return the storage path, absolute."""
        return local_path(self.storage_path, "storage_path").absolute()


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """How the steps of every run are computed, in place of what the preset says; see `backlink-ray train --help`."""

    memory_format: Literal["", "channels_last", "contiguous"] = ""
    """Of every run: order of feature maps in memory; default: the preset's (in tables channels_last)."""
    precision: Literal["", "fp32", "tf32", "bf16"] = ""
    """Of every run; default: the preset's (in tables fp32)."""
    compile: Literal["", "none", "units"] = ""
    """Of every run: compile its units; default: the preset's (in tables none)."""
    graph: bool = False
    """Every run, on a GPU: the step as one CUDA graph, in a stage one between every two links."""

    @property
    def given(self) -> dict[str, Any]:
        """Return what the flags say of a run."""
        return {name: value for name, value in vars(self).items() if value}

    @property
    def changed(self) -> dict[str, Any]:
        """Return what of it differs from the default of a run."""
        return {name: value for name, value in self.given.items() if value != getattr(DEFAULT, name)}

    @property
    def names(self) -> list[str]:
        """Return what differs from the default as parts of a study's name."""
        return ["graph" if name == "graph" else value for name, value in self.changed.items()]


@dataclass(frozen=True, kw_only=True)
class LimitFlags:
    """Flags of commands that train: how long they wait, what they lose at most, and what a stage reserves."""

    stage_timeout_s: float = RUN.stage_timeout_s
    """Longest time that a stage waits for its neighbour, or takes for one action of its own, in seconds."""
    ready_timeout_s: float = RUN.ready_timeout_s
    """Longest wait for room in the Ray cluster, and for the stages' processes to start, in seconds."""
    max_recoveries: int = RUN.max_recoveries
    """How often what was lost, a stage on Ray or a trial of a study, goes on from its newest checkpoint."""
    checkpoint_every_s: float = RUN.checkpoint_every_s
    """Longest time between two checkpoints, in seconds: at most that much work is lost."""
    transport: Literal["auto", "objectstore", "collective"] = "auto"
    """How stages on Ray exchange: objectstore (Ray's); collective (torch.distributed: gloo; NCCL on GPUs, not run yet); auto:
    objectstore."""
    resources: Annotated[StageResources, tyro.conf.arg(name="")] = STAGE

    @property
    def options(self) -> RunOptions:
        """Return them as options of a run; ConfigError if one is out of range."""
        return RunOptions(**{each.name: getattr(self, each.name) for each in fields(LimitFlags)})


@dataclass(frozen=True, kw_only=True)
class TrialFlags(CommonFlags, LimitFlags):
    """Flags of commands that run trials on a cluster: searches and tables."""

    max_concurrent: int = 0
    """Concurrent trials; 0: as many as the GPUs allow, one without a GPU."""
    gpus: float = 0.0
    """GPUs that an autoscaling cluster at --address can grow to; 0: those it has now."""
    runs_per_gpu: str = "1"
    """Trials of executor local that share a GPU, and with it their step times; auto: as many as keep it busy, measured."""
    engine: Annotated[EngineFlags, tyro.conf.arg(name="")] = field(default_factory=EngineFlags)
    executor: Literal["auto", "local", "threads", "ray"] = "auto"
    """Where a trial's local modules run; auto: one Ray actor each if the cluster has room for them."""

    def check(self) -> None:
        """Raise ConfigError if a number is out of range."""
        not_negative(self, "max_concurrent", "gpus")
        _ = self.options
        check_transport(self.transport, self.executor)
        read_runs_per_gpu(self.runs_per_gpu)
        if self.gpus and not (self.address or os.environ.get("RAY_ADDRESS")):
            raise ConfigError(
                f"gpus={self.gpus:g} is for an autoscaling cluster; give its --address, or leave out --gpus"
            )


def not_negative(flags: object, *names: str) -> None:
    """Raise ConfigError if one of the named numbers is below 0; 0 stands for the default."""
    for name in names:
        if not getattr(flags, name) >= 0:
            raise ConfigError(f"{name}={getattr(flags, name)} is out of range; allowed 0 (the default) or more")


def choose_preset(presets: Iterable[str], flags: CommonFlags) -> str:
    """Return the name of the preset: the one of the flags, else "paper" with a GPU or a cluster, else "smoke", with a message.

    Raises:
        ConfigError: the preset does not exist, or contradicts --smoke-test.
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
    say("no GPU here, and the paper's budget needs one: running the smoke preset (--preset paper overrides this)")
    return "smoke"


def check_device(device: str) -> None:
    """Raise ConfigError if torch cannot use a device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={device!r} cannot be used ({first_line(error)}); give another --device") from error


def parse(read: Callable[..., Parsed], arguments: Sequence[str]) -> Parsed:
    """Return read(args=arguments); if they are wrong, the message that ends the process quotes them without their secrets."""
    shown = [redact(argument) for argument in arguments]
    if shown != list(arguments):
        read(args=shown)
    return read(args=arguments)
