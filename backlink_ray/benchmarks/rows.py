"""Rows: what was measured, appended to a file as it comes."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

from backlink_ray import provenance
from backlink_ray.files import append_line, make_folder
from backlink_ray.runs.results import Row


def write_rows(rows: Iterable[Row], path: Path, what: str, device: str) -> None:
    """Append rows to a JSON lines file as they come, each with when, with what and at which commit; print them."""
    make_folder(path.parent, "output_dir")
    where = {**provenance.describe(), "device": provenance.hardware(device)}
    for row in rows:
        append_line(path, {"what": what, **row, "date": time.strftime("%Y-%m-%d"), **where})
        print(what, json.dumps(row), flush=True)
