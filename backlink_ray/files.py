"""Files: written whole or not at all, on disk before anybody is told so; logs of lines; locks that die with their process."""

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from backlink_ray.errors import BusyError, ConfigError, StorageError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or the next start after a kill or a power cut, finds the old or the new content.

    Raises:
        StorageError: the disk did not take it; `path` is as it was.
    """
    working = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        write_synced(working, content)
        working.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            working.unlink(missing_ok=True)
        raise _not_written(path, len(content), error) from error


def write_synced(path: Path, content: str | bytes) -> None:
    """Write a new file and wait until the disk has its content."""
    with path.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk knows the names in `folder`: a new file survives a power cut only after this."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a log, one line of JSON, and wait until the disk has it. One process at a time writes a log.

    A kill or a full disk can leave a torn last line: it is cut off first, since a row glued to it would be lost as well.

    Raises:
        StorageError: the disk did not take the line.
    """
    line = json.dumps(dict(row)).encode() + b"\n"
    try:
        is_new = not path.exists()
        with path.open("ab+") as file:
            file.truncate(path.read_bytes().rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(path.parent)
    except OSError as error:
        raise _not_written(path, len(line), error) from error


def _not_written(path: Path, num_bytes: int, error: OSError) -> StorageError:
    return StorageError(
        f"{path} ({num_bytes} bytes) cannot be written: {error.strerror}; make room or give another folder"
    )


def make_folder(path: Path, flag: str) -> None:
    """Make a folder that a flag names, if need be; ConfigError where that, or writing there, is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{flag}={str(path)!r} cannot be written ({reason}); give another folder") from error


def read_json(path: Path, way_out: str) -> dict[str, Any]:
    """Return the object of a JSON file, {} where there is none.

    Args:
        path: of the file.
        way_out: what the user can do about a damaged file; ends the message of the error.

    Raises:
        StorageError: the file is damaged or cannot be read.
    """
    try:
        return _row(path.read_bytes(), str(path), way_out)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}); {way_out}") from error


def read_lines(path: Path, way_out: str) -> list[dict[str, Any]]:
    """Return the rows of a log, oldest first; a torn last line does not count, and a log that is not there has none.

    Args:
        path: of the log.
        way_out: what the user can do about a damaged line; ends the message of the error.

    Raises:
        StorageError: a line is damaged: names the file and the line.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [_row(line, f"{path}, line {number}", way_out) for number, line in enumerate(lines, 1)]


def _row(line: bytes, place: str, way_out: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise StorageError(f"{place} is damaged ({error}); {way_out}") from error
    if not isinstance(found, dict):
        raise StorageError(f"{place} is damaged (no object of JSON); {way_out}")
    return found


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


def is_held(path: Path) -> bool:
    """Tell whether a living process holds the lock file `path` by `exclusive`; this one counts as well."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)
