"""Where tests find the full, real CIFAR-10; None where it cannot be had without the network."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY.parent / "shared" / "data" / "get_data.py"
LAST_FILE = Path("cifar-10-batches-py") / "test_batch"
TIMEOUT_S = 110  # about 6 s where the script can run; below the tests' own limit


@functools.cache
def cifar10_root() -> Path | None:
    """Return a folder with the original `cifar-10-batches-py`, filled once per machine; None if there is none."""
    root = Path(os.environ.get("BACKLINK_RAY_DATA") or Path(tempfile.gettempdir()) / "backlink_ray-test-data")
    if not (root / LAST_FILE).exists() and SCRIPT.exists():
        _fill(root)
    return root if (root / LAST_FILE).exists() else None


def _fill(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".test-data.lock", timeout=TIMEOUT_S):  # test processes may run side by side
        if not (root / LAST_FILE).exists():
            command = [sys.executable, str(SCRIPT), "cifar10", str(root)]
            subprocess.run(command, check=False, capture_output=True, timeout=TIMEOUT_S)
