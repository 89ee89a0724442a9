"""The trade-off of Fig. 10: Pareto front, comparison with BP, and the search for it."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest

from backlink_ray import RunConfig
from backlink_ray.figures.tradeoff import pareto_front, trades
from backlink_ray.runs.results import columns_of
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.searcher import open_searcher
from backlink_ray.tuning.space import Space


def test_the_front_by_hand() -> None:
    points = [(1.0, 9.0), (2.0, 5.0), (3.0, 5.0), (9.0, 1.0), (9.0, 9.0)]
    assert pareto_front(points) == [True, True, False, True, False]
    assert pareto_front([(1.0, 1.0, 1.0), (1.0, 1.0, 2.0)]) == [True, False]
    assert pareto_front([(5.0,)]) == [True]


BASE = RunConfig(network="resnet8", num_modules=2, propagation_length=1)


def row(error: float, step_ms: float, **choice: Any) -> dict[str, Any]:
    return {**columns_of(BASE.replace(**choice)), "test_error_pct": error, "step_ms": step_ms}


def test_comparison_with_bp_over_all_seeds() -> None:
    rows = [
        row(12.0, 60.0, propagation_length=2), row(10.0, 100.0, method="bp"),
        row(14.0, 50.0, seed=0), row(16.0, 70.0, seed=1), row(15.5, 70.0, method="gll"),
    ]  # fmt: skip
    memory = {"bp": 400.0, "gll": 290.0, "backlink": 300.0}
    found = trades(rows, lambda config: memory[config.method])
    assert [t.config.method for t in found] == ["bp", "gll", "backlink", "backlink"]
    bp, gll, one, two = found
    assert (bp.accuracy_drop_pp, bp.memory_reduction_pct, bp.time_reduction_pct) == (0.0, 0.0, 0.0)
    assert (one.n, one.error_pct, one.accuracy_drop_pp) == (2, 15.0, 5.0)
    assert (one.step_ms, one.time_reduction_pct) == (60.0, pytest.approx(40.0))
    assert one.memory_reduction_pct == pytest.approx(25.0)
    # l = 2 has the memory and time of l = 1 and a smaller error; GLL has the least memory.
    assert [t.on_front for t in (bp, gll, one, two)] == [True, True, False, True]


def test_without_bp_there_is_a_front_and_no_comparison() -> None:
    one, two = trades([row(12.0, 60.0), row(11.0, 60.0, alpha=0.25)], lambda _config: 1.0)
    assert sorted([(one.error_pct, one.on_front), (two.error_pct, two.on_front)]) == [(11.0, True), (12.0, False)]
    assert all(math.isnan(x) for x in (one.accuracy_drop_pp, one.memory_reduction_pct, one.time_reduction_pct))


SPACE = Space(num_modules=(2,), longest=4, alphas=(0.25, 0.5), lr=(0.05, 1.0))


def test_a_search_for_the_trade_off_learns_from_three_numbers(tmp_path: Path) -> None:
    names = ("val_error_pct", "peak_memory_mib", "step_ms")
    first = BASE.replace(alpha=0.5, lr=0.1)
    plan = Plan(base=BASE, space=SPACE, objectives=names, first=(first,))

    def search() -> Any:
        return open_searcher(plan, tmp_path, "s", [])

    opened = search()
    assert opened.suggest("a") == SPACE.choice_of(first)
    assert set(opened.suggest("b")) == set(SPACE.searched)
    opened.on_trial_complete("a", dict(zip(names, (30.0, 500.0, 9.0), strict=True)))
    opened.on_trial_complete("b", dict(zip(names, (40.0, 400.0, 9.0), strict=True)))
    opened.close()
    search()  # a later start continues the same study
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert [d.name for d in study.directions] == ["MINIMIZE"] * 3
    assert [t.values for t in study.best_trials] == [[30.0, 500.0, 9.0], [40.0, 400.0, 9.0]]
