"""Tracked folders: what MLflow shows of them, and which attacks on it fail."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backlink_ray.errors import ConfigError, StorageError, TrackingError
from backlink_ray.files import exclusive
from backlink_ray.runs.outcome import Outcome
from backlink_ray.runs.tracked import (
    DRIVER_LOCK,
    derive,
    end_open_runs,
    end_tracking,
    start_tracking,
    sync,
    track_files,
    tracked_run,
)
from backlink_ray.tracking.run import ExperimentInfo
from backlink_ray.tracking.tracker import Tracker
from backlink_ray.tracking.uri import default_tracking_uri
from tests.tracking.mlflow_store import Store

EPOCHS = [
    {"epoch": i, "time_ms": 1000 * i, "test_error_pct": 90 / i, "local_loss": [1.5, 0.5], "step_ms": 7.0}
    for i in (1, 2)
]
INFO = ExperimentInfo(name="e", note="Lower is better.")


def a_folder(storage: Path, run_id: str = "r", epochs: int = 2, **files: object) -> Path:
    """A run folder in a study, as runner and driver write it; `files` are JSON files by name without .json."""
    folder = storage / "study" / "runs" / run_id
    start_tracking(
        folder, INFO, f"K02-{run_id}", params={"K": 2, "eta": 0.5}, tags={"study": "s"}, dataset={"name": "c"}
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(metrics) + "\n" for metrics in EPOCHS[:epochs]) + '{"torn')
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_run_folder_becomes_a_tracked_run(tmp_path: Path) -> None:
    folder = a_folder(tmp_path, result={"test_error_pct": 45.0, "executor": "ray", "fits": True, "curve": EPOCHS})
    derive(folder, {"vs_gll_pct": -1.5})
    run = tracked_run(folder)
    assert (run.run_id, run.name, run.experiment, run.params, run.tags) == (
        "r",
        "K02-r",
        INFO,
        {"K": 2, "eta": 0.5},
        {"study": "s"},
    )
    assert [(p.step, p.time_ms, p.values) for p in run.curve] == [
        (i, 1000 * i, {"curve/test_error_pct": 90 / i, "local_loss/stage_00": 1.5, "local_loss/stage_01": 0.5})
        for i in (1, 2)
    ]
    assert [(p.step, p.values) for p in run.summary] == [(2, {"test_error_pct": 45.0}), (2, {"vs_gll_pct": -1.5})]
    assert run.summary[0].time_ms == 2000
    assert (run.status, run.artifacts) == ("FINISHED", [folder / "result.json"])


def test_the_time_of_a_derived_value_is_that_of_its_last_change(tmp_path: Path) -> None:
    folder, times = a_folder(tmp_path, result={}), []
    for value in (1.0, 1.0, 2.0, 2.0):
        derive(folder, {"vs_gll_pct": value})
        times.append(tracked_run(folder).summary[1].time_ms)
        time.sleep(0.01)
    assert times[0] == times[1] < times[2] == times[3]
    assert not derive(tmp_path, {"vs_gll_pct": 1.0})  # not tracked
    start_tracking(folder, INFO, "again", params={}, tags={}, dataset={})
    assert tracked_run(folder).summary[1].time_ms == times[3]


def test_a_run_without_an_outcome_is_running_while_its_driver_lives(tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    lock = tmp_path / "study" / DRIVER_LOCK
    with exclusive(lock, 0.0):
        assert (tracked_run(folder).status, tracked_run(folder).summary[0].values) == ("RUNNING", {})
    found = tracked_run(folder)
    assert (found.status, found.end_reason, found.ended_ms) == ("KILLED", "the process that ran the study died", 2000)


@pytest.mark.parametrize(
    ("files", "status", "reason"),
    [
        ({}, "KILLED", "driver gone"),
        ({"result": {}}, "FINISHED", "done"),
        ({"failure": {"status": "FAILED", "reason": "loss is nan"}}, "FAILED", "loss is nan"),
        ({"failure": {"status": "LOST", "reason": "stage died"}}, "KILLED", "stage died"),
    ],
)
def test_open_runs_end_with_their_recorded_outcome(
    tmp_path: Path, files: dict[str, object], status: str, reason: str
) -> None:
    folder, ended = a_folder(tmp_path, **files), a_folder(tmp_path, "ended")
    end_tracking(ended, Outcome("STOPPED", "stopped early"))
    end_open_runs(tmp_path / "study" / "runs", "driver gone")
    with exclusive(tmp_path / "study" / DRIVER_LOCK, 0.0):
        assert (tracked_run(folder).status, tracked_run(folder).end_reason) == (status, reason)
        stopped = tracked_run(ended)
    assert (stopped.status, stopped.summary[0].values) == ("FINISHED", {"test_error_pct": 45.0})  # of its last epoch


def changed(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "tracking.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


def written(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


DAMAGE: dict[str, Callable[[Path], None]] = {
    "no JSON": written("tracking.json", "{"),
    "a list": written("tracking.json", "[[1]]"),
    "run_id": changed(run_id=["r"]),
    "run_id that leads away": changed(run_id="../r"),
    "params": changed(params=["K"]),
    "a parameter": changed(params={"K": [1]}),
    "tags": changed(tags={"study": 3}),
    "status": changed(status="BOGUS"),
    "experiment": changed(experiment={"name": 3}),
    "derived": changed(derived={"vs_gll_pct": "low"}),
    "started": changed(started_ms="now"),
    "a metric": written("metrics.jsonl", json.dumps(EPOCHS[0] | {"test_error_pct": "low"}) + "\n"),
    "an epoch": written("metrics.jsonl", "{}\n"),
    "a line": written("metrics.jsonl", "no json\n"),
    "result": written("result.json", "[]"),
    "artifact above": changed(artifacts=["../../../secret.txt"]),
    "artifact elsewhere": changed(artifacts=["/etc/hostname"]),
    "artifact link": lambda folder: (folder / "result.json").symlink_to("/etc/hostname"),
}


def test_damage_and_evil_paths_cost_their_run_alone_and_are_named(
    tmp_path: Path, storage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    for i, damage in enumerate(DAMAGE.values()):
        damage(a_folder(storage, f"bad{i:02d}"))
    a_folder(storage, "good", result={})
    caplog.set_level(logging.WARNING)
    assert sync(storage, default_tracking_uri(storage)) == (1, len(DAMAGE))
    assert Store(storage / "mlflow.db").runs() == [("good", "FINISHED")]
    assert len(caplog.messages) == len(DAMAGE)
    for i, (name, message) in enumerate(zip(DAMAGE, caplog.messages, strict=True)):
        assert f"{storage}/study/runs/bad{i:02d}/" in message, name
        assert "\n" not in message
    assert not list(storage.rglob("*secret*"))


def test_sync_gives_the_same_database_again(tmp_path: Path, storage: Path) -> None:
    a_folder(storage, "done", result={"test_error_pct": 45.0})
    a_folder(storage, "killed", epochs=1)
    uri, database = default_tracking_uri(storage), Store(storage / "mlflow.db")
    found = []
    for _ in range(2):
        assert sync(storage, uri) == (2, 0)
        found.append([database.query(f"select * from {table}") for table in ("runs", "tags", "metrics", "params")])
    assert found[0] == found[1]
    assert database.runs() == [("done", "FINISHED"), ("killed", "KILLED")]
    assert set(database.points().values()) == {1}
    assert len(database.points()) == 2 * 4 + 1 + 4
    with pytest.raises(ConfigError, match="has nothing to sync"):
        sync(tmp_path / "storage" / "mlartifacts", uri)
    with pytest.raises(TrackingError, match="2 of 2 runs are not in MLflow yet"):
        sync(storage, "http://127.0.0.1:9", timeout_s=0.5)


def test_a_study_has_a_run_of_its_own_for_its_files(storage: Path) -> None:
    uri, folder = default_tracking_uri(storage), storage / "table_2-smoke"
    folder.mkdir()
    for name in ("table.md", "figure.png", "table.md"):
        (folder / name).write_text(name)
        tracker = Tracker(uri, INFO, storage)
        track_files(tracker, folder, [folder / name])
        assert tracker.close() == 0
    database = Store(storage / "mlflow.db")
    assert database.runs() == [("table_2-smoke", "FINISHED")]
    assert {"study": "table_2-smoke", "kind": "study"}.items() <= database.tags("table_2-smoke").items()
    assert {path.name for path in (storage / "mlartifacts").rglob("*.*")} == {"table.md", "figure.png"}


def test_a_damaged_tracking_file_stops_no_driver(tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    (folder / "tracking.json").write_text("{")
    end_open_runs(folder.parent, "driver gone")
    assert not derive(folder, {"vs_gll_pct": 1.0})
    with pytest.raises(StorageError, match="tracking.json is damaged"):
        tracked_run(folder)
    start_tracking(folder, INFO, "again", params={}, tags={}, dataset={})
    assert tracked_run(folder).name == "again"
