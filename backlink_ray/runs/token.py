"""Token of a private Ray cluster: a secret that its processes prove to each other, in a file that only its owner can read."""

import atexit
import os
import secrets
import shutil
import tempfile
from pathlib import Path


def provide_token() -> None:
    """Make a token file for the processes that Ray is about to start, unless the environment names a token already.

    Ray itself would write one into the home folder, readable for everybody. The environment holds only the file's path.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    folder = Path(tempfile.mkdtemp(prefix="backlink_ray-"))  # mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = folder / "auth_token"
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as opened:
        opened.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)
