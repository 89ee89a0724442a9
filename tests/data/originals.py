"""Where tests find other real data sets than CIFAR-10: in the folder that tests/cifar10_files.py fills, or nowhere."""

import hashlib
import os
import tempfile
from pathlib import Path

import pytest


def original_root(*files: str) -> Path:
    """Return a folder that holds these files, whole or in part; skip the test where there is none."""
    root = Path(os.environ.get("BACKLINK_RAY_DATA") or Path(tempfile.gettempdir()) / "backlink_ray-test-data")
    missing = [name for name in files if not (root / name).exists()]
    if missing:
        pytest.skip(f"{missing[0]} is not on this machine (set BACKLINK_RAY_DATA to a folder that holds it)")
    return root


def md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
