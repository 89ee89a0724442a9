"""MLflow sink: brings MLflow up to date with a run, any number of times. The only file that imports mlflow.

It has no state: it asks MLflow what is already there. A run is looked up by its tag `backlink_ray.run_id` before it is
created; the metric `progress/epoch`, written in one transaction with the points of its epoch, is the number of epochs that are
there; the tag `backlink_ray.artifacts` is a hash of the files that are there. MLflow recognises a point that it has (same
key, step, time and value), so sending a request twice changes nothing.
"""

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from backlink_ray.text import short_hash, slug
from backlink_ray.tracking.moved import bring_artifacts_along
from backlink_ray.tracking.run import ExperimentInfo, Point, Scalar, TrackedRun
from backlink_ray.tracking.uri import artifact_location, database_path, hide_secrets, sqlite_lock, view_state

for _name, _value in {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # With MLflow's defaults of 120 s and 7 retries, a dead server blocks each call for 247 s; the tracker retries itself.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402 - reads the environment set above
from mlflow.entities import Dataset, DatasetInput, Experiment, Metric, Param, Run, RunTag  # noqa: E402 - as above
from mlflow.exceptions import MlflowException  # noqa: E402 - as above
from mlflow.version import VERSION  # noqa: E402 - as above

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)
# The tracker reports every error in one line, once; MLflow adds 90 lines of traceback to each of its database, and a guess to
# each of a server.
for _name in ("mlflow.store.db.utils", "mlflow.exceptions"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
_log = logging.getLogger(__name__)

_RUN_ID, _ARTIFACTS, _EPOCH = "backlink_ray.run_id", "backlink_ray.artifacts", "progress/epoch"
_OTHER_TABLES = re.compile(r"out-of-date database schema \((found version \w+, but expected \w+)\)")
_BAD_KEY = re.compile(r"[^A-Za-z0-9_. :/-]+")
# MLflow's limits: characters of a key, a parameter and a tag; metrics and tags of one log_batch.
_MAX_KEY, _MAX_PARAM, _MAX_TAG = 250, 6000, 8000
_MAX_METRICS, _MAX_TAGS = 1000, 100


class MlflowSink:
    """Writes runs to one MLflow, by its URI, which is checked."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def log(self, run: TrackedRun) -> None:
        """Bring MLflow up to date with a run.

        Raises:
            Exception: Anything that MLflow, its database driver or the network raises; see `is_refusal`.
        """
        found = self._find_run(run) or self._create_run(run)
        self._log_description(run, found)
        self._log_points(run, found)
        self._log_artifacts(run, found)
        self._log_status(run, found)

    def is_refusal(self, error: Exception) -> bool:
        """Return whether MLflow would refuse the same request again. BAD_REQUEST does not count: two racing requests cause it."""
        return isinstance(error, MlflowException) and error.error_code == "INVALID_PARAMETER_VALUE"

    def explain(self, error: Exception) -> str:
        """Return the first line of an error, without secrets."""
        if tables := _OTHER_TABLES.search(str(error)):  # MLflow calls those of a newer version old as well
            return (
                f"its database has the tables of another version than MLflow {VERSION}: {tables[1]}; use the version that made "
                "it or, if that is an older one, make a backup and run mlflow db upgrade URI"
            )
        lines = hide_secrets(str(error), self._uri).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:300]}"

    def experiment_id(self, info: ExperimentInfo) -> str:
        """Return MLflow's id of an experiment, which is created or updated if necessary."""
        found = self._find_or_create(info)
        for key, value in _experiment_tags(info).items():
            if found.tags.get(key) != value:
                self._client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def share_view(self, info: ExperimentInfo, group_by: str, only: str) -> str:
        """Store the view that a link opens; return its key."""
        key = f"backlink-{slug(group_by)}"  # one view per grouping: a new one replaces the old one
        state = view_state(group_by, info.primary_metric, only)
        self._client.set_experiment_tag(self.experiment_id(info), f"mlflow.sharedViewState.{key}", state)
        return key

    @cached_property
    def _client(self) -> MlflowClient:
        with sqlite_lock(self._uri):  # two processes must not create the tables at once
            client = MlflowClient(self._uri)
            client.search_experiments(max_results=1)
            if database := database_path(self._uri):
                bring_artifacts_along(database)
        return client

    def _find_or_create(self, info: ExperimentInfo) -> Experiment:
        name = slug(info.name)
        found = self._client.get_experiment_by_name(name)
        if not found:
            self._create_experiment(name, info)
            found = self._client.get_experiment_by_name(name)
        if found and found.lifecycle_stage == "deleted":
            raise MlflowException(f"experiment {name!r} was deleted; restore it in MLflow or use another name")
        if not found or found.lifecycle_stage != "active":
            got = f"one named {found.name!r}, in state {found.lifecycle_stage!r}" if found else "none"
            raise MlflowException(f"asked for experiment {name!r}, the server answers with {got}")
        return found

    def _create_experiment(self, name: str, info: ExperimentInfo) -> None:
        try:
            self._client.create_experiment(name, artifact_location(self._uri, name), _experiment_tags(info))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise

    def _find_run(self, run: TrackedRun) -> Run | None:
        """Return the run in MLflow. A create request that timed out may have left an empty duplicate, which is deleted."""
        query = f"tags.`{_RUN_ID}` = '{slug(run.run_id)}'"
        found = list(self._client.search_runs([self.experiment_id(run.experiment)], query, max_results=10))
        found.sort(key=lambda duplicate: (not duplicate.data.metrics, duplicate.info.start_time, duplicate.info.run_id))
        for duplicate in found[1:]:
            if not duplicate.data.metrics:
                self._client.delete_run(duplicate.info.run_id)
        return found[0] if found else None

    def _create_run(self, run: TrackedRun) -> Run:
        tags = {_RUN_ID: slug(run.run_id)}
        experiment = self.experiment_id(run.experiment)
        return self._client.create_run(experiment, start_time=run.started_ms, tags=tags, run_name=slug(run.name))

    def _log_description(self, run: TrackedRun, found: Run) -> None:
        logged = found.data.params
        params = {_key(key): _text(value, _MAX_PARAM) for key, value in run.params.items()}
        changed = {key for key, value in params.items() if logged.get(key, value) != value}
        if changed:
            _log.warning(
                "run %s: MLflow has other values of %s, and keeps those", run.run_id, ", ".join(sorted(changed))
            )
        new = [Param(key, value) for key, value in params.items() if key not in logged]
        tags = {**_tags(run.tags), **_nonfinite(run), **_tags({"end_reason": run.end_reason})}
        newer = [RunTag(key, value) for key, value in tags.items() if found.data.tags.get(key, "") != value]
        for i in range(0, max(len(new), len(newer)), _MAX_TAGS):
            chunk = slice(i, i + _MAX_TAGS)
            self._client.log_batch(found.info.run_id, params=new[chunk], tags=newer[chunk], synchronous=True)
        if run.dataset and not (found.inputs and found.inputs.dataset_inputs):
            self._client.log_inputs(found.info.run_id, datasets=[_dataset(run.dataset)])

    def _log_points(self, run: TrackedRun, found: Run) -> None:
        """Log what is missing, each epoch in one transaction, so that `progress/epoch` is always right."""
        logged = int(found.data.metrics.get(_EPOCH, 0))
        epochs = [
            [*_metrics(p), Metric(_EPOCH, i, p.time_ms, p.step)] for i, p in enumerate(run.curve, 1) if i > logged
        ]
        latest = found.data.metrics
        summary = [[m for p in run.summary for m in _metrics(p) if latest.get(m.key) != m.value]]
        for batch in _batches([*epochs, *summary], _MAX_METRICS):
            self._client.log_batch(found.info.run_id, metrics=batch, synchronous=True)

    def _log_artifacts(self, run: TrackedRun, found: Run) -> None:
        if not run.artifacts:
            return
        digest = hashlib.sha256()
        for path in run.artifacts:
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        if found.data.tags.get(_ARTIFACTS) == digest.hexdigest():
            return
        for path in run.artifacts:
            self._client.log_artifact(found.info.run_id, str(path))
        self._client.set_tag(found.info.run_id, _ARTIFACTS, digest.hexdigest())

    def _log_status(self, run: TrackedRun, found: Run) -> None:
        info, name = found.info, slug(run.name)
        if run.status == "RUNNING":
            if (info.status, info.run_name) != ("RUNNING", name):
                self._client.update_run(info.run_id, status="RUNNING", name=name)
        elif (info.status, info.end_time) != (run.status, run.ended_ms):
            self._client.set_terminated(info.run_id, run.status, run.ended_ms)


def _experiment_tags(info: ExperimentInfo) -> dict[str, str]:
    return {
        "mlflow.note.content": info.note,
        "mlflow.experimentKind": "custom_model_development",  # otherwise the page opens in its GenAI mode
        "mlflow.experiment.primaryMetric.name": _key(info.primary_metric),
    }


def _metrics(point: Point) -> list[Metric]:
    values = {_key(key): float(value) for key, value in point.values.items()}
    return [Metric(k, v, point.time_ms, point.step) for k, v in values.items() if math.isfinite(v)]


def _nonfinite(run: TrackedRun) -> dict[str, str]:
    """Return values that are not finite as tags: as metrics they would ruin the axis of their chart."""
    points = [(p.step, key, float(value)) for p in (*run.curve, *run.summary) for key, value in p.values.items()]
    return {_key(f"nonfinite.{k}"): f"{v} at step {step}" for step, k, v in points if not math.isfinite(v)}


def _batches(groups: Sequence[list[Metric]], limit: int) -> Iterator[list[Metric]]:
    """Yield the groups in as few batches of at most `limit` as possible; a group is split only if it exceeds the limit."""
    batch: list[Metric] = []
    for group in groups:
        if batch and len(batch) + len(group) > limit:
            yield batch
            batch = []
        batch = [*batch, *group]
        while len(batch) > limit:
            yield batch[:limit]
            batch = batch[limit:]
    if batch:
        yield batch


def _key(key: str) -> str:
    """Return a key that MLflow accepts: letters, digits, `_ - . : /` and spaces, at most 250 characters, a plain path.

    A key that fits is returned unchanged; any other is changed and, as in `slug`, marked with a short hash.
    """
    parts = [part for part in _BAD_KEY.sub("_", key).split("/") if part not in ("", ".", "..")]
    cleaned = "/".join(parts)
    if cleaned == key and 0 < len(key) <= _MAX_KEY:
        return key
    return f"{cleaned[: _MAX_KEY - 9].rstrip('/') or 'key'}-{short_hash(key)}"


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {_key(key): _text(value, _MAX_TAG) for key, value in tags.items()}


def _text(value: Scalar, max_characters: int) -> str:
    """Return the value as text that every database accepts: no NUL, no lone surrogates, not too long."""
    return str(value).replace("\0", "").encode("utf-8", "replace").decode()[:max_characters]


def _dataset(about: Mapping[str, str]) -> DatasetInput:
    """Return the data set for MLflow, which distinguishes data sets of one name by their md5."""
    described = json.dumps(dict(about), sort_keys=True)
    name, digest = about.get("name", "dataset"), about.get("md5", "unknown")
    return DatasetInput(Dataset(name[:500], digest[:36], "local", described, profile=described))
