"""Table studies from their command line: dry runs, one table from its cells to its files, and refusals."""

import csv
import re
from pathlib import Path

import pytest

from backlink_ray.commands import trials
from backlink_ray.paper.cells import cells
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Results
from backlink_ray.tracking.tracker import NoTracker
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.study import Study
from tests.paper.rows import Row, row_of
from tests.studies.recipes import run_recipe, script, start_recipe

CELL = "table4/cifar10-lt/resnet32/fc/K4/l1"


def listed(out: str) -> list[str]:
    return [line.split()[0] for line in out.splitlines() if line.startswith("table")]


def test_the_dry_runs_list_exactly_the_177_cells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trials, "images_per_s", lambda config, device: 100.0)  # measuring four networks takes a minute
    found = []
    for number in (2, 3, 4):
        assert run_recipe(f"table_{number}", "--dry-run") == 0
        found.append(capsys.readouterr().out)
    assert sorted(listed("".join(found))) == sorted(cell.address for cell in cells())
    line = next(line for line in found[2].splitlines() if line.startswith(CELL))
    assert re.fullmatch(rf"{CELL}  executor \w+  needs [\d.]+ CPU, [\d.]+ GPU  paper 23\.57 %", line)
    assert "12 cells of 5 seeds, 60 runs, and 32 that choose alpha: Table IV" in found[2]
    # 200 epochs of 20,089 images in 60 runs, and of nine tenths of them in 32.
    assert f"estimated: {200 * 20_089 * (60 + 0.9 * 32) / 100 / 3600:.3g} device-hours" in found[2]


def test_a_dry_run_of_our_own_columns_at_a_smaller_budget(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trials, "images_per_s", lambda config, device: 100.0)
    flags = ["--dry-run", "--only", "table3/cifar10/resnet32/conv/K4/[di]*", "--epochs", "8", "--seeds", "2"]
    assert run_recipe("table_3", *flags, "--train-images", "10000", "--alpha", "0.5") == 0
    out = capsys.readouterr().out
    names = [address.rsplit("/", 1)[1] for address in listed(out)]
    assert names == ["dgl", "infopro", "dni", "ddg", *(f"{b}+l{n}" for b in ("dgl", "infopro") for n in (1, 2, 3, 4))]
    assert "K4/dgl  executor" in out
    assert "paper 11.48 % (copied from another recipe)" in out
    assert "12 cells of 2 seeds, 24 runs, and 0 that choose alpha" in out
    assert "not the paper's budget (8 epochs, the first 10,000 training images)" in out
    assert "estimated: 5.33 device-hours" in out  # 24 runs x 8 epochs x 10,000 images at 100 a second


@pytest.mark.timeout(300)
def test_a_table_from_its_cells_to_its_files(
    tmp_path: Path, ray_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--smoke-test", "--storage-path", str(tmp_path), "--cell", CELL]
    assert run_recipe("table_4", *flags) == 0
    out = capsys.readouterr().out
    rows = Results(tmp_path / "table_4-smoke").rows()
    selection = [row for row in rows if row["validation_fraction"]]
    chosen = min(selection, key=lambda row: (float(row["val_error_pct"]), float(row["alpha"])))
    (full,) = [row for row in rows if not row["validation_fraction"]]
    assert sorted(row["alpha"] for row in selection) == [0.25, 0.75]
    assert full["alpha"] == chosen["alpha"]
    tables(tmp_path, full)
    tracked(tmp_path, str(full["run_id"]))
    assert "1 of the paper's 12 cells have run" in out
    assert "&viewStateShareKey=backlink-tags.cell\n" in out
    assert f"[0/2 done] {CELL} selection s0 K=4 l=1 alpha=0.25 eta=0.05 starts" in out

    assert run_recipe("table_4", *flags) == 0
    assert "nothing left to run: every requested run has ended" in capsys.readouterr().err
    (tmp_path / "table_4-smoke" / "table.html").unlink()
    assert run_recipe("table_4", *flags, "--report-only") == 0
    assert (tmp_path / "table_4-smoke" / "table.html").exists()
    assert len(Results(tmp_path / "table_4-smoke").rows()) == len(rows)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [2, 3, 4])
def test_smoke_tests_as_a_user_runs_them(number: int, tmp_path: Path) -> None:
    name = f"table_{number}"
    done = start_recipe(
        name, "--smoke-test", "--storage-path", str(tmp_path), timeout_s=120
    )  # the time that the README states
    assert done.returncode == 0, done.stderr
    cells = script(name)["SMOKE"]
    with (tmp_path / f"{name}-smoke" / "cells.csv").open() as file:
        assert {line["cell"] for line in csv.DictReader(file) if line["error_pct"]} == set(cells)


def tables(storage: Path, run: Row) -> None:
    folder = storage / "table_4-smoke"
    with (folder / "cells.csv").open() as file:
        (line,) = [line for line in csv.DictReader(file) if line["cell"] == CELL]
    assert (float(line["error_pct"]), float(line["alpha"])) == (run["test_error_pct"], run["alpha"])
    for name in ("table.md", "table.html", "cells.csv", "classes.csv"):
        assert "cifar10-sample" in (folder / name).read_text()
    with (folder / "classes.csv").open() as file:
        assert sum(float(line["train_images"]) for line in csv.DictReader(file)) == 160
    assert "torch" in (folder / "table.md").read_text().split("Measured with:")[1]


def tracked(storage: Path, run_id: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "backlink-table_4-smoke"]
    runs = {run.data.tags["backlink_ray.run_id"]: run for run in client.search_runs([experiment.experiment_id])}
    assert (runs[run_id].data.tags["cell"], runs[run_id].data.tags["kind"]) == (CELL, "full")
    assert sorted(run.data.tags["kind"] for run in runs.values()) == ["full", "selection", "selection", "study"]
    files = {file.path for file in client.list_artifacts(runs["table_4-smoke"].info.run_id)}
    assert files == {"table.md", "table.html", "cells.csv", "classes.csv"}


@pytest.mark.parametrize(
    ("number", "flags", "message"),
    [
        (2, ("--cell", "table2/cifar10/resnet110/fc/K16/l4"), "cannot exist: propagation_length=4 exceeds 3"),
        (2, ("--cell", "table2/cifar10/resnet32/fc/K5/l1"), "is not in the paper's tables"),
        (2, ("--cell", CELL), "is not in table 2; run studies/table_4.py"),
        (3, ("--only", "table3/*/K3/*"), "only='table3/*/K3/*' matches no cell of table 3"),
        (2, ("--report-only",), "holds no study to report; run this without --report-only first"),
        (2, ("--alpha", "often"), "alpha='often' is not known; allowed: select, or a number in 0..1"),
        (2, ("--alpha", "1.5"), "alpha='1.5' is not known"),
        (2, ("--seeds", "-1"), "seeds=-1 is out of range"),
        (2, ("--epochs", "-1"), "epochs=-1 is out of range"),
        (2, ("--preset", "cpu"), "preset='cpu' is not known; allowed: paper, smoke"),
        (2, ("--batch-size", "500"), "batch_size=500 does not fit 160 training images"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    tmp_path: Path, number: int, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    smoke = () if "--preset" in flags else ("--smoke-test",)
    assert run_recipe(f"table_{number}", *smoke, "--storage-path", str(tmp_path / "s"), *flags) == 2
    err = capsys.readouterr().err
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "s").exists()


def test_failed_runs_are_repeated_only_on_request(tmp_path: Path) -> None:
    base = RunConfig(network="resnet8", num_modules=2, propagation_length=1)
    Results(tmp_path).append(row_of(base, 50.0) | {"status": "FAILED"})
    runs = (base, base.replace(seed=1))
    left = [
        Study("s", Plan(base=base, runs=runs, retry_failed=retry), tmp_path, NoTracker()) for retry in (False, True)
    ]  # type: ignore[arg-type]
    assert [study.runs_left() for study in left] == [[runs[1]], list(runs)]
