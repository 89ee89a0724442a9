"""Options of a run that do not change its result: where it is carried out and what it tells."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backlink_ray.pipeline.resources import STAGE, StageResources

EpochCallback = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run is carried out: nothing here changes its result.

    Attributes:
        output_dir: the run folder.
        timeline: PNG of when each stage does what; "" draws none.
        stage_timeout_s: longest wait of a stage for its neighbour.
        resources: what Ray reserves for a stage.
        placement_group: an existing one (a Tune trial's), or None.
        on_epoch: called with the metrics of every finished epoch.
    """

    output_dir: Path
    timeline: str = ""
    stage_timeout_s: float = 120.0
    resources: StageResources = STAGE
    placement_group: Any = None
    on_epoch: EpochCallback = field(default=lambda _: None)
