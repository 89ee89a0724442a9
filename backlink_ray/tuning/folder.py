"""The study folder: which study it belongs to, and which process works in it."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backlink_ray.errors import ConfigError
from backlink_ray.files import exclusive, make_folder, read_json, remove_leftovers, unreadable, write_json
from backlink_ray.runs.tracked import DRIVER_LOCK
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.trust import check_trust

MANIFEST = "study.json"
_LOOK_TIMEOUT_S = 0.5  # `backlink-ray sync` checks for a living driver by taking the lock for an instant
# Format of study folders; another one is refused rather than misread.
FORMAT = 2


@contextmanager
def open_study_folder(folder: Path, name: str, plan: Plan, resume: str) -> Iterator[None]:
    """Lock a study's folder for this process, and create it if necessary.

    Args:
        plan: its base and metric are recorded, so that a folder never mixes two studies; runs and trials can be added later.
        resume: auto (resume if the folder holds the study), never (it must be empty), must (it must hold the study).

    Raises:
        ConfigError: the folder belongs to another study or user, is not writable, or contradicts `resume`.
        BusyError: another process works in it; nothing is changed.
        StorageError: its study.json is damaged, or its file system has no locks.
    """
    is_used = _is_used(folder)
    check_trust(folder)
    if is_used:
        if resume == "never":
            raise ConfigError(
                f"{_folder(folder)} already holds a study and --resume is never; give another --storage-path"
            )
        _check_manifest(folder, name, plan)
    elif resume == "must":
        raise ConfigError(f"{_folder(folder)} holds no study to resume; check --storage-path, or use --resume auto")
    make_folder(folder, "storage_path")
    with exclusive(folder / DRIVER_LOCK, _LOOK_TIMEOUT_S, _folder(folder)), closed_to_others():
        check_trust(folder)  # again, now that it is there
        remove_leftovers(folder)
        write_json(folder / MANIFEST, _manifest(name, plan))
        yield


def _is_used(folder: Path) -> bool:
    """Return whether a folder holds more than hidden files: a start that was killed at once may have left those."""
    try:
        return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    except PermissionError as error:
        raise ConfigError(
            f"{_folder(folder)} cannot be read ({error.strerror}: {error.filename}); give a --storage-path of your own"
        ) from error


@contextmanager
def closed_to_others() -> Iterator[None]:
    """Let no other user write to what is made from now on, databases of Optuna and MLflow included."""
    mask = os.umask(0o077)
    os.umask(mask | 0o022)
    try:
        yield
    finally:
        os.umask(mask)


def check_study_folder(folder: Path, name: str, plan: Plan) -> None:
    """Raise ConfigError if a folder does not hold this study; it may belong to another user, and be in use."""
    if not (folder / MANIFEST).exists():
        raise ConfigError(f"{_folder(folder)} holds no study to report; run this without --report-only first")
    _check_manifest(folder, name, plan)


def _manifest(name: str, plan: Plan) -> dict[str, Any]:
    # Without fields at their defaults, so that a later version with more fields still accepts the study.
    return {
        "format": FORMAT, "study": name, "base": plan.base.identity, "metric": plan.metric, "objectives": list(plan.objectives),
        "space": plan.space.lasting if plan.space else {},
    }  # fmt: skip


def _check_manifest(folder: Path, name: str, plan: Plan) -> None:
    file, expected = folder / MANIFEST, _manifest(name, plan)
    aside = shlex.quote(f"{folder}-damaged")
    way_out = f"fix: mv {shlex.quote(str(folder))} {aside}, and start again, from the beginning, or restore it"
    found = read_json(file, way_out)
    if found:
        found = {"space": expected["space"], **found}  # version 0.4.0 recorded none
    if found == expected:
        return
    if not found:
        problem = "holds no study of backlink_ray; give another --storage-path"
    elif found.get("format") != FORMAT:
        problem = (
            f"was written by another version of backlink_ray (format {found.get('format', 1)}, here {FORMAT}), which this "
            "version cannot read; give another --storage-path"
        )
    elif not (isinstance(found.get("base"), dict) and isinstance(found["space"], dict)):
        raise unreadable(file, "is damaged (base or space is no JSON object)", way_out)
    else:
        problem = f"holds another study ({_difference(found, expected)}); give another --storage-path, or the flags of that study"
        problem += "; of a search, only ranges and the number of trials may change" * bool(plan.space)
    raise ConfigError(f"{_folder(folder)} {problem}")


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Return what differs, for example "lr is 0.3 there and 0.5 here"."""
    there, here = (
        {**m, **m["base"], **{f"the search of {name}": values for name, values in m["space"].items()}}
        for m in (found, expected)
    )
    names = sorted(
        name for name in (there.keys() | here.keys()) - {"base", "space"} if there.get(name) != here.get(name)
    )
    return ", ".join(
        f"{name} is {there.get(name, 'the default')} there and {here.get(name, 'the default')} here" for name in names
    )


def _folder(folder: Path) -> str:
    return f"storage folder {str(folder)!r}"
