"""Outcome: how a run ended, as its folder records it, or as Ray Tune reported it if the folder has no record."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from backlink_ray.errors import StorageError
from backlink_ray.files import read_json
from backlink_ray.runs.folder import FAILURE, RESULT, RUN_AGAIN
from backlink_ray.runs.results import early_result


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: FINISHED, STOPPED (early, by the study), FAILED (it would fail again), or LOST (its process or machine died,
            although the run itself may be fine: it resumes from its checkpoint when the study does).
        reason: for people.
        result: the content of result.json, or what a stopped run last reported.
    """

    status: Literal["FINISHED", "STOPPED", "FAILED", "LOST"]
    reason: str
    result: dict[str, Any] = field(default_factory=dict)


def recorded_outcome(folder: Path) -> Outcome | None:
    """Return the outcome that a run recorded in its folder, None if it recorded none.

    Raises:
        StorageError: result.json or failure.json is damaged.
    """
    if (folder / RESULT).exists():
        return Outcome("FINISHED", "done", read_json(folder / RESULT, RUN_AGAIN))
    if (folder / FAILURE).exists():
        failure = read_json(folder / FAILURE, RUN_AGAIN)
        return Outcome("LOST" if failure.get("status") == "LOST" else "FAILED", str(failure.get("reason", "")))
    return None


def outcome_of(folder: Path, epochs: int, last: dict[str, Any], error: str | None) -> Outcome:
    """Return the outcome of a run that no process works on any more: the recorded one, else what is known of its trial.

    Args:
        folder: of the run.
        epochs: of its configuration.
        last: its last report, {} if there was none.
        error: why it ended, such as Tune's error message; None if the trial ended without an error.
    """
    try:
        recorded = recorded_outcome(folder)
    except StorageError as damage:  # costs this run alone; the study continues
        return Outcome("LOST", str(damage))
    if recorded:
        return recorded
    if error is not None:  # a run that fails records why; this one had no time to
        lines = [line.strip() for line in error.splitlines() if line.strip()]
        line = lines[-1] if lines else "the trial's process died"
        return Outcome("LOST", line.partition(" Some common causes")[0])  # of the death of a process: Ray lists some
    reached = int(last.get("epoch", 0))
    if reached < epochs:
        return Outcome("STOPPED", f"stopped early, after epoch {reached}", early_result(last))
    missing = f"{folder / RESULT} does not exist, although the run ended"
    return Outcome("FAILED", f"{missing}; use a --storage-path that all machines share")
