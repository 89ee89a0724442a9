"""Searcher: Ray Tune's interface to Optuna, on a database that outlives the driver."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from ray.tune.search.optuna import OptunaSearch

from backlink_ray.errors import StorageError
from backlink_ray.runs.config import RunConfig
from backlink_ray.tuning.plan import Plan


class Searcher(OptunaSearch):
    """OptunaSearch, except that a failed trial counts as failed even if it had reported before."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass the end of a trial on to Optuna."""
        super().on_trial_complete(trial_id, None if error else result, error)


def open_searcher(plan: Plan, folder: Path, name: str, has_result: Callable[[RunConfig], bool]) -> Searcher:
    """Open a study's Optuna database and return Ray's searcher on it.

    A trial that a killed driver left running is marked failed. Choices without a result, because the driver, the trial or
    a machine was lost, are suggested again first, so that their runs resume from their checkpoints.

    `has_result` says whether the study has a result of a run.
    """
    assert plan.space is not None
    # l, whose range depends on K, is chosen independently: no warning.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    database = folder / "optuna.db"
    directions = [optuna.study.StudyDirection.MINIMIZE] * max(1, len(plan.objectives))
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{database}")
        study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
    except Exception as error:  # SQLAlchemy and Optuna have many; whatever it is, the file cannot be used
        reason = str(error).strip().splitlines()[0]
        raise StorageError(
            f"{database} cannot be used ({reason}); delete it: results stay, Optuna starts anew"
        ) from error
    known = len(study.trials)
    first = [plan.space.choice_of(run) for run in plan.first]
    for choice in _without_result(study, lambda choice: has_result(plan.run_of(choice))) if known else first:
        study.enqueue_trial(choice)
    return Searcher(
        space=plan.suggest,  # not a closure: Tune pickles its searcher
        metric=list(plan.objectives) or plan.metric,
        mode=["min"] * len(plan.objectives) or "min",
        # A different seed at every start: the same one would repeat the earlier suggestions.
        sampler=_sampler(bool(plan.objectives), plan.base.seed + known),
        study_name=name,
        storage=storage,
    )


def _sampler(several: bool, seed: int) -> optuna.samplers.BaseSampler:
    """Return TPE, with its options said, since the defaults of Optuna 4 and 5 differ; also for several objectives.

    There Optuna recommends it over NSGA-II for a range that depends on another choice, as l's does on K, and NSGA-II needs
    hundreds of trials, where a search has tens. Several at once are kept apart by the constant liar.
    """
    with warnings.catch_warnings():
        # Optuna 4: of multivariate and constant_liar.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(n_startup_trials=10, multivariate=not several, constant_liar=True, seed=seed)


def _without_result(study: optuna.Study, has_result: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Fail the trials that a dead driver left running; return the choices that must be suggested again."""
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    tried = [dict(trial.params) for trial in study.trials if trial.params]
    waiting = [trial.system_attrs.get("fixed_params") for trial in study.trials if not trial.params]
    return [c for i, c in enumerate(tried) if not has_result(c) and c not in tried[:i] and c not in waiting]
