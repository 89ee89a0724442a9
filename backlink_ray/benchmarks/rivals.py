"""Rivals: what a user would pick instead of local learning to spread a network over devices, each in processes of its own.

Pipelines of torch.distributed.pipelining split the batch into microbatches, and compute the same gradients as BP but for batch
norms, which see a microbatch; naive model parallelism is such a pipeline with one of them. DistributedDataParallel copies the
whole network to every device, and splits the batch.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from backlink_ray.allocator import prepare_process
from backlink_ray.benchmarks.jobs import random_images
from backlink_ray.benchmarks.loops import elsewhere
from backlink_ray.benchmarks.rounds import Run
from backlink_ray.data.loader import Batches
from backlink_ray.local.engine import Engine
from backlink_ray.nets.build import build_network

# Of torch.distributed.pipelining, and microbatches of a step; naive model parallelism is a pipeline with one.
SCHEDULES = {"naive": ("ScheduleGPipe", 1), "gpipe": ("ScheduleGPipe", 8), "1f1b": ("Schedule1F1B", 8)}


@dataclass(frozen=True, slots=True)
class Task:
    """What rivals train: a network by its name, on random images, with how a step is computed."""

    network: str
    batch_size: int
    engine: Engine


def pipeline(task: Task, schedule: str, sizes: Sequence[int]) -> Run:
    """Return the steps of a pipeline whose stages have these sizes, each in a process.

    Args:
        task: what is trained.
        schedule: naive, gpipe or 1f1b.
        sizes: units of each stage.
    """
    meeting = _meeting()
    return elsewhere(*(partial(_stage, task, schedule, tuple(sizes), rank, meeting) for rank in range(len(sizes))))


@contextmanager
def data_parallel(task: Task, replicas: int) -> Iterator[Run]:
    """Yield the steps of DistributedDataParallel through Ray Train, each replica a worker with its part of the batch."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    turns: Any = ray.remote(num_cpus=0)(Turns).remote(replicas)
    with TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            _replica,
            train_loop_config={"task": task, "replicas": replicas, "turns": turns},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=replicas, resources_per_worker={"CPU": 0.01}),
            run_config=RunConfig(storage_path=folder),
        )
        fitting = threading.Thread(target=trainer.fit, daemon=True)
        fitting.start()
        yield lambda steps: ray.get(turns.run.remote(steps))
        ray.get(turns.run.remote(0))
        fitting.join()


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

    task, turns = given["task"], given["turns"]
    torch.set_num_threads(1)
    network = _part(task, 0, None)
    model = nn.parallel.DistributedDataParallel(network)
    batches = _batches(task, task.batch_size // given["replicas"])
    run = _trained(task, network, lambda t: F.cross_entropy(model(batches.inputs(t)), batches.labels(t)).backward())
    while steps := ray.get(turns.next.remote(dist.get_rank())):
        run(steps)
        ray.get(turns.done.remote())
    ray.get(turns.done.remote())


def _meeting() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


def _stage(task: Task, schedule: str, sizes: tuple[int, ...], rank: int, meeting: str) -> Run:
    from torch.distributed import pipelining

    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=len(sizes))
    stop = list(accumulate(sizes))[rank]
    part, batches = _part(task, stop - sizes[rank], stop), _batches(task, task.batch_size)
    name, microbatches = SCHEDULES[schedule]
    stage = pipelining.PipelineStage(part, rank, len(sizes), torch.device("cpu"))
    pipe = getattr(pipelining, name)(stage, min(microbatches, task.batch_size), loss_fn=F.cross_entropy)
    is_first, is_last = rank == 0, rank == len(sizes) - 1

    def step(t: int) -> None:
        given = [batches.inputs(t)] * is_first
        pipe.step(*given, **{"target": batches.labels(t)} if is_last else {})

    return _trained(task, part, step)


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
        x = _Arranged.apply(x, inside, outside)
        with self.engine.autocast(x.device):
            x = super().forward(x)  # type: ignore[no-untyped-call]
        return _Arranged.apply(x, outside, inside) if x.dim() == 4 else x


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
    """Return steps of gradients and updates with the paper's optimizer, in a process prepared as ours."""
    prepare_process()
    sgd = torch.optim.SGD(part.parameters(), 0.01, 0.9, weight_decay=1e-4, nesterov=True, fused=True)
    done = [0]

    def run(steps: int) -> None:
        with task.engine.running(torch.device("cpu")):
            for _ in range(steps):
                sgd.zero_grad(set_to_none=True)
                backward(done[0])
                sgd.step()
                done[0] += 1
        dist.barrier()

    return run
