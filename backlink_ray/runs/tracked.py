"""Tracked folders: a run folder, or a study's, read as what MLflow is to know of it.

tracking.json (written whole by the study's driver) + metrics.jsonl + result.json or failure.json --> TrackedRun
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from backlink_ray import provenance
from backlink_ray.errors import ConfigError, StorageError
from backlink_ray.files import is_held, read_lines, write_whole
from backlink_ray.runs.folder import CONFIG, ENVIRONMENT, FAILURE, METRICS, RESULT
from backlink_ray.runs.results import KEPT, numbers
from backlink_ray.text import slug
from backlink_ray.tracking.tracker import ExperimentInfo, NoTracker, Point, Scalar, Status, TrackedRun, Tracker

TRACKING = "tracking.json"
DRIVER_LOCK = ".driver.lock"  # in a study's folder, held by the process that is at work there

_CURVES = ("test_error_pct", "val_error_pct", "train_loss", "images_per_s", "epoch_s", "link_ms")
_WAY_OUT = "everything else is tracked"


def start_tracking(
    folder: Path, experiment: ExperimentInfo, name: str, *, params: Mapping[str, Scalar], tags: Mapping[str, str],
    dataset: Mapping[str, str],
) -> None:  # fmt: skip
    """Write that a run starts, or starts again; `folder` is named by its run_id, and is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _read_or_nothing(folder)
    _write(folder, {
        "run_id": folder.name, "name": name, "params": dict(params), "tags": dict(tags), "dataset": dict(dataset),
        "experiment": _as_json(experiment), "artifacts": [CONFIG, ENVIRONMENT, RESULT],
        "started_ms": earlier.get("started_ms", _now_ms()), "derived": earlier.get("derived", {}), "status": "RUNNING",
    })  # fmt: skip


def end_tracking(folder: Path, status: Status, reason: str) -> None:
    """Write how a run ended."""
    _write(folder, {**_read_or_nothing(folder), "status": status, "end_reason": reason, "ended_ms": _now_ms()})


def end_open_runs(runs: Path, reason: str) -> None:
    """End all runs in a folder of runs that nobody is at work on: for the driver, before it starts any and when it ends."""
    for file in sorted(runs.glob(f"*/{TRACKING}")):
        if _read_or_nothing(file.parent).get("status") == "RUNNING":
            end_tracking(file.parent, *(_outcome(file.parent) or ("KILLED", reason)))


def derive(folder: Path, values: Mapping[str, float]) -> bool:
    """Add to a run, if it is tracked, what is only known beside others; tell whether anything changed.

    A value's time is that of its last change.
    """
    about = _read_or_nothing(folder)
    if not about:
        return False
    old = about["derived"]
    new = {key: {"value": v, "time_ms": _now_ms()} for key, v in values.items() if old.get(key, {}).get("value") != v}
    if new:
        _write(folder, {**about, "derived": {**old, **new}})
    return bool(new)


def track_files(tracker: NoTracker, folder: Path, tags: Mapping[str, str], files: Iterable[Path]) -> None:
    """Attach files in a study's folder, such as its table and pictures, to the study's own run in MLflow."""
    earlier = {"tags": {}, "artifacts": [], "started_ms": _now_ms(), **_read_or_nothing(folder)}
    about = {"study": folder.name, "kind": "study", "commit": provenance.commit()}
    _write(folder, {
        "run_id": slug(folder.name), "name": folder.name, "experiment": _as_json(tracker.experiment), "params": {},
        "tags": {**earlier["tags"], **about, **tags}, "dataset": {}, "derived": {},
        "artifacts": sorted({*earlier["artifacts"], *(file.name for file in files)}), "started_ms": earlier["started_ms"],
        "status": "FINISHED", "end_reason": "written", "ended_ms": _now_ms(),
    })  # fmt: skip
    track(tracker, folder)


def track(tracker: NoTracker, folder: Path) -> None:
    """Bring MLflow up to what a tracked folder says, soon; nobody waits."""
    tracker.log(str(folder), partial(tracked_run, folder))


def track_all(tracker: NoTracker, storage: Path) -> int:
    """Bring MLflow up to everything that is tracked below a folder; return how many runs that is."""
    folders = [file.parent for file in sorted(storage.rglob(TRACKING))]
    for folder in folders:
        track(tracker, folder)
    return len(folders)


def sync(storage: Path, tracking_uri: str, timeout_s: float = 30.0) -> tuple[int, int]:
    """Bring MLflow up to every run that was tracked below a folder; what it has stays as it is.

    Returns:
        How many runs are in MLflow now, and how many never will be, which are named in warnings.

    Raises:
        ConfigError: There is nothing to sync, or the URI is of no kind that MLflow takes.
        ConnectionError: MLflow did not take a run for `timeout_s`; the next sync goes on.
    """
    if not storage.is_dir():
        raise ConfigError(f"storage={str(storage)!r} is no folder; give the --storage-path of a study")
    tracker = Tracker(tracking_uri, ExperimentInfo(), storage)
    count = track_all(tracker, storage)
    left = tracker.close(timeout_s)
    if not count:
        raise ConfigError(
            f"storage={str(storage)!r} has nothing to sync: no {TRACKING} below it; give a --storage-path"
        )
    if left:
        raise ConnectionError(f"{left} of {count} runs are not there yet; run the same command again")
    return count - tracker.failed, tracker.failed


def tracked_run(folder: Path) -> TrackedRun:
    """Return what MLflow is to know of a tracked folder.

    A run without an outcome is RUNNING while a living process holds its study's lock, else KILLED.

    Raises:
        StorageError: A file is damaged, or names what it must not: names the file.
    """
    try:
        return _tracked_run(folder, _read(folder))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise StorageError(f"{folder / TRACKING} or a file beside it is damaged ({reason}); {_WAY_OUT}") from error


def _tracked_run(folder: Path, about: Mapping[str, Any]) -> TrackedRun:
    epochs = read_lines(folder / METRICS, _WAY_OUT)
    ended_ms = int(about.get("ended_ms", 0)) or (epochs[-1]["time_ms"] if epochs else about["started_ms"])
    status, reason = _status(folder, about)
    return TrackedRun(
        run_id=_safe(about["run_id"]),
        experiment=ExperimentInfo(**_texts(about["experiment"])),
        name=str(about["name"]),
        started_ms=int(about["started_ms"]),
        params={str(key): _scalar(value) for key, value in about["params"].items()},
        tags=_texts(about["tags"]),
        dataset=_texts(about["dataset"]),
        curve=[_point(metrics) for metrics in epochs],
        summary=_summary(folder, about["derived"], epochs, is_stopped=status == "FINISHED"),
        status=status,
        end_reason=reason,
        ended_ms=ended_ms,
        artifacts=_artifacts(folder, about["artifacts"]),
    )


def _point(metrics: Mapping[str, Any]) -> Point:
    values = {f"curve/{name}": float(metrics[name]) for name in _CURVES if name in metrics}
    values |= {f"local_loss/stage_{k:02d}": float(loss) for k, loss in enumerate(metrics["local_loss"])}
    return Point(step=int(metrics["epoch"]), time_ms=int(metrics["time_ms"]), values=values)


def _summary(
    folder: Path, derived: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]], *, is_stopped: bool
) -> list[Point]:
    """The numbers of the result, or of the last epoch of a run that was stopped early; and those derived from it."""
    if not epochs:
        return []
    last = epochs[-1]
    kept = {name: last[name] for name in KEPT if name in last} if is_stopped else {}
    result = json.loads((folder / RESULT).read_bytes()) if (folder / RESULT).exists() else kept
    step = int(last["epoch"])
    later = [Point(step=step, time_ms=int(at["time_ms"]), values={k: float(at["value"])}) for k, at in derived.items()]
    return [Point(step=step, time_ms=int(last["time_ms"]), values=numbers(result)), *later]


def _status(folder: Path, about: Mapping[str, Any]) -> tuple[Status, str]:
    status: Status = about["status"]
    if status not in get_args(Status):
        raise ValueError(f"status={status!r} is unknown; allowed: {', '.join(get_args(Status))}")
    # folder is STUDY/runs/RUN_ID
    if status != "RUNNING" or is_held(folder.parent.parent / DRIVER_LOCK):
        return status, str(about.get("end_reason", ""))
    return _outcome(folder) or ("KILLED", "the process that ran the study died")


def _outcome(folder: Path) -> tuple[Status, str] | None:
    """How a run ended by what itself says of that."""
    if (folder / RESULT).exists():
        return "FINISHED", "done"
    if (folder / FAILURE).exists():
        found = json.loads((folder / FAILURE).read_bytes())
        return "KILLED" if found["status"] == "LOST" else "FAILED", str(found["reason"])
    return None


def _artifacts(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files that exist. A tracking file may be someone else's: it names plain files beside it and nothing more."""
    for name in names:
        if (folder / _safe(name)).is_symlink():
            raise ValueError(f"artifact {name!r} is a link, and could be any file of this machine")
    return [folder / name for name in names if (folder / name).is_file()]


def _safe(name: object) -> str:
    if not isinstance(name, str) or slug(name) != name:
        raise ValueError(f"name {name!r} is unusable; allowed: 1 to 100 characters out of A-Za-z0-9._=+-")
    return name


def _scalar(value: object) -> Scalar:
    if not isinstance(value, str | int | float):
        raise TypeError(f"parameter {value!r} is no text and no number")
    return value


def _texts(found: Mapping[str, Any]) -> dict[str, str]:
    if not all(isinstance(value, str) for value in found.values()):
        raise TypeError(f"{found!r} has values that are no texts")
    return dict(found)


def _as_json(info: ExperimentInfo) -> dict[str, str]:
    return {"name": info.name, "note": info.note, "primary_metric": info.primary_metric}


def _read(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / TRACKING).read_bytes()))
    except (TypeError, ValueError) as error:
        raise StorageError(f"{folder / TRACKING} is damaged ({error}); {_WAY_OUT}") from error


def _read_or_nothing(folder: Path) -> dict[str, Any]:
    """The tracking file, {} where there is none or it is damaged: whoever tracks the folder says so, and work goes on."""
    try:
        return _read(folder)
    except (FileNotFoundError, StorageError):
        return {}


def _write(folder: Path, about: Mapping[str, Any]) -> None:
    write_whole(folder / TRACKING, json.dumps(about, indent=2))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
