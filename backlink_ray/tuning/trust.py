"""Trust: whether somebody else can change what a study goes on from."""

import grp
import os
import pwd
import shlex
import stat
from pathlib import Path

from backlink_ray.errors import ConfigError


def check_trust(folder: Path) -> None:
    """Raise ConfigError if another user can change a study: its storage path, or anything in its folder; root can anyway.

    A group may write if only this user is in it: some systems give every user such a group. In a folder with the sticky bit, such
    as /tmp, everybody may write, since nobody can replace what is another's. What is above the storage path may belong to a
    group that shares it.

    Args:
        folder: of the study, in the storage path; need not exist.
    """
    given, storage = folder.parent, folder.parent.resolve()
    folder = folder.resolve()
    used = (storage, *storage.glob("mlflow.db*"), *storage.glob("mlartifacts"), folder, *folder.rglob("*"))
    for path, is_above in (*((path, True) for path in storage.parents), *((path, False) for path in used)):
        if fault := _fault(path, is_above):
            raise ConfigError(
                f"storage path {str(given)!r} cannot be trusted: {path} {fault}; fix, if nobody else has changed it: "
                f"chmod -R go-w {shlex.quote(str(given))}, or give a --storage-path of your own"
            )


def _fault(path: Path, is_above: bool) -> str:
    """Return who else can change a file or folder, also one that a link leads to; "" if nobody can."""
    try:
        found = path.stat()
    except OSError:  # not there, or gone meanwhile
        return ""
    if found.st_mode & stat.S_IWOTH and not (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
        return "is writable for everybody"
    if is_above:
        return ""
    if found.st_uid not in (os.getuid(), 0):
        return f"belongs to another user ({found.st_uid})"
    is_shared = found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid)
    return f"is writable for its group ({found.st_gid})" if is_shared else ""


def _is_own_group(gid: int) -> bool:
    """Return whether only this user, or root, is in a group."""
    try:
        name, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(gid)
    except KeyError:  # in a container, say
        return gid == 0
    return gid == 0 or (group.gr_name == name and set(group.gr_mem) <= {name})
