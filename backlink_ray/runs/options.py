"""Options of a run that do not change its result: where it is carried out and what it tells."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EpochCallback = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run is carried out: nothing here changes its result.

    Attributes:
        output_dir: the run folder.
        timeline: PNG of when each stage does what; "" draws none.
        stage_timeout_s: longest wait of a stage for its neighbour.
        cpus_per_stage, gpus_per_stage: what Ray reserves for a stage; GPUs 0 where there are none.
        placement_group: an existing one (a Tune trial's), or None.
        on_epoch: called with the metrics of every finished epoch.
    """

    output_dir: Path
    timeline: str = ""
    stage_timeout_s: float = 120.0
    cpus_per_stage: float = 0.25
    gpus_per_stage: float = 1.0
    placement_group: Any = None
    on_epoch: EpochCallback = field(default=lambda _: None)
