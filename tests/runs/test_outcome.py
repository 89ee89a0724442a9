"""The outcome of a run, from its folder and from what Tune saw."""

import json
from pathlib import Path

import pytest

from backlink_ray.runs.outcome import outcome_of

LAST = {"epoch": 2, "test_error_pct": 50.0, "local_loss": [1.0], "executor": "ray"}


def write(folder: Path, name: str, **content: object) -> None:
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("error", [None, "the actor died"])
def test_a_result_on_disk_counts_even_if_the_trial_failed_later(tmp_path: Path, error: str | None) -> None:
    write(tmp_path, "result.json", test_error_pct=40.0, executor="ray", status="FINISHED")
    found = outcome_of(tmp_path, 5, LAST, error)
    assert (found.status, found.reason, found.result["test_error_pct"]) == ("FINISHED", "done", 40.0)


def test_a_run_that_was_stopped_early_keeps_its_last_metrics(tmp_path: Path) -> None:
    found = outcome_of(tmp_path, 5, LAST, None)
    assert (found.status, found.reason) == ("STOPPED", "stopped early, after epoch 2")
    assert found.result == {"test_error_pct": 50.0, "executor": "ray"}


def test_a_folder_that_the_driver_cannot_see_is_no_early_stop(tmp_path: Path) -> None:
    found = outcome_of(tmp_path, 2, LAST, None)
    assert found.status == "FAILED"
    assert "--storage-path that all machines share" in found.reason


def test_a_failed_run_is_distinguished_from_a_lost_one(tmp_path: Path) -> None:
    lost = outcome_of(tmp_path, 5, LAST, "The actor died.\n  Worker exit type: SYSTEM_ERROR\n")
    assert (lost.status, lost.reason) == ("LOST", "Worker exit type: SYSTEM_ERROR")
    assert outcome_of(tmp_path, 5, {}, "").reason == "the trial's process died"
    write(tmp_path, "failure.json", status="FAILED", reason="the local loss of stage 1 is nan")
    assert outcome_of(tmp_path, 5, LAST, "x").status == "FAILED"
    write(tmp_path, "failure.json", status="LOST", reason="stage 1 of 2 failed")
    found = outcome_of(tmp_path, 5, LAST, "x")
    assert (found.status, found.reason) == ("LOST", "stage 1 of 2 failed")


def test_a_damaged_result_costs_its_run_alone(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    found = outcome_of(tmp_path, 2, LAST, None)
    assert found.status == "LOST"
    assert "result.json is damaged" in found.reason
