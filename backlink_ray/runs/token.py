"""Token of a private Ray cluster: a secret that its processes prove to each other, in a file that only its owner can read."""

import atexit
import fcntl
import os
import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from backlink_ray.files import is_held, try_lock

_PREFIX = "backlink_ray-token-"
_NEW_S = 60.0  # one that has just been made may not be locked yet
made: dict[str, bool] = {}  # by this process, and whether Ray chose the mode


def provide_token() -> None:
    """Make a token file for the processes that Ray is about to start, unless the environment names a token already.

    Ray itself would write one into the home folder, readable for everybody. The environment holds only the file's path.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    _remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))  # mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = folder / "auth_token"
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try_lock(handle, fcntl.LOCK_EX)  # held, and the file open, as long as this process lives
    os.write(handle, secrets.token_hex(32).encode())
    made[str(file)] = "RAY_AUTH_MODE" not in os.environ
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)


def _remove_leftovers() -> None:
    """Remove what processes that were killed have left: nobody holds the lock on their tokens."""
    for file in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/auth_token"):
        with suppress(OSError):  # another user's, or gone meanwhile
            found = file.stat()
            if found.st_uid == os.getuid() and time.time() - found.st_mtime > _NEW_S and not is_held(file):
                shutil.rmtree(file.parent)
