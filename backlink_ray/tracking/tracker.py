"""Tracking: runs, curves and artifacts of a study in MLflow, which may be down. The only file that imports mlflow.

    start_run, log_metrics, log_artifact, end_run --> spool (on disk) --> background replay --> MLflow

Training waits for the spool alone. The replay keeps the original times and is idempotent: a run is found by its tag
`backlink_ray.run_id` before it is created, parameters are written once, and MLflow's store takes a point that it has
(same key, step, time, value) for the same point.
"""

import itertools
import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from backlink_ray.text import slug
from backlink_ray.tracking.database import database_path, sqlite_lock
from backlink_ray.tracking.journal import ExperimentInfo, Journal, NoTracker, SyncReport
from backlink_ray.tracking.replay import Replayer
from backlink_ray.tracking.spool import Event, Spool, by_run
from backlink_ray.tracking.uri import (
    artifact_location,
    chart_link,
    checked_uri,
    default_tracking_uri,
    hide_secrets,
    redact,
    sync_command,
    ui_command,
    view_key,
    view_state,
)

for _name, _value in {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's own 120 s and 7 retries block 247 s a call when a server is dead; the replay has its own back-off.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402 - reads the environment set above
from mlflow.entities import Dataset, DatasetInput, Experiment, Metric, Param, Run, RunTag  # noqa: E402 - as above
from mlflow.exceptions import MlflowException  # noqa: E402 - as above

__all__ = ["NoTracker", "SyncReport", "Tracker", "default_tracking_uri", "redact", "sync"]

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)
_log = logging.getLogger(__name__)

_RUN_ID_TAG = "backlink_ray.run_id"
_MAX_METRICS, _MAX_TAGS = 1000, 100  # of one log_batch: MLflow's limits
_LINK_TIMEOUT_S = 10.0
# What the same request would get again. Not BAD_REQUEST: MLflow says it when two runs log one new data set at once.
_NEVER = "INVALID_PARAMETER_VALUE"


class Tracker(Journal):
    """Tracks the runs of one experiment in MLflow; see `Journal` for the calls.

    A SQLite store is opened here, before anything else runs, and by no other process of the study. Runs still open in
    the spool of a driver that died go on with `start_run`, or are ended by `close`.

    Args:
        spool_dir: Where events wait; keep it between starts.
        tracking_uri: `sqlite:////absolute/mlflow.db`, `http(s)://host:port` or a database URI.
        experiment: Name of the experiment; slugged.
        note: Shown on top of the experiment's page.
        primary_metric: The metric the page sorts by, smallest first.
        artifact_root: Where artifacts of a new experiment go: a folder or a URI. By default `mlartifacts` beside a
            SQLite store, and the server's own choice elsewhere.

    Raises:
        ValueError: The tracking URI is of no kind that MLflow takes.
        OSError: The spool cannot be written.
    """

    def __init__(
        self,
        spool_dir: Path,
        tracking_uri: str,
        *,
        experiment: str,
        note: str = "",
        primary_metric: str = "test_error_pct",
        artifact_root: Path | str = "",
    ) -> None:
        self._uri = checked_uri(tracking_uri)
        super().__init__(spool_dir, ExperimentInfo(experiment=experiment, note=note, primary_metric=primary_metric))
        self._artifact_root = str(artifact_root)
        sink = self._sink()
        if database_path(self._uri):
            self._first_start(sink)
        self._replayer = Replayer(self.spool, sink, redact(self._uri))
        self._replayer.start()

    def close(self, timeout_s: float = 30.0) -> int:
        """End what is open, replay what is left, and give up in time.

        Returns:
            Events that are not in MLflow yet; they stay in the spool.
        """
        self.leave()
        left = self._replayer.close(timeout_s)
        if left:
            command = sync_command(self.spool.path.parent, self._uri)
            _log.warning("%d events are not in MLflow at %s yet; later: %s", left, redact(self._uri), command)
        return left

    def link(self, group_by: str = "K", only: str = "") -> str:
        """The browser link to the comparison chart of all or `only` some runs, grouped by a parameter or tag (`view_state`).

        For a store without a server it is the link for the server that `command` starts. Where MLflow cannot be
        reached within 10 s it is a plainer link.
        """
        links = [chart_link(self._uri)]
        # A thread, because a database server that is away blocks MLflow for 102 s.
        thread = threading.Thread(target=self._share_link, args=(group_by, only, links), daemon=True)
        thread.start()
        thread.join(_LINK_TIMEOUT_S)
        return links[-1]

    def command(self) -> str:
        """The command that starts MLflow's page on http://127.0.0.1:5000; empty where a server already runs."""
        return ui_command(self._uri)

    def _share_link(self, group_by: str, only: str, links: list[str]) -> None:
        sink = self._sink()  # its own: the replay's belongs to the replay's thread
        try:
            links.append(chart_link(self._uri, sink.experiment_id()))
            links.append(chart_link(self._uri, sink.experiment_id(), sink.share_view(group_by, only)))
        except Exception as error:
            _log.warning("the chart's view could not be shared: %s", sink.explain(error))

    def _append(self, event: Event) -> None:
        super()._append(event)
        self._replayer.wake()

    def _sink(self) -> "MlflowSink":
        return MlflowSink(self._uri, self.card, self.spool.path.parent, self._artifact_root)

    def _first_start(self, sink: "MlflowSink") -> None:
        try:
            sink.open()
        except Exception as error:
            _log.warning("%s cannot be opened yet: %s", redact(self._uri), sink.explain(error))
            sink.reset()


class MlflowSink:
    """Applies events to one experiment in MLflow, any number of times.

    Args:
        uri: The tracking URI, checked.
        card: The experiment.
        spool_dir: Where the snapshots of artifacts are.
        artifact_root: As for `Tracker`.
    """

    def __init__(self, uri: str, card: ExperimentInfo, spool_dir: Path, artifact_root: str = "") -> None:
        self._uri, self._card, self._spool_dir, self._artifact_root = uri, card, spool_dir, artifact_root
        self._experiments: list[Experiment] = []  # none or one: nothing is opened before it is needed
        self._runs: dict[str, str] = {}

    def open(self) -> str:
        """Find or make the experiment; returns its id and birth, which no other store shares."""
        if not self._experiments:
            with sqlite_lock(self._uri):  # a server makes its tables alone
                self._client = MlflowClient(self._uri)
                self._experiments = [self._find_or_create()]
        found = self._experiments[0]
        return f"{found.experiment_id}:{found.creation_time}"

    def reset(self) -> None:
        """Forget the experiment and the runs: a server may come back with an empty database."""
        self._experiments, self._runs = [], {}

    def explain(self, error: Exception) -> str:
        """The first line of the error, without secrets."""
        lines = hide_secrets(str(error), self._uri).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:300]}"

    def experiment_id(self) -> str:
        """MLflow's id of the experiment."""
        self.open()
        return str(self._experiments[0].experiment_id)

    def share_view(self, group_by: str, only: str) -> str:
        """Store the view that a link opens with; returns its key."""
        key = view_key(group_by)
        state = view_state(group_by, self._card.primary_metric, only)
        self._client.set_experiment_tag(self.experiment_id(), f"mlflow.sharedViewState.{key}", state)
        return key

    def apply(self, events: Sequence[Event]) -> int:
        """Apply the events in order, the metrics of a run merged into as few calls as possible."""
        refused = 0
        for is_metrics, group in itertools.groupby(events, key=lambda event: event.kind == "metrics"):
            for batch in by_run(group) if is_metrics else ([event] for event in group):
                refused += self._apply_batch(batch)
        return refused

    def _apply_batch(self, batch: list[Event]) -> int:
        try:
            self._actions[batch[0].kind](self, batch)
        except MlflowException as error:
            if error.error_code != _NEVER:
                raise
            _log.warning("run %s: MLflow refuses a %s: %s", batch[0].run_id, batch[0].kind, self.explain(error))
            return len(batch)
        return 0

    def _start(self, batch: list[Event]) -> None:
        event = batch[0]
        run = self._find_run(event.run_id)
        if run:
            self._client.update_run(run, status="RUNNING", name=event.name)
        else:
            run = self._create_run(event)
        params = [Param(key, value) for key, value in event.params.items()]
        tags = [RunTag(key, value) for key, value in event.tags.items()]
        for i in range(0, max(len(params), len(tags)), _MAX_TAGS):
            chunk = slice(i, i + _MAX_TAGS)
            self._client.log_batch(run, params=params[chunk], tags=tags[chunk], synchronous=True)
        if event.dataset:
            self._client.log_inputs(run, datasets=[_dataset(event.dataset)])

    def _metrics(self, batch: list[Event]) -> None:
        run = self._run(batch[0].run_id)
        points = [Metric(key, value, e.time_ms, e.step) for e in batch for key, value in e.metrics.items()]
        tags = [RunTag(key, value) for key, value in {k: v for e in batch for k, v in e.tags.items()}.items()]
        for i in range(0, len(points), _MAX_METRICS):
            self._client.log_batch(run, metrics=points[i : i + _MAX_METRICS], synchronous=True)
        for i in range(0, len(tags), _MAX_TAGS):
            self._client.log_batch(run, tags=tags[i : i + _MAX_TAGS], synchronous=True)

    def _artifact(self, batch: list[Event]) -> None:
        path = self._spool_dir / batch[0].path
        if not path.is_file():
            raise MlflowException.invalid_parameter_value(f"the artifact's snapshot {path} is gone")
        self._client.log_artifact(self._run(batch[0].run_id), str(path), batch[0].folder or None)

    def _end(self, batch: list[Event]) -> None:
        run = self._run(batch[0].run_id)
        self._client.set_tag(run, "end_reason", batch[0].reason)
        self._client.set_terminated(run, batch[0].status, batch[0].time_ms)

    _actions = {"start": _start, "metrics": _metrics, "artifact": _artifact, "end": _end}  # noqa: RUF012 - never changed

    def _run(self, run_id: str) -> str:
        if not (run := self._find_run(run_id)):
            raise MlflowException.invalid_parameter_value("the run is not in MLflow")
        return run

    def _find_run(self, run_id: str) -> str:
        """MLflow's id of our run, empty if there is none."""
        if run_id not in self._runs:
            query = f"tags.`{_RUN_ID_TAG}` = '{run_id}'"
            found = self._client.search_runs([self.experiment_id()], query, max_results=10)
            if not found:
                return ""
            self._runs[run_id] = self._one_of(list(found))
        return self._runs[run_id]

    def _one_of(self, found: list[Run]) -> str:
        """The run to use. A request that timed out may have made an empty twin of it, which is deleted."""
        found.sort(key=lambda run: (not run.data.metrics, run.info.start_time, run.info.run_id))
        for twin in found[1:]:
            if not twin.data.metrics:
                self._client.delete_run(twin.info.run_id)
        return str(found[0].info.run_id)

    def _create_run(self, event: Event) -> str:
        tags = {_RUN_ID_TAG: event.run_id}
        run = self._client.create_run(self.experiment_id(), start_time=event.time_ms, tags=tags, run_name=event.name)
        self._runs[event.run_id] = str(run.info.run_id)
        return self._runs[event.run_id]

    def _find_or_create(self) -> Experiment:
        name, tags = self._card.experiment, self._experiment_tags()
        found = self._client.get_experiment_by_name(name)
        if not found:
            self._create_experiment(name, tags)
            found = self._client.get_experiment_by_name(name)
        if not found or found.lifecycle_stage != "active":
            raise MlflowException(f"experiment {name!r} was deleted; restore it in MLflow or take another name")
        for key, value in tags.items():
            if found.tags.get(key) != value:
                self._client.set_experiment_tag(found.experiment_id, key, value)
        return found

    def _create_experiment(self, name: str, tags: dict[str, str]) -> None:
        place = artifact_location(self._uri, self._artifact_root, name)
        try:
            self._client.create_experiment(name, place or None, tags)  # None: MLflow's own choice
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise

    def _experiment_tags(self) -> dict[str, str]:
        return {
            "mlflow.note.content": self._card.note,
            "mlflow.experimentKind": "custom_model_development",  # else the page opens in its GenAI mode
            "mlflow.experiment.primaryMetric.name": self._card.primary_metric,
        }


def _dataset(about: Mapping[str, str]) -> DatasetInput:
    """The data set as MLflow knows it: its md5 tells two data sets of one name apart, the rest describes it."""
    described = json.dumps(dict(about), sort_keys=True)
    name, digest = about.get("name", "dataset"), about.get("md5", "unknown")
    return DatasetInput(Dataset(name[:500], digest[:36], "local", described, profile=described))


def sync(spool_dir: Path, tracking_uri: str, *, artifact_root: Path | str = "", timeout_s: float = 30.0) -> SyncReport:
    """Replay every spool of a folder from its beginning; what MLflow already has stays as it is.

    Args:
        spool_dir: The `spool_dir` of one or more trackers, also a copy of it.
        tracking_uri: As for `Tracker`.
        artifact_root: As for `Tracker`.
        timeout_s: Give up when nothing moved for so long.

    Raises:
        ValueError: There is no spool in the folder, or the URI is of no kind that MLflow takes.
        ConnectionError: MLflow did not answer; what was replayed stays, and the next sync goes on.
    """
    uri = checked_uri(tracking_uri)
    paths = [path for path in sorted(spool_dir.glob("*.jsonl")) if slug(path.stem) == path.stem]
    if not paths:
        raise ValueError(f"no spool (*.jsonl) in {spool_dir}; expected the spool folder of a study")
    reports = [_sync_one(Spool(spool_dir, path.stem), uri, str(artifact_root), timeout_s) for path in paths]
    return sum(reports, SyncReport())


def _sync_one(spool: Spool, uri: str, artifact_root: str, timeout_s: float) -> SyncReport:
    events = spool.read()
    starts = [event for event in events if event.kind == "start"]
    if not starts:
        return SyncReport()
    card = ExperimentInfo(
        experiment=starts[-1].experiment, note=starts[-1].note, primary_metric=starts[-1].primary_metric
    )
    replayer = Replayer(spool, MlflowSink(uri, card, spool.path.parent, artifact_root), redact(uri))
    replayer.replay_all(timeout_s)
    spool.close()
    return SyncReport.of(events, replayer.refused)
