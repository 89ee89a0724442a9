"""A real MLflow server on the loopback address, concurrent writers, and a store read without MLflow."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

from backlink_ray.tracking.run import ExperimentInfo, Point, TrackedRun

ROOT = Path(__file__).parents[2]
_START_TIMEOUT_S = 60.0  # importing MLflow takes 5 s on an idle core


class Server:
    """`mlflow server` on a free port; it can be killed and started again on the same port and store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.database = folder, folder / "server.db"
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: list[subprocess.Popen[bytes]] = []  # none or one

    def ensure(self) -> None:
        """Start it if necessary, and wait until it answers."""
        if not self._process:
            self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it without waiting for it."""
        folder, store = self.folder, f"sqlite:///{self.database}"
        options = f"--host 127.0.0.1 --port {self.port} --workers 1 --backend-store-uri {store}".split()
        command = [sys.executable, "-m", "mlflow", "server", *options, "--artifacts-destination", f"{folder}/artifacts"]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (folder / "server.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self._process.append(process)

    def wait(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                return
            time.sleep(0.1)
        raise TimeoutError((self.folder / "server.log").read_text()[-2000:])

    def signal(self, number: int) -> None:
        """Send a signal to the server's own session, by the id of its process."""
        for process in self._process:
            os.killpg(process.pid, number)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.signal(signal.SIGKILL)
        while self._process:
            self._process.pop().wait(timeout=10)


Rows = list[tuple[object, ...]]
Points = Counter[tuple[str, str, int, float]]


class Store:
    """The content of a SQLite store."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def query(self, sql: str) -> Rows:
        with closing(sqlite3.connect(self._path, timeout=20)) as database:
            return database.execute(sql).fetchall()

    def points(self, prefix: str = "") -> Points:
        """(our run id, key, step, value) with its count; more than 1 is a duplicate."""
        rows = self.query(
            "select t.value, m.key, m.step, m.value from metrics m join tags t on t.run_uuid = m.run_uuid "
            "where t.key = 'backlink_ray.run_id'"
        )
        return Counter((str(r), str(k), int(str(s)), float(str(v))) for r, k, s, v in rows if str(r).startswith(prefix))

    def runs(self, prefix: str = "") -> list[tuple[str, str]]:
        """(our run id, status) of every run that is not deleted, sorted."""
        rows = self.query(
            "select t.value, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
            "where t.key = 'backlink_ray.run_id' and r.lifecycle_stage = 'active'"
        )
        return sorted((str(run), str(status)) for run, status in rows if str(run).startswith(prefix))

    def runs_with_dataset(self, prefix: str = "") -> list[str]:
        """Our ids of the runs that have a data set as their input, sorted; twice is a duplicate."""
        rows = self.query(
            "select t.value from inputs i join tags t on t.run_uuid = i.destination_id "
            "where t.key = 'backlink_ray.run_id' and i.source_type = 'DATASET'"
        )
        return sorted(str(run) for (run,) in rows if str(run).startswith(prefix))

    def tags(self, run_id: str) -> dict[str, str]:
        rows = self.query(
            "select a.key, a.value from tags a join tags t on t.run_uuid = a.run_uuid "
            f"where t.key = 'backlink_ray.run_id' and t.value = '{run_id}'"
        )
        return {str(key): str(value) for key, value in rows}


def a_run(run_id: str = "r", epochs: int = 3, **fields: object) -> TrackedRun:
    """A run as read from its log: two curves, a result, its outcome."""
    curve = [Point(step=i, time_ms=1000 + i, values=values(i)) for i in range(1, epochs + 1)]
    about: dict[str, object] = {
        "run_id": run_id, "experiment": ExperimentInfo(name="e"), "name": f"K04-{run_id}", "started_ms": 1000,
        "params": {"K": 4, "eta": 0.5}, "tags": {"study": "s"}, "dataset": {"name": "cifar10-sample", "md5": "0" * 32},
        "curve": curve, "status": "FINISHED", "end_reason": "done", "ended_ms": 2000,
        "summary": [Point(step=epochs, time_ms=1000 + epochs, values={"test_error_pct": 90 / epochs})] if epochs else [],
    }  # fmt: skip
    return TrackedRun(**{**about, **fields})  # type: ignore[arg-type]


def values(epoch: int) -> dict[str, float]:
    return {"curve/test_error_pct": 90 / epoch, "local_loss/stage_00": epoch / 7}


def points_of(run_id: str, epochs: int) -> Points:
    """The points of `a_run` in a store, each exactly once."""
    logged = ({**values(i), "progress/epoch": float(i)} for i in range(1, epochs + 1))
    curve = Counter((run_id, key, i, v) for i, at in enumerate(logged, 1) for key, v in at.items())
    return curve + Counter({(run_id, "test_error_pct", epochs, 90 / epochs): 1})


_WRITERS = """
import os, sys, time
from pathlib import Path
import alembic.command, mlflow.store.tracking.sqlalchemy_store  # what MLflow imports late, once for all
import backlink_ray.tracking.mlflow_sink
from backlink_ray.tracking.tracker import ExperimentInfo, Tracker
from tests.tracking.mlflow_store import a_run

def write(name):
    tracker = Tracker(uri, ExperimentInfo(name="e"), Path("results"))
    for epoch in range(1, int(epochs) + 1):
        tracker.log(name, lambda epoch=epoch: a_run(name, epoch, summary=(), status="RUNNING"))
        # Each epoch is a batch of its own, as many as possible at once. A writer whose test was given up ends by itself.
        deadline = time.monotonic() + 60
        while tracker._waiting:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    tracker.log(name, lambda: a_run(name, int(epochs)))
    return tracker.close()

prefix, count, epochs, uri = sys.argv[1:]
children = []
for i in range(int(count)):
    child = os.fork()
    if child == 0:
        try:
            os._exit(min(write(f"{prefix}{i:02d}"), 255))
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(255)
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def fork_writers(prefix: str, count: int, epochs: int, uri: str) -> str:
    """Processes <prefix>00, <prefix>01, ... each track a run; returns how many runs each left untracked.

    One process imports MLflow and forks the others: they start within milliseconds of each other.
    """
    command = [sys.executable, "-c", _WRITERS, prefix, str(count), str(epochs), uri]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    return done.stdout.strip() or done.stderr


def written(prefix: str, count: int, epochs: int) -> Points:
    """The points of all writers in a store, each exactly once."""
    return sum((points_of(f"{prefix}{writer:02d}", epochs) for writer in range(count)), Counter())
