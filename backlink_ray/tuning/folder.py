"""The study folder: whose it is, and which process is at work in it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backlink_ray.errors import BusyError, ConfigError
from backlink_ray.files import exclusive, make_folder, read_json, write_whole
from backlink_ray.runs.tracked import DRIVER_LOCK
from backlink_ray.tuning.plan import Plan

MANIFEST = "study.json"
_LOOK_TIMEOUT_S = 0.5  # `backlink-ray sync` looks whether a driver lives, which takes the lock for an instant
# Of what a study leaves on disk: folders of another format are refused rather than misread.
FORMAT = 2


@contextmanager
def open_study_folder(folder: Path, name: str, plan: Plan, resume: str) -> Iterator[None]:
    """Hold a study's folder for this process; made where it is missing.

    Args:
        folder: of the study.
        name: of the study.
        plan: its base and metric are recorded, so that a folder never mixes two studies; runs and trials may be added.
        resume: auto (go on if there is something), never (there must be nothing), must (there must be something).

    Raises:
        ConfigError: the folder is another study's or another user's, in use, not writable, or against `resume`.
    """
    # Hidden: what a start that was killed at once left.
    used = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if used:
        _check_owner(folder)
        if resume == "never":
            raise ConfigError(
                f"{_folder(folder)} already holds a study and --resume is never; give another --storage-path"
            )
        _check_manifest(folder, name, plan)
    elif resume == "must":
        raise ConfigError(f"{_folder(folder)} holds no study to resume; check --storage-path, or use --resume auto")
    make_folder(folder, "storage_path")
    try:
        with exclusive(folder / DRIVER_LOCK, _LOOK_TIMEOUT_S):
            write_whole(folder / MANIFEST, json.dumps(_manifest(name, plan), indent=2))
            yield
    except BusyError as error:
        raise ConfigError(
            f"{_folder(folder)} is in use by another process that runs this study; wait for it, or give another --storage-path"
        ) from error


def check_study_folder(folder: Path, name: str, plan: Plan) -> None:
    """Refuse to report from a folder that is not this study's; it may be another user's, and in use."""
    if not (folder / MANIFEST).exists():
        raise ConfigError(f"{_folder(folder)} holds no study to report; run this without --report-only first")
    _check_manifest(folder, name, plan)


def _manifest(name: str, plan: Plan) -> dict[str, Any]:
    # Fields at their defaults are left out, so that a field that is added later refuses no older study.
    return {
        "format": FORMAT, "study": name, "base": plan.base.identity, "metric": plan.metric, "objectives": list(plan.objectives),
    }  # fmt: skip


def _check_manifest(folder: Path, name: str, plan: Plan) -> None:
    file, mine = folder / MANIFEST, _manifest(name, plan)
    found = read_json(file, "restore it, or give another --storage-path")
    if found == mine:
        return
    if not found:
        problem = "holds no manifest of ours; give another --storage-path"
    elif found.get("format") != FORMAT:
        problem = (
            f"was written by another version of backlink_ray (format {found.get('format', 1)}, here {FORMAT}), which alone "
            "can read it; give another --storage-path"
        )
    else:
        problem = f"holds another study ({_difference(found, mine)}); give another --storage-path, or the flags it had"
    raise ConfigError(f"{_folder(folder)} {problem}")


def _difference(found: dict[str, Any], mine: dict[str, Any]) -> str:
    """Name what differs, for example "lr is 0.3 there and 0.5 here"."""
    there, here = ({**m, **m["base"]} for m in (found, mine))
    names = sorted(name for name in there.keys() | here.keys() if name != "base" and there.get(name) != here.get(name))
    return ", ".join(
        f"{name} is {there.get(name, 'the default')} there and {here.get(name, 'the default')} here" for name in names
    )


def _check_owner(folder: Path) -> None:
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o002:
        raise ConfigError(
            f"{_folder(folder)} belongs to another user or anybody may write to it; give another --storage-path"
        )


def _folder(folder: Path) -> str:
    return f"storage folder {str(folder)!r}"
