"""The study folder: whose it is, and which process is at work in it."""

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from backlink_ray.errors import BusyError, ConfigError
from backlink_ray.files import exclusive, write_whole
from backlink_ray.runs.tracked import DRIVER_LOCK
from backlink_ray.tuning.plan import Plan

MANIFEST = "study.json"
_LOOK_TIMEOUT_S = 0.5  # `backlink-ray sync` looks whether a driver lives, which takes the lock for an instant


def claim(folder: Path, name: str, plan: Plan, resume: str) -> None:
    """Make a study folder this study's own, or find that it is; ConfigError where it is somebody else's.

    Args:
        folder: of the study.
        name: of the study.
        plan: its base and metric are recorded, so that a folder never mixes two studies; cells and trials may be added.
        resume: auto (go on if there is something), never (there must be nothing), must (there must be something).
    """
    file = folder / MANIFEST
    mine = {"study": name, "base": dataclasses.asdict(plan.base.replace(executor="auto")), "metric": plan.metric}
    mine |= {"objectives": list(plan.objectives)} if plan.objectives else {}
    if folder.exists() and any(folder.iterdir()):
        _check_owner(folder)
        if resume == "never":
            raise ConfigError(
                f"storage folder {str(folder)!r} already holds a study and --resume is never; give another --storage-path"
            )
        found = json.loads(file.read_text()) if file.exists() else {}
        if found != mine:
            raise ConfigError(
                f"storage folder {str(folder)!r} holds {'another study' if found else 'no manifest of ours'}; "
                "give another --storage-path, or the flags it was started with"
            )
    elif resume == "must":
        raise ConfigError(
            f"storage folder {str(folder)!r} holds no study to resume; check --storage-path, or use --resume auto"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(mine, indent=2))
    except OSError as error:
        raise ConfigError(
            f"storage folder {str(folder)!r} cannot be written ({error.strerror}); give another --storage-path"
        ) from error


@contextmanager
def lock_study_folder(folder: Path) -> Iterator[None]:
    """Hold a study folder for this process; ConfigError where another one is at work in it."""
    with ExitStack() as held:
        try:
            held.enter_context(exclusive(folder / DRIVER_LOCK, _LOOK_TIMEOUT_S))
        except BusyError as error:
            raise ConfigError(
                f"storage folder {str(folder)!r} is in use by another process that runs this study; wait for it, or give "
                "another --storage-path"
            ) from error
        yield


def _check_owner(folder: Path) -> None:
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o002:
        raise ConfigError(
            f"storage folder {str(folder)!r} belongs to another user or anybody may write to it; give another --storage-path"
        )
