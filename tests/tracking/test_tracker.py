"""The tracker on a real SQLite store."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from backlink_ray.tracking.journal import ExperimentInfo, Journal, SyncReport
from backlink_ray.tracking.replay import Cursor
from backlink_ray.tracking.spool import Spool
from backlink_ray.tracking.tracker import Tracker, sync
from backlink_ray.tracking.uri import default_tracking_uri
from tests.tracking.mlflow_store import ROOT, Store, fork_writers, written

pytestmark = pytest.mark.timeout(60)
DATASET = {"name": "cifar10-sample", "md5": "0" * 32, "train_images": "2000"}


@pytest.fixture
def uri(storage: Path) -> str:
    return default_tracking_uri(storage)


@pytest.fixture
def database(storage: Path) -> Store:
    return Store(storage / "mlflow.db")


def train(tracker: Tracker, run_id: str = "r", epochs: int = 5) -> None:
    tracker.start_run(run_id, f"K04-{run_id}", {"K": 4, "eta": 0.5}, {"study": "s"}, DATASET)
    for epoch in range(epochs):
        tracker.log_metrics(run_id, {"curve/test_error_pct": 90 / (epoch + 1), "local_loss/stage_00": 0.1}, epoch)
    tracker.log_metrics(run_id, {"test_error_pct": 90 / epochs}, epochs)
    tracker.end_run(run_id, "FINISHED", "done")


def test_a_run_arrives_whole(tmp_path: Path, uri: str, database: Store) -> None:
    tracker = Tracker(tmp_path / "spool", uri, experiment="backlink-e", note="Lower is better.")
    (tmp_path / "config.yaml").write_text("K: 4")
    tracker.start_run("r", "K04-l2", {"K": 4, "eta": 0.5}, {"study": "s", "paper.cell": "t2/K4"}, DATASET)
    tracker.log_metrics("r", {"loss": float("inf"), "local_loss/stage_00": 0.25}, 1)
    tracker.log_artifact("r", tmp_path / "config.yaml", "setup")
    tracker.end_run("r", "FINISHED", "all epochs done")
    assert tracker.close() == 0
    assert database.runs() == [("r", "FINISHED")]
    assert database.points() == {("r", "local_loss/stage_00", 1, 0.25): 1}
    expected = {"nonfinite.loss": "inf at step 1", "end_reason": "all epochs done", "mlflow.runName": "K04-l2"}
    assert (expected | {"study": "s", "paper.cell": "t2/K4"}).items() <= database.tags("r").items()
    assert sorted(database.query("select key, value from params")) == [("K", "4"), ("eta", "0.5")]
    assert database.query("select name, digest from datasets") == [("cifar10-sample", "0" * 32)]
    assert [path.read_text() for path in (tmp_path / "storage" / "mlartifacts").rglob("setup/config.yaml")] == ["K: 4"]
    assert not (tmp_path / "mlruns").exists()


def test_the_experiment_describes_itself_and_a_new_note_replaces_the_old(
    tmp_path: Path, uri: str, database: Store
) -> None:
    for note in ("old", "new"):
        Tracker(tmp_path / "spool", uri, experiment="e", note=note, primary_metric="val_error_pct").close()
    assert sorted(database.query("select key, value from experiment_tags")) == [
        ("mlflow.experiment.primaryMetric.name", "val_error_pct"),
        ("mlflow.experimentKind", "custom_model_development"),
        ("mlflow.note.content", "new"),
    ]


def test_times_are_those_of_the_events(tmp_path: Path, uri: str, database: Store) -> None:
    tracker = Tracker(tmp_path / "spool", uri, experiment="e")
    train(tracker, epochs=2)
    tracker.close()
    start, *points, end = Spool(tmp_path / "spool", "e").read()
    assert database.query("select start_time, end_time from runs") == [(start.time_ms, end.time_ms)]
    stored = database.query("select distinct step, timestamp from metrics order by step")
    assert stored == [(point.step, point.time_ms) for point in points]


def test_a_run_started_again_stays_one_run(tmp_path: Path, uri: str, database: Store) -> None:
    for reason in ("first", "second"):
        tracker = Tracker(tmp_path / "spool", uri, experiment="e")
        train(tracker)
        if reason == "second":
            tracker.start_run("r", "K04-r", {"K": 4}, {})
            wait_for(lambda: database.runs() == [("r", "RUNNING")])
            tracker.end_run("r", "FAILED", reason)
        assert tracker.close() == 0
    assert database.runs() == [("r", "FAILED")]
    assert len(database.points()) == 11
    assert set(database.points().values()) == {1}


def test_a_sync_gives_the_database_of_a_direct_run(tmp_path: Path, uri: str, database: Store) -> None:
    tracker = Tracker(tmp_path / "spool", uri, experiment="e")
    train(tracker)
    tracker.close()
    other = Store(tmp_path / "other" / "mlflow.db")
    for _ in range(2):  # the second one changes nothing
        report = sync(tmp_path / "spool", default_tracking_uri(tmp_path / "other"))
        assert report == SyncReport(runs=1, points=11, artifacts=0, refused=0)
        for table in ("params", "tags", "metrics", "latest_metrics", "runs", "experiment_tags"):
            drop = {"run_uuid", "artifact_uri", "experiment_id"}
            names = [str(row[1]) for row in database.query(f"pragma table_info({table})") if row[1] not in drop]
            columns = ", ".join(names)
            order = f"select {columns} from {table} order by {columns}"
            assert other.query(order) == database.query(order), table


def test_a_backlog_and_wide_runs_are_split_as_mlflow_demands(tmp_path: Path, uri: str, database: Store) -> None:
    book = Journal(tmp_path / "spool", ExperimentInfo(experiment="e"))
    book.start_run("r", "r", {f"p{i}": i for i in range(150)}, {f"t{i}": "x" for i in range(120)})
    for step in range(150):
        book.log_metrics("r", {f"m{i}": step + i / 7 for i in range(10)}, step)
    book.log_metrics("r", {f"n{i}": float("nan") for i in range(120)}, 0)
    book.leave()
    assert sync(tmp_path / "spool", uri).refused == 0
    assert sum(database.points().values()) == 1500
    assert database.query("select count(*) from params") == [(150,)]
    assert len([key for key in database.tags("r") if key.startswith("nonfinite.n")]) == 120


def test_a_crash_before_the_cursor_moved_makes_no_second_run(tmp_path: Path, uri: str, database: Store) -> None:
    for _ in range(2):
        tracker = Tracker(tmp_path / "spool", uri, experiment="e")
        train(tracker)
        assert tracker.close() == 0
        for cursor in (tmp_path / "spool").glob("*.cursor"):
            cursor.unlink()
    assert database.runs() == [("r", "FINISHED")]
    assert set(database.points().values()) == {1}


def test_an_empty_twin_of_a_request_that_timed_out_is_deleted(tmp_path: Path, uri: str, database: Store) -> None:
    mlflow = pytest.importorskip("mlflow")
    tracker = Tracker(tmp_path / "spool", uri, experiment="e")
    train(tracker)
    tracker.close()
    mlflow.MlflowClient(uri).create_run("1", start_time=0, tags={"backlink_ray.run_id": "r"})
    sync(tmp_path / "spool", uri)
    assert database.runs() == [("r", "FINISHED")]


def test_a_run_that_mlflow_refuses_does_not_hold_up_the_others(
    tmp_path: Path, uri: str, database: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for spool, eta in (("one", 0.5), ("two", 0.25)):
        tracker = Tracker(tmp_path / spool, uri, experiment="e")
        tracker.start_run("r", "r", {"eta": eta}, {})
        train(tracker, f"in-{spool}")
        assert tracker.close() == 0
    assert database.query("select value from params where key = 'eta' and value != '0.5'") == []
    assert [run for run, _ in database.runs()] == ["in-one", "in-two", "r"]
    assert "MLflow refuses a start: MlflowException: Changing param values is not allowed" in caplog.text


def test_a_request_that_lost_a_race_is_sent_again(
    tmp_path: Path, uri: str, database: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, exceptions = pytest.importorskip("mlflow").MlflowClient, pytest.importorskip("mlflow.exceptions")
    log_inputs, lost = client.log_inputs, iter([True])

    def lose_once(*args: object, **kwargs: object) -> None:
        if next(lost, False):  # two runs that log one new data set at once: MLflow's own word for it
            raise exceptions.RestException({"error_code": "BAD_REQUEST", "message": "UNIQUE constraint failed"})
        log_inputs(*args, **kwargs)

    monkeypatch.setattr(client, "log_inputs", lose_once)
    tracker = Tracker(tmp_path / "spool", uri, experiment="e")
    train(tracker)
    assert tracker.close() == 0
    assert database.runs_with_dataset() == ["r"]
    assert database.runs() == [("r", "FINISHED")]


def test_a_killed_driver_leaves_no_second_run_and_no_open_one(tmp_path: Path, uri: str, database: Store) -> None:
    kept = 30
    script = (
        "import sys; from pathlib import Path; from backlink_ray.tracking.tracker import Tracker\n"
        "tracker = Tracker(Path(sys.argv[1]), sys.argv[2], experiment='e')\n"
        "for run in 'ab': tracker.start_run(run, run, {'K': 4}, {})\n"
        "for i in range(10_000):\n"
        "    for run in 'ab': tracker.log_metrics(run, {'x': i / 7}, i)\n"
        "    print(i, flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "spool"), uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as driver:
        assert driver.stdout
        for _ in range(kept):
            driver.stdout.readline()
        driver.send_signal(signal.SIGKILL)
    with (tmp_path / "spool" / "e.jsonl").open("ab") as file:
        file.write(b'{"kind":"metrics","run_id":"a","time')  # a line torn by the kill
    tracker = Tracker(tmp_path / "spool", uri, experiment="e")
    tracker.start_run("a", "a", {"K": 4}, {})
    for i in range(kept, kept + 200):
        tracker.log_metrics("a", {"x": i / 7}, i)
    tracker.end_run("a", "FINISHED", "done")
    assert tracker.close() == 0
    assert database.runs() == [("a", "FINISHED"), ("b", "KILLED")]
    assert database.points("a") == {("a", "x", i, i / 7): 1 for i in range(kept + 200)}
    assert {("b", "x", i, i / 7): 1 for i in range(kept)}.items() <= database.points("b").items()
    sync(tmp_path / "spool", uri)
    assert set(database.points().values()) == {1}
    assert database.runs() == [("a", "FINISHED"), ("b", "KILLED")]


@pytest.mark.slow
def test_twenty_first_starts_on_an_empty_store(tmp_path: Path) -> None:
    assert fork_writers("w", 20, 2, default_tracking_uri(tmp_path), tmp_path / "spools") == str([0] * 20)
    store = Store(tmp_path / "mlflow.db")
    assert store.runs() == [(f"w{i:02d}", "FINISHED") for i in range(20)]
    assert store.points() == written("w", 20, 2)
    assert store.query("select count(*) from experiments where name = 'shared'") == [(1,)]


def test_a_cursor_of_a_store_that_was_wiped_is_not_believed(tmp_path: Path, uri: str, database: Store) -> None:
    tracker = Tracker(tmp_path / "spool", uri, experiment="e")
    train(tracker)
    tracker.close()
    wiped = default_tracking_uri(tmp_path / "wiped")
    birth = json.loads(next((tmp_path / "spool").glob("*.cursor")).read_text())["identity"]
    Cursor(tracker.spool, wiped).save(tracker.spool.size_bytes(), birth)
    tracker = Tracker(tmp_path / "spool", wiped, experiment="e")
    train(tracker, "s")
    assert tracker.close() == 0
    assert Store(tmp_path / "wiped" / "mlflow.db").points("r") == database.points("r")


def test_evil_names_stay_names(tmp_path: Path, uri: str, database: Store) -> None:
    tracker = Tracker(tmp_path / "a" / "spool", uri, experiment="../../a%2f..\\b\0")
    name = tmp_path / "x;..%2f.yaml"
    name.write_text("x")
    tracker.start_run("r", "../\0", {"../p": "1"}, {"a@=//b": "2"})
    tracker.log_metrics("r", {"../../m": 1.0, "/": 2.0, "x" * 400: 3.0}, 0)
    tracker.log_artifact("r", name, "../../../out%2f")
    tracker.end_run("r", "FINISHED", "")
    assert tracker.close() == 0
    assert len(database.points()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "storage", "x;..%2f.yaml"]
    assert sorted(path.name for path in (tmp_path / "storage").iterdir()) == [
        "mlartifacts",
        "mlflow.db",
        "mlflow.db.lock",
    ]


def test_the_link_shares_a_view(tmp_path: Path, uri: str, database: Store) -> None:
    tracker = Tracker(tmp_path / "spool", uri, experiment="e")
    link = tracker.link(group_by="K")
    assert link.startswith("http://127.0.0.1:5000/#/experiments/1/runs?")
    assert link.endswith("&viewStateShareKey=backlink-K")
    ((state,),) = database.query(
        "select value from experiment_tags where experiment_id = 1 and key = 'mlflow.sharedViewState.backlink-K'"
    )
    assert json.loads(str(state))["groupBy"]["groupByKeys"] == [{"mode": "param", "groupByData": "K"}]
    assert tracker.command().endswith(f"mlflow ui --backend-store-uri {uri} --host 127.0.0.1 --port 5000")
    tracker.close()


def test_a_store_that_cannot_be_opened_delays_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mlflow.db").mkdir()
    begin = time.monotonic()
    tracker = Tracker(tmp_path / "spool", default_tracking_uri(tmp_path), experiment="e")
    train(tracker)
    assert tracker.link() == "http://127.0.0.1:5000/#/experiments"
    assert tracker.close(timeout_s=0.5) == 8
    assert time.monotonic() - begin < 5
    assert "8 events are not in MLflow" in caplog.text


@pytest.mark.parametrize("hangs", [False, True])
def test_mlflow_that_is_never_there_delays_nothing_and_loses_nothing(
    tmp_path: Path, uri: str, database: Store, caplog: pytest.LogCaptureFixture, hangs: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        address = f"http://user:s3cret@127.0.0.1:{listener.getsockname()[1]}"
        if not hangs:
            listener.close()
        begin = time.monotonic()
        tracker = Tracker(tmp_path / "spool", address, experiment="e")
        train(tracker, epochs=50)
        assert time.monotonic() - begin < 3
        begin = time.monotonic()
        assert tracker.close(timeout_s=1.0) == 53
        assert time.monotonic() - begin < 2
    assert "53 events are not in MLflow at http://user:***@127.0.0.1" in caplog.text
    assert f"backlink-ray sync {tmp_path / 'spool'}" in caplog.text
    with pytest.raises(ConnectionError, match="53 events are not there yet"):
        sync(tmp_path / "spool", address, timeout_s=0.2)
    assert "s3cret" not in caplog.text
    assert all(b"s3cret" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert sync(tmp_path / "spool", uri).points == 101
    assert database.runs() == [("r", "FINISHED")]
    assert database.points()["r", "curve/test_error_pct", 2, 30.0] == 1
    assert sum(database.points().values()) == 101


def test_sync_wants_a_spool(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ValueError, match="no spool"):
        sync(tmp_path, uri)
    with pytest.raises(ValueError, match="is a folder"):
        sync(tmp_path, "mlruns")


def test_the_environment_is_quiet_and_impatient() -> None:
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"
    assert os.environ["GIT_PYTHON_REFRESH"] == "quiet"
    assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) * int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) < 30


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
