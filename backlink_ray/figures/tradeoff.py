"""Trade-off: what splitting costs in accuracy and saves in memory and time beside BP, with the Pareto front (Fig. 10)."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optuna

from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Row, config_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Trade:
    """One way to train, beside BP under the same recipe.

    Attributes:
        config: of one of its runs.
        error_pct, error_std_pp: mean test error over n seeds, and its standard deviation, 0 with one seed.
        accuracy_drop_pp: its error minus BP's, in percentage points; this and both reductions are NaN without a BP run.
        memory_mib, memory_reduction_pct: of a training step on one device, and what it saves of BP's.
        step_ms, time_reduction_pct: median over the seeds, and what it saves of BP's.
        on_front: no other is at least as good in error, memory and time, and better in one.
        n: seeds.
    """

    config: RunConfig
    error_pct: float
    error_std_pp: float
    accuracy_drop_pp: float
    memory_mib: float
    memory_reduction_pct: float
    step_ms: float
    time_reduction_pct: float
    on_front: bool
    n: int


def trades(rows: Sequence[Row], memory_mib: Callable[[RunConfig], float]) -> list[Trade]:
    """Return BP and everything that stands beside it in a record, in order of K and l.

    Args:
        rows: finished runs with test_error_pct and step_ms; seeds of one configuration are taken together.
        memory_mib: peak memory of a step.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(config_of(row).replace(seed=0).run_id, []).append(row)
    measured = sorted((_measured(group, memory_mib) for group in groups.values()), key=_order)
    nothing = (measured[0][0], math.nan, math.nan, math.nan, math.nan, 0)
    bp = next((m for m in measured if m[0].method == "bp"), nothing)
    front = pareto_front([m[1:4] for m in measured])
    return [_trade(m, bp, best) for m, best in zip(measured, front, strict=True)]


Measured = tuple[RunConfig, float, float, float, float, int]  # configuration, error %, memory MiB, step ms, std, n


def _measured(group: list[Row], memory_mib: Callable[[RunConfig], float]) -> Measured:
    config = config_of(group[0])
    error, step = ([float(row[name]) for row in group] for name in ("test_error_pct", "step_ms"))
    std = statistics.stdev(error) if len(error) > 1 else 0.0
    return config, statistics.mean(error), memory_mib(config), statistics.median(step), std, len(group)


def _order(measured: Measured) -> tuple[int, int, str]:
    config = measured[0]
    return config.num_modules, config.propagation_length, config.run_id


def _trade(measured: Measured, bp: Measured, on_front: bool) -> Trade:
    config, error, memory, step, std, n = measured
    return Trade(
        config=config, error_pct=error, error_std_pp=std, accuracy_drop_pp=error - bp[1], on_front=on_front, n=n,
        memory_mib=memory, memory_reduction_pct=100 * (1 - memory / bp[2]),
        step_ms=step, time_reduction_pct=100 * (1 - step / bp[3]),
    )  # fmt: skip


def pareto_front(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Tell for each point, all of whose numbers are to be small, whether no other dominates it; Optuna decides.

    Args:
        points: one or more, of equal length.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize"] * len(points[0]))
    study.add_trials([optuna.trial.create_trial(values=list(point)) for point in points])
    best = {trial.number for trial in study.best_trials}
    return [number in best for number in range(len(points))]
