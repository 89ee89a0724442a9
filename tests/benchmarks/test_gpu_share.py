"""How many runs share a GPU: the decision, the run that decides, and the measurement, here without a GPU."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from backlink_ray.benchmarks import gpu_share, limits
from backlink_ray.benchmarks.gpu_share import Usage, estimated_mib, largest, measure, runs_per_gpu
from backlink_ray.benchmarks.memory import counted
from backlink_ray.data.datasets import load_dataset
from backlink_ray.runs.config import RunConfig


def event(name: str, device: str, us: float = 0.0, note: bool = False) -> SimpleNamespace:
    """An event of a profile, as a GPU would leave it."""
    kind = SimpleNamespace(name=device)
    return SimpleNamespace(name=name, device_type=kind, is_user_annotation=note, self_device_time_total=us)


BASE = RunConfig(network="resnet14", num_modules=2, propagation_length=1, batch_size=32, test_images=40)
SAMPLE = {"cifar10-sample": load_dataset("cifar10-sample", test_images=40)}


@pytest.mark.parametrize(
    ("usage", "cpus", "count", "why"),
    [
        ((1.0, 0.69, 2500, 80000), 16, 2, "69 % of the time"),  # as measured on an H200: 1.45 times as fast
        ((1.0, 0.93, 2500, 80000), 16, 1, "93 % of the time"),  # a second run would wait
        ((1.0, 1.02, 2500, 80000), 16, 1, "102 % of the time"),  # copies beside kernels
        ((1.0, 0.1, 2500, 80000), 16, 9, "10 % of the time"),
        ((1.0, 0.1, 2500, 10000), 16, 3, "one reserves 2500 MiB of 10000"),  # 3 * 3000 of 0.9 * 10500
        ((1.0, 0.1, 9000, 10000), 16, 1, "one reserves 9000 MiB"),
        ((1.0, 0.1, 2500, 80000), 4.5, 4, "4.5 CPUs"),
        ((1.0, 0.1, 2500, 80000), 0.5, 1, "0.5 CPUs"),
        ((1.0, 0.0, 2500, 80000), 16, 1, "sees no kernels"),
    ],
)
def test_as_many_runs_as_fill_a_gpu_and_fit(
    usage: tuple[float, float, float, float], cpus: float, count: int, why: str
) -> None:
    names = ("step_s", "kernel_s", "memory_mib", "free_mib")
    found = runs_per_gpu(Usage(**dict(zip(names, usage, strict=True))), cpus)
    assert found[0] == count
    assert why in found[1]


@pytest.mark.parametrize("method", ["bp", "gll", "backlink", "ddg", "dni"])
def test_few_samples_tell_the_memory_of_a_batch(method: str) -> None:
    config = RunConfig(
        network="resnet8", method=method, batch_size=64, **({} if method == "bp" else {"num_modules": 2})
    )
    assert estimated_mib(config, SAMPLE["cifar10-sample"]) == pytest.approx(counted(config).counted_mib, rel=0.01)


def test_the_largest_run_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    small = BASE.replace(method="gll")
    runs = [small, BASE, BASE.replace(batch_size=64), small.replace(lr=0.1, seed=4), small.replace(batch_size=64)]
    assert largest(runs, SAMPLE) == runs[2]
    estimated: list[RunConfig] = []
    monkeypatch.setattr(gpu_share, "estimated_mib", lambda config, _data: estimated.append(config) or len(estimated))
    largest(runs, SAMPLE)
    assert len(estimated) == 4  # lr and seed change no size


def test_a_run_is_measured_without_training_it(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [
        event("a", "CUDA", 500.0),
        event("b", "CUDA", 500.0),
        event("step", "CUDA", 1000.0, note=True),
        event("aten::conv2d", "CPU"),
    ]
    monkeypatch.setattr(gpu_share, "profile", lambda: nullcontext(SimpleNamespace(events=lambda: events)))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 2**31))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 2**28)
    # At this learning rate the second step would diverge.
    usage = measure(BASE.replace(network="resnet8", batch_size=4, lr=1e30), SAMPLE["cifar10-sample"])
    assert usage.step_s > 0
    assert usage.kernel_s == pytest.approx(2 * 500e-6 / 10)  # two kernels in ten steps
    assert (usage.free_mib, usage.memory_mib) == (1024, 256)


def test_kernels_and_launches_of_a_profile_are_told_from_the_rest() -> None:
    kernels = [event("conv", "CUDA", 600.0), event("conv", "CUDA", 300.0), event("relu", "CUDA", 100.0)]
    launches = [event("cudaLaunchKernel", "CPU")] * 3 + [event("cudaGraphLaunch", "CPU")]
    others = [event("step", "CUDA", 1000.0, note=True), event("aten::conv2d", "CPU"), event("cudaEventRecord", "CPU")]
    profiled: Any = SimpleNamespace(events=lambda: [*kernels, *launches, *others])
    row = limits._seen(profiled, 2, 1e-3)
    assert (row["kernel_s"], row["busy"], row["launches"]) == (pytest.approx(5e-4), pytest.approx(0.5), 2)
    assert row["top_kernels"] == [["conv", pytest.approx(0.9)], ["relu", pytest.approx(0.1)]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures a GPU")
def test_a_gpu_is_measured() -> None:
    usage = measure(BASE, SAMPLE["cifar10-sample"])
    assert 0 < usage.kernel_s <= 1.05 * usage.step_s
    assert estimated_mib(BASE, SAMPLE["cifar10-sample"]) < usage.memory_mib < usage.free_mib
    assert runs_per_gpu(usage, 16)[0] >= 1
