"""The record: one row a finished run in append-only Parquet files, which reports read and nothing rewrites.

results/part-<time>-<run_id>.parquet    one small file a row; the newest row of a run counts
"""

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from backlink_ray.files import write_whole
from backlink_ray.runs.config import RunConfig
from backlink_ray.text import slug

Value = str | int | float | bool
Row = dict[str, Any]


class Record:
    """The results of a study in `folder/results`.

    Args:
        folder: The study's folder; made if need be.

    Raises:
        OSError: The folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "results"
        self._folder.mkdir(parents=True, exist_ok=True)

    def append(self, row: Mapping[str, Value]) -> None:
        """Add one row; a later row of the same run replaces it for readers.

        Args:
            row: Flat; `run_id` is needed, `status` is what `done` looks at. Columns may differ from row to row.

        Raises:
            ValueError: No run_id, or a value that is not a str, int (64 bits), float or bool; names the column.
            OSError: The disk did not take the file.
        """
        _check(row)
        # Nanoseconds, zero-padded: the order of names is the order of time. The process id tells writers apart.
        name = f"part-{time.time_ns():020d}-{os.getpid()}-{slug(str(row['run_id']))}.parquet"
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([dict(row)]), buffer)
        write_whole(self._folder / name, buffer.getvalue().to_pybytes())

    def rows(self) -> list[Row]:
        """The newest row of every run, oldest first; a row has the columns that it was written with.

        Raises:
            ValueError: A file is not readable Parquet; names it.
        """
        newest: dict[str, Row] = {}
        for path in sorted(self._folder.glob("part-*.parquet")):
            row = _read(path)
            newest.pop(row["run_id"], None)
            newest[row["run_id"]] = row
        return list(newest.values())

    def done(self) -> set[str]:
        """The run_ids whose newest row has the status FINISHED."""
        return {str(row["run_id"]) for row in self.rows() if row.get("status") == "FINISHED"}


def _check(row: Mapping[str, Value]) -> None:
    if not isinstance(row.get("run_id"), str) or not row["run_id"]:
        raise ValueError(f"a row needs its run_id, a text; received {row.get('run_id')!r}")
    for column, value in row.items():
        if not isinstance(value, str | int | float) or (isinstance(value, int) and not -(2**63) <= value < 2**63):
            raise ValueError(f"column {column!r} has {value!r}; allowed are str, int of 64 bits, float and bool")


def _read(path: Path) -> Row:
    try:
        with path.open("rb") as file:
            row: Row = pq.read_table(file).to_pylist()[0]
    except (pa.ArrowInvalid, IndexError) as error:
        raise ValueError(f"{path} is no readable result ({error}); delete it to run its cell again") from error
    return row


def config_of(row: Mapping[str, Any]) -> RunConfig:
    """Return the configuration a record's row was run with."""
    return RunConfig(**{name: row[name] for name in RunConfig.__dataclass_fields__ if name in row})


def made_with(folder: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the hardware, versions and commits that a folder's finished runs had, a line each with how many."""
    found: Counter[str] = Counter()
    for row in rows:
        file = folder / "runs" / str(row["run_id"]) / "environment.json"
        if row["status"] == "FINISHED" and file.exists():
            found[_made_with(json.loads(file.read_text())) + f", executor {row['executor']}"] += 1
    return tuple(f"{text}: {count} run{'s' * (count > 1)}" for text, count in found.items())


def _made_with(about: dict[str, object]) -> str:
    versions = about.get("versions")
    torch_version = versions.get("torch", "") if isinstance(versions, dict) else ""
    gpus = about.get("gpus")
    where = (
        ", ".join(map(str, gpus))
        if isinstance(gpus, list) and gpus
        else f"{about.get('cpu')} x {about.get('cpu_cores')}"
    )
    return f"{where}, torch {torch_version}, backlink_ray {about.get('backlink_ray')}, commit {about.get('commit')}"
