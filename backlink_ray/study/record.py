"""Record: the results of a study, append-only, one small Parquet file a run that ended."""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Value = str | int | float | bool


class Record:
    """Rows of flat values, kept in `folder`/part-<time>-<run id>.parquet; a run that ran again has its newest row."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, row: Mapping[str, Value]) -> None:
        """Add a row, which has "run_id" and "status", whole or not at all."""
        name = f"part-{time.time_ns():020d}-{row['run_id']}.parquet"
        working = self._folder / f".{name}.{os.getpid()}"
        try:
            with working.open("wb") as file:
                pq.write_table(pa.Table.from_pylist([dict(row)]), file)
                file.flush()
                os.fsync(file.fileno())
            working.replace(self._folder / name)
        finally:
            with contextlib.suppress(FileNotFoundError):
                working.unlink()

    def rows(self) -> list[dict[str, Value]]:
        """Return the newest row of every run, in the order in which runs first ended."""
        newest: dict[str, dict[str, Value]] = {}
        for path in sorted(self._folder.glob("part-*.parquet")):
            row = pq.read_table(path).to_pylist()[0]
            newest[str(row["run_id"])] = row
        return list(newest.values())

    def done(self) -> set[str]:
        """Return the runs whose newest row is FINISHED."""
        return {str(row["run_id"]) for row in self.rows() if row["status"] == "FINISHED"}
