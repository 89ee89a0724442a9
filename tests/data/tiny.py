"""Data sets of a few images in the publishers' own formats, their archives, and a program that loads one from an address."""

import hashlib
import json
import pickle
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TRAIN_IMAGES, TEST_IMAGES = 100, 20


@dataclass(frozen=True)
class Tiny:
    """A data set in `folder`: `files` as its loader reads them (below the folder), `downloads` as the publisher offers them."""

    name: str
    folder: Path
    files: tuple[str, ...]
    downloads: tuple[str, ...]

    def source(self) -> Any:
        """torchvision's class, which holds the address and the checksums."""
        from torchvision import datasets

        return getattr(datasets, self.name.upper())

    def attributes(self, base_url: str) -> dict[str, Any]:
        """The attributes with which torchvision's class accepts these files."""
        sums = {Path(name).name: _md5(self.folder / name) for name in self.files}
        if self.name == "svhn":
            return {"split_list": {n.split("_")[0]: [base_url + n, n, md5] for n, md5 in sums.items()}}
        archive, wanted = self.downloads[0], self.source()
        lists = {
            key: [[n, sums.get(n, "0" * 32)] for n, _ in getattr(wanted, key)] for key in ("train_list", "test_list")
        }
        meta = {"meta": {**wanted.meta, "md5": sums[wanted.meta["filename"]]}} if hasattr(wanted, "meta") else {}
        return {"url": base_url + archive, "tgz_md5": _md5(self.folder / archive), **lists, **meta}

    def remove_files(self) -> None:
        """Remove all but the downloads, as after a download by hand."""
        for name in set(self.files) - set(self.downloads):
            (self.folder / name).unlink()


def pixels(count: int, size: int, seed: int) -> np.ndarray:
    """uint8 (count, 3, size, size)."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def build_cifar10(folder: Path) -> Tiny:
    batches = {f"data_batch_{k}": (pixels(TRAIN_IMAGES // 5, 32, k), "labels", 10) for k in range(1, 6)}
    batches["test_batch"] = (pixels(TEST_IMAGES, 32, 9), "labels", 10)
    meta = {"batches.meta": {"label_names": [f"class {i}" for i in range(10)]}}
    return _build_cifar("cifar10", folder, "cifar-10-batches-py", "cifar-10-python.tar.gz", batches, meta)


def build_cifar100(folder: Path) -> Tiny:
    batches = {
        "train": (pixels(TRAIN_IMAGES, 32, 1), "fine_labels", 100),
        "test": (pixels(TEST_IMAGES, 32, 2), "fine_labels", 100),
    }
    meta = {"meta": {"fine_label_names": [f"class {i}" for i in range(100)]}}
    return _build_cifar("cifar100", folder, "cifar-100-python", "cifar-100-python.tar.gz", batches, meta)


def _build_cifar(
    name: str, folder: Path, inner: str, archive: str, batches: dict[str, Any], meta: dict[str, Any]
) -> Tiny:
    (folder / inner).mkdir(parents=True)
    for file, (images, key, classes) in batches.items():
        labels = [i % classes for i in range(len(images))]
        (folder / inner / file).write_bytes(pickle.dumps({"data": images.reshape(len(images), -1), key: labels}))
    for file, content in meta.items():
        (folder / inner / file).write_bytes(pickle.dumps(content))
    return _archived(name, folder, [f"{inner}/{file}" for file in (*batches, *meta)], archive)


def build_stl10(folder: Path) -> Tiny:
    inner = folder / "stl10_binary"
    inner.mkdir(parents=True)
    for seed, (split, count) in enumerate({"train": TRAIN_IMAGES, "test": TEST_IMAGES}.items()):
        by_column = pixels(count, 96, seed).transpose(0, 1, 3, 2)
        (inner / f"{split}_X.bin").write_bytes(by_column.tobytes())
        (inner / f"{split}_y.bin").write_bytes(bytes(i % 10 + 1 for i in range(count)))
    (inner / "unlabeled_X.bin").write_bytes(b"not needed")
    files = [f"stl10_binary/{split}_{kind}.bin" for split in ("train", "test") for kind in "Xy"]
    made = _archived("stl10", folder, [*files, "stl10_binary/unlabeled_X.bin"], "stl10_binary.tar.gz")
    (inner / "unlabeled_X.bin").unlink()
    return Tiny("stl10", folder, tuple(files), made.downloads)


def build_svhn(folder: Path) -> Tiny:
    from scipy.io import savemat

    folder.mkdir(parents=True)
    files = ("train_32x32.mat", "test_32x32.mat")
    for seed, (file, count) in enumerate(zip(files, (TRAIN_IMAGES, TEST_IMAGES), strict=True)):
        digits = np.array([[i % 10 or 10] for i in range(count)], dtype=np.uint8)  # the files call the digit 0 "10"
        savemat(folder / file, {"X": pixels(count, 32, seed).transpose(2, 3, 1, 0), "y": digits})
    return Tiny("svhn", folder, files, files)


def _archived(name: str, folder: Path, files: list[str], archive: str) -> Tiny:
    with tarfile.open(folder / archive, "w:gz", compresslevel=1) as tar:
        for file in files:
            tar.add(folder / file, file)
    return Tiny(name, folder, tuple(files), (archive,))


BUILDERS: dict[str, Callable[[Path], Tiny]] = {
    "cifar10": build_cifar10,
    "cifar100": build_cifar100,
    "stl10": build_stl10,
    "svhn": build_svhn,
}


def install(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Make a data set that torchvision takes for the publisher's, and that it cannot download."""
    made = BUILDERS[name](folder)
    for attribute, value in made.attributes("http://127.0.0.1:9/").items():  # port 9: nothing listens there
        monkeypatch.setattr(made.source(), attribute, value)
    return made


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def main(attributes: str, root: str) -> None:
    """Load CIFAR-10 in a process of its own; prints the digest of what was loaded."""
    from torchvision.datasets import CIFAR10

    from backlink_ray.data.datasets import load_dataset

    for name, value in json.loads(attributes).items():
        setattr(CIFAR10, name, value)
    print(load_dataset("cifar10", Path(root)).digest)


if __name__ == "__main__":
    main(*sys.argv[1:])
