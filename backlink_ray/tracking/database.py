"""The SQLite file of a tracking store: where it is, and opening it without breaking it or waiting for ever."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from backlink_ray.files import exclusive

_FIRST_START_TIMEOUT_S = 60.0  # making the tables takes 2 to 5 s, and 20 processes may queue
_PROBE_TIMEOUT_S = 5.0


def database_path(uri: str) -> Path | None:
    """The file of a SQLite store, absolute; nothing for every other kind of store.

    Raises:
        ValueError: A SQLite store without a file, or with a name that MLflow reads as something else.
    """
    if not uri.startswith("sqlite:"):
        return None
    path = uri.removeprefix("sqlite:///")
    if path == uri or not path or any(taboo in path for taboo in (":memory:", "?", "%")):
        raise ValueError(
            f"tracking URI {uri!r} names no usable file; allowed: sqlite:////absolute/path.db without ? or %"
        )
    return Path(path).absolute()


@contextlib.contextmanager
def sqlite_lock(uri: str) -> Iterator[None]:
    """Hold a SQLite store for the time of a first start; does nothing for other stores.

    MLflow makes the tables without a lock: of 8 processes that opened one fresh file, 8 failed.

    Raises:
        BusyError: Another process held it for 60 s.
        sqlite3.Error: The file cannot be written.
    """
    path = database_path(uri)
    if not path:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.with_name(f"{path.name}.lock"), _FIRST_START_TIMEOUT_S):
        _probe(path)
        yield


def _probe(path: Path) -> None:
    """A file that cannot be written is found here at once; through MLflow it would block for 102 s."""
    with contextlib.closing(sqlite3.connect(path, timeout=_PROBE_TIMEOUT_S)) as database:
        database.execute("BEGIN IMMEDIATE")
