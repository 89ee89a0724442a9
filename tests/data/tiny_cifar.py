"""A CIFAR-10 of 20 images a file, its archive, and a process that loads it from a given address."""

import hashlib
import json
import pickle
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
IMAGES_PER_FILE = 20


@dataclass(frozen=True)
class Tiny:
    folder: Path  # holds FOLDER and ARCHIVE

    def attributes(self, base_url: str) -> dict[str, Any]:
        """What torchvision's class must say to accept these files."""
        files = {path.name: _md5(path) for path in sorted((self.folder / FOLDER).iterdir())}
        return {
            "url": base_url + ARCHIVE,
            "tgz_md5": _md5(self.folder / ARCHIVE),
            "train_list": [[f"data_batch_{k}", files[f"data_batch_{k}"]] for k in range(1, 6)],
            "test_list": [["test_batch", files["test_batch"]]],
            "meta": {"filename": "batches.meta", "key": "label_names", "md5": files["batches.meta"]},
        }


def build(folder: Path) -> Tiny:
    (folder / FOLDER).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        pixels = rng.integers(0, 256, (IMAGES_PER_FILE, 3072), dtype=np.uint8)
        _write(folder / FOLDER / name, {"data": pixels, "labels": [i % 10 for i in range(IMAGES_PER_FILE)]})
    _write(folder / FOLDER / "batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    with tarfile.open(folder / ARCHIVE, "w:gz") as tar:
        tar.add(folder / FOLDER, FOLDER)
    return Tiny(folder)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(pickle.dumps(content))


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def main(attributes: str, root: str) -> None:
    """Load in a process of its own; prints the digest of what was loaded."""
    from torchvision.datasets import CIFAR10

    from backlink_ray.data.datasets import load_dataset

    for name, value in json.loads(attributes).items():
        setattr(CIFAR10, name, value)
    print(load_dataset("cifar10", Path(root)).digest)


if __name__ == "__main__":
    main(*sys.argv[1:])
