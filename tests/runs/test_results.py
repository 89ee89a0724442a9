"""Results of a study: one row per run in a log, and the reports from it."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from backlink_ray.errors import ConfigError
from backlink_ray.runs.results import Results, Value, made_with


def results(folder: Path, rows: list[dict[str, Value]]) -> Results:
    found = Results(folder / "study")
    for row in rows:
        found.append(row)
    return found


def test_rows_are_read_as_written_and_reading_creates_nothing(tmp_path: Path) -> None:
    assert Results(tmp_path / "study").rows() == []
    assert list(tmp_path.iterdir()) == []
    rows: list[dict[str, Value]] = [
        {"run_id": "b", "status": "FINISHED", "test_error_pct": 0.1 + 0.2, "K": 4, "fits": True},
        {"run_id": "a", "status": "FAILED", "test_error_pct": 1e-300, "K": 2**63 - 1, "new": "é\n"},
    ]
    found = results(tmp_path, rows)
    assert found.rows() == rows
    assert found.rows()[0]["fits"] is True
    assert found.done() == {"b"}


def test_the_last_row_of_a_run_counts_even_if_the_clock_runs_backward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", iter(range(10, 0, -1)).__next__)
    found = results(tmp_path, [{"run_id": "a", "status": "FAILED"}, {"run_id": "b", "status": "FINISHED"}])
    found.append({"run_id": "a", "status": "FINISHED", "n": 1})
    assert found.rows() == [{"run_id": "b", "status": "FINISHED"}, {"run_id": "a", "status": "FINISHED", "n": 1}]
    assert found.done() == {"a", "b"}


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        '{"run_id": 3, "status": "FINISHED"}',
        '{"run_id": "b"}',
        '{"run_id": "b", "status": "FINISHED", "x": [1]}',
        "[1]",
    ],
)
def test_a_damaged_line_costs_its_own_run_and_is_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    found, file = Results(tmp_path), tmp_path / "results.jsonl"
    file.write_text(f'{{"run_id": "a", "status": "FINISHED"}}\n{damage}\n{{"run_id": "c", "status": "FINISHED"}}\n')
    assert (found.done(), found.ended()) == ({"a", "c"}, 2)
    said = capsys.readouterr().err
    assert re.search(
        rf"^{re.escape(str(file))}, line 2 is damaged \(.*\); .*; to hear no more of it, delete the line$", said
    )
    found.append({"run_id": "b", "status": "FINISHED"})
    assert found.done() == {"a", "b", "c"}
    assert capsys.readouterr().err == ""


def test_bad_rows_are_refused(tmp_path: Path) -> None:
    found = results(tmp_path, [])
    with pytest.raises(ValueError, match="needs a run_id"):
        found.append({"status": "FINISHED"})
    with pytest.raises(ValueError, match="needs a status"):
        found.append({"run_id": "a"})
    with pytest.raises(ValueError, match="column 'big' has 9223372036854775808"):
        found.append({"run_id": "a", "status": "FINISHED", "big": 2**63})
    with pytest.raises(ValueError, match="column 'x' has nan; allowed: .*finite"):
        found.append({"run_id": "a", "status": "FINISHED", "x": float("nan")})
    with pytest.raises(ValueError, match="column 'list'"):
        found.append({"run_id": "a", "status": "FINISHED", "list": [1]})  # type: ignore[dict-item]  # the point of the test
    assert found.rows() == []


def test_the_export_is_one_table_for_other_readers(tmp_path: Path) -> None:
    runs: list[dict[str, Value]] = [
        {"run_id": "a", "x": 1, "z": 1},
        {"run_id": "b", "x": 1.5, "y": True},
        {"run_id": "c", "z": "text"},
    ]
    found = results(tmp_path, [{**row, "status": "FINISHED"} for row in runs])
    path = found.export()
    assert path == tmp_path / "study" / "results.parquet"
    assert pq.read_table(path).drop(["status"]).to_pydict() == {
        "run_id": ["a", "b", "c"], "x": [1.0, 1.5, None], "z": ["1", None, "text"], "y": [None, True, None],
    }  # fmt: skip
    found.append({"run_id": "a", "status": "FINISHED", "x": 2})
    assert pq.read_table(found.export()).to_pydict()["run_id"] == ["b", "c", "a"]


def test_results_of_the_first_version_are_refused_with_their_version(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "part-1-x.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"holds results of backlink_ray 0\.1\.0.*; give another --storage-path"):
        Results(tmp_path)


def test_a_damaged_environment_costs_no_table(tmp_path: Path) -> None:
    rows = [{"run_id": name, "status": "FINISHED", "executor": "local"} for name in ("torn", "other")]
    for row, content in zip(rows, ("{", "[]"), strict=True):
        (tmp_path / "runs" / row["run_id"]).mkdir(parents=True)
        (tmp_path / "runs" / row["run_id"] / "environment.json").write_text(content)
    assert made_with(tmp_path, rows) == ("not recorded, executor local: 2 runs",)
