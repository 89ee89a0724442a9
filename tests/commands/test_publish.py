"""What a table study tells MLflow of its runs, beside the table's files."""

import json
from pathlib import Path

import pytest

from backlink_ray.commands.publish import compare
from backlink_ray.paper.cells import choose
from backlink_ray.paper.grid import Grid
from backlink_ray.paper.recipes import Budget
from backlink_ray.runs.results import Value
from backlink_ray.runs.tracked import start_tracking
from backlink_ray.tracking.tracker import NoTracker
from tests.paper.rows import runs_of

ROW = "table3/cifar10/resnet32/conv/K4"


def compared(rows: list[dict[str, Value]], folder: Path, budget: Budget | None = None) -> list[dict[str, float]]:
    """Return what is added to each run, all but the last of which were tracked."""
    for row in rows[:-1]:
        run = folder / "runs" / str(row["run_id"])
        start_tracking(run, NoTracker.experiment, "name", params={}, tags={}, dataset={})
    grid = Grid(cells=choose(3), budget=budget or Budget(), alphas=(0.5,))
    compare(NoTracker(), folder, grid, rows)
    once = derived(folder)
    compare(NoTracker(), folder, grid, rows)
    assert derived(folder) == once  # again changes nothing, not even a time
    return [{key: at["value"] for key, at in once.get(str(row["run_id"]), {}).items()} for row in rows]


def derived(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    files = sorted(folder.rglob("tracking.json"))
    return {file.parent.name: json.loads(file.read_text())["derived"] for file in files}


def test_a_run_is_held_against_gll_at_its_seed_and_against_the_paper(tmp_path: Path) -> None:
    # The paper's GLL at K = 4 is 10.61, its l = 2 better by 1.94; the third seed of l = 2 has no GLL beside it.
    gll, ours = runs_of(f"{ROW}/l0", [10.0, 12.0]), runs_of(f"{ROW}/l2", [8.0, 9.5, 9.0])
    found = compared([*gll, *ours, *runs_of(f"{ROW}/l4", [1.0])], tmp_path)
    assert found[:2] == [{"vs_paper_pct": pytest.approx(-0.61)}, {"vs_paper_pct": pytest.approx(1.39)}]
    assert found[2] == {"vs_gll_pct": pytest.approx(-2.0), "vs_paper_pct": pytest.approx(8.0 - 8.67)}
    assert found[3] == {"vs_gll_pct": pytest.approx(-2.5), "vs_paper_pct": pytest.approx(9.5 - 8.67)}
    assert found[4] == {"vs_paper_pct": pytest.approx(9.0 - 8.67)}
    assert found[5] == {}  # it is not tracked here


def test_at_a_smaller_budget_the_papers_number_does_not_count(tmp_path: Path) -> None:
    budget = Budget(epochs=8)
    rows = [row for name in ("l0", "l2", "l4") for row in runs_of(f"{ROW}/{name}", [40.0], budget)]
    assert compared(rows, tmp_path, budget) == [{}, {"vs_gll_pct": 0.0}, {}]
