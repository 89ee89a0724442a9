"""Originals: CIFAR-10, its long-tailed form, CIFAR-100, SVHN and STL-10, read from their publishers' files.

File names, addresses and checksums are torchvision's. The paper states no augmentation; this one is common in work on local
learning: random crops after padding (CIFAR: 4 mirrored pixels, STL-10: 4 black ones, SVHN: 2), and horizontal flips except
for SVHN, where a mirrored digit is no longer a digit.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from backlink_ray.data.augmentation import Augmentation
from backlink_ray.data.choice import choose, long_tail_counts
from backlink_ray.data.provision import Download, provide
from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import DataError

# Images (N, 3, H, W) and labels, as torchvision has them.
Examples = tuple["np.ndarray[Any, Any]", Any]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SVHN_CLASSES = tuple("0123456789")
STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

# Means and standard deviations are per channel over all training images, in [0, 1]; tests/data recomputes them from the full
# sets. Those of SVHN have the four digits that public training code commonly states.
_cifar = partial(Dataset.from_tensors, augmentation=Augmentation(pad=4, mode="reflect", flip=True))
as_cifar10 = partial(
    _cifar, class_names=CIFAR10_CLASSES, mean=(0.49140, 0.48216, 0.44653), std=(0.24703, 0.24349, 0.26159),
)  # fmt: skip


def long_tailed(whole: Dataset, name: str, seed: int) -> Dataset:
    """Return a balanced set with class i cut to floor(n / 1.3^i) training images (section IV.C, Fig. 6a).

    Args:
        whole: n training images per class (5000 in CIFAR-10, which leaves 20,089 in all); its test set is kept whole.

    Raises:
        ConfigError: a class has fewer images than it should keep.
    """
    counts = long_tail_counts(whole.train_counts[0], whole.num_classes)
    train = whole.train.take(choose(whole.train.labels, counts, seed, "long-tail"))
    return replace(whole, name=name, train=train, seed=seed)


def load_cifar10(root: Path, download: bool, _seed: int = 0) -> Dataset:
    """Return CIFAR-10, 50,000 and 10,000 images; DataError as in `provide`."""
    from torchvision.datasets import CIFAR10

    train, test, _ = _load_cifar(CIFAR10, root, download)
    return as_cifar10(name="cifar10", train=train, test=test)


def load_cifar10_lt(root: Path, download: bool, seed: int) -> Dataset:
    """Return long-tailed CIFAR-10, 20,089 training images that the seed chooses, 10,000 for test; DataError as in `provide`."""
    return long_tailed(load_cifar10(root, download), "cifar10-lt", seed)


def load_cifar100(root: Path, download: bool, _seed: int = 0) -> Dataset:
    """Return CIFAR-100 with its 100 fine classes, 50,000 and 10,000 images; DataError as in `provide`."""
    from torchvision.datasets import CIFAR100

    train, test, names = _load_cifar(CIFAR100, root, download)
    return _cifar(
        train, test, name="cifar100", class_names=names,
        mean=(0.50708, 0.48655, 0.44092), std=(0.26733, 0.25644, 0.27615),
    )  # fmt: skip


def load_svhn(root: Path, download: bool, _seed: int = 0) -> Dataset:
    """Return SVHN, class = digit, 73,257 and 26,032 images; DataError as in `provide`, or without scipy."""
    from torchvision.datasets import SVHN

    files = [SVHN.split_list[split] for split in ("train", "test")]
    wanted = [Download(url=url, filename=name, md5=md5, members=((name, md5),)) for url, name, md5 in files]
    provide("svhn", wanted, root, download)
    try:
        train, test = ((part.data, part.labels) for part in (SVHN(root, split=split) for split in ("train", "test")))
    except ImportError as error:
        raise DataError("SVHN's files are in MATLAB's format, which needs scipy; pip install scipy") from error
    return Dataset.from_tensors(
        train, test, name="svhn", class_names=SVHN_CLASSES, mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970),
        augmentation=Augmentation(pad=2, mode="constant", flip=False),
    )  # fmt: skip


def load_stl10(root: Path, download: bool, _seed: int = 0) -> Dataset:
    """Return the labelled part of STL-10, 5,000 and 8,000 images of 96 x 96; DataError as in `provide`.

    Its 2.6 GiB of unlabelled images are neither needed nor unpacked.
    """
    from torchvision.datasets import STL10

    files = [f"{split}_{kind}.bin" for split in ("train", "test") for kind in "Xy"]
    md5_of = dict([*STL10.train_list, *STL10.test_list])
    members = tuple((f"{STL10.base_folder}/{file}", md5_of[file]) for file in files)
    wanted = Download(url=STL10.url, filename=STL10.filename, md5=STL10.tgz_md5, members=members)
    provide("stl10", [wanted], root, download)
    train, test = (_stl10_images(root / STL10.base_folder, split) for split in ("train", "test"))
    return Dataset.from_tensors(
        train, test, name="stl10", class_names=STL10_CLASSES, mean=(0.44671, 0.43981, 0.40665),
        std=(0.26034, 0.25658, 0.27127), augmentation=Augmentation(pad=4, mode="constant", flip=True),
    )  # fmt: skip


def _load_cifar(source: Any, root: Path, download: bool) -> tuple[Examples, Examples, tuple[str, ...]]:
    files = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
    members = tuple((f"{source.base_folder}/{name}", md5) for name, md5 in files)
    wanted = Download(url=source.url, filename=source.filename, md5=source.tgz_md5, members=members)
    provide(source.base_folder, [wanted], root, download)
    train, test = source(root, train=True), source(root, train=False)
    pairs = [(part.data.transpose(0, 3, 1, 2), part.targets) for part in (train, test)]
    return pairs[0], pairs[1], tuple(train.classes)


def _stl10_images(folder: Path, split: str) -> Examples:
    pixels = np.fromfile(folder / f"{split}_X.bin", np.uint8).reshape(-1, 3, 96, 96)
    labels = np.fromfile(folder / f"{split}_y.bin", np.uint8) - 1  # classes are numbered from 1
    return pixels.transpose(0, 1, 3, 2), labels  # images are stored by column
