"""The journal: the calls of a study that is tracked, checked, cleaned and written to the spool. Knows no MLflow."""

import fcntl
import hashlib
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from backlink_ray.files import sync_folder, try_lock
from backlink_ray.text import slug
from backlink_ray.tracking.spool import Event, Ledger, Spool, metric_key, now_ms

Status = Literal["FINISHED", "FAILED", "KILLED"]
Scalar = str | int | float

_MAX_PARAM = 6000  # characters; MLflow's limits for the values of parameters and tags
_MAX_TAG = 8000
_MAX_STEP = 2**63 - 1  # MLflow keeps steps in 64 bits
_PRESENCE_TIMEOUT_S = 5.0  # the lock is only ever held for the milliseconds of another process's close

_NO_DATASET: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentInfo:
    """What an experiment is called and says about itself."""

    experiment: str
    note: str = ""
    primary_metric: str = "test_error_pct"


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """What a sync replayed: runs, points of curves, artifacts; and how many events MLflow refuses for good."""

    runs: int = 0
    points: int = 0
    artifacts: int = 0
    refused: int = 0

    @classmethod
    def of(cls, events: Sequence[Event], refused: int) -> "SyncReport":
        """The report of a replay of these events."""
        runs = {event.run_id for event in events if event.kind == "start"}
        points = sum(len(event.metrics) for event in events)
        artifacts = sum(event.kind == "artifact" for event in events)
        return cls(runs=len(runs), points=points, artifacts=artifacts, refused=refused)

    def __add__(self, other: "SyncReport") -> "SyncReport":
        return SyncReport(
            runs=self.runs + other.runs,
            points=self.points + other.points,
            artifacts=self.artifacts + other.artifacts,
            refused=self.refused + other.refused,
        )


class NoTracker:
    """A tracker that tracks nothing: for runs without MLflow."""

    def start_run(
        self,
        run_id: str,
        name: str,
        params: Mapping[str, Scalar],
        tags: Mapping[str, str],
        dataset: Mapping[str, str] = _NO_DATASET,
    ) -> None:
        """Do nothing."""

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def log_artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        """Do nothing."""

    def end_run(self, run_id: str, status: Status, end_reason: str) -> None:
        """Do nothing."""

    def close(self, timeout_s: float = 30.0) -> int:
        """Do nothing; nothing is left to be synced."""
        return 0

    def link(self, group_by: str = "K", only: str = "") -> str:
        """There is no page: an empty text."""
        return ""

    def command(self) -> str:
        """There is no server to start: an empty text."""
        return ""


class Journal:
    """Writes what happens to runs into the spool; safe to call from several threads.

    Args:
        spool_dir: Folder of the spool and of the artifacts' snapshots.
        card: The experiment; its name is slugged and also names the spool.
    """

    def __init__(self, spool_dir: Path, card: ExperimentInfo) -> None:
        metric = metric_key(card.primary_metric)
        self.card = ExperimentInfo(experiment=slug(card.experiment), note=card.note, primary_metric=metric)
        self.spool = Spool(spool_dir, self.card.experiment)
        self._presence = _Presence(self.spool.path.with_suffix(".alive"))
        self._ledger = Ledger(self.spool.read())
        self._mine: set[str] = set()
        self._lock = threading.Lock()

    def start_run(
        self,
        run_id: str,
        name: str,
        params: Mapping[str, Scalar],
        tags: Mapping[str, str],
        dataset: Mapping[str, str] = _NO_DATASET,
    ) -> None:
        """Open a run, or open it again: one run_id is one MLflow run, whatever happens.

        Args:
            run_id: Our stable id, 1 to 100 characters out of `A-Z a-z 0-9 . _ = + -`.
            name: What the page shows; slugged.
            params: Written once: the same value again is fine.
            tags: The newest value counts.
            dataset: Empty, or `name`, `md5` and whatever else describes it (sizes, say).

        Raises:
            ValueError: run_id is unusable, or a parameter differs from what the run already has.
        """
        if slug(run_id) != run_id:
            raise ValueError(f"run_id={run_id!r} is unusable; allowed: 1 to 100 characters out of A-Za-z0-9._=+-")
        cleaned = {metric_key(key): _text(value, _MAX_PARAM) for key, value in params.items()}
        with self._lock:
            self._ledger.check_params(run_id, cleaned)
            self._mine.add(run_id)
            self._append(
                Event(
                    kind="start",
                    run_id=run_id,
                    time_ms=now_ms(),
                    experiment=self.card.experiment,
                    note=self.card.note,
                    primary_metric=self.card.primary_metric,
                    name=slug(name),
                    params=cleaned,
                    tags=_tags(tags),
                    dataset={key: _text(value, _MAX_PARAM) for key, value in dataset.items()},
                )
            )

    def has(self, run_id: str) -> bool:
        """Whether the run was started, by this process or one before it."""
        return self._ledger.has(run_id)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Add one point to each curve.

        A value that is not finite would ruin the axis: it becomes the tag `nonfinite.<key>`. A point that the run has
        with this very value (a resumed run repeats steps) is left out.

        Args:
            step: The x of the points, an epoch say; 0 to 2**63 - 1.

        Raises:
            ValueError: The run was never started, or the step is out of range.
        """
        if not 0 <= step <= _MAX_STEP:
            raise ValueError(f"step={step} is out of range; allowed: 0..{_MAX_STEP}")
        values = {metric_key(key): float(value) for key, value in metrics.items()}
        bad = {metric_key(f"nonfinite.{k}"): f"{v} at step {step}" for k, v in values.items() if not math.isfinite(v)}
        finite = {key: value for key, value in values.items() if math.isfinite(value)}
        with self._lock:
            self._ledger.check_known(run_id)
            points = self._ledger.new_points(run_id, finite, step)
            if points or bad:
                event = Event(kind="metrics", run_id=run_id, time_ms=now_ms(), metrics=points, step=step, tags=bad)
                self._append(event)

    def log_artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        """Keep the file as it is now and attach it to the run.

        Args:
            folder: Where it goes among the run's artifacts; every part of it, and the file's name, is slugged.

        Raises:
            ValueError: The run was never started.
            OSError: The file cannot be read or kept.
        """
        snapshot = _keep(path, self.spool.path.parent)
        place = "/".join(slug(part) for part in folder.split("/") if part)
        with self._lock:
            self._ledger.check_known(run_id)
            self._append(Event(kind="artifact", run_id=run_id, time_ms=now_ms(), path=snapshot, folder=place))

    def end_run(self, run_id: str, status: Status, end_reason: str) -> None:
        """End the run; it can be started again.

        Raises:
            ValueError: The run was never started, or the status is unknown.
        """
        if status not in get_args(Status):
            raise ValueError(f"status={status!r} is unknown; allowed: {', '.join(get_args(Status))}")
        with self._lock:
            self._ledger.check_known(run_id)
            self._end(run_id, status, end_reason)

    def leave(self) -> None:
        """End what nobody will end: this process's open runs, and, if it is the only one, those of dead processes."""
        with self._lock, self._presence.alone() as alone:
            everyone = Ledger(self.spool.read()).open_runs()
            for run_id in everyone:
                if run_id in self._mine:
                    self._end(run_id, "KILLED", "the study was closed before the run ended")
                elif alone:
                    self._end(run_id, "KILLED", "the process that tracked the run died")
            self._presence.leave()

    def _end(self, run_id: str, status: str, reason: str) -> None:
        reason = _text(reason, _MAX_TAG)
        self._append(Event(kind="end", run_id=run_id, time_ms=now_ms(), status=status, reason=reason))

    def _append(self, event: Event) -> None:
        self.spool.append(event)
        self._ledger.note(event)


class _Presence:
    """A lock that every living process of a spool shares, so that one of them can see whether it is alone."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _PRESENCE_TIMEOUT_S
        while not try_lock(self._handle, fcntl.LOCK_SH) and time.monotonic() < deadline:
            time.sleep(0.02)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether no other process is there; none can come before `leave`."""
        yield self._handle >= 0 and try_lock(self._handle, fcntl.LOCK_EX)

    def leave(self) -> None:
        """Be there no longer."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1


def _keep(path: Path, spool_dir: Path) -> str:
    """Copy the file into the spool under the hash of its content; returns the copy's path below `spool_dir`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    kept = spool_dir / "files" / digest[:16] / slug(path.name)
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f".{os.getpid()}-{threading.get_ident()}.tmp")
        with path.open("rb") as source, temporary.open("wb") as copy:
            shutil.copyfileobj(source, copy)
            copy.flush()
            os.fsync(copy.fileno())
        temporary.replace(kept)
        sync_folder(kept.parent)
    return kept.relative_to(spool_dir).as_posix()


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {metric_key(key): _text(value, _MAX_TAG) for key, value in tags.items()}


def _text(value: Scalar, max_characters: int) -> str:
    """The value as text that every database takes: no NUL, no half characters, not too long."""
    return str(value).replace("\0", "").encode("utf-8", "replace").decode()[:max_characters]
