"""What a table study tells MLflow of its runs, beside the table's files."""

from pathlib import Path

import pytest

from backlink_ray.commands.publish import compare
from backlink_ray.paper.cells import choose
from backlink_ray.paper.grid import Grid
from backlink_ray.paper.recipes import Budget
from backlink_ray.runs.results import Value
from backlink_ray.tracking.journal import ExperimentInfo, Journal
from tests.paper.rows import runs_of

ROW = "table3/cifar10/resnet32/conv/K4"


def compared(rows: list[dict[str, Value]], folder: Path, budget: Budget | None = None) -> list[dict[str, float]]:
    """Return what is added to each run, all but the last of which were tracked."""
    journal = Journal(folder, ExperimentInfo(experiment="e"))
    for row in rows[:-1]:
        journal.start_run(str(row["run_id"]), "name", {}, {})
    for _ in range(2):  # again adds nothing
        compare(journal, Grid(cells=choose(3), budget=budget or Budget(), alphas=(0.5,)), rows)
    events = [event for event in journal.spool.read() if event.kind == "metrics"]
    by_run = {event.run_id: event.metrics for event in events}
    assert len(events) == len(by_run)
    return [by_run.get(str(row["run_id"]), {}) for row in rows]


def test_a_run_is_held_against_gll_at_its_seed_and_against_the_paper(tmp_path: Path) -> None:
    # The paper's GLL at K = 4 is 10.61, its l = 2 better by 1.94; the third seed of l = 2 has no GLL beside it.
    gll, ours = runs_of(f"{ROW}/l0", [10.0, 12.0]), runs_of(f"{ROW}/l2", [8.0, 9.5, 9.0])
    found = compared([*gll, *ours, *runs_of(f"{ROW}/l4", [1.0])], tmp_path)
    assert found[:2] == [{"vs_paper_pct": pytest.approx(-0.61)}, {"vs_paper_pct": pytest.approx(1.39)}]
    assert found[2] == {"vs_gll_pct": pytest.approx(-2.0), "vs_paper_pct": pytest.approx(8.0 - 8.67)}
    assert found[3] == {"vs_gll_pct": pytest.approx(-2.5), "vs_paper_pct": pytest.approx(9.5 - 8.67)}
    assert found[4] == {"vs_paper_pct": pytest.approx(9.0 - 8.67)}
    assert found[5] == {}  # it was tracked elsewhere


def test_at_a_smaller_budget_the_papers_number_does_not_count(tmp_path: Path) -> None:
    budget = Budget(epochs=8)
    rows = [row for name in ("l0", "l2", "l4") for row in runs_of(f"{ROW}/{name}", [40.0], budget)]
    assert compared(rows, tmp_path, budget) == [{}, {"vs_gll_pct": 0.0}, {}]
