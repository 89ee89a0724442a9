"""Memory: the peak of one training step of a run, all modules on one device, allocated or counted (Fig. 7)."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from backlink_ray.benchmarks.jobs import job_for, modules_of, propagation_lengths, random_images, with_engine
from backlink_ray.local.engine import Engine
from backlink_ray.local.module import StepSeed
from backlink_ray.measure.cost import SavedTensors, training_bytes
from backlink_ray.measure.metrics import peak_memory_mib, reset_peak_memory
from backlink_ray.methods.base import Batch
from backlink_ray.nets.names import unit_count
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import build_method, engine_of
from backlink_ray.runs.results import Row
from backlink_ray.train.executor import LocalExecutor
from backlink_ray.train.learner import Learner, one_pass

ALLOCATED = "torch.cuda.max_memory_allocated in the step after a warm-up step"
COUNTED = (
    "counted, not computed: parameters, gradients, momentum and the peak of the tensors that autograd saves, without the "
    "temporary buffers of the backward pass"
)


def source_of(device: str) -> str:
    """Return how `footprint_mib` finds its number on a device, for captions."""
    return ALLOCATED if device.startswith("cuda") else COUNTED


def footprint_mib(config: RunConfig, device: str) -> float:
    """Return the peak memory of a training step in MiB: allocated on a CUDA device, else counted by `counted`."""
    return peak_of_step_mib(config, device) if device.startswith("cuda") else counted(config).counted_mib


@dataclass(frozen=True, slots=True)
class Counted:
    """Memory of a training step in MiB: the peak of saved tensors, and that with parameters, gradients, momentum, buffers."""

    saved_mib: float
    counted_mib: float


def counted(config: RunConfig) -> Counted:
    """Count a training step on images of 32 x 32 that is not computed, so a full batch of a deep network takes a moment.

    Compiled units are counted as if they were not.
    """
    method, engine = build_method(config), engine_of(config.replace(compile="none"))
    modules = method.prepare(modules_of(config))
    with FakeTensorMode() as shapes:
        for module in modules:
            module._apply(shapes.from_tensor)  # type: ignore[no-untyped-call]
        engine.arrange_weights(modules)
        alive = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        images = engine.arrange(torch.zeros(config.batch_size, 3, 32, 32))
        batch = Batch(images, torch.zeros(config.batch_size, dtype=torch.int64), StepSeed(engine=engine))
        with SavedTensors(alive) as saved:
            one_pass([Learner.of(method, module) for module in modules], method, batch)
        return Counted(saved.peak_bytes / 2**20, training_bytes(modules, saved.peak_bytes) / 2**20)


def memory_runs(base: RunConfig) -> Iterator[RunConfig]:
    """Yield the runs of the paper's Fig. 7 that fit base's network: BP, and over K GLL, InfoPro, and BackLink over l."""
    yield base.replace(method="bp")
    for k in (k for k in (2, 4, 8, 16) if k <= unit_count(base.network)):
        for method in ("gll", "infopro"):
            yield base.replace(method=method, num_modules=k)
        for length, tail in product(propagation_lengths(base.network, k), ("retain", "recompute")):
            yield base.replace(method="backlink", num_modules=k, propagation_length=length, tail_memory=tail)


def memory_rows(network: str, device: str, batch_size: int, engines: Sequence[Engine]) -> Iterator[Row]:
    """Yield the memory of a step of all `memory_runs` with conv heads.

    Columns: on a CUDA device peak_memory_mib, allocated in a step after a warm-up step; else saved_mib and counted_mib.
    """
    base = RunConfig(network=network, method="bp", head="conv", batch_size=batch_size)
    on_gpu = device.startswith("cuda")
    for engine in engines:
        for config in memory_runs(with_engine(base, engine)):
            split = {name: getattr(config, name) for name in ("num_modules", "propagation_length", "tail_memory")}
            found = {"peak_memory_mib": peak_of_step_mib(config, device)} if on_gpu else asdict(counted(config))
            yield {"name": config.method, "network": network, **split, **vars(engine), **found}


def peak_of_step_mib(config: RunConfig, device: str) -> float:
    """Return a GPU's peak memory in MiB in the second of two steps; the first allocates momentum and workspaces.

    What this process had allocated before does not count; products of other streams leave their workspaces behind.
    """
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    before_mib = torch.cuda.memory_allocated(device) / 2**20
    job = job_for(config, random_images(2 * config.batch_size), device)
    with _small_workspaces(), LocalExecutor(job) as executor:
        executor.train(1)
        reset_peak_memory(torch.device(device))
        executor.train(1)
        return peak_memory_mib(torch.device(device)) - before_mib


@contextmanager
def _small_workspaces() -> Iterator[None]:
    """Switch cudnn.benchmark off inside `with`: it tries convolutions with workspaces of gigabytes."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
