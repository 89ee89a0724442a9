"""Alone: every stage of a pipeline by itself, which is as fast as the pipeline can be."""

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from backlink_ray.local.module import StepSeed
from backlink_ray.pipeline.exchange import Kind, Link
from backlink_ray.pipeline.injector import make_stage
from backlink_ray.pipeline.stage import Stage
from backlink_ray.pipeline.stageplan import plan_stages
from backlink_ray.processes import usable_cores
from backlink_ray.train.executor import Job


class Alone:
    """The stages of a job, one after another, none of which waits for another one.

    Attributes:
        bounds_s: of every turn, see `bound_s`.
    """

    def __init__(self, job: Job) -> None:
        self._stages, self.bounds_s = stages_alone(job), list[float]()

    def take(self, steps: int) -> None:
        """Take half as many steps: there is no pipeline to fill."""
        seconds, steps = [], (steps + 1) // 2
        for stage in self._stages:
            start = time.perf_counter()
            stage.run(steps)
            seconds.append((time.perf_counter() - start) / steps)
        self.bounds_s.append(bound_s(seconds, usable_cores()))


def bound_s(seconds: Sequence[float], cores: int) -> float:
    """Return the shortest step that stages can have together: the slowest one's, or the cores' share of all if that is more.

    Args:
        seconds: of each stage alone.
        cores: that they share.
    """
    return max(*seconds, sum(seconds) / cores)


class Ready(Link):
    """Stands for a neighbour that never keeps a stage waiting: it takes everything, and has every message at once.

    Args:
        messages: by kind.
    """

    def __init__(self, messages: Mapping[Kind, Tensor]) -> None:
        self._messages = messages

    def send(self, kind: Kind, step: int, tensor: Tensor) -> None:
        pass

    def receive(self, kind: Kind, step: int) -> Tensor:
        return self._messages[kind]

    def receive_any(self, kind: Kind) -> tuple[int, Tensor]:
        raise AssertionError(f"{kind}: stages that do not keep step are not measured alone")


def stages_alone(job: Job) -> list[Stage]:
    """Return every stage of a job, linked to nothing, on activations of the untrained network and gradients of zero."""
    found: list[Stage] = []
    method, how = job.method, StepSeed(engine=job.engine)
    message = x = job.batches(torch.device("cpu"), job.dtype).inputs(0)
    for plan in plan_stages(job):
        module, stage = plan.job.modules[0], make_stage(plan)
        length = method.tail_length(module)
        with torch.no_grad(), job.engine.running(x.device):
            a = module.body(length)(x, how)
            x = module.tail(length)(a, how)
        before = {Kind.ACTIVATION: message, Kind.LOCAL_GRADIENT: _nothing_for(plan.replica.weights)}
        after = {Kind.LINK_GRADIENT: _nothing_for(module.tail(length).weights), Kind.ERROR: torch.zeros_like(x)}
        stage.connect(Ready(before), Ready(after))
        found.append(stage)
        message = x if method.link_kind == "error" else a
    return found


def _nothing_for(weights: Sequence[Tensor]) -> Tensor:
    return torch.zeros(sum(weight.nbytes for weight in weights), dtype=torch.uint8)
