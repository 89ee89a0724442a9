"""Where tests look for the real files of a data set: BACKLINK_RAY_DATA, or a folder that is filled once per machine."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY.parent / "shared" / "data" / "get_data.py"
# Never BACKLINK_RAY_DATA: of SVHN and STL-10 only a part is made, which must not end up in a user's own folder.
FILLED = Path(tempfile.gettempdir()) / "backlink_ray-test-data"
TIMEOUT_S = 110  # about 6 s for CIFAR-10 and 20 s for the others; below the tests' own limit
FILES = {
    "cifar10": ("cifar-10-batches-py/test_batch",),  # written last
    "cifar100": ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"),
    "stl10": tuple(f"stl10_binary/{split}_{kind}.bin" for split in ("train", "test") for kind in "Xy"),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
}


def original_root(name: str) -> Path:
    """Return a folder that holds the files of a data set, possibly a part of SVHN and STL-10; skip the test if there is none."""
    for root in (Path(os.environ.get("BACKLINK_RAY_DATA") or FILLED), FILLED):
        if _holds(root, name):
            return root
    why = _fill(name) if SCRIPT.exists() else f"{FILES[name][0]} is not there"
    if not _holds(FILLED, name):
        pytest.skip(f"{name} is not on this machine (set BACKLINK_RAY_DATA to a folder that holds it): {why}")
    return FILLED


def _holds(root: Path, name: str) -> bool:
    return all((root / file).exists() for file in FILES[name])


def _fill(name: str) -> str:
    """Run the script; return the last line of its error output, "" if it succeeds."""
    FILLED.mkdir(parents=True, exist_ok=True)
    with FileLock(FILLED / ".test-data.lock", timeout=TIMEOUT_S):  # test processes may run in parallel
        if _holds(FILLED, name):
            return ""
        command = [sys.executable, str(SCRIPT), name, str(FILLED)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
    return (done.stderr.strip().splitlines() or [""])[-1]


def md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
