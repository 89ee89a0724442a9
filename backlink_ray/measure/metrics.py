"""Metrics: the peak memory of a device, and what is free on this machine."""

import math
import resource
from contextlib import suppress
from pathlib import Path

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Restart the measurement of peak memory where the device supports it (CUDA)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak in MiB: memory allocated by tensors on a CUDA device, resident memory of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def memory_source(device: torch.device) -> str:
    """Return, in words, what `peak_memory_mib` counts on this device."""
    return "cuda max_memory_allocated" if device.type == "cuda" else "process peak resident set"


def free_memory_mib() -> float:
    """Return the memory in MiB that this machine, or container, can still give; infinity where Linux's figures are missing."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) / 2**10, _free_in_container_mib(Path("/sys/fs/cgroup")))
    return math.inf


def _free_in_container_mib(folder: Path) -> float:
    """Return what is left of a container's limit; what it caches of files is given back when it is needed."""
    with suppress(OSError, ValueError, KeyError):  # none of this kind, or the limit is "max"
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return (limit - used + int(parts["inactive_file"])) / 2**20
    return math.inf
