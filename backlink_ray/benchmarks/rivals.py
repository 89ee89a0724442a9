"""Rivals: what a user would pick instead of local learning to spread a network over devices, each in processes of its own.

Pipelines of torch.distributed.pipelining split the batch into microbatches, and compute the same gradients as BP but for batch
norms, which see a microbatch; naive model parallelism is such a pipeline with one of them. DistributedDataParallel copies the
whole network to every device, and splits the batch. Their processes listen at this machine's address in the cluster alone.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import accumulate
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroupGloo, Store, TCPStore  # type: ignore[attr-defined]

from backlink_ray.allocator import prepare_process, release_memory
from backlink_ray.benchmarks.elsewhere import STEP_TIMEOUT_S, Elsewhere
from backlink_ray.benchmarks.jobs import random_images
from backlink_ray.benchmarks.rounds import Run
from backlink_ray.data.loader import Batches
from backlink_ray.errors import BacklinkError, first_line
from backlink_ray.local.engine import Engine
from backlink_ray.nets.build import build_network
from backlink_ray.pipeline.collective import Address, Meeting
from backlink_ray.pipeline.threads import Daemon


class Schedule(NamedTuple):
    """A schedule of torch.distributed.pipelining: its class, the most microbatches of a step, and stages of a process.

    Attributes:
        is_v: the second stages of processes follow each other from the last process to the first.
    """

    name: str
    microbatches: int = 8
    stages: int = 1
    is_v: bool = False

    def microbatches_of(self, batch_size: int, count: int) -> int:
        """Return how many equal microbatches a step has in `count` processes, which divide the batch size: torch wants as many as
        processes or more, and for zero bubble a multiple of its number of rounds."""  # fmt: skip
        if self.microbatches == 1:
            return 1
        fitting = range(max(self.microbatches, count), count - 1, -1)
        return next(n for n in fitting if batch_size % n == 0 and n % (n // count) == 0)

    def places(self, rank: int, count: int) -> list[int]:
        """Return the stages of one of `count` processes, as numbers in order."""
        if self.is_v:
            return [rank, 2 * count - 1 - rank]
        return list(range(rank, self.stages * count, count))


SCHEDULES = {
    "naive": Schedule("ScheduleGPipe", microbatches=1), "gpipe": Schedule("ScheduleGPipe"), "1f1b": Schedule("Schedule1F1B"),
    "zero_bubble": Schedule("ScheduleInterleavedZeroBubble", stages=2),
    "zbv": Schedule("ScheduleZBVZeroBubble", stages=2, is_v=True),
}  # fmt: skip
# How often to look whether data parallel training has failed, which its turn does not say.
POLL_S = 0.5
# What is asked of its workers at last, and how long they may take to end.
_END = -1
END_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Task:
    """What rivals train: a network by its name, on random images, with how a step is computed."""

    network: str
    batch_size: int
    engine: Engine


@contextmanager
def pipelines(task: Task, count: int, cuts: Mapping[str, Sequence[int]]) -> Iterator[dict[str, Run]]:
    """Yield the steps of pipelines by name; all of them live in the same processes.

    Args:
        task: what is trained.
        count: number of processes.
        cuts: by name, of `SCHEDULES`, the sizes of its stages.
    """
    meeting = Meeting("127.0.0.1")
    with Elsewhere(*(partial(_pipelines, task, cuts, meeting.address, rank, count) for rank in range(count))) as others:
        yield {name: partial(others.run, name) for name in cuts}


def _pipelines(
    task: Task, cuts: Mapping[str, Sequence[int]], address: Address, rank: int, count: int
) -> dict[str, Run]:
    _join(address, address[0], rank, count)
    return {name: _pipeline(task, SCHEDULES[name], sizes, rank, count)[0] for name, sizes in cuts.items()}


def _pipeline(task: Task, schedule: Schedule, sizes: Sequence[int], rank: int, count: int) -> tuple[Run, nn.Module]:
    """Return the steps of this process's stages, and the stages."""
    from torch.distributed import pipelining

    stops, places = list(accumulate(sizes)), schedule.places(rank, count)
    parts = nn.ModuleList(_part(task, stops[k] - sizes[k], stops[k]) for k in places)
    device = torch.device("cpu")
    stages = [pipelining.PipelineStage(part, k, len(sizes), device) for part, k in zip(parts, places, strict=True)]
    pipe = getattr(pipelining, schedule.name)(
        stages if schedule.stages > 1 else stages[0], schedule.microbatches_of(task.batch_size, count), loss_fn=_loss
    )
    batches = _batches(task, task.batch_size)

    def step(t: int) -> None:
        given = [batches.inputs(t)] * (0 in places)
        pipe.step(*given, **{"target": batches.labels(t)} if len(sizes) - 1 in places else {})

    return _trained(task, parts, step), parts


@contextmanager
def data_parallel(task: Task, replicas: int) -> Iterator[Run]:
    """Yield the steps of DistributedDataParallel through Ray Train, each replica a worker with its part of the batch."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    meeting = Meeting(ray.util.get_node_ip_address())
    turns: Any = ray.remote(num_cpus=0)(Turns).remote(replicas)
    given = {"task": task, "replicas": replicas, "turns": turns, "address": meeting.address}
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        trainer = TorchTrainer(
            _replica,
            train_loop_config=given,
            torch_config=_without_group(),
            scaling_config=ScalingConfig(num_workers=replicas, resources_per_worker={"CPU": 0.01}),
            run_config=RunConfig(storage_path=folder),
        )
        fitting = Daemon("ddp").submit(trainer.fit)

        def run(steps: int) -> None:
            taken, limit_s = turns.run.remote(steps), STEP_TIMEOUT_S * (steps + 1)
            end_s = time.monotonic() + limit_s
            while not ray.wait([taken], timeout=POLL_S)[0]:
                if fitting.done():
                    raise BacklinkError(f"ddp: {_cause(fitting.exception(), replicas)}")
                if time.monotonic() > end_s:
                    raise BacklinkError(f"ddp: its workers have not answered within {limit_s:g} s")

        try:
            yield run
            turns.run.remote(_END)
            wait([fitting], END_TIMEOUT_S)
        finally:
            ray.kill(turns)  # workers that still wait for it end, too


def _cause(error: BaseException | None, replicas: int) -> str:
    """Return what has failed first: a worker that Ray Train has lost, rather than one that says why in its wake."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for rank, failure in failures.items():
        if type(failure).__module__.startswith("ray."):
            return f"worker {rank} of {replicas} is gone"
    for rank, failure in failures.items():
        return f"worker {rank} of {replicas} failed: {type(failure).__name__}: {first_line(failure)}"
    return f"Ray Train failed: {type(error).__name__}: {first_line(error)}" if error else "its workers have ended"


def _without_group() -> Any:
    """Return a configuration with which Ray Train's workers do not meet: the store of its own would listen at all addresses."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig

    class WithoutGroup(TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return Backend

    return WithoutGroup(backend="gloo")


class Turns:
    """Lets Ray Train's workers, whose loop is not called but runs by itself, take steps when they are asked for."""

    def __init__(self, replicas: int) -> None:
        self._asked = [asyncio.Queue[int]() for _ in range(replicas)]
        self._done = asyncio.Queue[int]()

    async def run(self, steps: int) -> None:
        """Let every worker take some steps."""
        for asked in self._asked:
            await asked.put(steps)
        for _ in self._asked:
            await self._done.get()

    async def next(self, rank: int) -> int:
        """Return how many steps a worker is to take next."""
        return await self._asked[rank].get()

    async def done(self) -> None:
        """Note that a worker has taken them."""
        await self._done.put(1)


def _replica(given: dict[str, Any]) -> None:
    import ray

    rank, turns = ray.train.get_context().get_world_rank(), given["turns"]
    _join(given["address"], ray.util.get_node_ip_address(), rank, given["replicas"])
    run, _ = _data_parallel(given["task"], rank, given["replicas"])
    while (steps := ray.get(turns.next.remote(rank))) != _END:
        run(steps)
        ray.get(turns.done.remote())
    ray.get(turns.done.remote())


def _data_parallel(task: Task, rank: int, count: int) -> tuple[Run, nn.Module]:
    network = _part(task, 0, None)
    model = nn.parallel.DistributedDataParallel(network)
    batches = _batches(task, task.batch_size // count)  # of the whole batch, the rank-th part

    def step(t: int) -> None:
        own = t * count + rank
        _loss(model(batches.inputs(own)), batches.labels(own)).backward()

    return _trained(task, network, step), network


def _join(address: Address, host: str, rank: int, count: int) -> None:
    """Make all processes that come to an address one group, whose connections are at this machine's address in the cluster."""
    dist.Backend.register_backend("gloo_at", partial(_gloo, host), devices=["cpu"])
    store = TCPStore(*address, None, False, timedelta(seconds=STEP_TIMEOUT_S), wait_for_workers=False)
    dist.init_process_group("gloo_at", store=store, rank=rank, world_size=count)


def _gloo(host: str, store: Store, rank: int, count: int, timeout: timedelta) -> ProcessGroupGloo:
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices, options._timeout = [ProcessGroupGloo.create_device(hostname=host)], timeout
    return ProcessGroupGloo(store, rank, count, options)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels)


class _Arranged(torch.autograd.Function):
    """Brings features into an order in memory, and their gradient into another: pipelining sends contiguous tensors only."""

    @staticmethod
    def forward(context: Any, x: Tensor, own: torch.memory_format, of_gradient: torch.memory_format) -> Tensor:
        context.of_gradient = of_gradient
        return x.contiguous(memory_format=own)

    @staticmethod
    def backward(context: Any, *errors: Tensor) -> tuple[Tensor, None, None]:
        return errors[0].contiguous(memory_format=context.of_gradient), None, None


class Part(nn.Sequential):
    """Consecutive units, and behind the last one the classifier, computed as an engine says."""

    def __init__(self, engine: Engine, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.engine = engine

    def forward(self, x: Tensor) -> Tensor:
        outside, inside = torch.contiguous_format, self.engine.torch_format
        with self.engine.autocast(x.device):
            x = super().forward(_arranged(x, inside, outside))  # type: ignore[no-untyped-call]
        return _arranged(x, outside, inside)


def _arranged(x: Tensor, own: torch.memory_format, of_gradient: torch.memory_format) -> Tensor:
    return _Arranged.apply(x, own, of_gradient) if x.dim() == 4 else x


def _part(task: Task, start: int, stop: int | None) -> nn.Module:
    network = build_network(task.network)
    units = list(network.units)
    layers = [*units[start:stop], *[network.classifier] * (stop in (None, len(units)))]
    part = Part(task.engine, *layers)
    task.engine.arrange_weights([part])
    return part


def _batches(task: Task, size: int) -> Batches:
    return Batches(random_images(2 * task.batch_size), size, seed=0, memory_format=task.engine.torch_format)


def _trained(task: Task, part: nn.Module, backward: Callable[[int], object]) -> Run:
    """Return steps of gradients and updates with the paper's optimizer, in a process prepared as ours, with one thread.

    Asked for none, it gives free memory back.
    """
    prepare_process()
    torch.set_num_threads(1)
    sgd = torch.optim.SGD(part.parameters(), 0.01, 0.9, weight_decay=1e-4, nesterov=True, fused=True)
    done = [0]

    def run(steps: int) -> None:
        if not steps:
            release_memory()
        with task.engine.running(torch.device("cpu")):
            for _ in range(steps):
                sgd.zero_grad(set_to_none=True)
                backward(done[0])
                sgd.step()
                done[0] += 1
        dist.barrier()

    return run
