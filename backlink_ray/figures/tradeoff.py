"""Trade-off: test error, memory and step time of splits against those of BP, with the Pareto front (Fig. 10)."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.results import Row, config_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Trade:
    """One configuration, compared with BP under the same recipe.

    Attributes:
        config: of one of its runs.
        error_pct, error_std_pp: mean and standard deviation of the test error over n seeds; the latter is 0 for one seed.
        accuracy_drop_pp: error_pct minus BP's, in percentage points. NaN without a BP run, as are both reductions.
        memory_mib, memory_reduction_pct: of a training step on one device, and the reduction relative to BP.
        step_ms, time_reduction_pct: median over the seeds, and the reduction relative to BP.
        on_front: no other configuration is at least as good in error, memory and time, and better in one of them.
        n: seeds.
    """

    config: RunConfig
    error_pct: float
    error_std_pp: float
    accuracy_drop_pp: float = math.nan
    memory_mib: float
    memory_reduction_pct: float = math.nan
    step_ms: float
    time_reduction_pct: float = math.nan
    on_front: bool = False
    n: int


def trades(rows: Sequence[Row], memory_mib: Callable[[RunConfig], float]) -> list[Trade]:
    """Return all recorded configurations in order of K and l, BP first.

    Args:
        rows: finished runs with test_error_pct and step_ms; the seeds of a configuration are pooled.
        memory_mib: peak memory of a step.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(config_of(row).replace(seed=0).run_id, []).append(row)
    found = sorted((_measured(group, memory_mib) for group in groups.values()), key=_order)
    bp = next((trade for trade in found if trade.config.method == "bp"), None)
    if bp:
        found = [_against(trade, bp) for trade in found]
    front = pareto_front([(trade.error_pct, trade.memory_mib, trade.step_ms) for trade in found])
    return [replace(trade, on_front=best) for trade, best in zip(found, front, strict=True)]


def _measured(group: list[Row], memory_mib: Callable[[RunConfig], float]) -> Trade:
    config = config_of(group[0])
    error, step = ([float(row[name]) for row in group] for name in ("test_error_pct", "step_ms"))
    return Trade(
        config=config, error_pct=statistics.mean(error), error_std_pp=statistics.stdev(error) if len(error) > 1 else 0.0,
        memory_mib=memory_mib(config), step_ms=statistics.median(step), n=len(group),
    )  # fmt: skip


def _order(trade: Trade) -> tuple[int, int, str]:
    return trade.config.num_modules, trade.config.propagation_length, trade.config.run_id


def _against(trade: Trade, bp: Trade) -> Trade:
    return replace(
        trade,
        accuracy_drop_pp=trade.error_pct - bp.error_pct,
        memory_reduction_pct=100 * (1 - trade.memory_mib / bp.memory_mib),
        time_reduction_pct=100 * (1 - trade.step_ms / bp.step_ms),
    )


def pareto_front(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """Return for each point whether it is on the Pareto front, all values being minimised: no other is as good in every one."""

    def beats(other: tuple[float, ...], point: tuple[float, ...]) -> bool:
        return other != point and all(theirs <= own for theirs, own in zip(other, point, strict=True))

    return [not any(beats(other, point) for other in points) for point in points]
