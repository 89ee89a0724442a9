"""Checks: gradients on a device against those on the CPU, and executors and engines against each other."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from backlink_ray.benchmarks.jobs import job_for, modules_of, propagation_lengths, random_images, with_engine
from backlink_ray.local.engine import Engine
from backlink_ray.local.module import StepSeed
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import build_method
from backlink_ray.runs.results import Row
from backlink_ray.train.captured import WARM_UP
from backlink_ray.train.executor import Executor, LocalExecutor
from backlink_ray.train.trainer import gradients


def gradient_errors(network: str, device: str) -> Iterator[Row]:
    """Yield the relative error of float64 gradients on `device` against the CPU, for three settings of K, l and tail_memory."""
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(8) % 10
    for k, memory in ((1, "retain"), (2, "retain"), (4, "recompute")):
        length = max(propagation_lengths(network, k, longest=2), default=0)
        config = RunConfig(network=network, num_modules=k, propagation_length=length, tail_memory=memory)
        here, there = (_gradients(config, images, labels, d) for d in ("cpu", device))
        error = _difference(there, here)
        yield {"check": "float64 gradients", "K": k, "l": length, "tail_memory": memory, "relative_error": error}


def precision_errors(network: str, device: str, batch_size: int, engines: Sequence[Engine]) -> Iterator[Row]:
    """Yield the relative error of float32 networks' gradients (K = 2, l = 1) against float64 on the CPU, for every engine.

    Columns: relative_error of all gradients together, and largest_error, of the tensor where it is largest.
    """
    noise = random_images(batch_size)
    config = RunConfig(network=network, num_modules=2, propagation_length=1, alpha=0.5, batch_size=batch_size)
    exact = _gradients(config, noise.prepared(torch.float64), noise.labels, "cpu")
    for engine in engines:
        modules = [module.to(device) for module in modules_of(config)]
        engine.arrange_weights(modules)
        images, seed = engine.arrange(noise.prepared().to(device)), StepSeed(engine=engine)
        found = gradients(modules, build_method(config), images, noise.labels.to(device), seed)
        off = math.hypot(*(float((found[n].cpu() - g).norm()) for n, g in exact.items()))
        total = off / math.hypot(*(float(g.norm()) for g in exact.values()))
        largest = _difference(found, exact)
        yield {"check": "gradients against float64", **vars(engine), "relative_error": total, "largest_error": largest}


def _gradients(config: RunConfig, images: Tensor, labels: Tensor, device: str) -> dict[str, Tensor]:
    modules = [module.double().to(device) for module in modules_of(config)]
    return gradients(modules, build_method(config), images.to(device), labels.to(device))


def _difference(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """Return the relative difference of the tensor where it is largest."""
    return max(float((found[n].cpu() - r).norm() / (r.norm() + 1e-300)) for n, r in reference.items())


@contextmanager
def repeatable() -> Iterator[None]:
    """Compute the same bits every time inside `with`: a GPU adds in one order, and chooses kernels without timing them.

    Matrix products of several streams are repeatable only with CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment.
    """
    before, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        torch.backends.cudnn.benchmark = benchmark


def executor_differences(network: str, device: str, batch_size: int) -> Iterator[Row]:
    """Yield the largest relative difference of weights between a trainer, pipelines on one device, and a second trainer.

    All are `repeatable`: in ResNet32, rounding grows to a tenth of the weights within three steps.
    """
    steps = 3
    images = random_images(batch_size * steps)
    base = RunConfig(network=network, num_modules=2, propagation_length=2, batch_size=batch_size, head="conv")
    reference = _weights(LocalExecutor(job_for(base, images, device)), steps)
    for name, make, memory in (
        ("threads, retain", ThreadsExecutor, "retain"),
        ("threads, recompute", ThreadsExecutor, "recompute"),
        ("the same again", LocalExecutor, "retain"),
    ):
        found = _weights(make(job_for(base.replace(tail_memory=memory), images, device)), steps)
        yield {
            "check": f"weights after {steps} steps: {name}", "relative_difference": _difference(found, reference),
        }  # fmt: skip


def engine_differences(
    network: str,
    device: str,
    batch_size: int,
    engines: Sequence[Engine],
    make: type[LocalExecutor | ThreadsExecutor] = LocalExecutor,
    links: Sequence[str] = ("replica",),
) -> Iterator[Row]:
    """Yield how far weights (K = 4, l = 1) after steps of every engine, over every link, are from those of its eager steps.

    An engine that captures should show no difference; an eager one is compared to itself, once more.
    """
    steps = WARM_UP + 5
    images = random_images(batch_size * steps)
    base = RunConfig(network=network, num_modules=4, propagation_length=1, alpha=0.5, batch_size=batch_size)
    for engine, link in product(engines, links):
        config = base.replace(link=link)
        eager, found = (
            _weights(make(job_for(with_engine(config, e), images, device)), steps)
            for e in (replace(engine, graph=False), engine)
        )
        equal = all(torch.equal(found[n], w) for n, w in eager.items())
        yield {
            "check": f"weights after {steps} steps: against eager", "executor": make.name, "link": link, **vars(engine),
            "equal_bits": equal, "relative_difference": _difference(found, eager),
        }  # fmt: skip


@repeatable()
def _weights(executor: Executor, steps: int) -> dict[str, Tensor]:
    with executor:
        executor.train(steps)
        return {n: w.double() for n, w in executor.state().weights.items()}
