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
    """Return the memory in MiB that this machine can still give to processes; infinity where Linux's figure is missing."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 2**10
    return math.inf
