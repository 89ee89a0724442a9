"""The tracker on a real SQLite store."""

import inspect
import itertools
import json
import logging
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from backlink_ray.tracking.mlflow_sink import VERSION, MlflowClient, MlflowException, MlflowSink
from backlink_ray.tracking.run import ExperimentInfo, Point, TrackedRun
from backlink_ray.tracking.tracker import NoTracker, Tracker
from backlink_ray.tracking.uri import default_tracking_uri
from tests.tracking.mlflow_store import Store, a_run, fork_writers, points_of, written

pytestmark = pytest.mark.timeout(60)
SLOW = pytest.mark.slow
EVERYTHING = ("runs", "params", "tags", "metrics", "latest_metrics", "inputs", "datasets", "experiment_tags")


@pytest.fixture
def uri(storage: Path) -> str:
    return default_tracking_uri(storage)


@pytest.fixture
def database(storage: Path) -> Store:
    return Store(storage / "mlflow.db")


def track(uri: str, *runs: TrackedRun) -> Tracker:
    """Track runs by a tracker of its own, and close it."""
    tracker = Tracker(uri, ExperimentInfo(name="e"), Path("results"))
    for run in runs:
        tracker.log(run.run_id, lambda run=run: run)
    assert tracker.close() == 0
    return tracker


def test_a_run_arrives_whole(tmp_path: Path, uri: str, database: Store) -> None:
    (tmp_path / "config.yaml").write_text("K: 4")
    run = a_run(epochs=2, artifacts=[tmp_path / "config.yaml"])
    summary = [*run.summary, Point(step=2, time_ms=1500, values={"best": float("inf")})]
    track(uri, replace(run, summary=summary))
    assert database.runs() == [("r", "FINISHED")]
    assert database.points() == points_of("r", 2)
    assert database.query("select start_time, end_time from runs") == [(1000, 2000)]
    assert database.query("select distinct step, timestamp from metrics order by step") == [(1, 1001), (2, 1002)]
    expected = {"nonfinite.best": "inf at step 2", "end_reason": "done", "mlflow.runName": "K04-r", "study": "s"}
    assert expected.items() <= database.tags("r").items()
    assert sorted(database.query("select key, value from params")) == [("K", "4"), ("eta", "0.5")]
    assert database.query("select name, digest from datasets") == [("cifar10-sample", "0" * 32)]
    assert [path.read_text() for path in (tmp_path / "storage" / "mlartifacts").rglob("config.yaml")] == ["K: 4"]
    assert not (tmp_path / "mlruns").exists()


def test_the_experiment_describes_itself_and_a_new_note_replaces_the_old(uri: str, database: Store) -> None:
    for note in ("old", "new"):
        track(uri, a_run(experiment=ExperimentInfo(name="e", note=note, primary_metric="val_error_pct")))
    assert sorted(database.query("select key, value from experiment_tags")) == [
        ("mlflow.experiment.primaryMetric.name", "val_error_pct"),
        ("mlflow.experimentKind", "custom_model_development"),
        ("mlflow.note.content", "new"),
    ]


def test_nothing_is_logged_twice(tmp_path: Path, uri: str, database: Store) -> None:
    file = tmp_path / "table.md"
    file.write_text("one")
    run = a_run(epochs=4, artifacts=[file])
    track(uri, run)
    before = [database.query(f"select * from {table}") for table in EVERYTHING]
    track(uri, run)
    assert [database.query(f"select * from {table}") for table in EVERYTHING] == before
    # A run that resumed from an older checkpoint has trained its epochs again, at other times.
    again = [replace(point, time_ms=point.time_ms + 5000, values={"curve/epoch_s": 7.0}) for point in run.curve]
    more = replace(a_run(epochs=5).curve[4], time_ms=9000)
    track(uri, replace(run, curve=[*again, more], summary=a_run(epochs=5).summary))
    assert database.points() - points_of("r", 4) == points_of("r", 5) - points_of("r", 4)
    file.write_text("two")
    track(uri, replace(run, artifacts=[file]))
    assert [path.read_text() for path in (tmp_path / "storage" / "mlartifacts").rglob("table.md")] == ["two"]


def test_newer_values_replace_older_ones_except_parameters(
    uri: str, database: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def derived(value: float, time_ms: int) -> TrackedRun:
        run = a_run(tags={"time": str(time_ms)}, params={"K": value, "l": 2}, status="FAILED", end_reason=str(value))
        return replace(run, summary=[Point(step=3, time_ms=time_ms, values={"vs_gll_pct": value})])

    for value, time_ms in ((1.5, 1), (2.5, 2), (1.5, 3)):
        track(uri, a_run(status="RUNNING", end_reason=""))
        assert database.runs() == [("r", "RUNNING")]
        track(uri, derived(value, time_ms))
    stored = database.query("select value, timestamp from metrics where key = 'vs_gll_pct' order by 2")
    assert stored == [(1.5, 1), (2.5, 2), (1.5, 3)]
    assert database.query("select value from latest_metrics where key = 'vs_gll_pct'") == [(1.5,)]
    assert {"time": "3", "end_reason": "1.5"}.items() <= database.tags("r").items()
    assert sorted(database.query("select key, value from params")) == [("K", "4"), ("eta", "0.5"), ("l", "2")]
    assert "run r: MLflow has other values of K, and keeps those" in caplog.text


def test_a_backlog_and_wide_runs_are_split_into_batches_that_mlflow_accepts(uri: str, database: Store) -> None:
    wide = [
        Point(step=i, time_ms=i, values={f"m{j}": j / 7 for j in range(n)}) for i, n in enumerate([300] * 6 + [2500])
    ]
    nan = Point(step=9, time_ms=9, values={f"n{j}": float("nan") for j in range(120)})
    track(uri, a_run(params={f"p{i}": "x" * 7000 for i in range(150)}, curve=wide, summary=[nan]))
    assert database.query("select count(*) from metrics") == [(6 * 300 + 2500 + 7,)]
    assert database.query("select count(*), max(length(value)) from params") == [(150, 6000)]
    assert len([key for key in database.tags("r") if key.startswith("nonfinite.n")]) == 120


@pytest.mark.parametrize("before", [True, False])
def test_a_kill_between_any_two_requests_leaves_one_run_and_no_point_twice(
    tmp_path: Path, uri: str, database: Store, before: bool
) -> None:
    """A process dies before or after MLflow has received a request; its epochs are trained again, at other times."""
    (tmp_path / "config.yaml").write_text("K: 4")
    MlflowSink(uri).experiment_id(ExperimentInfo(name="e"))
    for deaths in itertools.count():
        run = a_run(f"r{deaths:02d}", artifacts=[tmp_path / "config.yaml"])
        if not killed_at(deaths, before, lambda run=run: MlflowSink(uri).log(run)):
            break
        later = [[replace(p, time_ms=p.time_ms + 7) for p in points] for points in (run.curve, run.summary)]
        MlflowSink(uri).log(replace(run, curve=later[0], summary=later[1]))
    assert deaths > 6
    assert database.runs() == [(f"r{i:02d}", "FINISHED") for i in range(deaths + 1)]
    assert database.points() == written("r", deaths + 1, 3)


def killed_at(count: int, before: bool, work: Callable[[], None]) -> bool:
    """Do the work in a process that dies at its request `count`; return whether it died."""
    child = os.fork()
    if child == 0:
        requests = itertools.count()
        for name in (
            "create_run",
            "log_batch",
            "log_inputs",
            "log_artifact",
            "set_tag",
            "set_terminated",
            "search_runs",
        ):
            setattr(MlflowClient, name, dying(getattr(MlflowClient, name), lambda: next(requests) == count, before))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def dying(request: Callable[..., object], is_time: Callable[[], bool], before: bool) -> Callable[..., object]:
    def send(*args: object, **kwargs: object) -> object:
        dies = is_time()
        if dies and before:
            os._exit(9)
        answer = request(*args, **kwargs)
        if dies:
            os._exit(9)
        return answer

    return send


def test_an_empty_duplicate_of_a_request_that_timed_out_is_deleted(uri: str, database: Store) -> None:
    track(uri, a_run())
    MlflowClient(uri).create_run("1", start_time=0, tags={"backlink_ray.run_id": "r"})
    track(uri, a_run())
    assert database.runs() == [("r", "FINISHED")]


def test_an_unreadable_or_refused_run_affects_no_other_and_is_reported_once(
    uri: str, database: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def unreadable() -> TrackedRun:
        raise OSError("runs/x/tracking.json is damaged")

    tracker = Tracker(uri, ExperimentInfo(name="e"), Path("results"))
    for i in range(3):
        tracker.log("x", unreadable)
        tracker.log("y", lambda: a_run("y", 0, curve=[Point(step=1, time_ms=-1, values={"a": 1.0})]))
        tracker.log(f"r{i}", lambda i=i: a_run(f"r{i}"))
        wait_for(lambda i=i: (f"r{i}", "FINISHED") in database.runs())
    assert tracker.close() == 0
    assert tracker.failed == 2
    assert caplog.text.count("tracking.json is damaged; it is not tracked, everything else is") == 1
    assert caplog.text.count("run y: MLflow refuses it: ") == 1


def test_a_request_that_lost_a_race_is_sent_again(uri: str, database: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log_inputs, lost = MlflowClient.log_inputs, iter([True])

    def lose_once(*args: object, **kwargs: object) -> None:
        if next(lost, False):  # MLflow's own error for two runs that log one new data set at once
            raise MlflowException("UNIQUE constraint failed", error_code=3)
        log_inputs(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_inputs", lose_once)
    track(uri, a_run())
    assert database.runs_with_dataset() == ["r"]
    assert database.runs() == [("r", "FINISHED")]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("writers", "epochs"), [(4, 20), pytest.param(20, 50, marks=SLOW), pytest.param(8, 500, marks=SLOW)]
)
def test_concurrent_first_starts_on_one_new_file(tmp_path: Path, writers: int, epochs: int) -> None:
    assert fork_writers("w", writers, epochs, default_tracking_uri(tmp_path)) == str([0] * writers)
    store = Store(tmp_path / "mlflow.db")
    assert store.runs() == [(f"w{i:02d}", "FINISHED") for i in range(writers)]
    assert store.points() == written("w", writers, epochs)
    assert store.query("select count(*) from experiments where name = 'e'") == [(1,)]


def test_evil_names_stay_names(tmp_path: Path, uri: str, database: Store) -> None:
    curve = [Point(step=0, time_ms=0, values={"../../m": 1.0, "/": 2.0, "x" * 400: 3.0})]
    run = a_run("r'; drop", 0, experiment=ExperimentInfo(name="../../a%2f..\\b\0"), name="../\0", params={"../p": "a\0\ud800b"},
        tags={"a@=//b": "y" * 9000}, curve=curve)  # fmt: skip
    track(uri, run, run)
    assert len(database.points()) == 4
    assert database.query("select value from params") == [("a?b",)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["storage"]
    assert {path.name for path in (tmp_path / "storage").iterdir()} <= {"mlartifacts", "mlflow.db", "mlflow.db.lock"}


def test_a_storage_folder_may_have_any_name(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "really? 100% #1"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(template.read_bytes())
    (folder / "table.md").write_text("one")
    monkeypatch.chdir(folder)
    track(default_tracking_uri(folder), a_run(artifacts=[folder / "table.md"]))
    assert Store(folder / "mlflow.db").runs() == [("r", "FINISHED")]
    assert len(list((folder / "mlartifacts").rglob("table.md"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_the_link_shares_a_view(uri: str, database: Store) -> None:
    tracker = track(uri)
    start, link = tracker.page(group_by="K").removeprefix("MLflow: ").split("  then open ")
    assert link.startswith("http://127.0.0.1:5000/#/experiments/1/runs?")
    assert link.endswith("&viewStateShareKey=backlink-K")
    ((state,),) = database.query(
        "select value from experiment_tags where experiment_id = 1 and key = 'mlflow.sharedViewState.backlink-K'"
    )
    assert json.loads(str(state))["groupBy"]["groupByKeys"] == [{"mode": "param", "groupByData": "K"}]
    assert start.endswith(f"mlflow ui --backend-store-uri {uri} --host 127.0.0.1 --port 5000")


class WrongAnswers(BaseHTTPRequestHandler):
    answers = itertools.cycle(
        [(500, b"oops"), (401, b"no"), (403, b"{}"), (200, b"\xff"), (200, b'{"experiment": []}'), (404, b"")]
    )

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        code, body = next(self.answers)
        self.send_response(code)
        self.send_header("location", "/elsewhere")
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - the name is http.server's

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def wrong_answers(listener: socket.socket) -> Iterator[None]:
    """Answer on a port that listens as a broken MLflow, or as something else in its place, does."""
    server = ThreadingHTTPServer(listener.getsockname(), WrongAnswers, bind_and_activate=False)
    server.socket.close()
    server.socket = listener.dup()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("fault", ["refused", "hangs", "no file", "wrong answers"])
def test_mlflow_that_is_never_there_delays_nothing_and_no_secret_is_printed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "mlflow.db").mkdir()
    with closing(socket.create_server(("127.0.0.1", 0))) as listener, ExitStack() as stack:
        address = f"http://user:s3cret@127.0.0.1:{listener.getsockname()[1]}"
        if fault == "refused":
            listener.close()
        if fault == "wrong answers":
            stack.enter_context(wrong_answers(listener))
        uri = default_tracking_uri(tmp_path) if fault == "no file" else address
        begin = time.monotonic()
        tracker = Tracker(uri, ExperimentInfo(name="e"), tmp_path)
        assert time.monotonic() - begin < 1
        took_s = []
        for run_id, epoch in itertools.product("ab", range(1, 51)):
            begin = time.monotonic()
            tracker.log(run_id, lambda run_id=run_id, epoch=epoch: a_run(run_id, epoch))
            took_s.append(time.monotonic() - begin)
            time.sleep(0.01)
        assert sorted(took_s)[-3] < 0.05  # two may be delayed by other processes of this machine
        begin = time.monotonic()
        assert tracker.close(timeout_s=1.0) == 2  # runs, not points: what waits is bounded
        assert time.monotonic() - begin < 2
    where = "http://user:***@127.0.0.1" if fault != "no file" else uri
    assert f"2 runs are not in MLflow at {where}" in caplog.text
    assert f"backlink-ray sync {tmp_path}" in caplog.text
    assert caplog.text.count("training continues") == 1 - (fault == "hangs")  # a request that hangs has not failed yet
    assert "s3cret" not in caplog.text


ANSWERS = {
    "401": ((401, b"no"), "error code 401 != 200. Response body: 'no'"),
    "500": ((500, b"oops"), "too many 500 error responses"),
    "a redirection": ((302, b""), "Exceeded 30 redirects"),
    "a page": ((200, b"<!doctype html><p>Hello"), "not in a valid JSON format. Response body: '<!doctype html>"),
    "a list": ((200, b"[]"), "not in a valid JSON format. Response body: '[]'"),
    "other fields": ((200, b'{"experiments": "x"}'), "repeated field experiments must be in []"),
    "not the experiment": (
        (200, b'{"experiment": {"name": "x"}}'),
        "asked for experiment 'e', the server answers with one named 'x'",
    ),
    "an unknown error": ((400, b'{"error_code": 7, "message": {"a": 1}}'), "RestException: 7: {'a': 1}"),
    "50 MB": ((200, b"x" * 50_000_000), "not in a valid JSON format. Response body: 'xxx"),
}


@pytest.mark.parametrize(("answer", "named"), ANSWERS.values(), ids=ANSWERS)
def test_what_answers_in_place_of_mlflow_is_named_in_one_line(
    answer: tuple[int, bytes], named: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(WrongAnswers, "answers", itertools.repeat(answer))
    with socket.create_server(("127.0.0.1", 0)) as listener, wrong_answers(listener):
        tracker = Tracker(f"http://127.0.0.1:{listener.getsockname()[1]}", ExperimentInfo(name="e"), Path("results"))
        tracker.log("r", a_run)
        wait_for(lambda: "training continues" in caplog.text)
        assert tracker.close(timeout_s=0.5) == 1
    report, left = caplog.records  # after several attempts
    assert named in report.getMessage()
    assert "\n" not in report.getMessage()
    assert left.getMessage().startswith("1 runs are not in MLflow at ")


@pytest.mark.parametrize("fault", ["a folder", "noise", "locked"])
def test_an_outage_and_its_end_are_each_reported_once(
    tmp_path: Path, template: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    file = tmp_path / "mlflow.db"
    if fault == "a folder":
        file.mkdir()
    else:
        file.write_bytes(b"noise" * 100 if fault == "noise" else template.read_bytes())
    other = sqlite3.connect(file, check_same_thread=False) if fault == "locked" else None
    if other:
        other.execute("BEGIN EXCLUSIVE")
    tracker = Tracker(default_tracking_uri(tmp_path), ExperimentInfo(name="e"), tmp_path)
    for run_id in ("a", "b"):
        tracker.log(run_id, lambda run_id=run_id: a_run(run_id))
    time.sleep(1.5)  # several attempts
    if other:
        other.close()
    else:
        file.rmdir() if fault == "a folder" else file.unlink()
        file.write_bytes(template.read_bytes())
    assert tracker.close() == 0
    reports = int(fault != "locked")  # for which SQLite waits
    assert caplog.text.count("training continues, and runs are logged later") == reports
    assert caplog.text.count("answers again") == reports
    assert Store(file).points() == points_of("a", 3) + points_of("b", 3)


@pytest.mark.parametrize("version", ["f00dfeedbeef", "0584bdc529eb"], ids=["newer", "older"])
def test_tables_of_another_mlflow_are_left_alone_and_named(
    version: str, uri: str, database: Store, storage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ((own,),) = database.query("select version_num from alembic_version")

    def set_version(version: object) -> None:
        with closing(sqlite3.connect(storage / "mlflow.db")) as connection, connection:
            connection.execute("update alembic_version set version_num = ?", (version,))

    set_version(version)
    before = (storage / "mlflow.db").read_bytes()
    tracker = Tracker(uri, ExperimentInfo(name="e"), storage)
    tracker.log("r", a_run)
    wait_for(lambda: "training continues" in caplog.text)
    assert (storage / "mlflow.db").read_bytes() == before
    set_version(own)
    assert tracker.close() == 0
    down, up = (record.getMessage() for record in caplog.records)
    assert f"of another version than MLflow {VERSION}: found version {version}, but expected {own}; use" in down
    assert up.endswith("answers again and is up to date")
    assert database.points() == points_of("r", 3)


def test_the_environment_is_quiet_and_impatient() -> None:
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"
    assert os.environ["GIT_PYTHON_REFRESH"] == "quiet"
    assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) * int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) < 30


def test_no_tracker_has_the_interface_of_a_tracker() -> None:
    for name in (name for name in vars(Tracker) if not name.startswith("_")):
        assert inspect.signature(getattr(NoTracker, name)) == inspect.signature(getattr(Tracker, name))
    nothing = NoTracker()
    nothing.log("..", a_run)
    assert (nothing.close(), nothing.page()) == (0, "")


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
