"""Stages on two Ray nodes, by turns, so that every message goes from one to the other."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stages_on_two_machines_train_as_one_process_and_a_hop_is_measured() -> None:
    """In a process of its own, since this one may be connected to another Ray."""
    done = subprocess.run([sys.executable, "-m", "tests.pipeline.nodes"], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["transport"] for row in rows] == ["objectstore", "collective"]
    for row in rows:
        assert row["num_modules"] == [2, 4]
        assert row["machines"] == 2
        small, large = row["hop_ms"].values()
        assert 0 < small < large
