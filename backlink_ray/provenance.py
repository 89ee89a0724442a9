"""Environment: seeds, and what a result was made with: hardware, versions, commit, programs."""

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

# torch's default generators belong to the whole process; stages that are threads of one process take turns with them.
_DEFAULT_GENERATOR = threading.Lock()


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """Return a 63-bit seed that depends on every argument and on nothing else (not on the process, the order, the device)."""
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextlib.contextmanager
def seeded(seed: int, purpose: str, *indices: int) -> Iterator[None]:
    """Draw from torch's default generators as if newly seeded by `derive_seed(...)`; put their state back afterwards."""
    with _DEFAULT_GENERATOR, torch.random.fork_rng(devices=_devices_in_use()):
        torch.manual_seed(derive_seed(seed, purpose, *indices))
        yield


def _devices_in_use() -> list[int]:
    """Only the current device: a stage draws on its own device, and touching another would create a context there."""
    return [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []


def as_typed(program: str) -> str:
    """The name under which a program of this Python's environment can be typed: bare where the shell finds it, else its path."""
    here = Path(sys.executable).with_name(program)
    found = shutil.which(program)
    return program if not here.exists() or (found and Path(found).samefile(here)) else shlex.quote(str(here))


def describe() -> dict[str, Any]:
    """Return what a number was measured with: versions, commit, processor, memory, GPUs, threads."""
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


def commit() -> str:
    """Return the package's git commit, with `+changes` where tracked files differ from it; "" outside a checkout."""
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
