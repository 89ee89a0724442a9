"""Bench: every item at a small size, as rows of a file."""

import json
from pathlib import Path

import pytest

from backlink_ray.cli import main


def rows_of(item: str, folder: Path, *flags: str) -> list[dict[str, object]]:
    assert main(["bench", item, "--smoke-test", "--device", "cpu", "--output-dir", str(folder), *flags]) == 0
    return [json.loads(row) for row in (folder / f"{item}.jsonl").read_text().splitlines()]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("item", ["correctness", "memory", "speed", "headline"])
def test_an_item_at_a_small_size(item: str, tmp_path: Path) -> None:
    rows = rows_of(item, tmp_path)
    assert len(rows) >= 3
    assert all({"commit", "date", "versions", "device"} <= row.keys() for row in rows)


@pytest.mark.timeout(120)
def test_the_overlap_of_stages_at_a_small_size(tmp_path: Path, ray_here: None) -> None:
    rows = rows_of("overlap", tmp_path)
    assert [row["run"] for row in rows] == ["BP, one core", "BackLink K=2 l=1, threads", "BackLink K=2 l=1, ray"]
    assert rows[0]["time_ratio"] == 1.0
    assert all(row["n"] == 2 and float(str(row["link_ms"])) > 0 for row in rows[1:])


def test_an_item_that_needs_a_gpu_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed", "--device", "cpu", "--output-dir", str(tmp_path / "o")]) == 2
    assert "speed at full size needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--device", "foo"), "device='foo' cannot be used"),
        (("--batch-size", "-1"), "batch_size=-1 is out of range"),
        (("--rounds", "-1"), "rounds=-1 is out of range"),
        (("--seeds", "0"), "seeds=0 is out of range"),
    ],
)
def test_bad_flags_are_one_line(
    flags: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "speed", "--smoke-test", *flags, "--output-dir", str(tmp_path / "o")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "o").exists()
