"""Run: everything that MLflow shows of a run, as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
Scalar = str | int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentInfo:
    """Name and description of an experiment in MLflow; its page sorts runs by the metric, smallest first."""

    name: str = "backlink"
    note: str = ""
    primary_metric: str = "test_error_pct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Values measured at one time (milliseconds since 1970) and step (the x of curves, such as the epoch)."""

    step: int
    time_ms: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """Everything that MLflow shows of a run, read from the run's log on disk.

    Attributes:
        run_id: Our stable id; one run_id is one run in MLflow.
        name: Shown on the page.
        params: Written once: MLflow keeps the first value.
        tags: A newer value replaces the older one.
        dataset: Empty, or `name`, `md5` and anything else that describes it.
        curve: One point per epoch, in order; it only grows.
        summary: Values of the run as a whole; a newer value of a key replaces the older one.
        ended_ms: When it ended, if status is not RUNNING.
        artifacts: Files to upload.
    """

    run_id: str
    experiment: ExperimentInfo
    name: str
    started_ms: int
    params: Mapping[str, Scalar] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: Mapping[str, str] = field(default_factory=dict)
    curve: Sequence[Point] = ()
    summary: Sequence[Point] = ()
    status: Status = "RUNNING"
    end_reason: str = ""
    ended_ms: int = 0
    artifacts: Sequence[Path] = ()
