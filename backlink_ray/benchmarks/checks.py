"""Checks: gradients on a device against those on the CPU, and executors against each other."""

from collections.abc import Iterator

import torch
from torch import Tensor

from backlink_ray.benchmarks.jobs import job_for, modules_of, propagation_lengths, random_images
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import build_method
from backlink_ray.runs.results import Row
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
        error = max(float((there[n].cpu() - g).norm() / (g.norm() + 1e-300)) for n, g in here.items())
        yield {"check": "float64 gradients", "K": k, "l": length, "tail_memory": memory, "relative_error": error}


def _gradients(config: RunConfig, images: Tensor, labels: Tensor, device: str) -> dict[str, Tensor]:
    modules = [module.double().to(device) for module in modules_of(config)]
    return gradients(modules, build_method(config), images.to(device), labels.to(device))


def executor_differences(network: str, device: str, batch_size: int, steps: int = 3) -> Iterator[Row]:
    """Yield the largest relative difference of weights between a trainer, pipelines on one device, and a second trainer."""
    images = random_images(batch_size * steps)
    base = RunConfig(network=network, num_modules=2, propagation_length=2, batch_size=batch_size, head="conv")
    reference = _weights(LocalExecutor(job_for(base, images, device)), steps)
    for name, make, memory in (
        ("threads, retain", ThreadsExecutor, "retain"),
        ("threads, recompute", ThreadsExecutor, "recompute"),
        ("the same again", LocalExecutor, "retain"),
    ):
        found = _weights(make(job_for(base.replace(tail_memory=memory), images, device)), steps)
        difference = max(float((found[n] - w).norm() / (w.norm() + 1e-30)) for n, w in reference.items())
        yield {"check": f"weights after {steps} steps: {name}", "relative_difference": difference}


def _weights(executor: Executor, steps: int) -> dict[str, Tensor]:
    with executor:
        executor.train(steps)
        return {n: w.double() for n, w in executor.state().weights.items()}
