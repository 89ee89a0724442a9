"""Bench: correctness, memory and speed of training on one device, as rows that can be compared; needs torch alone."""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backlink_ray import provenance
from backlink_ray.data.datasets import Augmentation, ImageSet
from backlink_ray.local.split import split
from backlink_ray.measure.metrics import peak_memory_mib, reset_peak_memory
from backlink_ray.methods.build import build_method
from backlink_ray.nets.build import build_network
from backlink_ray.pipeline.threads import ThreadsExecutor
from backlink_ray.runs.config import RunConfig, longest_propagation, module_sizes, unit_count
from backlink_ray.train.executor import Executor, Job, LocalExecutor
from backlink_ray.train.trainer import gradients

Row = dict[str, Any]
NO_AUGMENTATION = Augmentation(pad=0, mode="constant", flip=False)


def random_images(count: int, size: int = 32, classes: int = 10, seed: int = 0) -> ImageSet:
    """Return uint8 noise of CIFAR's shape: for time and memory, where the content does not matter."""
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=g, dtype=torch.uint8)
    return ImageSet(pixels=pixels, labels=torch.randint(0, classes, (count,), generator=g))


def job_for(config: RunConfig, images: ImageSet, device: str) -> Job:
    """Return a job of one configuration on one device."""
    network = build_network(config.network, seed=config.seed)
    modules = split(network, config.num_modules, config.head, final_head=config.final_head, seed=config.seed)
    return Job(
        modules=modules, method=build_method(config), train=images, evaluations={"test": images},
        batch_size=config.batch_size, lr=_lr, mean=(0.5,) * 3, std=(0.25,) * 3, augmentation=NO_AUGMENTATION,
        augment=False, seed=config.seed, devices=(device,), torch_threads=config.torch_threads,
    )  # fmt: skip


def _lr(_step: int) -> float:
    return 0.01


def synchronise(device: str) -> None:
    """Wait until the device has done what was asked of it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def images_per_s(config: RunConfig, device: str) -> float:
    """Measure one training step of at most 64 images, one module after another, after a warm-up step; takes seconds."""
    config = config.replace(batch_size=min(64, config.batch_size))
    with LocalExecutor(job_for(config, random_images(2 * config.batch_size), device)) as executor:
        executor.train(1)
        return config.batch_size / executor.train(1).seconds


# 1. Correctness


def gradient_errors(network: str, device: str) -> Iterator[Row]:
    """Yield the relative error of float64 gradients on `device` against the CPU, over K, l and tail_memory."""
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(8) % 10
    for k, memory in ((1, "retain"), (2, "retain"), (4, "recompute")):
        length = min(2, longest_propagation(module_sizes(unit_count(network), k)))
        config = RunConfig(network=network, num_modules=k, propagation_length=length, tail_memory=memory)
        here, there = (_gradients(config, images, labels, d) for d in ("cpu", device))
        error = max(float((there[n].cpu() - g).norm() / (g.norm() + 1e-300)) for n, g in here.items())
        yield {"check": "float64 gradients", "K": k, "l": length, "tail_memory": memory, "relative_error": error}


def _gradients(config: RunConfig, images: Tensor, labels: Tensor, device: str) -> dict[str, Tensor]:
    network = build_network(config.network).double().to(device)
    modules = split(network, config.num_modules, config.head)
    return gradients(modules, build_method(config), images.to(device), labels.to(device))


def executor_differences(network: str, device: str, batch_size: int, steps: int = 3) -> Iterator[Row]:
    """Yield the largest relative weight difference between trainer, stages sharing the device, and a second trainer."""
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


# 2. Memory


def memory_rows(network: str, device: str, batch_size: int) -> Iterator[Row]:
    """Yield peak memory of one step after a warm-up step: BP, GLL and BackLink over K and l (paper, Fig. 7)."""
    units = unit_count(network)
    for k in (1, 2, 4, 8, 16):
        if k > units:
            continue
        limit = 0 if k == 1 else min(4, longest_propagation(module_sizes(units, k)))
        for length in range(limit + 1):
            for tail_memory in ("retain", "recompute") if length else ("retain",):
                config = RunConfig(
                    network=network, head="conv", num_modules=k, propagation_length=length, batch_size=batch_size,
                    tail_memory=tail_memory,
                )  # fmt: skip
                peak = peak_of_step_mib(config, device)
                yield {"network": network, "K": k, "l": length, "tail_memory": tail_memory, "peak_memory_mib": peak}


def peak_of_step_mib(config: RunConfig, device: str) -> float:
    """Return the device's peak memory in MiB over the second of two steps: the first makes momentum and workspaces."""
    with LocalExecutor(job_for(config, random_images(2 * config.batch_size), device)) as executor:
        executor.train(1)
        reset_peak_memory(torch.device(device))
        executor.train(1)
        return peak_memory_mib(torch.device(device))


# 3. Speed


def plain_loop(network: str, device: str, batch_size: int) -> Callable[[int], None]:
    """Return run(steps) of ordinary eager backpropagation, as anyone would write it: the yardstick of speed."""
    net: nn.Module = build_network(network).to(device)
    sgd = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    images = random_images(batch_size)
    x, y = images.pixels.to(device).float().div_(255), images.labels.to(device)

    def run(steps: int) -> None:
        for _ in range(steps):
            loss = nn.functional.cross_entropy(net(x), y)
            sgd.zero_grad(set_to_none=True)
            loss.backward()
            sgd.step()

    return run


def compare(
    runs: dict[str, Callable[[int], object]], images_per_step: int, device: str, steps: int, rounds: int
) -> Iterator[Row]:
    """Time several runs in turn, round by round, after one round thrown away.

    Yields:
        For each its median images/s and step time, their spread, and the median of its ratios to the first, round by round.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for r in range(rounds + 1):
        for name, run in runs.items():
            synchronise(device)
            start = time.perf_counter()
            run(steps)
            synchronise(device)
            if r:
                times[name].append((time.perf_counter() - start) / steps)
    first = next(iter(times.values()))
    for name, taken in times.items():
        ratios = [t / f for t, f in zip(taken, first, strict=True)]
        median = statistics.median(taken)
        yield {
            "run": name, "step_ms": 1e3 * median, "step_ms_min": 1e3 * min(taken), "step_ms_max": 1e3 * max(taken),
            "images_per_s": images_per_step / median, "time_ratio": statistics.median(ratios),
            "time_ratio_min": min(ratios), "time_ratio_max": max(ratios), "n": rounds, "steps": steps,
        }  # fmt: skip


def speed_rows(network: str, device: str, batch_size: int, steps: int, rounds: int) -> Iterator[Row]:
    """Yield a plain loop, our BP, GLL and BackLink at K = 4 and 16, interleaved."""
    images = random_images(4 * batch_size)
    runs: dict[str, Callable[[int], object]] = {"plain eager BP": plain_loop(network, device, batch_size)}
    for name, config in _speed_configs(network, batch_size):
        runs[name] = LocalExecutor(job_for(config, images, device)).train
    for row in compare(runs, batch_size, device, steps, rounds):
        yield {"network": network, **row}


def _speed_configs(network: str, batch_size: int) -> Iterator[tuple[str, RunConfig]]:
    base = RunConfig(network=network, method="bp", batch_size=batch_size)
    yield "BP", base
    for k in (4, 16):
        if k <= unit_count(network):
            yield f"GLL K={k}", base.replace(method="gll", num_modules=k)
            yield f"BackLink K={k} l=1", base.replace(method="backlink", num_modules=k, propagation_length=1, alpha=0.5)


# The overlap of stages


def overlap_rows(
    network: str, batch_size: int, steps: int, rounds: int, executors: Sequence[tuple[str, Any]]
) -> Iterator[Row]:
    """Yield the step time of BackLink K = 2, l = 1 with conv heads on each executor as a ratio to BP on one core."""
    images = random_images(4 * batch_size)
    bp = RunConfig(network=network, method="bp", head="conv", batch_size=batch_size)
    linked = bp.replace(method="backlink", num_modules=2, propagation_length=1, alpha=0.5)
    opened: dict[str, Executor] = {"BP, one core": LocalExecutor(job_for(bp, images, "cpu"))}
    for name, make in executors:
        opened[f"BackLink K=2 l=1, {name}"] = make(job_for(linked, images, "cpu"))
    link_s: dict[str, list[float]] = {name: [] for name in opened}

    def run(name: str) -> Callable[[int], object]:
        return lambda n: link_s[name].append(max(opened[name].train(n).link_s) / n)

    for row in compare({name: run(name) for name in opened}, batch_size, "cpu", steps, rounds):
        yield {"network": network, **row, "link_ms": 1e3 * statistics.median(link_s[row["run"]][1:])}
    for executor in opened.values():
        executor.close()


def write_rows(rows: Iterator[Row], path: Path, what: str, device: str) -> int:
    """Append rows to a JSON lines file as they come, each with when, with what and at which commit; print them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    where = {**provenance.describe(), "device": _device_name(device)}
    count = 0
    with path.open("a") as file:
        for count, row in enumerate(rows, 1):  # noqa: B007  # the number of rows is the result
            file.write(json.dumps({"what": what, **row, "date": time.strftime("%Y-%m-%d"), **where}) + "\n")
            file.flush()
            print(what, json.dumps(row), flush=True)
    return count


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
