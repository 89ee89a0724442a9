"""Searcher: only valid runs are suggested, and a search survives the death of its driver and the loss of its database."""

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml

from backlink_ray.errors import StorageError
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Row, columns_of
from backlink_ray.tracking.uri import sqlite_uri
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.searcher import Searcher, open_searcher
from backlink_ray.tuning.space import Space
from backlink_ray.tuning.trial import FAILURE

BASE = RunConfig(network="resnet32", validation_fraction=0.1)
SPACE = Space(num_modules=(2, 4, 8, 16), longest=4, alphas=(0.0, 0.25, 0.5, 0.75, 1.0), lr=(0.05, 1.0))
FIRST = BASE.replace(num_modules=2, propagation_length=2, alpha=0.5, lr=0.1)
PLAN = Plan(base=BASE, space=SPACE)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_hundred_suggestions_are_all_valid_runs() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(100):
        trial = study.ask()
        config = BASE.replace(**SPACE.suggest(BASE, 16, trial))  # RunConfig refuses invalid runs
        seen.add((config.num_modules, config.propagation_length))
        study.tell(trial, 1.0)
    assert {k for k, _ in seen} == {2, 4, 8, 16}
    assert max(length for k, length in seen if k == 16) == 1
    assert max(length for k, length in seen if k == 2) == 4


def states(folder: Path) -> list[str]:
    study = optuna.load_study(study_name="s", storage=sqlite_uri(folder / "optuna.db"))
    return [trial.state.name for trial in study.trials]


def row_of(run: RunConfig, **values: Any) -> Row:
    return {**columns_of(run), "run_id": run.run_id, "status": "FINISHED", "val_error_pct": 50.0, **values}


def carry_out(search: Searcher, trial_id: str, **changes: Any) -> Row:
    """Carry a trial out; return its row."""
    run = PLAN.run_of(search.suggest(trial_id) or {})
    search.on_trial_result(trial_id, {"val_error_pct": 50.0, "epoch": 1})
    search.on_trial_complete(trial_id, {"val_error_pct": 50.0, **changes})
    search.tell_ended()
    return row_of(run, status="FAILED" if changes else "FINISHED")


def test_choices_of_a_killed_driver_are_suggested_again(tmp_path: Path) -> None:
    plan = Plan(base=BASE, space=SPACE, first=(FIRST,))
    first = SPACE.choice_of(FIRST)
    one = open_searcher(plan, tmp_path, "s", [])
    assert one.suggest("a") == first
    one.on_trial_complete("a", {"val_error_pct": 50.0, "training_iteration": 1})
    one.tell_ended()
    left = one.suggest("b")
    two = open_searcher(plan, tmp_path, "s", [row_of(FIRST)])
    assert two.suggest("c") == left
    assert two.suggest("d") not in (first, left)
    assert states(tmp_path) == ["COMPLETE", "FAIL", "RUNNING", "RUNNING"]


def test_a_choice_without_a_result_is_suggested_again_once(tmp_path: Path) -> None:
    one = open_searcher(PLAN, tmp_path, "s", [])
    lost = one.suggest("a")
    one.on_trial_complete("a", {"val_error_pct": 50.0, "training_iteration": 1}, error=True)
    ended = one.suggest("b")
    one.on_trial_complete("b", {"val_error_pct": 50.0, "training_iteration": 1})
    for _ in range(2):  # a second start that runs nothing adds no duplicate
        two = open_searcher(PLAN, tmp_path, "s", [])
    assert [two.suggest("c"), two.suggest("d")] == [lost, ended]
    assert two.suggest("e") not in (lost, ended)


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_kill_when_a_trial_ends_has_it_counted_once(tmp_path: Path, is_recorded: bool) -> None:
    search = open_searcher(PLAN, tmp_path, "s", [])
    run = PLAN.run_of(search.suggest("a") or {})
    search.on_trial_complete("a", {"val_error_pct": 50.0})
    rows = [row_of(run)] if is_recorded else []
    again = open_searcher(PLAN, tmp_path, "s", rows)
    assert states(tmp_path) == ["FAIL", "COMPLETE" if is_recorded else "WAITING"]
    assert (again.suggest("b") == SPACE.choice_of(run)) is not is_recorded


def test_a_failed_trial_counts_as_failed_even_if_it_had_reported(tmp_path: Path) -> None:
    search = open_searcher(PLAN, tmp_path, "s", [])
    carry_out(search, "a", **{FAILURE: "the loss is nan"})
    search.on_trial_result(str(search.suggest("b") and "b"), {FAILURE: "the loss is nan"})  # before its first epoch
    search.on_trial_complete("b", {FAILURE: "the loss is nan"})
    search.suggest("c")  # still running when the study ends
    search.close()
    assert states(tmp_path) == ["FAIL", "FAIL", "FAIL"]


DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "garbage": lambda file: file.write_bytes(b"not a database" * 100),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_database_that_is_gone_or_damaged_is_made_again_from_the_results(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "what? 100% #1"
    folder.mkdir()
    search = open_searcher(PLAN, folder, "s", [])
    rows = [carry_out(search, "a"), carry_out(search, "b", **{FAILURE: "the loss is nan"})]
    lost = PLAN.run_of(search.suggest("c") or {})
    run_folder = folder / "runs" / lost.run_id
    run_folder.mkdir(parents=True)
    config = {"format": 4, "files": {}, "num_classes": 10, "image_size": 32, **vars_of(lost)}
    (run_folder / "config.yaml").write_text(yaml.safe_dump(config))
    DAMAGE[damage](folder / "optuna.db")
    for _ in range(2):  # the second time everything is there
        again = open_searcher(PLAN, folder, "s", rows)
    assert states(folder) == ["COMPLETE", "FAIL", "WAITING"]
    *damaged, added = capsys.readouterr().err.splitlines()
    assert added == f"{folder}/optuna.db lacked 2 trials that have results; they are in it again"
    assert len(damaged) == (damage in ("cut", "garbage"))
    assert all(f"{folder}/optuna.db is damaged (" in line and "is optuna.db.damaged" in line for line in damaged)
    assert again.suggest("d") == SPACE.choice_of(lost)
    assert again.suggest("e") not in [SPACE.choice_of(run) for run in (FIRST, lost)]
    assert [path.name for path in tmp_path.iterdir()] == ["what? 100% #1"]


def vars_of(run: RunConfig) -> dict[str, Any]:
    return {**{name: getattr(run, name) for name in RunConfig.__dataclass_fields__}, "sizes": list(run.sizes)}


def test_a_first_run_with_a_result_is_not_run_again_when_the_database_is_gone(tmp_path: Path) -> None:
    plan = Plan(base=BASE, space=SPACE, first=(FIRST, FIRST.replace(lr=0.2)))
    search = open_searcher(plan, tmp_path, "s", [row_of(FIRST)])
    assert states(tmp_path) == ["COMPLETE", "WAITING"]
    assert search.suggest("a") == SPACE.choice_of(plan.first[1])


def test_a_database_that_another_program_holds_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("backlink_ray.tuning.database._BUSY_S", 0.1)
    search = open_searcher(PLAN, tmp_path, "s", [])
    with closing(sqlite3.connect(tmp_path / "optuna.db", check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        threading.Timer(1, other.rollback).start()
        carry_out(search, "a")
        assert states(tmp_path) == ["COMPLETE"]
        assert capsys.readouterr().err == f"{tmp_path}/optuna.db is locked by another program; the study waits for it\n"
        monkeypatch.setattr("backlink_ray.tuning.database._LONGEST_LOCK_S", 0.3)
        other.execute("BEGIN")
        other.execute("SELECT * FROM trials").fetchall()  # as a viewer does: Optuna could read, but write nothing
        with pytest.raises(StorageError, match=r"optuna.db has been locked by another program for 0.3 s; end that"):
            search.suggest("b")
        with monkeypatch.context() as signalled:
            signalled.setattr("backlink_ray.signals._stopping", SimpleNamespace(is_set=lambda: True))
            signalled.setattr("backlink_ray.tuning.database._LONGEST_LOCK_S", 60.0)
            assert search.suggest("b") is None  # at once
    assert carry_out(search, "b")["status"] == "FINISHED"


def test_a_database_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    open_searcher(PLAN, tmp_path, "s", [])
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v9.0.0.a'")
        database.commit()
    with pytest.raises(
        StorageError, match=r"optuna.db cannot be used \(The runtime optuna version .*\); delete it: it is"
    ):
        open_searcher(PLAN, tmp_path, "s", [])
