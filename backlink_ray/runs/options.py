"""Options of a run that do not change its result: where it runs, and what it reports."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from backlink_ray.pipeline.resources import STAGE, StageResources

EpochCallback = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Where a run runs and what it reports; nothing here changes its result.

    Attributes:
        timeline: PNG file for a chart of what each stage does when; "" draws none.
        stage_timeout_s: longest time that a stage waits for its neighbour.
        max_recoveries: how often what was lost, a trial of a study, is started again, from the last checkpoint.
        resources: what Ray reserves for a stage.
        placement_group: an existing one, such as that of a Tune trial, or None.
        lock_timeout_s: longest time to wait for another process that trains the same run in the same folder.
        on_epoch: called with the metrics of each finished epoch.
    """

    timeline: str = ""
    stage_timeout_s: float = 120.0
    max_recoveries: int = 3
    resources: StageResources = STAGE
    placement_group: Any = None
    lock_timeout_s: float = 0.0
    on_epoch: EpochCallback = field(default=lambda _: None)


DEFAULT = RunOptions()
