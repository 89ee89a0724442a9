import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backlink_ray.runs.results import Record, Value


def test_rows_come_back_typed_and_in_order(tmp_path: Path) -> None:
    record = Record(tmp_path)
    rows: list[dict[str, Value]] = [
        {"run_id": "b", "status": "FINISHED", "test_error_pct": 12.5, "K": 4, "fits": True},
        {"run_id": "a", "status": "FAILED", "test_error_pct": float("inf"), "K": 8, "fits": False},
    ]
    for row in rows:
        record.append(row)
    assert Record(tmp_path).rows() == rows
    assert isinstance(record.rows()[0]["fits"], bool)
    assert record.done() == {"b"}


def test_the_newest_row_of_a_run_wins(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.append({"run_id": "a", "status": "FAILED"})
    record.append({"run_id": "b", "status": "FINISHED"})
    assert record.done() == {"b"}
    record.append({"run_id": "a", "status": "FINISHED", "n": 1})
    assert record.rows() == [{"run_id": "b", "status": "FINISHED"}, {"run_id": "a", "status": "FINISHED", "n": 1}]
    assert record.done() == {"a", "b"}
    assert len(list((tmp_path / "results").iterdir())) == 3  # nothing is rewritten


def test_a_schema_that_grew_or_changed_type_still_reads(tmp_path: Path) -> None:
    record = Record(tmp_path)
    rows: list[dict[str, Value]] = [
        {"run_id": "a", "x": 1},
        {"run_id": "b", "x": 1.5, "new": "y"},
        {"run_id": "c", "x": "text"},
    ]
    for row in rows:
        record.append(row)
    assert record.rows() == rows


def test_a_file_killed_half_way_is_not_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(tmp_path)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)  # the bytes are written, their name is not
    with pytest.raises(KeyboardInterrupt):
        record.append({"run_id": "a"})
    monkeypatch.undo()
    assert len(list((tmp_path / "results").iterdir())) == 1
    assert record.rows() == []


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    record = Record(tmp_path)
    (tmp_path / "results" / "part-1-x.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"part-1-x\.parquet is no readable result"):
        record.rows()


@pytest.mark.parametrize("run_id", ["..", "/etc/passwd", "a%2fb", "a\\b", "x" * 300, "a\0b"])
def test_a_run_id_never_leaves_the_folder(tmp_path: Path, run_id: str) -> None:
    record = Record(tmp_path)
    record.append({"run_id": run_id, "status": "FINISHED"})
    assert record.done() == {run_id}
    assert [path.parent for path in tmp_path.rglob("*.parquet")] == [tmp_path / "results"]


def test_bad_rows_are_refused(tmp_path: Path) -> None:
    record = Record(tmp_path)
    with pytest.raises(ValueError, match="needs its run_id"):
        record.append({"status": "FINISHED"})
    with pytest.raises(ValueError, match="column 'big' has 9223372036854775808"):
        record.append({"run_id": "a", "big": 2**63})
    with pytest.raises(ValueError, match="column 'list'"):
        record.append({"run_id": "a", "list": [1]})  # type: ignore[dict-item]  # the point of the test


def test_a_whole_folder_is_one_table_for_other_readers(tmp_path: Path) -> None:
    record = Record(tmp_path)
    for i in range(3):
        record.append({"run_id": f"r{i}", "test_error_pct": float(i)})
    table = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "results").glob("*.parquet"))])
    assert table.column("test_error_pct").to_pylist() == [0.0, 1.0, 2.0]
