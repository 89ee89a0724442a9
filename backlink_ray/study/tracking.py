"""Tracking: runs, curves and artifacts in MLflow, which may be down. The only file that imports mlflow.

    start_run, log_metrics, log_artifact, end_run --> spool (on disk) --> background replay --> MLflow

Training waits for the spool alone. The replay keeps the original times and can be repeated: a run is found by its tag
`backlink_ray.run_id` before it is created, parameters are written once, and MLflow's store takes a point that it has
(same key, step, time, value) for the same point.
"""

import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backlink_ray.study.address import (
    chart_link,
    checked_uri,
    database_path,
    default_tracking_uri,
    hide_secrets,
    redact,
    sync_command,
    ui_command,
    view_key,
    view_state,
)
from backlink_ray.study.replay import Replayer
from backlink_ray.study.spool import Event, Ledger, Spool, metric_key, now_ms, slug

for _name, _value in {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's own 120 s and 7 retries block minutes a call when a server is dead; the replay has its own back-off.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402 - reads the environment set above
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag  # noqa: E402 - as above
from mlflow.exceptions import MlflowException  # noqa: E402 - as above

__all__ = ["NoTracker", "SyncReport", "Tracker", "default_tracking_uri", "redact", "sync"]

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)

RUN_TAG = "backlink_ray.run_id"


class MlflowSink:
    """Applies events to an MLflow store; applying one twice is applying it once."""

    def __init__(self, uri: str, folder: Path) -> None:
        self._uri, self._folder = uri, folder
        self.reset()

    def reset(self) -> None:
        """Forget the connection and what was found through it."""
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}
        self._runs: dict[tuple[str, str], str] = {}

    def client(self) -> MlflowClient:
        """Return the connection, made at its first use."""
        if self._client is None:
            database = database_path(self._uri)
            if database is not None:
                database.parent.mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(tracking_uri=self._uri)
        return self._client

    def open(self) -> str:
        """Connect, and return when the store was made: another store behind the same address needs everything anew."""
        return str(self.client().get_experiment("0").creation_time)

    def explain(self, error: Exception) -> str:
        """Return the error's first line without secrets."""
        return hide_secrets((str(error).splitlines() or [type(error).__name__])[0], self._uri)

    def apply(self, events: Sequence[Event]) -> int:
        """Apply events in order; return how many the store refuses for good."""
        refused = 0
        for event in events:
            try:
                {"start": self._start, "metrics": self._metrics, "artifact": self._artifact, "end": self._end}[
                    event.kind
                ](event)
            except MlflowException as error:
                if error.get_http_status_code() != 400:
                    raise
                refused += 1
                logging.getLogger(__name__).warning(
                    "MLflow refuses %s of run %s: %s", event.kind, event.run_id, self.explain(error)
                )
        return refused

    def experiment(self, event: Event) -> str:
        """Return the id of the event's experiment, made with its page's note and settings where it is new."""
        if event.experiment not in self._experiments:
            found = self.client().get_experiment_by_name(event.experiment)
            self._experiments[event.experiment] = found.experiment_id if found else self._create_experiment(event)
        return self._experiments[event.experiment]

    def _create_experiment(self, event: Event) -> str:
        tags = {
            "mlflow.note.content": event.note,
            # Without it MLflow 3.17 opens the page made for language models.
            "mlflow.experimentKind": "custom_model_development",
            "mlflow.experiment.primaryMetric.name": event.primary_metric,
        }
        database = database_path(self._uri)
        artifacts = (database.parent / "mlartifacts" / slug(event.experiment)).as_uri() if database else None
        try:
            return str(self.client().create_experiment(event.experiment, artifacts, tags))
        except MlflowException:  # another process made it in between
            found = self.client().get_experiment_by_name(event.experiment)
            if found is None:
                raise
            return str(found.experiment_id)

    def _run(self, event: Event) -> str:
        key = (event.experiment, event.run_id)
        if key not in self._runs:
            query = f"tags.`{RUN_TAG}` = '{event.run_id}'"
            found = self.client().search_runs([self.experiment(event)], query, max_results=1)
            self._runs[key] = found[0].info.run_id if found else self._create_run(event)
        return self._runs[key]

    def _create_run(self, event: Event) -> str:
        tags = {**event.tags, RUN_TAG: event.run_id}
        made = self.client().create_run(self.experiment(event), event.time_ms, tags, run_name=event.name)
        return str(made.info.run_id)

    def _start(self, event: Event) -> None:
        run = self._run(event)
        self.client().update_run(run, status="RUNNING")
        params = [Param(key, value) for key, value in event.params.items()]
        self.client().log_batch(run, params=params, tags=[RunTag(k, v) for k, v in event.tags.items()])
        if event.dataset:
            known = Dataset(event.dataset["name"], event.dataset["digest"], "local", event.dataset.get("source", "{}"))
            self.client().log_inputs(run, [DatasetInput(known)])

    def _metrics(self, event: Event) -> None:
        points = [Metric(key, value, event.time_ms, event.step) for key, value in event.metrics.items()]
        self.client().log_batch(self._run(event), metrics=points, tags=[RunTag(k, v) for k, v in event.tags.items()])

    def _artifact(self, event: Event) -> None:
        self.client().log_artifact(self._run(event), str(self._folder / event.path), event.folder or None)

    def _end(self, event: Event) -> None:
        run = self._run(event)
        self.client().set_tag(run, "end_reason", event.reason)
        self.client().set_terminated(run, event.status, event.time_ms)


class Tracker:
    """Tracks the runs of one experiment.

    Args:
        spool_dir: where events wait; made if missing.
        tracking_uri: sqlite:////absolute/mlflow.db, http(s)://host:port or a database URI.
        experiment: one comparable set of runs, for example backlink-cifar10-resnet110-fc.
        note: shown at the top of the experiment's page (Markdown).
        primary_metric: orders the page.

    Raises:
        ValueError: a tracking URI MLflow cannot use.
    """

    def __init__(
        self,
        spool_dir: Path,
        tracking_uri: str,
        *,
        experiment: str,
        note: str = "",
        primary_metric: str = "test_error_pct",
    ) -> None:
        self._uri, self._folder = checked_uri(tracking_uri), spool_dir
        self._experiment = slug(experiment)
        self._note, self._metric = note, primary_metric
        self._spool = Spool(spool_dir, experiment)
        self._ledger = Ledger(self._spool.read())
        self._sink = MlflowSink(self._uri, spool_dir)
        self._replayer = Replayer(self._spool, self._sink, redact(self._uri))
        self._replayer.start()

    def start_run(
        self,
        run_id: str,
        name: str,
        params: Mapping[str, str | int | float],
        tags: Mapping[str, str],
        dataset: Mapping[str, str] | None = None,
    ) -> None:
        """Open a run, or open it again; ValueError if its parameters differ from those it has."""
        texts = {metric_key(k): str(v) for k, v in params.items()}
        self._ledger.check_params(run_id, texts)
        self._put(Event(
            kind="start", run_id=run_id, time_ms=now_ms(), name=slug(name), params=texts, tags=dict(tags), dataset=dataset or {}
        ))  # fmt: skip

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Log one step's points; what is not finite becomes a tag, and what is there already is left out."""
        self._ledger.check_known(run_id)
        finite = {metric_key(k): float(v) for k, v in metrics.items() if math.isfinite(v)}
        tags = {f"nonfinite.{metric_key(k)}": str(v) for k, v in metrics.items() if not math.isfinite(v)}
        new = self._ledger.new_points(run_id, finite, step)
        if new or tags:
            self._put(Event(kind="metrics", run_id=run_id, time_ms=now_ms(), metrics=new, tags=tags, step=step))

    def log_artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        """Keep a copy of a file, and log it as an artifact of the run."""
        self._ledger.check_known(run_id)
        copy = Path("artifacts") / slug(run_id) / slug(path.name)
        (self._folder / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, self._folder / copy)
        self._put(
            Event(
                kind="artifact", run_id=run_id, time_ms=now_ms(), path=str(copy), folder=slug(folder) if folder else ""
            )
        )

    def end_run(self, run_id: str, status: str, end_reason: str) -> None:
        """End a run as FINISHED, FAILED or KILLED."""
        self._ledger.check_known(run_id)
        self._put(Event(kind="end", run_id=run_id, time_ms=now_ms(), status=status, reason=end_reason[:500]))

    def _put(self, event: Event) -> None:
        event = replace(event, experiment=self._experiment, note=self._note, primary_metric=self._metric)
        self._spool.append(event)
        self._ledger.note(event)
        self._replayer.wake()

    def open_runs(self) -> list[str]:
        """Return the runs that started and did not end, for example because the driver was killed."""
        return self._ledger.open_runs()

    def close(self, timeout_s: float = 30.0) -> int:
        """Replay what is left for at most `timeout_s`; return the number of events that still wait in the spool."""
        left = self._replayer.close(timeout_s)
        self._spool.close()
        return left

    def link(self, group_by: str = "K") -> str:
        """Return the link to the chart that compares the runs; a plain one where MLflow does not answer."""
        try:
            found = self._sink.client().get_experiment_by_name(self._experiment)
            if found is None:
                return chart_link(self._uri)
            state = view_state(group_by, self._metric)
            self._sink.client().set_experiment_tag(
                found.experiment_id, f"mlflow.sharedViewState.{view_key(group_by)}", state
            )
        except Exception:  # the link is a convenience: whatever MLflow does, the study has ended well
            return chart_link(self._uri)
        return chart_link(self._uri, found.experiment_id, view_key(group_by))

    def command(self) -> str:
        """Return the command that starts MLflow's page on the loopback address ("" where a server runs already)."""
        return ui_command(self._uri)

    def sync_command(self) -> str:
        """Return the command that replays the spool later."""
        return sync_command(self._folder, self._uri)


class NoTracker:
    """Tracks nothing: the face of `Tracker` for runs without MLflow."""

    def start_run(self, *_: object, **__: object) -> None:
        """Do nothing."""

    log_metrics = log_artifact = end_run = start_run

    def open_runs(self) -> list[str]:
        """Return nothing."""
        return []

    def close(self, timeout_s: float = 0.0) -> int:
        """Return 0: nothing waits."""
        return int(timeout_s * 0)


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What `sync` replayed: events of each kind, and those that MLflow refuses for good."""

    runs: int
    points: int
    artifacts: int
    refused: int

    def __str__(self) -> str:
        return f"{self.runs} runs, {self.points} points, {self.artifacts} artifacts replayed, {self.refused} refused"


def sync(spool_dir: Path, tracking_uri: str) -> SyncReport:
    """Replay every spool of a folder from its beginning; what MLflow has already stays as it is.

    Raises:
        ValueError: no spool in the folder, or a tracking URI MLflow cannot use.
    """
    uri = checked_uri(tracking_uri)
    files = sorted(spool_dir.glob("*.jsonl"))
    if not files:
        raise ValueError(f"{spool_dir} holds no spool (*.jsonl); give the storage path of a study or run")
    events: list[Event] = []
    refused = 0
    for file in files:
        spool = Spool(spool_dir, file.stem)
        replayer = Replayer(spool, MlflowSink(uri, spool_dir), redact(uri))
        replayer.drain(lock_timeout_s=30.0, from_start=True)
        refused += replayer.refused
        events += spool.read()
        spool.close()
    kinds = [event.kind for event in events]
    points = sum(len(event.metrics) for event in events)
    return SyncReport(len({e.run_id for e in events}), points, kinds.count("artifact"), refused)
