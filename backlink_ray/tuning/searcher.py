"""Searcher: Ray Tune's interface to Optuna, on a database that outlives the driver."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from ray.tune.search.optuna import OptunaSearch

from backlink_ray.errors import BacklinkError, StorageError
from backlink_ray.runs.folder import CONFIG, read_config
from backlink_ray.runs.results import Row
from backlink_ray.signals import stopping
from backlink_ray.tuning.database import open_database, unlocked
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.trial import FAILURE


class Searcher(OptunaSearch):
    """OptunaSearch, except that it waits for a locked database, and that a failed trial counts as failed."""

    def __init__(self, database: Path, **arguments: Any) -> None:
        self._database = database
        self._ended: list[tuple[str, dict[str, Any] | None, bool]] = []
        super().__init__(**arguments)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Ask Optuna for a choice."""
        self.tell_ended()
        try:
            with unlocked(self._database):
                return super().suggest(trial_id)
        except StorageError:
            if stopping():  # while it waited for a lock
                return None
            raise

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass an epoch on to Optuna, under its own number: Tune counts from 1 again when a trial is started again."""
        if FAILURE not in result:
            with suppress(StorageError), unlocked(self._database):
                super().on_trial_result(trial_id, {**result, "training_iteration": result["epoch"]})

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take down the end of a trial, as failed even if it had reported before.

        Optuna is told later, when the study has recorded it: a kill in between cannot have it counted twice.
        """
        failed = error or FAILURE in (result or {})
        self._ended.append((trial_id, None if failed else result, failed))

    def tell_ended(self) -> None:
        """Tell Optuna which trials have ended; what it cannot be told, the next start adds from the results."""
        ended, self._ended = self._ended, []
        for end in ended:
            with suppress(StorageError), unlocked(self._database):
                super().on_trial_complete(*end)

    def close(self) -> None:
        """Tell Optuna which trials have ended, and that the others have failed: no process works on them any more."""
        self.tell_ended()
        study: Any = self._ot_study
        with suppress(StorageError), unlocked(self._database):
            _end_running(study)


def open_searcher(plan: Plan, folder: Path, name: str, rows: Sequence[Row]) -> Searcher:
    """Open a study's Optuna database and return Ray's searcher on it.

    A trial that a killed driver left running is marked failed. Choices without a result, because the driver, the trial or
    a machine was lost, are suggested again first, so that their runs resume from their checkpoints.

    Raises:
        StorageError: the database cannot be used; the message names it.
    """
    assert plan.space is not None
    # l, whose range depends on K, is chosen independently: no warning.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    database = folder / "optuna.db"
    study = open_database(database, name, plan, rows)
    with unlocked(database):
        _end_running(study)
        known, ended = len(study.trials), {row["run_id"] for row in rows}
        earlier = [*map(plan.space.choice_of, plan.first), *_begun(plan, folder)]
        for choice in _tried(study, earlier):
            if plan.run_of(choice).run_id not in ended:
                study.enqueue_trial(choice)
        return Searcher(
            database,
            space=plan.suggest,  # not a closure: Tune pickles its searcher
            metric=list(plan.objectives) or plan.metric,
            mode=["min"] * len(plan.objectives) or "min",
            # A different seed at every start: the same one would repeat the earlier suggestions.
            sampler=_sampler(bool(plan.objectives), plan.base.seed + known),
            study_name=name,
            storage=study._storage,
        )


def _begun(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the choices of the run folders, among them those of trials that a database made again does not know."""
    assert plan.space is not None
    for file in sorted((folder / "runs").glob(f"*/{CONFIG}")):
        with suppress(BacklinkError):  # a folder that cannot be read costs its run alone
            run, _ = read_config(file.parent)
            yield plan.space.choice_of(run)


def _sampler(several: bool, seed: int) -> optuna.samplers.BaseSampler:
    """Return TPE, with its options said, since the defaults of Optuna 4 and 5 differ; also for several objectives.

    There Optuna recommends it over NSGA-II for a range that depends on another choice, as l's does on K, and NSGA-II needs
    hundreds of trials, where a search has tens. Several at once are kept apart by the constant liar.
    """
    with warnings.catch_warnings():
        # Optuna 4: of multivariate and constant_liar.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(n_startup_trials=10, multivariate=not several, constant_liar=True, seed=seed)


def _tried(study: optuna.Study, earlier: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all choices so far, each once, but for those that wait to be suggested."""
    tried = [*earlier, *(dict(trial.params) for trial in study.trials if trial.params)]
    waiting = [trial.system_attrs.get("fixed_params") for trial in study.trials if not trial.params]
    return [choice for i, choice in enumerate(tried) if choice not in tried[:i] and choice not in waiting]


def _end_running(study: optuna.Study) -> None:
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
