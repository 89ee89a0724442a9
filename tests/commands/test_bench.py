"""Bench: every item at a small size, as rows of a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from backlink_ray.benchmarks.rows import written
from backlink_ray.cli import main
from backlink_ray.commands.bench_table import table

SPREAD = {"", "_min", "_max"}


def rows_of(item: str, folder: Path, *flags: str) -> list[dict[str, Any]]:
    file = folder / "new" / f"{item}.json"
    flags = ("--json", str(file), "--output-dir", str(folder / "runs"), *flags)
    assert main(["bench", item, "--smoke-test", "--device", "cpu", *flags]) == 0
    rows: list[dict[str, Any]] = json.loads(file.read_text())
    assert all({"commit", "date", "versions", "device", "hardware"} <= row.keys() for row in rows)
    return rows


@pytest.mark.timeout(120)
@pytest.mark.parametrize("item", ["correctness", "headline"])
def test_an_item_at_a_small_size(item: str, tmp_path: Path) -> None:
    assert len(rows_of(item, tmp_path)) >= 3


@pytest.mark.timeout(120)
def test_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows_of("step", tmp_path, "--rounds", "2")
    assert sum(row["count"] for row in found if row["what"] == "convolution") == 9
    rows = [row for row in found if row["what"] == "step"]
    kinds = [(row["name"], row["num_modules"], row["propagation_length"], row["precision"]) for row in rows]
    runs = [("hand", 1, 0), ("bp", 1, 0), ("gll", 4, 0), ("backlink", 4, 1)]
    assert kinds == [("plain", 1, 0, "fp32"), *((*run, precision) for precision in ("fp32", "bf16") for run in runs)]
    plain, hand, bp, gll, backlink = rows[:5]
    assert plain["memory_format"] == "contiguous"
    assert hand["memory_format"] == "channels_last"
    for row in rows:
        columns = {"name", "network", "compile", "n", "images_per_s", "operations"}
        columns |= {f"{time}{end}" for time in ("step_s", "ratio_to_plain") for end in SPREAD}
        assert columns <= row.keys()
        assert (row["network"], row["n"], row["images_per_s"]) == ("resnet8", 2, 4 / row["step_s"])
        assert ("ratio_to_arithmetic" in row) == (row["name"] in ("gll", "backlink"))
    assert plain["ratio_to_plain"] == hand["ratio_to_hand"] == 1
    assert hand["operations"] <= bp["operations"] <= 1.15 * hand["operations"]
    assert bp["operations"] < gll["operations"] < backlink["operations"]
    assert "step: network resnet8, compile none, graph False, n 2" in capsys.readouterr().out


def test_memory_is_counted_without_a_gpu(tmp_path: Path) -> None:
    rows = rows_of("memory", tmp_path, "--batch-size", "64")
    saved = {(row["name"], row["tail_memory"], row["precision"]): row["saved_mib"] for row in rows}
    assert all(row["counted_mib"] > row["saved_mib"] for row in rows)
    for run in (("bp", "retain"), ("gll", "retain"), ("backlink", "retain"), ("backlink", "recompute")):
        assert saved[(*run, "bf16")] == pytest.approx(0.5 * saved[(*run, "fp32")], rel=0.05)
    assert (
        saved["backlink", "recompute", "bf16"] == saved["gll", "retain", "bf16"] < saved["backlink", "retain", "bf16"]
    )


def test_batches_of_data(tmp_path: Path) -> None:
    rows = rows_of("data", tmp_path, "--precision", "fp32", "--memory-format", "contiguous", "channels_last")
    names = [(row["name"], row["memory_format"]) for row in rows]
    assert names == [
        (name, order)
        for order in ("contiguous", "channels_last")
        for name in ("training batches", "evaluation batches")
    ]
    assert all(row["share_of_step"] > 0 and row["images_per_s"] == 4 / row["batch_s"] for row in rows)


def test_pipelines_are_shown_in_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--rivals", "--transport", "queue", "--balance", "count", "time", "--propagation-length", "0", "1")
    rows = rows_of("pipeline", tmp_path, *flags)
    shown = capsys.readouterr().out.splitlines()
    assert [row["name"] for row in rows] == ["bp", *["gll", "backlink"] * 2]
    assert max(map(len, shown)) <= 80
    names = [line.split()[0] for line in shown if line.split()[:1] in (["bp"], ["gll"], ["backlink"])]
    assert names == [row["name"] for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_pipelines_beside_their_rivals_at_a_small_size(tmp_path: Path, ray_here: None) -> None:
    rows = rows_of("pipeline", tmp_path, "--num-modules", "2", "4")
    rivals = ["naive", "gpipe", "1f1b", "zero_bubble", "zbv", "ddp"]
    ours = [*["gll"] * 3, *["backlink"] * 6]  # l = 4 fits no cut
    # Of four units four modules have one each, and eight stages none.
    of_four = ["naive", "gpipe", "1f1b", "ddp"]
    assert [row["name"] for row in rows] == ["bp", *rivals, *of_four, *ours, *["gll"] * 3, *["backlink"] * 3]
    assert [row["num_modules"] for row in rows] == [1, *[2] * 6, *[4] * 4, *[2] * 9, *[4] * 6]
    assert [row["transport"] for row in rows[11:]] == ["queue", "objectstore", "collective"] * 5
    assert rows[0]["ratio_to_bp"] == 1.0
    assert all(row["step_s"] > 0 and row["n"] == 1 for row in rows)
    hops = {row["transport"]: (row["machines"], row["hop_4mib_s"] > 0) for row in rows[11:]}
    assert hops == {"queue": (1, False), "objectstore": (1, True), "collective": (1, True)}
    assert all(row["exposed_link_s"] > 0 and row["bound_s"] > 0 and row["predicted_s"] > 0 for row in rows[11:])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_soak_goes_on_while_its_stages_are_killed(tmp_path: Path, ray_here: None) -> None:
    alone, disturbed = rows_of("soak", tmp_path)
    assert alone["recoveries"] == 0
    assert float(str(disturbed["kills"])) > 0
    assert float(str(disturbed["goodput_pct"])) > 0


def test_an_item_that_needs_a_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "headline", "--device", "cpu"]) == 2
    assert "headline at full size needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--device", "foo"), "device='foo' cannot be used"),
        (("--batch-size", "-1"), "batch_size=-1 is out of range"),
        (("--rounds", "-1"), "rounds=-1 is out of range"),
        (("--seeds", "0"), "seeds=0 is out of range"),
        (("--threads", "0"), "threads=0 is out of range"),
        (("--network", "resnet9"), "resnet9"),
        (("--precision", "fp32", "fp16"), "precision='fp16' is not known; allowed: fp32, tf32, bf16"),
        (("--precision", "tf32", "--device", "cpu"), "precision='tf32' is for GPUs"),
        (("--memory-format", "last"), "memory_format='last' is not known"),
        (("--compile", "all"), "compile='all' is not known"),
        (("--graph", "--device", "cpu"), "graph=True captures the work of a GPU"),
    ],
)
def test_bad_flags_are_one_line(
    flags: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "step", "--smoke-test", *flags, "--json", str(tmp_path / "o" / "rows.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-modules", "2", "1"), "num_modules=1 is out of range; allowed 2..16"),
        (("--num-modules", "3"), "num_modules=3 processes of rivals cannot share batch_size=4"),
        (("--threads", "2"), "threads=2 is not for pipeline"),
        (("--precision", "fp32", "bf16"), "precision=('fp32', 'bf16') is not for pipeline"),
        (("--compile", "units"), "compile=('units',) is not for pipeline"),
        (("--propagation-length", "-1"), "propagation_length=(-1,) is out of range; allowed 0 or more"),
        (
            ("--propagation-length", "4", "--rivals", "--transport", "queue"),
            "none of K=2 l=4 by time fits resnet8 with conv heads",
        ),
    ],
)
def test_pipelines_that_cannot_be_are_one_line(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "pipeline", "--smoke-test", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_folder_is_no_file_for_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "memory", "--smoke-test", "--json", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is a folder; give a file" in line


def test_the_file_is_a_complete_list_after_every_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text("of an earlier call")
    rows = written([{"value": 1}, {"value": 2, "what": "other"}], file, "item", "cpu")
    assert next(rows) == {"what": "item", "value": 1}
    assert [row["value"] for row in json.loads(file.read_text())] == [1]
    assert next(rows)["what"] == "other"
    assert [(row["what"], row["value"]) for row in json.loads(file.read_text())] == [("item", 1), ("other", 2)]


def test_a_table_says_once_what_all_rows_share() -> None:
    step = {"step_s": 0.5, "step_s_min": 0.25, "step_s_max": 1.0}
    rows = [
        {"what": "step", "network": "a", "num_modules": 1, **step},
        {"what": "step", "network": "a", "num_modules": 4},
    ]
    assert table(rows) == ("network a", ["K", "step s"], [["1", "0.5 (0.25..1)"], ["4", ""]])
