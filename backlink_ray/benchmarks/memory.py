"""Memory: the peak of one training step of a run, all modules on one device, allocated or counted (Fig. 7)."""

from collections.abc import Iterator
from itertools import product

import torch

from backlink_ray.benchmarks.jobs import job_for, modules_of, propagation_lengths, random_images
from backlink_ray.measure.cost import SavedTensors, training_bytes
from backlink_ray.measure.metrics import peak_memory_mib, reset_peak_memory
from backlink_ray.nets.names import unit_count
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.job import build_method
from backlink_ray.runs.results import Row
from backlink_ray.train.executor import LocalExecutor
from backlink_ray.train.trainer import gradients

ALLOCATED = "torch.cuda.max_memory_allocated in the step after a warm-up step"
COUNTED = (
    "counted, not computed: parameters, gradients, momentum and the peak of the tensors that autograd saves, without the "
    "temporary buffers of the backward pass"
)


def source_of(device: str) -> str:
    """Return how `footprint_mib` finds its number on a device, for captions."""
    return ALLOCATED if device.startswith("cuda") else COUNTED


def footprint_mib(config: RunConfig, device: str) -> float:
    """Return the peak memory of a training step in MiB: allocated on a CUDA device, else counted by `counted_mib`."""
    return peak_of_step_mib(config, device) if device.startswith("cuda") else counted_mib(config)


def counted_mib(config: RunConfig, device: str = "meta") -> float:
    """Return parameters, gradients, momentum and the peak of saved tensors in MiB, for images of 32 x 32.

    Args:
        config: network, split, method, batch size.
        device: "meta" computes nothing, so counting a full batch of a deep network takes a moment; "cpu" gives the same count.
    """
    method = build_method(config)
    modules = method.prepare([m.to(device) for m in modules_of(config)])
    alive = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    images = torch.zeros(config.batch_size, 3, 32, 32, device=device)
    labels = torch.zeros(config.batch_size, dtype=torch.int64, device=device)
    with SavedTensors(alive) as saved:
        gradients(modules, method, images, labels)
    return training_bytes(modules, saved.peak_bytes) / 2**20


def memory_rows(network: str, device: str, batch_size: int) -> Iterator[Row]:
    """Yield the peak memory of a step after a warm-up step: BP, GLL and BackLink over K and l (paper, Fig. 7)."""
    for k in (k for k in (1, 2, 4, 8, 16) if k <= unit_count(network)):
        linked = product(propagation_lengths(network, k), ("retain", "recompute"))
        for length, tail_memory in ((0, "retain"), *linked):
            config = RunConfig(
                network=network, head="conv", num_modules=k, propagation_length=length, batch_size=batch_size,
                tail_memory=tail_memory,
            )  # fmt: skip
            peak = peak_of_step_mib(config, device)
            yield {"network": network, "K": k, "l": length, "tail_memory": tail_memory, "peak_memory_mib": peak}


def peak_of_step_mib(config: RunConfig, device: str) -> float:
    """Return the device's peak memory in MiB in the second of two steps; the first allocates momentum and workspaces."""
    with LocalExecutor(job_for(config, random_images(2 * config.batch_size), device)) as executor:
        executor.train(1)
        reset_peak_memory(torch.device(device))
        executor.train(1)
        return peak_memory_mib(torch.device(device))
