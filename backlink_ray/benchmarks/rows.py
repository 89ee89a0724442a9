"""Rows: what was measured, appended to a file as it comes."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from backlink_ray import provenance

Row = dict[str, Any]


def write_rows(rows: Iterator[Row], path: Path, what: str, device: str) -> int:
    """Append rows to a JSON lines file as they come, each with when, with what and at which commit; print them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    where = {**provenance.describe(), "device": _device_name(device)}
    count = 0
    with path.open("a") as file:
        for count, row in enumerate(rows, 1):  # noqa: B007  # the number of rows is the result
            file.write(json.dumps({"what": what, **row, "date": time.strftime("%Y-%m-%d"), **where}) + "\n")
            file.flush()
            print(what, json.dumps(row), flush=True)
    return count


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
