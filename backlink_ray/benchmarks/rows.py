"""Rows: measurements, each in a file as soon as it is known, with where it was made."""

import json
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from backlink_ray import provenance
from backlink_ray.files import append_line, make_own_folder, write_whole
from backlink_ray.runs.results import Row


def written(rows: Iterable[Row], path: Path | None, what: str, device: str) -> Iterator[Row]:
    """Yield rows as they are measured, each after the file has it, with date, versions, commit and hardware.

    Args:
        rows: each says what it measures, or is of `what`.
        path: a JSON list, replaced as a whole with every row; None: no file.

    Raises:
        StorageError: the file cannot be written.
    """
    where, known = provenance.describe_process(device), []
    for row in rows:
        known.append({"what": what, **row, "date": time.strftime("%Y-%m-%d"), **where})
        if path:
            write_whole(path, json.dumps(known, indent=1) + "\n")
        yield {"what": what, **row}


class RowFiles:
    """Rows of several kinds in one folder, each kind a file of JSON lines; threads may add rows at once.

    Args:
        **also: further columns of every row, which replace what is found here.
    """

    def __init__(self, folder: Path, device: str, **also: Any) -> None:
        make_own_folder(folder)
        self._folder, self._lock = folder, threading.Lock()
        self._where = {**provenance.describe_process(device), **also}

    def add(self, what: str, row: Row) -> None:
        """Append a row to the file of its kind, and print what is short of it.

        Raises:
            StorageError: the file cannot be written.
        """
        with self._lock:
            append_line(
                self._folder / f"{what}.jsonl", {"what": what, **row, "date": time.strftime("%Y-%m-%d"), **self._where}
            )
            print(what, *(f"{name}={value}" for name, value in row.items() if len(str(value)) < 80), flush=True)
