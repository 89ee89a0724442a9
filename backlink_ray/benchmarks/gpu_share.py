"""GPU share: how many runs keep one GPU busy; alone, a run leaves it idle wherever Python is slower than the kernels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch.profiler import profile

from backlink_ray.benchmarks.limits import kernels
from backlink_ray.data.tensors import Dataset
from backlink_ray.local.module import LocalModule
from backlink_ray.measure.cost import SavedTensors, training_bytes
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import data_key
from backlink_ray.runs.executors import open_executor
from backlink_ray.runs.job import make_job
from backlink_ray.runs.options import DEFAULT
from backlink_ray.train.executor import Executor, Job
from backlink_ray.train.trainer import gradients

# Of a GPU's time: one more run, for the rest of it, would slow down all. Of its memory: allocators fragment.
BUSY, USABLE = 0.9, 0.9
# What CUDA and its libraries take in every process, beside tensors.
CONTEXT_MIB = 500.0
# The warm-up compiles, captures and chooses algorithms, and fills the pipeline of DDG, whose errors arrive K steps late.
_WARM_UP, _STEPS, _ROUNDS = 20, 10, 3
_NO_SIZES = ("seed", "lr", "alpha", "epochs", "warmup_fraction", "weight_decay", "momentum")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a run takes of a GPU that it has alone.

    Attributes:
        step_s: wall time of a training step.
        kernel_s: how much of it the GPU computed or copied; 0 if the profiler could not see.
        memory_mib: the most that torch reserved, an evaluation included.
        free_mib: of the GPU's memory before the run, but after its CUDA context.
    """

    step_s: float
    kernel_s: float
    memory_mib: float
    free_mib: float


def runs_per_gpu(usage: Usage, cpus_per_gpu: float) -> tuple[int, str]:
    """Return how many runs should share a GPU, and why, by the usage of the one that needs the most memory.

    Processes take turns on a GPU, so n runs keep it busy for n * kernel_s / step_s of the time, at most always; more only wait
    for each other. (On an H200, two runs of ResNet32 with BackLink, eager, together did 1.45 times the steps of one, and four
    no more: studies/results/gpu/together.jsonl.) The answer is the smallest n that keeps it busy for BUSY of the time, as far
    as memory, with a CUDA context each, and CPUs, one each, allow.
    """
    if not usage.kernel_s:
        return 1, "the profiler sees no kernels; give a number instead of auto"
    busy = usage.kernel_s / usage.step_s
    limits = {
        f"one keeps a GPU busy for {100 * busy:.0f} % of the time": ceil(BUSY / busy),
        f"one reserves {usage.memory_mib:.0f} MiB of {usage.free_mib:.0f}": int(
            USABLE * (usage.free_mib + CONTEXT_MIB) / (usage.memory_mib + CONTEXT_MIB)
        ),
        f"there are {cpus_per_gpu:g} CPUs for a GPU": int(cpus_per_gpu),
    }
    why = min(limits, key=limits.__getitem__)
    return max(1, limits[why]), why


def largest(runs: Sequence[RunConfig], datasets: Mapping[str, Dataset]) -> RunConfig:
    """Return the run that needs the most memory, by estimate, in about half a second for each size; `datasets` by `data_key`."""
    by_size = {str({n: v for n, v in run.identity.items() if n not in _NO_SIZES}): run for run in runs}
    return max(by_size.values(), key=lambda run: estimated_mib(run, datasets[data_key(run)]))


def estimated_mib(config: RunConfig, dataset: Dataset) -> float:
    """Estimate the memory of a step from what autograd saves for 2 and 4 samples on the CPU, which suits any network and data."""
    job = make_job(config.replace(mode="exact"), dataset)  # async is for executors alone, and keeps no more
    modules = job.method.prepare(job.modules)
    two, four = (_saved_bytes(job, modules, count) for count in (2, 4))  # copies of weights do not grow with the batch
    return training_bytes(modules, two + (four - two) * (config.batch_size - 2) // 2) / 2**20


def _saved_bytes(job: Job, modules: Sequence[LocalModule], count: int) -> int:
    few = job.train.first(count, "batch_size")
    with SavedTensors(tensor for m in modules for tensor in (*m.parameters(), *m.buffers())) as saved:
        gradients(modules, job.method, few.prepared(job.dtype), few.labels, loss=job.loss)
    return saved.peak_bytes


def measure(config: RunConfig, dataset: Dataset) -> Usage:
    """Measure a run of executor local on this process's GPU, at a learning rate of 0, so that nothing diverges."""
    free_mib = torch.cuda.mem_get_info()[0] / 2**20
    job = make_job(config, dataset).with_parts(lr=lambda _step: 0.0)
    with open_executor(config.replace(executor="local"), job, DEFAULT) as executor:
        step_s, kernel_s = _step_and_kernel_s(executor)
        executor.evaluate("test")
        memory_mib = torch.cuda.max_memory_reserved() / 2**20
    return Usage(step_s=step_s, kernel_s=kernel_s, memory_mib=memory_mib, free_mib=free_mib)


def _step_and_kernel_s(executor: Executor) -> tuple[float, float]:
    executor.train(_WARM_UP)
    seconds = min(executor.train(_STEPS).seconds for _ in range(_ROUNDS))
    # Under the profiler the host is slower and the kernels are not.
    with profile() as profiled:
        executor.train(_STEPS)
    return seconds / _STEPS, sum(kernels(profiled).values()) / _STEPS
