"""Results: one row per run of a study, in a log that its driver appends to; everything that reports is made from it."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from backlink_ray.errors import ConfigError, StorageError
from backlink_ray.files import append_line, read_lines, write_whole
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.folder import ENVIRONMENT

Value = str | int | float | bool
Row = dict[str, Any]

# Of the last epoch's metrics: the result of a run that was stopped early.
_EARLY_RESULT = ("test_error_pct", "val_error_pct", "images_per_s", "epoch_s", "peak_memory_mib", "executor")
RESULTS, EXPORT = "results.jsonl", "results.parquet"


class Results:
    """The results of a study: `results.jsonl` in its folder, which one process at a time appends to.

    Args:
        folder: of the study; made when the first row comes.

    Raises:
        ConfigError: The folder holds results of backlink_ray 0.1.0.
    """

    def __init__(self, folder: Path) -> None:
        self._file, self._export = folder / RESULTS, folder / EXPORT
        if any((folder / "results").glob("part-*.parquet")):
            raise ConfigError(
                f"folder {str(folder)!r} holds results of backlink_ray 0.1.0, which this version cannot add to; "
                "give another --storage-path"
            )

    def append(self, row: Mapping[str, Value]) -> None:
        """Add one row, on disk when this returns; of several rows of one run the last one counts.

        Args:
            row: Flat; `run_id` is needed, `status` is what `done` looks at. Columns may differ from row to row.

        Raises:
            ValueError: No run_id, or a value that is not a str, int (64 bits), float or bool; names the column.
            OSError: The disk did not take the row.
        """
        _check(row)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        append_line(self._file, row)

    def rows(self) -> list[Row]:
        """The last row of every run, in the order of the file; a row has the columns that it was written with.

        Raises:
            StorageError: A line is damaged; names file and line.
        """
        last: dict[str, Row] = {}
        for number, row in enumerate(read_lines(self._file, _WAY_OUT), 1):
            if not isinstance(row.get("run_id"), str):
                raise StorageError(f"{self._file}, line {number} is damaged (no run_id); {_WAY_OUT}")
            last.pop(row["run_id"], None)
            last[row["run_id"]] = row
        return list(last.values())

    def done(self) -> set[str]:
        """The run_ids whose last row has the status FINISHED."""
        return {str(row["run_id"]) for row in self.rows() if row.get("status") == "FINISHED"}

    def export(self) -> Path:
        """Write all rows as one Parquet table, for people and other programs, and return its path."""
        rows = self.rows()
        columns = dict.fromkeys(column for row in rows for column in row)
        table = pa.table({column: _column([row.get(column) for row in rows]) for column in columns})
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer)
        write_whole(self._export, buffer.getvalue().to_pybytes())
        return self._export


_WAY_OUT = "delete the line, and its run is run again"


def _column(values: list[Value | None]) -> pa.Array:
    """A Parquet column has one type; where rows disagree, as texts and numbers do, it is text."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])


def _check(row: Mapping[str, Value]) -> None:
    if not isinstance(row.get("run_id"), str) or not row["run_id"]:
        raise ValueError(f"a row needs its run_id, a text; received {row.get('run_id')!r}")
    for column, value in row.items():
        if not isinstance(value, str | int | float) or (isinstance(value, int) and not -(2**63) <= value < 2**63):
            raise ValueError(f"column {column!r} has {value!r}; allowed are str, int of 64 bits, float and bool")


def numbers(result: Mapping[str, Any]) -> dict[str, int | float]:
    """Return the numbers of a result, without its texts, lists and booleans."""
    return {k: v for k, v in result.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def early_result(last: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of a run that was stopped early, from the metrics of its last epoch."""
    return {name: last[name] for name in _EARLY_RESULT if name in last}


def config_of(row: Mapping[str, Any]) -> RunConfig:
    """Return the configuration a record's row was run with."""
    return RunConfig(**{name: row[name] for name in RunConfig.__dataclass_fields__ if name in row})


def made_with(folder: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the hardware, versions and commits that a folder's finished runs had, a line each with how many."""
    found: Counter[str] = Counter()
    for row in rows:
        file = folder / "runs" / str(row["run_id"]) / ENVIRONMENT
        if row["status"] == "FINISHED" and file.exists():
            stages = dict.fromkeys(_stages(json.loads(file.read_text())))
            found[f"{' and '.join(stages)}, executor {row['executor']}"] += 1
    return tuple(f"{text}: {count} run{'s' * (count > 1)}" for text, count in found.items())


def _stages(about: Mapping[str, Any]) -> Iterator[str]:
    """Yield what each stage of each attempt at a run was made with."""
    for stage in (stage for attempt in about["attempts"] for stage in attempt["stages"]):
        versions = f"torch {stage['versions']['torch']}, backlink_ray {stage['backlink_ray']}"
        yield f"{stage['hardware']}, {versions}, commit {stage['commit']}"
