"""Pipeline: the step of local learning's pipelines beside BP's and beside what a user would pick instead, on the same cores."""

import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlink_ray.benchmarks.jobs import job_for, random_images
from backlink_ray.benchmarks.rivals import SCHEDULES, Task, data_parallel, pipeline
from backlink_ray.benchmarks.rounds import Run, interleaved, ratio, spread
from backlink_ray.data.loader import Batches
from backlink_ray.local.module import StepSeed
from backlink_ray.nets.build import build_network
from backlink_ray.pipeline.exchange import Kind, Link
from backlink_ray.pipeline.injector import make_stage
from backlink_ray.pipeline.pool import StagePool
from backlink_ray.pipeline.resources import StageResources
from backlink_ray.pipeline.stage import plan_stages
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.planning import layout
from backlink_ray.planning.costs import measure_costs
from backlink_ray.planning.plan import Machine, Planner, Prediction
from backlink_ray.planning.units import unit_modules
from backlink_ray.runs.cluster import start_once
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import engine_of
from backlink_ray.runs.results import Row
from backlink_ray.train.executor import Executor, Job, LocalExecutor


def pipeline_rows(
    base: RunConfig, lengths: Sequence[int], transports: Sequence[str], balance: str, steps: int, rounds: int
) -> Iterator[Row]:
    """Time BP, rivals and our pipelines in turn on this machine's cores, one thread a stage, and yield a row for each.

    Its columns: step_s; ratio_to_bp of the same round; of ours sizes; predicted_s, of a round by a plan without costs of links;
    bound_s, the step of the slowest stage by itself, with a neighbour that never keeps it waiting; fraction_of_bound, that
    beside the step of the same round; and exposed_link_s, what the stage that waits least waits and exchanges in a step.

    Args:
        base: network, heads, batch and engine; its num_modules is the number of stages of all.
        lengths: l of ours; 0 is GLL. One that fits no cut is left out.
        transports: of ours: "queue" between threads; "objectstore" and "collective" between Ray actors.
        balance: how ours are cut, as in `Planner`; rivals' pipelines are cut so that their slowest stage is as fast as can be.
        steps: per round, which begins and ends with an empty pipeline: few of them show mostly how it fills.
        rounds: counted, after one that is not.
    """
    base = base.replace(final_head="native")  # the same network for all
    planned, of_bp = _planned(base, lengths, balance, steps)
    images, task = random_images(2 * base.batch_size), Task(base.network, base.batch_size, engine_of(base))
    bp = base.replace(method="bp")
    with ExitStack() as stack:
        opened = {"bp": stack.enter_context(LocalExecutor(job_for(bp, images, "cpu")))}
        runs: dict[Any, Run] = {"bp": opened["bp"].train}
        runs |= {name: pipeline(task, name, of_bp) for name in SCHEDULES}
        start_once()
        runs["ddp"] = stack.enter_context(data_parallel(task, base.num_modules))
        link_s: dict[Any, list[float]] = {}
        for length, plan in planned.items():
            config = _config(base, length, plan.sizes)
            alone = stages_alone(job_for(config, images, "cpu"))
            runs |= {(length, k): run for k, run in enumerate(alone)}
            for transport in transports:
                key = length, transport
                executor = stack.enter_context(_opened(job_for(config, images, "cpu"), transport, stack))
                link_s[key] = []
                runs[key] = partial(_train, executor, link_s[key])
        times = interleaved(runs, "cpu", steps, rounds)
    about = {"network": base.network, "num_modules": base.num_modules, "n": rounds}
    for name in ("bp", *SCHEDULES, "ddp"):
        yield {"name": name, **about, **_step(times, name)}
    for length, transport in link_s:
        slowest = max((times[length, k] for k in range(base.num_modules)), key=statistics.median)
        yield {
            "name": "backlink" if length else "gll", **about, "propagation_length": length, "transport": transport,
            "sizes": list(planned[length].sizes), **_step(times, (length, transport)), "predicted_s": planned[length].step_s,
            **spread("bound_s", slowest),
            **ratio("fraction_of_bound", slowest, times[length, transport]),
            **spread("exposed_link_s", link_s[length, transport][1:]),
        }  # fmt: skip


def _step(times: Mapping[Any, Sequence[float]], key: Any) -> Row:
    return spread("step_s", times[key]) | ratio("ratio_to_bp", times[key], times["bp"])


def _train(executor: Executor, link_s: list[float], steps: int) -> None:
    link_s.append(min(executor.train(steps).link_s) / steps)


def _config(base: RunConfig, length: int, sizes: Sequence[int]) -> RunConfig:
    if length:
        return base.replace(method="backlink", sizes=tuple(sizes), propagation_length=length, alpha=0.5)
    return base.replace(method="gll", sizes=tuple(sizes))


def _planned(
    base: RunConfig, lengths: Iterable[int], balance: str, steps: int
) -> tuple[dict[int, Prediction], Sequence[int]]:
    """Return, for every l that fits, the cut and what is predicted for it on this machine's cores; and a cut of BP's network."""
    engine, network = engine_of(base), build_network(base.network)
    batches = Batches(random_images(2 * base.batch_size), base.batch_size, seed=0, memory_format=engine.torch_format)
    costs = measure_costs(unit_modules(network, base.head, final_head="native"), batches, engine)
    machine = Machine(devices=os.cpu_count() or 1, shares_cores=True)
    planner, links = Planner(costs, machine, balance), [layout.Link(length=length) for length in lengths]
    cuts = {link: sizes for link in links if (sizes := planner.sizes(base.num_modules, link))}
    last = np.append(np.zeros(costs.count - 1), costs.head_s[-1])  # BP has no other head
    of_bp = Planner(replace(costs, head_s=last), machine).sizes(base.num_modules, layout.Link(length=0))
    return {link.length: planner.predict(sizes, link, steps) for link, sizes in cuts.items()}, of_bp


def _opened(job: Job, transport: str, stack: ExitStack) -> Executor:
    if transport == "queue":
        return ThreadsExecutor(job)
    from backlink_ray.pipeline.actors import RayExecutor  # threads do not need Ray

    pool = stack.enter_context(StagePool(StageResources(cpus_per_stage=0.01, gpus_per_stage=0)))  # all share the cores
    return RayExecutor(job.with_parts(transport=transport), pool)


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


def stages_alone(job: Job) -> list[Run]:
    """Return the steps of every stage of a job by itself, on activations of the untrained network and gradients of zero."""
    found: list[Run] = []
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
        found.append(stage.run)
        message = x if method.link_kind == "error" else a
    return found


def _nothing_for(weights: Sequence[Tensor]) -> Tensor:
    return torch.zeros(sum(weight.numel() for weight in weights))
