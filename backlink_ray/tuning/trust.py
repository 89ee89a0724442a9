"""Trust: whether somebody else can change what a study goes on from."""

import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from backlink_ray.errors import ConfigError

# What a study reads back; nobody goes on from its tables, its figures and what Ray Tune writes.
_READ = ("study.json", "results.jsonl", "optuna.db*", ".driver.lock", ".stop", "runs", "runs/**/*")
_OF_STORE = ("mlflow.db*", "mlartifacts")


def check_trust(folder: Path) -> None:
    """Raise ConfigError if another user can change a study: its storage path, or what it reads in its folder; root can anyway.

    A group may write if only this user is in it: some systems give every user such a group. In a folder with the sticky bit, such
    as /tmp, everybody may write, since nobody can replace what is another's. What is above the storage path may belong to a
    group that shares it. The folder, which is in the storage path, need not exist.
    """
    given, storage = folder.parent, folder.parent.resolve()
    folder = folder.resolve()
    used = (storage, *_found(storage, _OF_STORE), folder, *_found(folder, _READ))
    for path, is_above in (*((path, True) for path in storage.parents), *((path, False) for path in used)):
        with suppress(OSError):  # not there, or gone meanwhile
            found = path.stat()  # also of what a link leads to
            if fault := _fault(found, is_above):
                raise ConfigError(
                    f"storage path {str(given)!r} cannot be trusted: {path} {fault}; {_fix(path, found, is_above)}give a "
                    "--storage-path of your own"
                )


def _found(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    return chain.from_iterable(map(folder.glob, patterns))


def _fault(found: os.stat_result, is_above: bool) -> str:
    """Return who else can change a file or folder; "" if nobody can."""
    if found.st_mode & stat.S_IWOTH and not (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
        return "is writable for everybody"
    if is_above:
        return ""
    if found.st_uid not in (os.getuid(), 0):
        return f"belongs to another user ({_user(found.st_uid)})"
    is_shared = found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid)
    return f"is writable for its group ({found.st_gid})" if is_shared else ""


def _fix(path: Path, found: os.stat_result, is_above: bool) -> str:
    """Return what mends a fault, up to the other way out; only its owner and root can."""
    me, place = os.getuid(), shlex.quote(str(path.resolve()))
    if not is_above and found.st_uid not in (me, 0):
        return (
            f"as root, chown -R {me} {place}, or, where that is refused, as by NFS, which makes root's files nobody's, "
        )
    if me not in (found.st_uid, 0):
        return f"only its owner ({_user(found.st_uid)}) can mend that: "
    return f"fix, if nobody else has changed it: chmod {'o-w' if is_above else '-R go-w'} {place}, or "


def _user(uid: int) -> str:
    """Return a user's number, and the name if there is one."""
    try:
        return f"{uid}, {pwd.getpwuid(uid).pw_name}"
    except KeyError:  # in a container, say
        return str(uid)


def _is_own_group(gid: int) -> bool:
    """Return whether only this user, or root, is in a group."""
    try:
        name, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(gid)
    except KeyError:  # in a container, say
        return gid == 0
    return gid == 0 or (group.gr_name == name and set(group.gr_mem) <= {name})
