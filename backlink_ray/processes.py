"""Processes: those that this process has started, and those that one which was killed has left behind; on Linux."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backlink_ray.files import is_held, read_json, try_lock, write_whole

_PROC = Path("/proc")  # elsewhere there is none, and nothing is found


_remembered: set[int] = set()


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def end_descendants() -> None:
    """Kill all processes that this process has started, and theirs."""
    found = set[int]()
    while new := descendants(os.getpid()) - found:  # stopped first: what is not, starts others meanwhile
        found |= new
        for pid in new:
            _send(pid, signal.SIGSTOP)
    for pid in found:
        _send(pid, signal.SIGKILL)


def descendants(*roots: int) -> set[int]:
    """Return the ids of all processes that these have started, and theirs."""
    children: dict[int, list[int]] = {}
    for pid in (int(path.name) for path in _PROC.glob("[0-9]*")):
        if fields := _stat(pid):
            children.setdefault(int(fields[1]), []).append(pid)
    found, todo = set[int](), list(roots)
    while todo:
        todo += (own := children.get(todo.pop(), []))
        found.update(own)
    return found


@contextmanager
def remembered() -> Iterator[None]:
    """Record what is started in here, so that `end_leftovers` of a later process ends it should this one be killed."""
    before = descendants(os.getpid())
    try:
        yield
    finally:
        _remembered.update(descendants(os.getpid()) - before)
        remember_descendants()


def remember_descendants() -> None:
    """Record what the remembered processes have started meanwhile."""
    if not _remembered or (file := _record()) is None:
        return
    lock = file.with_suffix(".lock")
    if not is_held(lock):  # from now on, until this process is gone
        try_lock(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), fcntl.LOCK_EX)
    started = {str(pid): _started(pid) for pid in _remembered | descendants(*_remembered)}
    write_whole(file, json.dumps({"boot": _boot(), "started": started}))


def end_leftovers() -> None:
    """Kill what is still there of the processes that killed ones had recorded; a process that is another by now is left alone."""
    own = _record()
    for file in own.parent.glob(f"{socket.gethostname()}-*.json") if own else ():
        if not is_held(file.with_suffix(".lock")):
            _end_recorded(file)


def end_remembered() -> None:
    """Kill what is still there of the recorded processes, after they have been asked to end."""
    if file := _record():
        _end_recorded(file)


def _end_recorded(file: Path) -> None:
    found = read_json(file, "delete it")
    if found.get("boot") == _boot():
        for pid, started in found["started"].items():
            if started and _started(int(pid)) == started:
                _send(int(pid), signal.SIGKILL)
    file.unlink(missing_ok=True)
    file.with_suffix(".lock").unlink(missing_ok=True)


def _record() -> Path | None:
    """Return this process's file in a folder of the user's alone; None if there can be none."""
    folder = Path(tempfile.gettempdir()) / f"backlink_ray-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return folder / f"{socket.gethostname()}-{os.getpid()}.json"
    return None


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _started(pid: int) -> str:
    """Return when a process was started, in ticks since the machine was: with its id that is one process, and no other."""
    return fields[19] if (fields := _stat(pid)) else ""


def _stat(pid: int) -> list[str]:
    """Return the fields of a process's stat file behind its name, [] if there is no such process."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(") ")[2].split()
    except OSError:
        return []


def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
