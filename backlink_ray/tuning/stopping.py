"""Stopping: how a study's driver has its trials, which are other processes and maybe on other machines, save and end."""

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from backlink_ray.files import is_held
from backlink_ray.runs.folder import LOCK

# How often a trial looks: rarely enough for a file system that machines share.
_LOOK_S = 0.5
# How long the driver waits for checkpoints: it must have ended itself when `signals.GRACE_S` are over.
_SAVING_S = 4.5
_POLL_S = 0.05


class StopFile:
    """A file in the study's folder that tells its trials to stop; called, it says whether it is there."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".stop"
        self._looked, self._found = 0.0, False

    def __call__(self) -> bool:
        if not self._found and time.monotonic() >= self._looked + _LOOK_S:
            self._found, self._looked = self._path.exists(), time.monotonic()
        return self._found

    def remove(self) -> None:
        """Let trials run."""
        self._path.unlink(missing_ok=True)

    def stop(self, runs: Iterable[Path]) -> None:
        """Tell the trials to stop, and wait until none of the run folders is in use, for at most _SAVING_S."""
        with suppress(OSError):  # on a full disk there is nothing to wait for
            self._path.touch()
        deadline, folders = time.monotonic() + _SAVING_S, list(runs)
        while time.monotonic() < deadline and any(is_held(folder / LOCK) for folder in folders):
            time.sleep(_POLL_S)
