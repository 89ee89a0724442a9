"""Options of a run that do not change its result: where it runs, and what it reports."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from backlink_ray.errors import ConfigError
from backlink_ray.pipeline.pool import READY_TIMEOUT_S
from backlink_ray.pipeline.resources import STAGE, StageResources
from backlink_ray.train.executor import never
from backlink_ray.train.faults import Fault

TRANSPORTS = ("auto", "objectstore", "collective")
EpochCallback = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Where a run runs and what it reports; nothing here changes its result.

    Attributes:
        timeline: PNG file for a chart of what each stage does when; "" draws none.
        stage_timeout_s: longest time that a stage waits for its neighbour, or takes for one action of its own.
        max_recoveries: how often what was lost, a stage or a trial of a study, is started again, from the newest checkpoint;
            a stage of executor threads never is, since a thread cannot be replaced.
        ready_timeout_s: longest wait for room in the Ray cluster, and for the stages' processes to start.
        faults: failures made on purpose; see `Fault`.
        resources: what Ray reserves for a stage.
        transport: how messages travel between stages: "objectstore", Ray's; "collective", torch.distributed's (gloo on CPUs,
            NCCL between GPUs); "auto": objectstore; NCCL has not been run yet.
        placement_group: an existing one, such as that of a Tune trial, or None.
        lock_timeout_s: longest time to wait for another process that trains the same run in the same folder.
        checkpoint_every_s: longest time between two checkpoints, so that at most that much work is lost; above 0.
        stop: asked again and again; once it returns True, the run saves a checkpoint and raises KeyboardInterrupt.
        on_epoch: called with the metrics of each finished epoch.
    """

    timeline: str = ""
    stage_timeout_s: float = 120.0
    max_recoveries: int = 3
    ready_timeout_s: float = READY_TIMEOUT_S
    faults: tuple[Fault, ...] = ()
    resources: StageResources = STAGE
    transport: str = "auto"
    placement_group: Any = None
    lock_timeout_s: float = 0.0
    checkpoint_every_s: float = 60.0
    stop: Callable[[], bool] = never
    on_epoch: EpochCallback = field(default=lambda _: None)

    def __post_init__(self) -> None:
        for name in ("checkpoint_every_s", "stage_timeout_s", "ready_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range; allowed above 0, in seconds")
        if self.transport not in TRANSPORTS:
            raise ConfigError(f"transport={self.transport!r} is not known; allowed: {', '.join(TRANSPORTS)}")
        if self.max_recoveries < 0:
            raise ConfigError(f"max_recoveries={self.max_recoveries} is out of range; allowed 0 (none) or more")


DEFAULT = RunOptions()
