"""Files: atomic and synced writes, logs of JSON lines, and locks that are released when their process dies."""

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
    """Write a file atomically: a reader, also after a kill or a power cut, finds either the old or the new content.

    Raises:
        StorageError: it cannot be written; `path` is unchanged.
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
    """Write a new file and wait until its content is on disk."""
    with path.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the entries of `folder` are on disk: a new file survives a power cut only after this."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a log, as one line of JSON, and wait until it is on disk. Only one process may write a log at a time.

    A kill or a full disk can leave a torn last line: it is removed first, since a row joined to it would be lost too.

    Raises:
        StorageError: the line cannot be written.
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
        f"{path} ({num_bytes} bytes) cannot be written: {error.strerror}; free some space or give another folder"
    )


def make_folder(path: Path, flag: str) -> None:
    """Create the folder that a flag names if it does not exist; ConfigError if it cannot be created or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{flag}={str(path)!r} cannot be written ({reason}); give another folder") from error


def read_json(path: Path, way_out: str) -> dict[str, Any]:
    """Return the object in a JSON file, {} if the file does not exist.

    Args:
        path: of the file.
        way_out: what the user can do about a damaged file; ends the error message.

    Raises:
        StorageError: the file is damaged or cannot be read.
    """
    try:
        return _row(path.read_bytes(), str(path), way_out)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except StorageError:  # itself an OSError
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}); {way_out}") from error


def read_lines(path: Path, way_out: str) -> list[dict[str, Any]]:
    """Return the rows of a log, oldest first, without a torn last line; [] if the log does not exist.

    Args:
        path: of the log.
        way_out: what the user can do about a damaged line; ends the error message.

    Raises:
        StorageError: a line is damaged; the message names the file and the line.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}); {way_out}") from error
    return [_row(line, f"{path}, line {number}", way_out) for number, line in enumerate(lines, 1)]


def _row(line: bytes, source: str, way_out: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise StorageError(f"{source} is damaged ({error}); {way_out}") from error
    if not isinstance(found, dict):
        raise StorageError(f"{source} is damaged (not a JSON object); {way_out}")
    return found


@contextmanager
def exclusive(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock on the file `path`; the system releases it when the process dies.

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
    """Lock an open file if it is free; return whether that succeeded."""
    try:
        fcntl.flock(handle, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Return whether a living process, including this one, holds the lock on `path` by `exclusive`."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)
