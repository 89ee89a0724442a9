"""The tracker against a real MLflow server that is down, killed, and crowded."""

import logging
import signal
import time
from pathlib import Path

import pytest

from backlink_ray.tracking.tracker import Tracker, sync
from tests.tracking.mlflow_store import Server, Store, fork_writers, written


def log_steps(tracker: Tracker, first: int, last: int) -> None:
    for step in range(first, last):
        tracker.log_metrics("r", {"curve/test_error_pct": step / 7, "local_loss/stage_00": step / 3}, step)
        time.sleep(0.002)


def expected(last: int) -> dict[tuple[str, str, int, float], int]:
    errors = {("r", "curve/test_error_pct", step, step / 7): 1 for step in range(last)}
    return errors | {("r", "local_loss/stage_00", step, step / 3): 1 for step in range(last)}


@pytest.mark.timeout(120)
def test_a_server_that_comes_late_and_is_killed_midway_gets_each_point_once(tmp_path: Path, server: Server) -> None:
    server.kill()
    tracker = Tracker(tmp_path / "spool", server.uri, experiment="e")
    begin = time.monotonic()
    tracker.start_run("r", "r", {"K": 4}, {})
    log_steps(tracker, 0, 100)
    assert time.monotonic() - begin < 5  # down, and nothing waits for it
    server.launch()
    server.wait()
    log_steps(tracker, 100, 500)
    server.kill()
    log_steps(tracker, 500, 600)
    server.launch()
    log_steps(tracker, 600, 700)
    tracker.end_run("r", "FINISHED", "done")
    assert tracker.close(timeout_s=60) == 0
    server.wait()
    store = Store(server.database)
    assert store.points("r") == expected(700)
    assert store.runs("r") == [("r", "FINISHED")]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_server_that_hangs_makes_no_twins(tmp_path: Path, server: Server) -> None:
    server.ensure()
    for attempt in range(3):
        tracker = Tracker(tmp_path / f"spool{attempt}", server.uri, experiment=f"hang{attempt}")
        tracker.start_run(f"h{attempt}", "h", {"K": 4}, {})
        time.sleep(0.03 * attempt)  # hangs at different calls
        server.signal(signal.SIGSTOP)
        for step in range(100):
            tracker.log_metrics(f"h{attempt}", {"x": step / 7}, step)
        time.sleep(12)  # longer than a request may take
        server.signal(signal.SIGCONT)
        tracker.end_run(f"h{attempt}", "FINISHED", "done")
        assert tracker.close(timeout_s=30) == 0
    store = Store(server.database)
    assert store.runs("h") == [(f"h{attempt}", "FINISHED") for attempt in range(3)]
    assert store.points("h") == {(f"h{attempt}", "x", step, step / 7): 1 for attempt in range(3) for step in range(100)}


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("writers", "batches"), [(20, 24), pytest.param(8, 500, marks=pytest.mark.slow)])
def test_concurrent_first_starts_and_writers_lose_and_repeat_nothing(
    tmp_path: Path, server: Server, writers: int, batches: int
) -> None:
    server.ensure()
    store, prefix = Store(server.database), f"b{batches}-"
    assert fork_writers(prefix, writers, batches, server.uri, tmp_path / "spools") == str([0] * writers)
    assert store.query("select count(*) from experiments where name = 'shared'") == [(1,)]
    assert store.points(prefix) == written(prefix, writers, batches)
    assert store.runs(prefix) == [(f"{prefix}{i:02d}", "FINISHED") for i in range(writers)]
    assert store.runs_with_dataset(prefix) == [f"{prefix}{i:02d}" for i in range(writers)]
    sync(tmp_path / "spools" / f"{prefix}00", server.uri)
    assert store.points(prefix) == written(prefix, writers, batches)


@pytest.mark.timeout(60)
def test_artifacts_link_and_secrets(tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.ensure()
    caplog.set_level(logging.DEBUG)
    with_password = server.uri.replace("http://", "http://user:s3cret@")
    tracker = Tracker(tmp_path / "spool", with_password, experiment="secrets")
    (tmp_path / "config.yaml").write_text("K: 4")
    tracker.start_run("s", "s", {"K": 4, "empty": ""}, {"empty": ""}, {"name": "cifar10"})
    tracker.log_metrics("s", {"a": float("nan"), "b": 1 / 3}, 0)
    tracker.log_artifact("s", tmp_path / "config.yaml", "setup")
    tracker.end_run("s", "FAILED", "")
    link = tracker.link()
    assert tracker.close() == 0
    assert link.startswith(f"{server.uri}/#/experiments/")
    assert link.endswith("&compareRunsMode=CHART&viewStateShareKey=backlink-K")
    assert tracker.command() == ""
    store = Store(server.database)
    assert store.runs("s") == [("s", "FAILED")]
    assert store.points("s") == {("s", "b", 0, 1 / 3): 1}
    assert store.tags("s")["nonfinite.a"] == "nan at step 0"
    assert store.query("select count(*) from experiment_tags where key = 'mlflow.sharedViewState.backlink-K'") == [(1,)]
    assert [path.read_text() for path in (server.folder / "artifacts").rglob("config.yaml")] == ["K: 4"]
    server_files = [path for path in server.folder.rglob("*") if path.is_file()]
    ours = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert "s3cret" not in caplog.text
    assert all(b"s3cret" not in path.read_bytes() for path in [*server_files, *ours])
