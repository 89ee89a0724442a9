"""Rows: measurements, appended to a file one by one."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

from backlink_ray import provenance
from backlink_ray.files import append_line, make_folder
from backlink_ray.runs.results import Row


def write_rows(rows: Iterable[Row], path: Path, what: str, device: str) -> None:
    """Append rows to a JSON lines file as they are measured, each with date, versions, commit and hardware; print them."""
    make_folder(path.parent, "output_dir")
    where = {**provenance.describe(), "device": provenance.hardware(device)}
    for row in rows:
        append_line(path, {"what": what, **row, "date": time.strftime("%Y-%m-%d"), **where})
        print(what, json.dumps(row), flush=True)
