"""Data sets: loaded by name as uint8 tensors, after a check of their files' checksums."""

import os
from collections.abc import Callable
from pathlib import Path

from backlink_ray.data.choice import hold_out_indices
from backlink_ray.data.embedded import load_sample
from backlink_ray.data.originals import load_cifar10, load_cifar10_lt, load_cifar100, load_stl10, load_svhn
from backlink_ray.data.tensors import Dataset, LabelledSet
from backlink_ray.errors import ConfigError
from backlink_ray.files import local_path
from backlink_ray.importing import call, is_path

# Number of training images of every data set.
DATASETS = {
    "cifar10-sample": 2_000, "cifar10": 50_000, "cifar100": 50_000, "svhn": 73_257, "stl10": 5_000, "cifar10-lt": 20_089,
}  # fmt: skip
# Arguments: the data root, whether to download missing files, and the seed that chooses the images of a subset.
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
    """Return the folder of the data sets: `flag`, else $BACKLINK_RAY_DATA, else ~/.cache/backlink_ray.

    Raises:
        ConfigError: it cannot be a folder; it is in the home folder, say, and this user has none.
    """
    return local_path(flag or os.environ.get("BACKLINK_RAY_DATA") or "~/.cache/backlink_ray", "data_root")


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    train_images: int = 0,
    test_images: int = 0,
    seed: int = 0,
    download: bool = True,
) -> Dataset:
    """Load a data set and check its files.

    Args:
        name: a key of DATASETS, or the import path of a function (root, download, seed) -> Dataset.
        root: folder of the original files; default `data_root()`.
        train_images: keep the first N training images in file order; 0 keeps all.
        test_images: likewise for the test images.
        seed: of the run; chooses the training images of cifar10-lt and has no effect on the other sets.
        download: download missing files and check their md5.

    Raises:
        ConfigError: an unknown name, or more images requested than the set has.
        DataError: a file is missing, truncated or corrupt, or the root is not writable.
    """
    if name not in LOADERS and not is_path(name):
        raise ConfigError(
            f"dataset={name!r} is not known; allowed: {', '.join(LOADERS)}, or an import path MODULE:NAME"
        )
    if is_path(name):
        found = call(name, "dataset", root=Path(root or data_root()), download=download, seed=seed)
    else:
        is_embedded = LOADERS[name] is load_sample  # it needs no folder, so a user without a home is not asked for one
        found = LOADERS[name](Path() if is_embedded else Path(root or data_root()), download, seed)
    if not isinstance(found, Dataset):
        raise ConfigError(f"dataset={name!r} returns a {type(found).__name__}; allowed: a backlink_ray.Dataset")
    return found.first(train_images, test_images)


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[LabelledSet, LabelledSet]:
    """Return the training examples to train on, and those that searches are ranked by; see `hold_out_indices`."""
    kept, held = hold_out_indices(dataset.train.labels, fraction, seed)
    return dataset.train.take(kept), dataset.train.take(held)
