"""What limits a step, read from a profile as a GPU would leave it."""

from types import SimpleNamespace
from typing import Any

import pytest

from backlink_ray.benchmarks.limits import _seen


def event(name: str, device: str, us: float = 0.0, note: bool = False) -> SimpleNamespace:
    kind = SimpleNamespace(name=device)
    return SimpleNamespace(name=name, device_type=kind, is_user_annotation=note, self_device_time_total=us)


def test_kernels_and_launches_are_told_from_the_rest() -> None:
    kernels = [event("conv", "CUDA", 600.0), event("conv", "CUDA", 300.0), event("relu", "CUDA", 100.0)]
    launches = [event("cudaLaunchKernel", "CPU")] * 3 + [event("cudaGraphLaunch", "CPU")]
    others = [event("step", "CUDA", 1000.0, note=True), event("aten::conv2d", "CPU"), event("cudaEventRecord", "CPU")]
    profiled: Any = SimpleNamespace(events=lambda: [*kernels, *launches, *others])
    row = _seen(profiled, 2, 1e-3)
    assert (row["kernel_s"], row["busy"], row["launches"]) == (pytest.approx(5e-4), pytest.approx(0.5), 2)
    assert row["top_kernels"] == [["conv", pytest.approx(0.9)], ["relu", pytest.approx(0.1)]]
