"""Database: Optuna's record of a search; what it lacks of the study's results is added whenever it is opened."""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from math import isfinite
from pathlib import Path

import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from backlink_ray.errors import StorageError, first_line
from backlink_ray.output import say
from backlink_ray.runs.results import Row, config_of
from backlink_ray.signals import stopping
from backlink_ray.tracking.uri import sqlite_uri
from backlink_ray.tuning.plan import Plan

# SQLite waits for the first by itself; a viewer or a backup can hold the lock for minutes.
_BUSY_S, _LONGEST_LOCK_S = 5.0, 600.0


def open_database(file: Path, name: str, plan: Plan, rows: Sequence[Row]) -> optuna.Study:
    """Open the database of a search; make it again from the results if it is gone or damaged.

    Raises:
        StorageError: the database cannot be used; the message names it.
    """
    directions = [optuna.study.StudyDirection.MINIMIZE] * max(1, len(plan.objectives))
    with unlocked(file):
        _set_aside_if_damaged(file)
        storage = optuna.storages.RDBStorage(sqlite_uri(file), engine_kwargs={"connect_args": {"timeout": _BUSY_S}})
        study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
        if added := _add_missing(study, plan, rows):
            say(f"{file} lacked {added} trials that have results; they are in it again")
    return study


@contextmanager
def unlocked(file: Path) -> Iterator[None]:
    """Wait until no other program holds a database's lock, and name the file in errors of what uses it then.

    Raises:
        StorageError: it is locked for longer than 600 s, or cannot be used.
    """
    try:
        _wait_for_lock(file)
        yield
    except (sqlite3.Error, SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        # RuntimeError: the database is of another version of Optuna
        reason = first_line(error.__cause__ or error)
        way_out = "free some space" if "disk is full" in reason else "delete it: it is made again from the results"
        raise StorageError(f"{file} cannot be used ({reason}); {way_out}") from error


def _wait_for_lock(file: Path) -> None:
    deadline, has_waited = time.monotonic() + _LONGEST_LOCK_S, False
    while file.exists() and _is_locked(file):
        if not has_waited:
            say(f"{file} is locked by another program; the study waits for it")
        if stopping():
            raise StorageError(f"{file} is locked by another program, and the study stops")
        if time.monotonic() > deadline:
            raise StorageError(f"{file} has been locked by another program for {_LONGEST_LOCK_S:g} s; end that program")
        has_waited = True


def _is_locked(file: Path) -> bool:
    with closing(sqlite3.connect(file, timeout=_BUSY_S)) as database:
        try:
            database.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:  # any other one is found when the file is used
            return error.sqlite_errorcode == sqlite3.SQLITE_BUSY
    return False


def _set_aside_if_damaged(file: Path) -> None:
    if reason := _damage(file):
        kept = file.with_name(f"{file.name}.damaged")
        file.replace(kept)
        say(f"{file} is damaged ({reason}) and made again; the damaged one is {kept.name}")


def _damage(file: Path) -> str:
    if not file.exists():
        return ""
    with closing(sqlite3.connect(file, timeout=_BUSY_S)) as database:
        try:
            found: str = database.execute("PRAGMA quick_check").fetchone()[0]
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                return str(error)
            raise
    return "" if found == "ok" else found.splitlines()[0]


def _add_missing(study: optuna.Study, plan: Plan, rows: Sequence[Row]) -> int:
    """Add the trials that only the results know, and return how many; a failed one is known if it has failed there too."""
    known = {state: [trial.params for trial in study.trials if trial.state == state] for state in TrialState}
    counted = [*known[TrialState.COMPLETE], *known[TrialState.PRUNED]]
    found = [trial for row in rows if (trial := _trial_of(plan, row))]
    missing = [trial for trial in found if trial.params not in [*counted, *known[trial.state]]]
    for trial in missing:
        study.add_trial(trial)
    return len(missing)


def _trial_of(plan: Plan, row: Row) -> FrozenTrial | None:
    """Return a row as a trial of Optuna, None if the search can no longer choose it, as its ranges are narrower now."""
    assert plan.space is not None
    asked = FixedTrial(plan.space.choice_of(config_of(row)))
    try:
        plan.suggest(asked)
    except ValueError:
        return None
    values = [float(row.get(metric, "nan")) for metric in plan.objectives or (plan.metric,)]
    state = TrialState.COMPLETE if all(map(isfinite, values)) else TrialState.PRUNED
    state = TrialState.FAIL if row["status"] == "FAILED" else state
    return create_trial(
        state=state, values=values if state == TrialState.COMPLETE else None,
        params=asked.params, distributions=asked.distributions,
    )  # fmt: skip
