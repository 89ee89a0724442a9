"""The metrics that a table study adds to its runs in MLflow."""

import pytest

from backlink_ray.commands.table import differences
from backlink_ray.paper.cells import choose
from backlink_ray.paper.grid import Grid
from backlink_ray.paper.recipes import Budget
from backlink_ray.runs.results import Row
from tests.paper.rows import runs_of

ROW = "table3/cifar10/resnet32/conv/K4"


def differences_of(rows: list[Row], budget: Budget | None = None) -> list[dict[str, float]]:
    """Return the metrics added to each run."""
    found = differences(Grid(cells=choose(3), budget=budget or Budget(), alphas=(0.5,)), rows)
    return [found.get(row["run_id"], {}) for row in rows]


def test_a_run_is_compared_with_gll_at_its_seed_and_with_the_paper() -> None:
    # The paper's GLL at K = 4 is 10.61, its l = 2 better by 1.94; the third seed of l = 2 has no GLL run.
    gll, ours = runs_of(f"{ROW}/l0", [10.0, 12.0]), runs_of(f"{ROW}/l2", [8.0, 9.5, 9.0])
    found = differences_of([*gll, *ours])
    assert found[:2] == [{"vs_paper_pct": pytest.approx(-0.61)}, {"vs_paper_pct": pytest.approx(1.39)}]
    assert found[2] == {"vs_gll_pct": pytest.approx(-2.0), "vs_paper_pct": pytest.approx(8.0 - 8.67)}
    assert found[3] == {"vs_gll_pct": pytest.approx(-2.5), "vs_paper_pct": pytest.approx(9.5 - 8.67)}
    assert found[4] == {"vs_paper_pct": pytest.approx(9.0 - 8.67)}


def test_at_a_smaller_budget_there_is_no_comparison_with_the_paper() -> None:
    budget = Budget(epochs=8)
    rows = [row for name in ("l0", "l2") for row in runs_of(f"{ROW}/{name}", [40.0], budget)]
    assert differences_of(rows, budget) == [{}, {"vs_gll_pct": 0.0}]
