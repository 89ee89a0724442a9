"""StagePlan: what a stage is built from, and the plans of all stages of a job."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from backlink_ray.local.copying import copy_chain, copy_module
from backlink_ray.local.modes import TrainingModes
from backlink_ray.local.module import Chain, LocalModule
from backlink_ray.local.parameters import check_parameters
from backlink_ray.train.captured import check_capture
from backlink_ray.train.executor import Job
from backlink_ray.train.optim import check_copies, check_optimizer


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Everything a stage is built from; picklable, and with no more data than this stage needs.

    Attributes:
        job: with this stage's module only, and without the inputs that it does not need.
        dtype: of the network, as `Job.dtype`.
        replica: copy of the previous module's tail (empty for the first stage, and without a replica link).
        stage_index, num_stages: k and K.
        part: of the batch, on which this stage trains: 0..job.replicas - 1.
    """

    job: Job
    dtype: torch.dtype
    replica: Chain
    stage_index: int
    num_stages: int
    part: int = 0

    @property
    def is_first(self) -> bool:
        """Return whether this stage loads the inputs."""
        return self.stage_index == 0

    @property
    def is_last(self) -> bool:
        """Return whether this stage hosts the final classifier."""
        return self.stage_index == self.num_stages - 1


def plan_stages(job: Job) -> list[StagePlan]:
    """Return one plan per module, then those of the second part, and so on.

    What is there twice is copied, and later stages get labels without inputs.
    """
    modules = job.method.prepare(job.modules)
    check_parameters(modules)
    job.engine.check(torch.device(job.devices[0]), job.dtype)
    if job.engine.graph:
        check_capture(job.method, modules, in_stages=True)
    job.engine.arrange_weights(modules)  # before replicas are copied
    parameters = [p for module in modules for p in module.parameters()]
    check_optimizer(job.optimizer, parameters)
    check_copies(job.optimizer, parameters)
    TrainingModes(modules).restore()
    return [_plan_stage(job, modules, k, part) for part in range(job.replicas) for k in range(len(modules))]


def _plan_stage(job: Job, modules: Sequence[LocalModule], k: int, part: int) -> StagePlan:
    module, before = modules[k], modules[max(0, k - 1)]
    length = job.method.tail_length(before) if k and job.method.link_kind == "replica" else 0
    train = job.train if k == 0 or job.method.wants_inputs else job.train.without_inputs()
    evaluations = {} if part else job.evaluations
    needed = {name: s if k == 0 else s.without_inputs() for name, s in evaluations.items()}
    device = job.devices[(part * len(modules) + k) % len(job.devices)]
    own = job.with_parts(
        modules=[copy_module(module) if part else module], train=train, evaluations=needed, devices=(device,)
    )
    return StagePlan(own, job.dtype, copy_chain(before.tail(length)), k, len(modules), part)
