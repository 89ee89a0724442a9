"""Outcome: how a trial ended, decided from what its run folder holds and what Tune last heard of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from backlink_ray.files import read_json
from backlink_ray.runs.folder import FAILURE, RESULT, RUN_AGAIN
from backlink_ray.runs.results import KEPT, numbers


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """How a trial ended.

    Attributes:
        status: FINISHED, STOPPED (early, by the study), FAILED (it would fail again), or LOST (a process or machine went,
            which says nothing about the run: it goes on from its checkpoint when the study is resumed).
        reason: for people.
        result: what result.json holds, or of a stopped run what it last reported.
        epochs: how many were trained.
    """

    status: Literal["FINISHED", "STOPPED", "FAILED", "LOST"]
    reason: str
    result: dict[str, Any] = field(default_factory=dict)
    epochs: int = 0

    @property
    def headline(self) -> dict[str, int | float]:
        """Return the numbers of the result."""
        return numbers(self.result)


def outcome_of(folder: Path, epochs: int, last: dict[str, Any], error: str | None) -> TrialOutcome:
    """Decide how a trial ended.

    Args:
        folder: its run folder.
        epochs: of its configuration.
        last: its last report, {} if there was none.
        error: what Tune says of it, None where it ended without one.
    """
    if (folder / RESULT).exists():
        return TrialOutcome("FINISHED", "done", read_json(folder / RESULT, RUN_AGAIN), epochs)
    if error is not None:
        return _failed(folder, error)
    reached = int(last.get("epoch", 0))
    if reached < epochs:
        kept = {name: last[name] for name in KEPT if name in last}
        return TrialOutcome("STOPPED", f"stopped early, after epoch {reached}", kept, reached)
    return TrialOutcome(
        "FAILED", f"{folder / RESULT} is not here, though the run ended; use a --storage-path that all machines share"
    )


def _failed(folder: Path, error: str) -> TrialOutcome:
    """A run that fails says so in its folder; one that could not say anything was lost."""
    if (folder / FAILURE).exists():
        found = read_json(folder / FAILURE, RUN_AGAIN)
        return TrialOutcome("LOST" if found["status"] == "LOST" else "FAILED", str(found["reason"]))
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return TrialOutcome("LOST", lines[-1] if lines else "the trial's process died")
