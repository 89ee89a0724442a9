"""Searcher: only valid runs are suggested, and a search resumes after its driver was killed."""

from pathlib import Path

import optuna
import pytest

from backlink_ray.errors import StorageError
from backlink_ray.runs.config import RunConfig
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.searcher import open_searcher
from backlink_ray.tuning.space import Space

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


def test_choices_of_a_killed_driver_are_suggested_again(tmp_path: Path) -> None:
    plan = Plan(base=BASE, space=SPACE, first=(FIRST,))
    first = SPACE.choice_of(FIRST)
    one = open_searcher(plan, tmp_path, "s", lambda run: run == FIRST)
    assert one.suggest("a") == first
    one.on_trial_complete("a", {"val_error_pct": 50.0, "training_iteration": 1})
    left = one.suggest("b")
    two = open_searcher(plan, tmp_path, "s", lambda run: run == FIRST)
    assert two.suggest("c") == left
    assert two.suggest("d") not in (first, left)
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "RUNNING", "RUNNING"]


def test_a_choice_without_a_result_is_suggested_again_once(tmp_path: Path) -> None:
    one = open_searcher(PLAN, tmp_path, "s", lambda _: False)
    lost = one.suggest("a")
    one.on_trial_complete("a", {"val_error_pct": 50.0, "training_iteration": 1}, error=True)
    ended = one.suggest("b")
    one.on_trial_complete("b", {"val_error_pct": 50.0, "training_iteration": 1})
    for _ in range(2):  # a second start that runs nothing adds no duplicate
        two = open_searcher(PLAN, tmp_path, "s", lambda _: False)
    assert [two.suggest("c"), two.suggest("d")] == [lost, ended]
    assert two.suggest("e") not in (lost, ended)


def test_a_failed_trial_counts_as_failed_even_if_it_had_reported(tmp_path: Path) -> None:
    search = open_searcher(PLAN, tmp_path, "s", lambda _: True)
    search.suggest("a")
    search.on_trial_complete("a", {"val_error_pct": 50.0, "training_iteration": 1}, error=True)
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert [t.state.name for t in study.trials] == ["FAIL"]


def test_a_database_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "optuna.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match=r"optuna.db cannot be used \(.*\); delete it"):
        open_searcher(PLAN, tmp_path, "s", lambda _: False)
