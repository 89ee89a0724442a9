"""Rows: measurements, written to a file as one list, which is complete whenever it is read."""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from backlink_ray import provenance
from backlink_ray.files import write_whole
from backlink_ray.runs.results import Row


def written(rows: Iterable[Row], path: Path | None, what: str, device: str) -> Iterator[Row]:
    """Yield rows as they are measured, each after the file has it, with date, versions, commit and hardware.

    Args:
        rows: each says what it measures, or is of `what`.
        path: a JSON list, replaced as a whole with every row; None: no file.
        what: the item.
        device: measured on.

    Raises:
        StorageError: the file cannot be written.
    """
    where = {**provenance.describe(), "device": device, "hardware": provenance.hardware(device)}
    known = []
    for row in rows:
        known.append({"what": what, **row, "date": time.strftime("%Y-%m-%d"), **where})
        if path:
            write_whole(path, json.dumps(known, indent=1) + "\n")
        yield {"what": what, **row}
