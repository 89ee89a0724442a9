"""Files: written whole or not at all, on disk before anybody is told so, and locks that die with their process."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backlink_ray.errors import BusyError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or the next start after a kill or a power cut, finds the old or the new content.

    Raises:
        OSError: the disk did not take it; `path` is as it was.
    """
    working = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        write_synced(working, content)
        working.replace(path)
    except OSError:
        working.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_synced(path: Path, content: str | bytes) -> None:
    """Write a new file and wait until the disk has its content."""
    with path.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def append_line(path: Path, line: str) -> None:
    """Append a line and wait until the disk has it."""
    with path.open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk knows the names in `folder`: a new file survives a power cut only after this."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def exclusive(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock file `path`; the system lets go of it when the process dies.

    Raises:
        BusyError: Another process still held it after `timeout_s` seconds.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_s
    try:
        while not try_lock(handle, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise BusyError(f"{path} was held by another process for {timeout_s:g} s")
            time.sleep(0.02)
        yield
    finally:
        os.close(handle)


def try_lock(handle: int, mode: int) -> bool:
    """Take the lock on an open file if it is free."""
    try:
        fcntl.flock(handle, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
