"""Data sets: found by name, checked against their checksums, and loaded whole as uint8 tensors."""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from backlink_ray.data.choice import choose
from backlink_ray.data.embedded import SAMPLE_FILE, SAMPLE_SHA256, load_sample
from backlink_ray.data.images import Augmentation, Dataset, ImageSet, digest
from backlink_ray.data.originals import load_cifar10, load_cifar10_lt, load_cifar100, load_stl10, load_svhn
from backlink_ray.errors import ConfigError, DataError

__all__ = [
    "LOADERS", "SAMPLE_FILE", "SAMPLE_SHA256", "Augmentation", "DataError", "Dataset", "ImageSet", "data_root",
    "hold_out", "load_dataset",
]  # fmt: skip

# Every data set with its number of training images.
DATASETS = {
    "cifar10-sample": 2_000, "cifar10": 50_000, "cifar100": 50_000, "svhn": 73_257, "stl10": 5_000, "cifar10-lt": 20_089,
}  # fmt: skip
# Each takes the data root, whether to fetch what is missing, and the seed that chooses images where not all are taken.
LOADERS: dict[str, Callable[[Path, bool, int], Dataset]] = {
    "cifar10-sample": load_sample,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "svhn": load_svhn,
    "stl10": load_stl10,
    "cifar10-lt": load_cifar10_lt,
}
assert set(LOADERS) == set(DATASETS)


def data_root(flag: str = "") -> Path:
    """Return the folder of data sets: the flag, else $BACKLINK_RAY_DATA, else ~/.cache/backlink_ray."""
    return Path(flag or os.environ.get("BACKLINK_RAY_DATA") or Path.home() / ".cache" / "backlink_ray").expanduser()


def load_dataset(
    name: str,
    root: Path | None = None,
    *,
    train_images: int = 0,
    test_images: int = 0,
    seed: int = 0,
    download: bool = True,
) -> Dataset:
    """Return a checked data set.

    Args:
        name: one of DATASETS.
        root: folder of the original files; `data_root()` if not given.
        train_images: keep the first N training images in file order; 0 keeps all.
        test_images: the same for the test images.
        seed: the run's; chooses the training images of cifar10-lt and nothing in the others.
        download: fetch what is missing (md5 checked).

    Raises:
        ConfigError: an unknown name, or more images asked for than there are.
        DataError: files that are missing, truncated or corrupt, or a root that cannot be written.
    """
    if name not in LOADERS:
        raise ConfigError(f"dataset={name!r} is not known; allowed: {', '.join(LOADERS)}")
    found = LOADERS[name](root or data_root(), download, seed)
    train, test = found.train.first(train_images, "train_images"), found.test.first(test_images, "test_images")
    return replace(found, train=train, test=test, digest=digest(train, test))


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split the training set, class by class, into (kept, held out); search ranks by the part held out.

    Args:
        dataset: not changed.
        fraction: part held out of every class, 0..0.5, rounded up to whole images.
        seed: chooses the images.

    Raises:
        ConfigError: another fraction.
    """
    if not 0 <= fraction <= 0.5:
        raise ConfigError(f"fraction={fraction} cannot be held out; allowed 0..0.5")
    counts = [math.ceil(fraction * count - 1e-9) for count in dataset.train_counts]
    held = torch.zeros(len(dataset.train), dtype=torch.bool)
    held[choose(dataset.train.labels, counts, seed, "hold_out")] = True
    return dataset.train.take((~held).nonzero().flatten()), dataset.train.take(held.nonzero().flatten())
