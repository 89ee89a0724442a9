"""Processes that a killed one has left are ended, and no other ones."""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backlink_ray import processes


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "60"])
    yield child
    child.kill()
    child.wait()


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(processes, "_remembered", set())
    return tmp_path / f"backlink_ray-{os.getuid()}"


def left_by_another(records: Path, **changed: object) -> Path:
    """Make this process's record another one's, which is dead."""
    (own,) = records.glob("*.json")
    content = json.loads(own.read_text())
    file = records / f"{socket.gethostname()}-999999.json"
    file.write_text(json.dumps({**content, **changed}))
    return file


def test_what_a_dead_process_has_started_is_ended(records: Path) -> None:
    with processes.remembered():
        child = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True)
        while len(processes.descendants(child.pid)) < 1:
            pass
    (grandchild,) = processes.descendants(child.pid)
    processes.remember_descendants()
    file = left_by_another(records)
    processes.end_leftovers()
    assert child.wait(5) == -9
    while (processes._stat(grandchild) or ["Z"])[0] != "Z":  # the test's timeout ends this
        pass
    assert not file.exists()


@pytest.mark.parametrize("same", ["pid alone", "boot before", "alive", "folder of others", "before it was remembered"])
def test_a_foreign_process_is_left_alone(same: str, records: Path, sleeper: subprocess.Popen[bytes]) -> None:
    with processes.remembered():
        own = subprocess.Popen(["sleep", "60"])
    with contextlib.ExitStack() as stack:
        stack.callback(own.wait)
        stack.callback(own.kill)
        started = {str(sleeper.pid): processes._started(sleeper.pid)}
        changed = {
            "pid alone": {"started": {str(sleeper.pid): "1"}}, "boot before": {"boot": "another", "started": started},
            "before it was remembered": {},
        }  # fmt: skip
        file = left_by_another(records, **changed.get(same, {"started": started}))
        if same == "alive":
            lock = stack.enter_context(file.with_suffix(".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        if same == "folder of others":
            records.chmod(0o777)
        processes.end_leftovers()
        with pytest.raises(subprocess.TimeoutExpired):  # it still runs
            sleeper.wait(0.3)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux says which cores a process may use")
def test_cores_are_those_that_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert processes.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert processes.usable_cores() == len(allowed)
