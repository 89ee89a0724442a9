"""The tracker against a real MLflow server that is down, killed, and crowded."""

import logging
import signal
import statistics
import time
from pathlib import Path

import pytest

from backlink_ray.data.datasets import data_root
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import dataset_of
from backlink_ray.runs.job import make_job
from backlink_ray.tracking.run import ExperimentInfo, Point
from backlink_ray.tracking.tracker import NoTracker, Tracker
from backlink_ray.train.executor import LocalExecutor
from tests.tracking.mlflow_store import Server, Store, a_run, fork_writers, points_of, written

SLOW = pytest.mark.slow


def open_tracker(uri: str, folder: Path) -> Tracker:
    return Tracker(uri, ExperimentInfo(name="e"), folder)


def train(tracker: Tracker, run_id: str, first: int, last: int) -> None:
    for epoch in range(first, last + 1):
        tracker.log(run_id, lambda epoch=epoch: a_run(run_id, epoch, summary=(), status="RUNNING"))
        time.sleep(0.002)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("down", [pytest.param("at the start", marks=pytest.mark.slow), "in the middle"])
def test_a_server_that_was_down_gets_each_point_once(tmp_path: Path, server: Server, down: str) -> None:
    server.ensure() if down == "in the middle" else server.kill()
    run_id = run_id_of(down)
    tracker = open_tracker(server.uri, tmp_path)
    train(tracker, run_id, 1, 200)
    time.sleep(0.5)  # if it is up, some epochs are logged
    server.kill()
    begin = time.monotonic()
    train(tracker, run_id, 201, 400)
    assert time.monotonic() - begin < 5  # down, and nothing waits for it
    server.launch()
    train(tracker, run_id, 401, 500)
    tracker.log(run_id, lambda: a_run(run_id, 500))
    assert tracker.close(timeout_s=60) == 0
    store = Store(server.database)
    assert store.points(run_id) == points_of(run_id, 500)
    assert store.runs(run_id) == [(run_id, "FINISHED")]


def run_id_of(text: str) -> str:
    return text.replace(" ", "-")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_server_that_hangs_makes_no_duplicates(tmp_path: Path, server: Server) -> None:
    server.ensure()
    for attempt in range(3):
        run_id = f"h{attempt}"
        tracker = open_tracker(server.uri, tmp_path)
        tracker.log(run_id, lambda run_id=run_id: a_run(run_id, 1, summary=(), status="RUNNING"))
        time.sleep(0.03 * attempt)  # hangs at different calls
        server.signal(signal.SIGSTOP)
        train(tracker, run_id, 2, 100)
        time.sleep(12)  # longer than a request may take
        server.signal(signal.SIGCONT)
        tracker.log(run_id, lambda run_id=run_id: a_run(run_id, 100))
        assert tracker.close() == 0
    store = Store(server.database)
    assert store.runs("h") == [(f"h{attempt}", "FINISHED") for attempt in range(3)]
    assert store.points("h") == points_of("h0", 100) + points_of("h1", 100) + points_of("h2", 100)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("writers", "epochs"), [pytest.param(20, 24, marks=SLOW), pytest.param(8, 500, marks=SLOW)])
def test_concurrent_first_starts_and_writers_lose_and_repeat_nothing(server: Server, writers: int, epochs: int) -> None:
    server.ensure()
    store, prefix = Store(server.database), f"b{writers}-{epochs}-"
    for _ in range(2):  # the second time everything is logged already
        assert fork_writers(prefix, writers, epochs, server.uri) == str([0] * writers)
        assert store.points(prefix) == written(prefix, writers, epochs)
    assert store.query("select count(*) from experiments where name = 'e'") == [(1,)]
    assert store.runs(prefix) == [(f"{prefix}{i:02d}", "FINISHED") for i in range(writers)]
    assert store.runs_with_dataset(prefix) == [f"{prefix}{i:02d}" for i in range(writers)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("state", ["killed", "stopped"])
def test_training_beside_a_server_that_is_down_is_less_than_five_per_cent_slower(
    tmp_path: Path, server: Server, state: str
) -> None:
    """In one process, which is more than a study asks for: there, trials train in processes of their own."""
    server.ensure()
    config = RunConfig(network="resnet8", num_modules=2, propagation_length=1, batch_size=40, train_images=80, lr=0.05)
    executor = LocalExecutor(make_job(config, dataset_of(config, data_root(""))))

    def epochs(tracker: NoTracker, run_id: str) -> float:
        begin = time.perf_counter()
        for epoch in range(1, 5):
            executor.train(2)
            tracker.log(run_id, lambda epoch=epoch: a_run(run_id, epoch, summary=(), status="RUNNING"))
        took_s = time.perf_counter() - begin
        tracker.close(0.0)
        return took_s

    epochs(open_tracker(server.uri, tmp_path), f"{state}-first")
    server.signal(signal.SIGSTOP) if state == "stopped" else server.kill()
    ratios = []
    for pair in range(60):  # one beside the other, since a machine is not equally fast all the time
        took_s = {}
        for is_tracked in (True, False) if pair % 2 else (False, True):
            tracker = open_tracker(server.uri, tmp_path) if is_tracked else NoTracker()
            took_s[is_tracked] = epochs(tracker, f"{state}{pair}")
        ratios.append(took_s[True] / took_s[False])
    server.signal(signal.SIGCONT)
    ratio = statistics.median(ratios)
    print(f"MLflow {state}: {ratio:.3f} times as long, median of {len(ratios)} pairs")
    assert ratio < 1.05


@pytest.mark.timeout(60)
def test_artifacts_link_and_secrets(tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.ensure()
    caplog.set_level(logging.DEBUG)
    tracker = open_tracker(server.uri.replace("http://", "http://user:s3cret@"), tmp_path)
    (tmp_path / "config.yaml").write_text("K: 4")
    curve = [Point(step=0, time_ms=7, values={"a": float("nan"), "b": 1 / 3})]
    run = a_run(
        "s", 0, curve=curve, artifacts=[tmp_path / "config.yaml"], tags={"empty": ""}, status="FAILED", end_reason=""
    )
    tracker.log("s", lambda: run)
    page = tracker.page()
    assert tracker.close() == 0
    assert page.startswith(f"MLflow: {server.uri}/#/experiments/")
    assert page.endswith("&compareRunsMode=CHART&viewStateShareKey=backlink-K")
    store = Store(server.database)
    assert store.runs("s") == [("s", "FAILED")]
    assert store.points("s") == {("s", "b", 0, 1 / 3): 1, ("s", "progress/epoch", 0, 1.0): 1}
    assert store.tags("s")["nonfinite.a"] == "nan at step 0"
    assert store.query("select count(*) from experiment_tags where key = 'mlflow.sharedViewState.backlink-K'") == [(1,)]
    assert [path.read_text() for path in (server.folder / "artifacts").rglob("config.yaml")] == ["K: 4"]
    files = [path for folder in (server.folder, tmp_path) for path in folder.rglob("*") if path.is_file()]
    assert "s3cret" not in caplog.text
    assert all(b"s3cret" not in path.read_bytes() for path in files)
