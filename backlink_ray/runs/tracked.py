"""Tracked folders: the run folders of studies, and the studies' own, kept up to date in MLflow.

tracking.json (written by the study's driver) + metrics.jsonl + result.json or failure.json --> TrackedRun
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from backlink_ray import provenance
from backlink_ray.errors import ConfigError, StorageError, TrackingError
from backlink_ray.files import is_held, read_lines
from backlink_ray.runs.folder import CONFIG, ENVIRONMENT, METRICS, RESULT
from backlink_ray.runs.outcome import Outcome, outcome_of, recorded_outcome
from backlink_ray.runs.results import early_result, numbers
from backlink_ray.runs.tracking_file import DAMAGE, TRACKING, TrackingFile
from backlink_ray.text import slug
from backlink_ray.tracking.run import ExperimentInfo, Point, Scalar, Status, TrackedRun
from backlink_ray.tracking.tracker import NoTracker, Tracker

DRIVER_LOCK = ".driver.lock"  # in a study's folder, held by the study's driver

_CURVES = ("test_error_pct", "val_error_pct", "train_loss", "images_per_s", "epoch_s", "link_ms")
_WAY_OUT = "everything else is tracked"
_MLFLOW_STATUS: dict[str, Status] = {
    "FINISHED": "FINISHED", "STOPPED": "FINISHED", "FAILED": "FAILED", "LOST": "KILLED",
}  # fmt: skip


def start_tracking(
    folder: Path, experiment: ExperimentInfo, name: str, *, params: Mapping[str, Scalar], tags: Mapping[str, str],
    dataset: Mapping[str, str],
) -> None:  # fmt: skip
    """Record that a run starts or resumes; `folder` is named by its run_id, and is created if necessary."""
    TrackingFile(
        run_id=folder.name, name=name, experiment=experiment, params=params, tags=tags, dataset=dataset,
        artifacts=[folder / name for name in (CONFIG, ENVIRONMENT, RESULT)], **_kept(TrackingFile.find(folder)),
    ).write(folder)  # fmt: skip


def _kept(earlier: TrackingFile | None) -> dict[str, Any]:
    """Return what a new start keeps of an earlier one."""
    return {"started_ms": earlier.started_ms, "derived": earlier.derived} if earlier else {"started_ms": _now_ms()}


def end_tracking(folder: Path, outcome: Outcome) -> None:
    """Record how a run ended."""
    if found := TrackingFile.find(folder):
        status = _MLFLOW_STATUS[outcome.status]
        replace(found, status=status, end_reason=outcome.reason, ended_ms=_now_ms()).write(folder)


def end_open_runs(runs: Path, reason: str) -> None:
    """Record the end of every run below `runs` that is still open: the driver calls this when no trial is running.

    Args:
        runs: the study's folder of run folders.
        reason: why runs ended that recorded no outcome themselves.
    """
    for file in sorted(runs.glob(f"*/{TRACKING}")):
        found = TrackingFile.find(file.parent)
        if found and found.status == "RUNNING":
            end_tracking(file.parent, outcome_of(file.parent, 0, {}, reason))


def derive(folder: Path, values: Mapping[str, float]) -> bool:
    """Add metrics that follow from other runs to a run, if it is tracked; return whether any value changed."""
    found = TrackingFile.find(folder)
    if not found:
        return False
    old = {name: at["value"] for name, at in found.derived.items()}
    changed = {n: {"value": v, "time_ms": _now_ms()} for n, v in values.items() if old.get(n) != v}
    if changed:
        replace(found, derived={**found.derived, **changed}).write(folder)
    return bool(changed)


def track_files(tracker: NoTracker, folder: Path, files: Iterable[Path]) -> None:
    """Attach files in a study's folder, such as its table and figures, to the study's own run in MLflow."""
    earlier = TrackingFile.find(folder)
    artifacts = sorted({*(earlier.artifacts if earlier else ()), *files})
    tags = {"study": folder.name, "kind": "study", "commit": provenance.commit()}
    TrackingFile(
        run_id=slug(folder.name), name=folder.name, experiment=tracker.experiment, tags=tags, artifacts=artifacts,
        status="FINISHED", end_reason="written", ended_ms=_now_ms(), **_kept(earlier),
    ).write(folder)  # fmt: skip
    track(tracker, folder)


def track(tracker: NoTracker, folder: Path) -> None:
    """Have MLflow brought up to date with a tracked folder, without waiting for it."""
    tracker.log(str(folder), partial(tracked_run, folder))


def track_all(tracker: NoTracker, storage: Path) -> int:
    """Have MLflow brought up to date with every tracked folder below `storage`; return how many there are."""
    folders = [file.parent for file in sorted(storage.rglob(TRACKING))]
    for folder in folders:
        track(tracker, folder)
    return len(folders)


def sync(storage: Path, tracking_uri: str, timeout_s: float = 30.0) -> tuple[int, int]:
    """Bring MLflow up to date with every tracked folder below `storage`; nothing is logged twice.

    Returns:
        How many runs are in MLflow now, and how many cannot be logged; each of those is named in a warning.

    Raises:
        ConfigError: there is nothing to sync, or MLflow does not accept such a URI.
        TrackingError: MLflow accepted no run for `timeout_s`; the next sync continues.
    """
    if not storage.is_dir():
        raise ConfigError(f"storage={str(storage)!r} is not a folder; give the --storage-path of a study")
    tracker = Tracker(tracking_uri, ExperimentInfo(), storage)
    count = track_all(tracker, storage)
    left = tracker.close(timeout_s)
    if not count:
        raise ConfigError(
            f"storage={str(storage)!r} has nothing to sync: it contains no {TRACKING}; give a --storage-path"
        )
    if left:
        raise TrackingError(f"{left} of {count} runs are not in MLflow yet")
    return count - tracker.failed, tracker.failed


def tracked_run(folder: Path) -> TrackedRun:
    """Return what MLflow shows of a tracked folder.

    A run without an outcome is RUNNING while a living process holds its study's lock, otherwise KILLED.

    Raises:
        StorageError: a file is damaged, or names a file outside the folder; the message names the folder.
    """
    found = TrackingFile.read(folder)
    try:
        return _tracked_run(folder, found, read_lines(folder / METRICS, _WAY_OUT))
    except DAMAGE as error:
        reason = f"{type(error).__name__}: {error}"
        raise StorageError(f"a file in {folder}/ is damaged ({reason}); {_WAY_OUT}") from error


def _tracked_run(folder: Path, found: TrackingFile, epochs: Sequence[Mapping[str, Any]]) -> TrackedRun:
    status, reason = found.status, found.end_reason
    if status == "RUNNING" and not is_held(folder.parent.parent / DRIVER_LOCK):  # folder is STUDY/runs/RUN_ID
        outcome = outcome_of(folder, 0, {}, "the process that ran the study died")
        status, reason = _MLFLOW_STATUS[outcome.status], outcome.reason
    return replace(
        found,
        curve=[_point(metrics) for metrics in epochs],
        summary=_summary(folder, found, epochs[-1], status) if epochs else (),
        status=status,
        end_reason=reason,
        ended_ms=found.ended_ms or (int(epochs[-1]["time_ms"]) if epochs else found.started_ms),
        artifacts=_existing(found.artifacts),
    )


def _point(metrics: Mapping[str, Any]) -> Point:
    values = {f"curve/{name}": float(metrics[name]) for name in _CURVES if name in metrics}
    values |= {f"local_loss/stage_{k:02d}": float(loss) for k, loss in enumerate(metrics["local_loss"])}
    return Point(step=int(metrics["epoch"]), time_ms=int(metrics["time_ms"]), values=values)


def _summary(folder: Path, found: TrackingFile, last: Mapping[str, Any], status: Status) -> list[Point]:
    """Return the numbers of the result, or of the last epoch if the run was stopped early, and the derived ones."""
    outcome, step = recorded_outcome(folder), int(last["epoch"])
    result = outcome.result if outcome else early_result(last) if status == "FINISHED" else {}
    derived = [Point(step=step, time_ms=int(at["time_ms"]), values={n: at["value"]}) for n, at in found.derived.items()]
    return [Point(step=step, time_ms=int(last["time_ms"]), values=numbers(result)), *derived]


def _existing(files: Sequence[Path]) -> list[Path]:
    """Return the files that exist; a link is refused, since it could point at any file of this machine."""
    for file in files:
        if file.is_symlink():
            raise ValueError(f"artifact {file.name!r} is a link; only files of the folder itself are uploaded")
    return [file for file in files if file.is_file()]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
