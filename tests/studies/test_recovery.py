"""Studies whose driver or trials are killed, whose runs fail, or whose disk is full: nothing is lost or there twice."""

import gc
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import optuna
import psutil
import pytest
import ray

from backlink_ray.commands.search import main
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Results
from backlink_ray.tracking.uri import sqlite_uri
from backlink_ray.tuning.plan import Plan
from tests.studies.recipes import ROOT
from tests.tracking.mlflow_store import Store

RECIPE = """
import sys
from backlink_ray import RunConfig, Space
from backlink_ray.commands.search import main
from backlink_ray.tuning.plan import Plan
BASE = RunConfig(network="resnet8", num_modules=2, propagation_length=1,
    lr=0.1, batch_size=40, epochs=4, train_images=80, test_images=40)
LIST = Plan(base=BASE, runs=tuple(BASE.replace(seed=i) for i in range(5)), metric="test_error_pct")
SEARCH = Plan(base=BASE, space=Space(num_modules=(2, 3), longest=2, lr=(0.01, 0.2)), num_samples=5, metric="train_loss")
sys.exit(main("tiny", {"list": LIST, "search": SEARCH}, ""))
"""
STORE_BYTES = 100_000_000
TIMES = {"epoch_s", "step_ms", "link_ms", "images_per_s", "peak_memory_mib"}


def command(folder: Path, preset: str, storage: str) -> list[str]:
    file = folder / "tiny.py"
    file.write_text(RECIPE)
    flags = ["--preset", preset, "--storage-path", str(folder / storage), "--executor", "local", "--resume", "auto"]
    return [sys.executable, str(file), *flags]


def ran(folder: Path, preset: str, storage: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, preset, storage), capture_output=True, text=True, timeout=500, cwd=ROOT)


def kill_at(line: str, delay_s: float, arguments: list[str]) -> list[psutil.Process]:
    """Start a driver, kill it some time after a line that it prints; return the processes that it leaves."""
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    assert child.stdout is not None
    seen = next((text for text in child.stdout if line in text), "")
    threading.Thread(target=child.stdout.read, daemon=True).start()
    time.sleep(delay_s if seen else 0)
    left = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
    child.kill()
    child.wait()
    return left


def end(processes: list[psutil.Process]) -> None:
    for process in processes:
        if process.is_running():  # the id may be another process's by now
            process.kill()


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("preset", ["list", "search"])
def test_a_study_whose_driver_is_killed_five_times_loses_and_repeats_nothing(tmp_path: Path, preset: str) -> None:
    draw, left = random.Random(preset), list[psutil.Process]()
    try:
        for attempt in range(5):
            line = "epoch " if attempt % 2 else "tracking to"
            left += kill_at(line, draw.uniform(0, 6), command(tmp_path, preset, "killed"))
            rows = Results(tmp_path / "killed" / f"tiny-{preset}").rows()
            print(f"kill {attempt + 1}: {len(rows)} rows")
        done = ran(tmp_path, preset, "killed")
    finally:
        end(left)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "killed" / f"tiny-{preset}"
    rows = Results(folder).rows()
    assert [row["status"] for row in rows] == ["FINISHED"] * 5
    assert Results(folder).ended() == 5  # no run was recorded twice
    store = Store(tmp_path / "killed" / "mlflow.db")
    assert store.runs() == sorted([*((str(row["run_id"]), "FINISHED") for row in rows), (f"tiny-{preset}", "FINISHED")])
    assert set(store.points().values()) == {1}
    steps = Counter((run, key) for run, key, *_ in store.points())
    assert {count for (_, key), count in steps.items() if key == "curve/train_loss"} == {4}
    if preset == "search":
        study = optuna.load_study(study_name="tiny-search", storage=sqlite_uri(folder / "optuna.db"))
        states = Counter(trial.state.name for trial in study.trials)
        assert states["RUNNING"] == 0
        assert states["COMPLETE"] == 5
        complete = [trial.params for trial in study.trials if trial.state.name == "COMPLETE"]
        assert len({str(sorted(params.items())) for params in complete}) == 5
    else:
        again = ran(tmp_path, preset, "whole")
        assert again.returncode == 0, again.stderr
        assert table(folder) == table(tmp_path / "whole" / "tiny-list")


class Killer(threading.Thread):
    """Kills the processes of trials, each some time after it has started to work, in a Ray that this process started."""

    def __init__(self, count: int) -> None:
        super().__init__(daemon=True)
        self.left, self._seen = count, set[int]()
        self.start()

    def run(self) -> None:
        while self.left:
            time.sleep(0.2)
            for process in trial_processes("ImplicitFunc.train"):
                if self.left and process.pid not in self._seen:
                    self._seen.add(process.pid)
                    if len(self._seen) % 2:
                        process.kill()
                        self.left -= 1


def trial_processes(*names: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any(name in " ".join(process.cmdline()) for name in names):
                found.append(process)
    return found


def fill_object_store() -> None:
    """Put an object into the store that takes 95 % of it, and remove it; ObjectStoreFullError if that much is not free."""
    reference = ray.put(numpy.zeros(int(0.95 * STORE_BYTES), dtype=numpy.uint8))
    del reference
    time.sleep(1)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_trials_of_which_six_fail_and_five_are_killed_leave_nothing_behind(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = RunConfig(
        network="resnet8", num_modules=2, propagation_length=1, lr=0.1, batch_size=20, epochs=3, train_images=60,
        test_images=20,
    )  # fmt: skip
    runs = tuple(
        base.replace(seed=i, lr=1e30 if i % 10 in (2, 5, 8) else 0.1, executor="local" if i % 4 else "ray")
        for i in range(20)
    )
    plan = Plan(base=base, runs=runs, metric="test_error_pct")
    ray.init(
        address="local", include_dashboard=False, num_cpus=4, num_gpus=0, log_to_driver=False,
        object_store_memory=STORE_BYTES, _system_config={"automatic_object_spilling_enabled": False},
    )  # fmt: skip
    try:
        fill_object_store()
        killer = Killer(5)
        # All five may hit one trial.
        flags = f"--preset list --storage-path {tmp_path} --max-concurrent 2 --stage-timeout-s 60 --max-recoveries 5"
        code = main("tiny", {"list": plan}, "", flags.split())
        out, err = capfd.readouterr()
        print(out, err)
        assert killer.left == 0
        assert code == 1
        rows = Results(tmp_path / "tiny-list").rows()
        assert Counter(row["status"] for row in rows) == {"FINISHED": 14, "FAILED": 6}
        assert Results(tmp_path / "tiny-list").ended() == 20  # each cell exactly once
        assert {row["run_id"] for row in rows if row["status"] == "FAILED"} == {r.run_id for r in runs if r.lr > 1}
        assert err.count("; it is started again (") == 5
        deadline = time.monotonic() + 30
        while trial_processes("ImplicitFunc", "StageActor", "ray::trial") and time.monotonic() < deadline:
            time.sleep(0.5)
        assert trial_processes("ImplicitFunc", "StageActor", "ray::trial") == []
        groups = ray.util.placement_group_table().values()
        assert {group["state"] for group in groups} <= {"REMOVED"}
        gc.collect()
        fill_object_store()
    finally:
        ray.shutdown()
    statuses = Counter(status for run, status in Store(tmp_path / "mlflow.db").runs() if run != "tiny-list")
    assert statuses == {"FINISHED": 14, "FAILED": 6}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_study_whose_ray_has_lost_its_head_ends_in_one_line_and_resumes(tmp_path: Path) -> None:
    arguments, left = command(tmp_path, "list", "s"), list[psutil.Process]()
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout is not None
    try:
        assert any("epoch 1/" in line for line in child.stdout)
        left = psutil.Process(child.pid).children(recursive=True)
        (head,) = [process for process in left if process.name() == "gcs_server"]
        head.kill()
        begin = time.monotonic()
        out, err = child.communicate(timeout=100)
        print(out, err, f"ended after {time.monotonic() - begin:.1f} s")
        assert time.monotonic() - begin < 50  # Ray itself ends the process after 60 s
        assert child.returncode == 3
        told = r"^the study stops: the head process of the Ray cluster, at \S+, has not answered"
        assert len(re.findall(told, err, re.M)) == 1
        assert "resume: " in err.splitlines()[-1]
        time.sleep(5)
        assert [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        end(left)
    statuses = [status for run, status in Store(tmp_path / "s" / "mlflow.db").runs() if run != "tiny-list"]
    assert "RUNNING" not in statuses
    done = ran(tmp_path, "list", "s")
    assert done.returncode == 0, done.stderr
    assert Results(tmp_path / "s" / "tiny-list").ended() == 5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]).returncode:
        pytest.skip("only root can mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.timeout(1100)
def test_a_full_disk_stops_a_study_with_path_and_bytes_and_it_resumes_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    done = ran(tmp_path, "list", "disk/s")
    assert done.returncode == 1
    told = rf"failed: {small_disk}/s/tiny-list/\S+ \(\d+ bytes\) cannot be written: No space left .*; resume: "
    assert re.match(told, done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert 0 < len(Results(small_disk / "s" / "tiny-list").rows()) < 5
    assert done.stderr.count(" was lost: ") == 1  # the others were not tried
    assert [path for path in small_disk.rglob("*") if path.name.endswith(".tmp") or ".writing" in path.name] == []
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    done = ran(tmp_path, "list", "disk/s")
    assert done.returncode == 0, done.stderr
    assert Results(small_disk / "s" / "tiny-list").ended() == 5


def table(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the rows without what is measured in time and memory, by run."""
    return {row["run_id"]: {k: v for k, v in row.items() if k not in TIMES} for row in Results(folder).rows()}
