"""Test errors per class, from the runs' results to the files of a table."""

import csv
import json
from pathlib import Path

import pytest

from backlink_ray.commands.table import contents
from backlink_ray.paper.cells import choose
from backlink_ray.paper.classes import class_errors
from backlink_ray.paper.grid import Grid
from backlink_ray.paper.recipes import Budget
from backlink_ray.paper.table import build
from backlink_ray.runs.results import Value
from tests.paper.rows import runs_of

TAIL = "table4/cifar10-lt/resnet32/fc/K4/l0"
COUNTS = [5000, 3846, 2958, 2275, 1750, 1346, 1035, 796, 612, 471]
DIGITS = "table3/svhn/resnet110/conv/K1/l0"


def write_results(folder: Path, rows: list[dict[str, Value]], errors: list[list[float | None]], **more: object) -> None:
    """Write result.json of the runs into their folders, as a run does."""
    for row, of_classes in zip(rows, errors, strict=True):
        run = folder / "runs" / str(row["run_id"])
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps({"class_error_pct": of_classes} | more))


def written(number: int, rows: list[dict[str, Value]], folder: Path, budget: Budget | None = None) -> dict[str, str]:
    grid = Grid(cells=choose(number), budget=budget or Budget(), alphas=(0.5,))
    table = build(number, grid, rows)
    return contents(table, class_errors(table, grid, rows, folder))


def test_a_class_has_its_images_and_the_mean_and_spread_of_its_error(tmp_path: Path) -> None:
    rows = runs_of(TAIL, [20.0, 30.0])
    write_results(tmp_path, rows, [[10.0] * 9 + [70.0], [10.0] * 9 + [80.0]], class_train_images=COUNTS)
    files = written(4, rows, tmp_path)
    lines = list(csv.DictReader(files["classes.csv"].splitlines()))
    assert [line["class"] for line in lines][::9] == ["airplane", "truck"]
    assert [float(line["train_images"]) for line in lines] == COUNTS
    assert (lines[9]["cell"], float(lines[9]["error_pct"]), lines[9]["seeds"]) == (TAIL, 75.0, "2")
    assert float(lines[9]["error_std"]) == pytest.approx(50**0.5)
    section = files["table.md"].split("## Test error per class")[1]
    assert "| training images | 5,000 | 3,846 | " in section
    assert section.rstrip().endswith("| 75.00 ± 7.07 (2) |")
    assert section.count("table4/") == 1


def test_digits_have_their_names_unless_the_budget_has_another_data_set(tmp_path: Path) -> None:
    rows = runs_of(DIGITS, [20.0])
    write_results(tmp_path, rows, [[None, *[5.0] * 9]])
    lines = list(csv.DictReader(written(3, rows, tmp_path)["classes.csv"].splitlines()))
    assert [line["class"] for line in lines] == list("0123456789")
    assert (lines[0]["error_pct"], lines[0]["seeds"], lines[0]["train_images"]) == ("", "0", "")
    budget = Budget(dataset="cifar10-sample")
    rows = runs_of(DIGITS, [20.0], budget)
    write_results(tmp_path, rows, [[5.0] * 10])
    files = written(3, rows, tmp_path, budget)
    assert "airplane" in files["classes.csv"]
    assert "on cifar10-sample" in files["classes.csv"]


def test_balanced_sets_and_results_without_classes_have_no_class_errors(tmp_path: Path) -> None:
    rows = runs_of("table3/cifar10/resnet32/conv/K1/l0", [7.0])
    write_results(tmp_path, rows, [[7.0] * 10])
    assert "classes.csv" not in written(3, rows, tmp_path)
    assert "classes.csv" not in written(4, runs_of(TAIL, [20.0]), tmp_path)
