"""Files: atomic and synced writes, logs of JSON lines, and locks that are released when their process dies."""

import errno
import fcntl
import glob
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from backlink_ray.errors import BusyError, ConfigError, StorageError

_TEMPORARY = ".{}.{}.tmp"  # name, twelve random hexadecimal digits
_ADDRESS = re.compile(r"\w[\w+.-]+:/")  # pathlib makes s3:/x of s3://x; a single letter is a drive


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically: a reader, also after a kill or a power cut, finds either the old or the new content.

    Raises:
        StorageError: it cannot be written; `path` is unchanged.
    """
    try:
        with temporary(path) as working:
            write_synced(working, content)
            working.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise _not_written(path, len(content), error) from error


def write_json(path: Path, content: Any) -> None:
    """Write a file of JSON as `write_whole` does; ValueError if a number is NaN or infinite, which JSON does not have."""
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextmanager
def temporary(path: Path, *, is_folder: bool = False) -> Iterator[Path]:
    """Yield a new file or folder beside `path`, to be renamed to it; it is removed at the end if it was not.

    As long as its process lives it is locked, and only what is not locked counts as left behind: a process id would mean
    another process on another machine, and after a while on this one.
    """
    remove_leftovers(path.parent, path.name)
    working = path.with_name(_TEMPORARY.format(path.name, os.urandom(6).hex()))
    handle = _made(working, is_folder)
    try:
        yield working
    finally:
        _remove(working)
        os.close(handle)


def _made(working: Path, is_folder: bool) -> int:
    while True:
        working.mkdir(0o755) if is_folder else working.touch(0o644)
        with suppress(FileNotFoundError):  # another process has removed it before it was locked
            handle = os.open(working, os.O_RDONLY | os.O_CLOEXEC)
            with suppress(OSError):  # a file system without locks: there nothing is ever removed as left behind
                fcntl.flock(handle, fcntl.LOCK_SH)
            if working.exists():
                return handle
            os.close(handle)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove temporary files and folders of dead processes: those that were to become `name`, or all, below `folder`."""
    pattern = _TEMPORARY.format(glob.escape(name) or "*", "[0-9a-f]" * 12)
    for path in folder.glob(pattern) if name else folder.rglob(pattern):
        with suppress(OSError):
            _remove_if_left(path)


def _remove_if_left(path: Path) -> None:
    handle = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # Its process may have renamed it after it was opened here.
        if try_lock(handle, fcntl.LOCK_EX) and os.path.samestat(os.fstat(handle), path.stat()):
            _remove(path)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


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
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    line = json.dumps(dict(row), allow_nan=False).encode() + b"\n"
    try:
        is_new = not path.exists()
        path.touch(0o644)
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


def local_path(text: str | Path, flag: str) -> Path:
    """Return the path that a flag names, with ~ expanded; ConfigError for what cannot be one, or is an address (s3://...)."""
    if _ADDRESS.match(str(text)):
        raise ConfigError(f"{flag}={str(text)!r} is an address; allowed: a path on this machine, which may be mounted")
    try:
        path = Path(text).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, ValueError, RuntimeError) as error:  # too long; a NUL; no such user, or no home
        raise ConfigError(f"{flag}={str(text)!r} cannot be used ({_reason(error)}); give another folder") from error
    return path


def make_folder(path: Path, flag: str) -> None:
    """Create the folder that a flag names if it does not exist; ConfigError if it cannot be created or written to."""
    try:
        make_own_folder(path)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(f"{flag}={str(path)!r} cannot be written ({_reason(error)}); give another folder") from error


def _reason(error: Exception) -> str:
    return str((isinstance(error, OSError) and error.strerror) or error)


def make_own_folder(path: Path) -> None:
    """Create a folder, and those above it, unless they exist; whatever the umask, nobody else can write to them."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(0o755, exist_ok=True)


def read_json(path: Path, way_out: str) -> dict[str, Any]:
    """Return the object in a JSON file, {} if the file does not exist.

    Args:
        path: of the file.
        way_out: what the user can do about a damaged file; ends the error message, with the quoted path in the place of {file}.

    Raises:
        StorageError: the file is damaged or cannot be read.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise unreadable(path, f"cannot be read ({error.strerror})", way_out) from error
    return _row(content, path, way_out)


def read_lines(path: Path, way_out: str) -> list[dict[str, Any]]:
    """Return the rows of a log, oldest first, without a torn last line; [] if the log does not exist.

    Args:
        path: of the log.
        way_out: what the user can do about a damaged line; as in `read_json`.

    Raises:
        StorageError: a line is damaged; the message names the file and the line.
    """
    found = []
    for row in rows_of(path, way_out):
        if isinstance(row, StorageError):
            raise row
        found.append(row)
    return found


def rows_of(path: Path, way_out: str) -> Iterator[dict[str, Any] | StorageError]:
    """Yield the rows of a log as `read_lines` does, and in the place of a damaged one its error."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise unreadable(path, f"cannot be read ({error.strerror})", way_out) from error
    for number, line in enumerate(lines, 1):
        try:
            yield _row(line, path, way_out, number)
        except StorageError as error:
            yield error


def _row(text: bytes, path: Path, way_out: str, line: int = 0) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise unreadable(path, f"is damaged ({error})", way_out, line) from error
    if not isinstance(found, dict):
        raise unreadable(path, "is damaged (not a JSON object)", way_out, line)
    return found


def unreadable(path: Path, fault: str, way_out: str, line: int = 0) -> StorageError:
    """Return the error for a file, or for a line of it, that cannot be read; see `read_json`."""
    where = f"{path}, line {line}" if line else str(path)
    return StorageError(f"{where} {fault}; " + way_out.replace("{file}", shlex.quote(str(path))))


@contextmanager
def exclusive(path: Path, timeout_s: float, what: str = "") -> Iterator[None]:
    """Hold the lock on the file `path`, which is `what`'s; the system releases it when the process dies.

    Raises:
        BusyError: Another process still held it after `timeout_s` seconds.
        StorageError: The file cannot be made, or its file system has no locks.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _no_lock(path, error) from error
    try:
        _take(handle, path, timeout_s, what or str(path))
        yield
    finally:
        os.close(handle)


def _take(handle: int, path: Path, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    try:
        while not try_lock(handle, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                waited = f", and was for {timeout_s:g} s" if timeout_s else ""
                raise BusyError(f"{what} is in use by another process{waited}; wait for it, or give another folder")
            time.sleep(0.02)
    except BusyError:  # itself an OSError
        raise
    except OSError as error:
        raise _no_lock(path, error) from error


def _no_lock(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be locked ({error.strerror}), and two processes must not write here; give a folder on a file system "
        "with locks, such as a local disk, or NFS mounted without nolock"
    )


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
    except OSError:
        return False
    try:
        return not try_lock(handle, fcntl.LOCK_SH)
    except OSError:  # a file system without locks, where nobody can hold one
        return False
    finally:
        os.close(handle)
