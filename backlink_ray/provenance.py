"""Provenance: the hardware, versions and commit behind a result."""

import os
import platform
import socket
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def describe() -> dict[str, Any]:
    """Return versions, commit, processor, memory, GPUs and threads of this process."""
    names = ("torch", "torchvision", "ray", "optuna", "mlflow", "pyarrow", "numpy")
    return {
        "backlink_ray": _version("backlink-ray"),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in names},
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def describe_process(device: str) -> dict[str, Any]:
    """Return `describe()` with host, device and the device's name."""
    return {**describe(), "host": socket.gethostname(), "device": device, "hardware": hardware(device)}


# Half of it is subnormal.
_SMALLEST = 2.0**-1022


def flushes_subnormals() -> bool:
    """Return whether this thread takes subnormal numbers for 0."""
    return _SMALLEST * 0.5 == 0.0


def hardware(device: str) -> str:
    """Return the name of a device: the GPU's, or the processor's with its number of cores."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} cores of {_cpu_name() or 'an unnamed processor'}"


@cache  # a process keeps running the code it has loaded, whatever is committed meanwhile
def commit() -> str:
    """Return the package's git commit, with `+changes` if tracked files differ from it; "" outside a checkout."""
    folder = Path(__file__).parent
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        return head + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
