"""Results: one row per run of a study, in a log that its driver appends to and that all reports are made from."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backlink_ray.errors import ConfigError, StorageError
from backlink_ray.files import append_line, make_own_folder, read_json, rows_of, unreadable, write_whole
from backlink_ray.output import say
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.folder import ENVIRONMENT

if TYPE_CHECKING:
    import pyarrow as pa

Value = str | int | float | bool
Row = dict[str, Any]

# Of the last epoch's metrics: the result of a run that was stopped early.
_EARLY_RESULT = (
    "test_error_pct",
    "val_error_pct",
    "test_loss",
    "val_loss",
    "images_per_s",
    "epoch_s",
    "peak_memory_mib",
    "executor",
)
_OPTION = "options."
RESULTS, EXPORT = "results.jsonl", "results.parquet"


class Results:
    """The results of a study: `results.jsonl` in its folder, which one process at a time appends to.

    Args:
        folder: of the study; created with the first row.

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
        """Append one row, which is on disk when this returns; the last row of a run counts.

        Args:
            row: Flat; `run_id` and `status` are required. Columns may differ from row to row.

        Raises:
            ValueError: No run_id or status, or a value that is not a str, int (64 bits), finite float or bool; names the column.
            StorageError: The row cannot be written.
        """
        _check(row)
        make_own_folder(self._file.parent)
        append_line(self._file, row)

    def rows(self) -> list[Row]:
        """Return the last row of every run, in the order of the file; a row has the columns that it was written with.

        A damaged line is left out and reported once: it costs its own run alone, which is recorded again.
        """
        last: dict[str, Row] = {}
        for row in self._written():
            last.pop(row["run_id"], None)
            last[row["run_id"]] = row
        return list(last.values())

    def _written(self) -> Iterator[Row]:
        for number, row in enumerate(rows_of(self._file, _WAY_OUT), 1):
            try:
                if isinstance(row, StorageError):
                    raise row
                _check(row)
            except ValueError as error:
                _say_once(str(unreadable(self._file, f"is damaged ({error})", _WAY_OUT, number)))
            except StorageError as error:
                _say_once(str(error))
            else:
                yield row

    def ended(self) -> int:
        """Return how many ends are recorded: more than rows where a search has chosen a run again."""
        return len(list(self._written()))

    def done(self) -> set[str]:
        """Return the run_ids whose last row has the status FINISHED."""
        return {str(row["run_id"]) for row in self.rows() if row.get("status") == "FINISHED"}

    def export(self) -> Path:
        """Write all rows as one Parquet table, for people and other programs; return its path."""
        import pyarrow as pa  # imported here: rows themselves need no Parquet
        import pyarrow.parquet as pq

        rows = self.rows()
        columns = dict.fromkeys(column for row in rows for column in row)
        table = pa.table({column: _column([row.get(column) for row in rows]) for column in columns})
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer)
        write_whole(self._export, buffer.getvalue().to_pybytes())
        return self._export


_WAY_OUT = "it is left out, and its run is recorded again when the study is started again; to hear no more of it, delete the line"


_say_once = cache(say)  # rows are read many times


def _column(values: list[Value | None]) -> "pa.Array":
    """Return a Parquet column, which has one type: text if the rows disagree."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])


def _check(row: Mapping[str, Value]) -> None:
    for name in ("run_id", "status"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise ValueError(f"a row needs a {name}, a non-empty str; received {row.get(name)!r}")
    for column, value in row.items():
        fits = isinstance(value, str) or (-(2**63) <= value < 2**63 if isinstance(value, int) else _is_finite(value))
        if not fits:
            raise ValueError(f"column {column!r} has {value!r}; allowed: str, int of 64 bits, finite float, bool")


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and isfinite(value)


def numbers(result: Mapping[str, Any]) -> dict[str, int | float]:
    """Return the finite numbers of a result, without text, lists and booleans."""
    return {k: v for k, v in result.items() if isinstance(v, int | float) and not isinstance(v, bool) and isfinite(v)}


def early_result(last: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of a run that was stopped early, from the metrics of its last epoch."""
    return {name: last[name] for name in _EARLY_RESULT if name in last}


def epoch_line(metrics: Mapping[str, Any], epochs: int) -> str:
    """Return the progress line of an epoch: test error or loss, local losses and speed."""
    losses = " ".join(f"{loss:.3f}" for loss in metrics["local_loss"])
    return (
        f"epoch {metrics['epoch']}/{epochs}  {test_text(metrics)}  local losses {losses}  "
        f"{metrics['images_per_s']:.0f} images/s"
    )


def test_text(metrics: Mapping[str, Any]) -> str:
    """Return the test error in words, or the test loss of a regression."""
    error = metrics.get("test_error_pct")
    return f"test loss {metrics['test_loss']:.4g}" if error is None else f"test error {error:.2f} %"


def columns_of(config: RunConfig) -> dict[str, Value]:
    """Return a configuration as columns of a row: sizes as text, each option of the user's own method as options.NAME."""
    columns = {name: getattr(config, name) for name in RunConfig.__dataclass_fields__ if name != "options"}
    columns["sizes"] = " ".join(map(str, config.sizes))
    return columns | {f"{_OPTION}{name}": value for name, value in config.options.items()}


def config_of(row: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of a row's run."""
    columns = {name: row[name] for name in RunConfig.__dataclass_fields__ if name in row}
    columns["sizes"] = tuple(map(int, row.get("sizes", "").split()))
    own = {name.removeprefix(_OPTION): value for name, value in row.items() if name.startswith(_OPTION)}
    return RunConfig(**columns, options=own)


def made_with(folder: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return hardware, versions and commits of a folder's finished runs: one line per combination, with its number of runs."""
    found: Counter[str] = Counter()
    for row in rows:
        file = folder / "runs" / str(row["run_id"]) / ENVIRONMENT
        if row["status"] == "FINISHED" and file.exists():
            found[f"{_made_with(file)}, executor {row['executor']}"] += 1
    return tuple(f"{text}: {count} run{'s' * (count > 1)}" for text, count in found.items())


def _made_with(file: Path) -> str:
    try:
        stages = [s for attempt in read_json(file, "")["attempts"] for s in attempt["stages"]]
        return " and ".join(dict.fromkeys(map(_stage_text, stages)))
    except (StorageError, KeyError, TypeError):  # damaged: what the run measured counts all the same
        return "not recorded"


def _stage_text(stage: Mapping[str, Any]) -> str:
    versions = f"torch {stage['versions']['torch']}, backlink_ray {stage['backlink_ray']}"
    return f"{stage['hardware']}, {versions}, commit {stage['commit']}"
