"""Search: the space of K, l, alpha and eta, as Optuna walks it through Ray Tune."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from ray.tune.search.optuna import OptunaSearch

from backlink_ray.local.sizes import longest_propagation, module_sizes
from backlink_ray.nets.names import unit_count
from backlink_ray.runs.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What a search may choose. Only runs that exist are ever suggested: l is bounded by the smallest module at K.

    Attributes:
        num_modules: values of K, each 2 or more.
        longest: largest propagation length tried, even where K would allow more.
        alphas: values of alpha; the paper's grid is the default.
        lr: lowest and highest eta, searched on a logarithmic scale.
    """

    num_modules: tuple[int, ...] = (2, 4, 8, 16)
    longest: int = 4
    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    lr: tuple[float, float] = (0.05, 1.0)

    def suggest(self, base: RunConfig, trial: Any) -> dict[str, Any]:
        """Choose K, then l within its bound, alpha and eta.

        Args:
            base: gives network and remainder, which bound l.
            trial: an optuna.Trial, or Ray's stand-in for one.

        Returns:
            The choice, which is also what `base_with` takes.
        """
        k = trial.suggest_categorical("K", list(self.num_modules))
        limit = longest_propagation(module_sizes(unit_count(base.network), k, base.remainder, base.network))
        return {
            "K": k,
            "l": trial.suggest_int("l", 1, min(limit, self.longest)),
            "alpha": trial.suggest_categorical("alpha", list(self.alphas)),
            "eta": trial.suggest_float("eta", *self.lr, log=True),
        }


_FIELDS = {"K": "num_modules", "l": "propagation_length", "alpha": "alpha", "eta": "lr"}


def base_with(base: RunConfig, choice: dict[str, Any]) -> RunConfig:
    """Return a study's base run with what a trial chose: K, l, alpha, eta, or any field by its own name."""
    return base.replace(**{_FIELDS.get(key, key): value for key, value in choice.items()})


class Search(OptunaSearch):
    """OptunaSearch, but a trial that failed counts as failed even if it had reported before."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended."""
        super().on_trial_complete(trial_id, None if error else result, error)


def open_search(
    space: Space,
    base: RunConfig,
    metric: str,
    folder: Path,
    name: str,
    *,
    objectives: tuple[str, ...] = (),
    first: tuple[dict[str, Any], ...] = (),
    has_result: Callable[[dict[str, Any]], bool],
) -> Search:
    """Open a study's Optuna storage and return Ray's searcher on it.

    A trial that a killed driver left running is marked failed. What Optuna chose and the study has no result of, because
    the driver, the trial or a machine went, is asked again first, so that its run goes on from its own checkpoint.

    Args:
        space, base: what is searched.
        metric: minimised, for example "val_error_pct".
        objectives: two or more metrics minimised together, by NSGA-II, in place of `metric`; none: `metric` alone, by TPE.
        folder: of the study; the storage is optuna.db in it.
        name: of the study in the storage.
        first: choices to try before any suggestion, where the study is new.
        has_result: tells whether the study has a result of a choice.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'optuna.db'}")
    directions = [optuna.study.StudyDirection.MINIMIZE] * max(1, len(objectives))
    study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
    known = len(study.trials)
    for choice in _without_result(study, has_result) if known else first:
        study.enqueue_trial(choice)
    # Another seed at every start: the same one would repeat the suggestions that are already there.
    sampler = _sampler(bool(objectives), base.seed + known)
    return Search(
        space=partial(space.suggest, base),  # not a closure: Tune pickles its searcher
        metric=list(objectives) or metric, mode=["min"] * len(objectives) or "min", sampler=sampler,
        study_name=name, storage=storage,
    )  # fmt: skip


def _sampler(several: bool, seed: int) -> optuna.samplers.BaseSampler:
    # Optuna's own population of 50 would make all of a study of some tens of trials its first, random generation.
    return (
        optuna.samplers.NSGAIISampler(population_size=10, seed=seed)
        if several
        else optuna.samplers.TPESampler(seed=seed)
    )


def _without_result(study: optuna.Study, has_result: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Fail the trials that a dead driver left running; return the choices of all trials that are to be asked again."""
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    tried = [dict(trial.params) for trial in study.trials if trial.params]
    waiting = [trial.system_attrs.get("fixed_params") for trial in study.trials if not trial.params]
    return [c for i, c in enumerate(tried) if not has_result(c) and c not in tried[:i] and c not in waiting]
