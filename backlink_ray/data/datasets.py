"""Data sets: found, checked against their checksums, and loaded whole as uint8 tensors."""

import contextlib
import hashlib
import io
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backlink_ray.config import DATASETS, ConfigError
from backlink_ray.environment import derive_seed

SAMPLE_FILE = Path(__file__).parent / "sample" / "cifar10_sample.parquet"
SAMPLE_SHA256 = "587337df467190af382a3d054a5ba53cbaa54fd324aa29f83b3a55bf65aa3935"

# Per channel over all 50,000 training images, in [0, 1]; tests/data recomputes them from the full set.
CIFAR10_MEAN = (0.49140, 0.48216, 0.44653)
CIFAR10_STD = (0.24703, 0.24349, 0.26159)


class DataError(ValueError):
    """Data that cannot be used: the message names the file, what was expected and found, and what mends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Random crop after padding by `pad` pixels ("reflect" or "constant"), and a horizontal flip where `flip`."""

    pad: int
    mode: str
    flip: bool

    def __post_init__(self) -> None:
        if self.mode not in ("reflect", "constant") or self.pad < 0:
            raise ConfigError(f"pad={self.pad}, mode={self.mode!r}; allowed: pad 0 or more, mode reflect or constant")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Images and their labels.

    Attributes:
        pixels: uint8 (N, C, H, W), or (0, C, H, W) for a stage that needs labels only.
        labels: int64 (N,).
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int, field: str) -> "ImageSet":
        """Return the first `count` images (0: all); ConfigError names `field` if there are fewer."""
        if not 0 <= count <= len(self):
            raise ConfigError(
                f"{field}={count} does not fit the {len(self)} images there are; allowed 0 (all)..{len(self)}"
            )
        return self.take(torch.arange(count or len(self)))

    def take(self, indices: Tensor) -> "ImageSet":
        """Return the images at `indices` (int64)."""
        return ImageSet(pixels=self.pixels[indices], labels=self.labels[indices])

    def without_pixels(self) -> "ImageSet":
        """Return the labels alone."""
        return ImageSet(pixels=self.pixels[:0].clone(), labels=self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A training and a test set with what belongs to both.

    Attributes:
        mean, std: per channel of the full training set, in [0, 1].
        digest: sha256 over pixels and labels in use, 16 digits.
    """

    name: str
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    image_size: int
    augmentation: Augmentation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str = ""

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return len(self.class_names)


def data_root(flag: str = "") -> Path:
    """Return the folder of data sets: the flag, else $BACKLINK_RAY_DATA, else ~/.cache/backlink_ray."""
    return Path(flag or os.environ.get("BACKLINK_RAY_DATA") or Path.home() / ".cache" / "backlink_ray").expanduser()


def load_dataset(
    name: str, root: Path | None = None, *, train_images: int = 0, test_images: int = 0, download: bool = True
) -> Dataset:
    """Return a checked data set.

    Args:
        name: one of config.DATASETS.
        root: folder of the original files; `data_root()` if not given.
        train_images: keep the first N training images in file order; 0 keeps all.
        test_images: the same for the test images.
        download: fetch what is missing (https, md5 checked).

    Raises:
        ConfigError: an unknown name, or more images asked for than there are.
        DataError: files that are missing, truncated or corrupt, or a root that cannot be written.
    """
    if name not in LOADERS:
        raise ConfigError(f"dataset={name!r} is not known; allowed: {', '.join(LOADERS)}")
    found = LOADERS[name](root or data_root(), download)
    train, test = found.train.first(train_images, "train_images"), found.test.first(test_images, "test_images")
    return replace(found, train=train, test=test, digest=_digest(train, test))


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
    labels, chosen = dataset.train.labels, []
    for label in range(dataset.num_classes):
        of_class = (labels == label).nonzero().flatten()
        generator = torch.Generator().manual_seed(derive_seed(seed, "hold_out", label))
        chosen.append(
            of_class[torch.randperm(len(of_class), generator=generator)[: math.ceil(fraction * len(of_class) - 1e-9)]]
        )
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[torch.cat(chosen)] = True
    return dataset.train.take((~held).nonzero().flatten()), dataset.train.take(held.nonzero().flatten())


def _digest(*sets: ImageSet) -> str:
    total = hashlib.sha256()
    for images in sets:
        total.update(images.pixels.numpy().tobytes() + images.labels.numpy().tobytes())
    return total.hexdigest()[:16]


def _load_sample(_root: Path, _download: bool) -> Dataset:
    raw = SAMPLE_FILE.read_bytes() if SAMPLE_FILE.exists() else b""
    if hashlib.sha256(raw).hexdigest() != SAMPLE_SHA256:
        raise DataError(
            f"{SAMPLE_FILE.name} in the package is {'corrupt' if raw else 'missing'}: expected sha256 {SAMPLE_SHA256}, "
            f"found {hashlib.sha256(raw).hexdigest() if raw else 'no file'}; reinstall with "
            "pip install --force-reinstall --no-deps backlink-ray"
        )
    try:  # imported here, so that the library itself needs torch alone
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"{SAMPLE_FILE.name} is Parquet and pyarrow is not installed; pip install pyarrow") from error

    table = pq.read_table(SAMPLE_FILE).to_pydict()
    sets = {
        split: _decode(
            [(w, y) for s, w, y in zip(table["split"], table["webp"], table["label"], strict=True) if s == split]
        )
        for split in ("train", "test")
    }
    return _cifar10("cifar10-sample", sets["train"], sets["test"])


def _decode(rows: list[tuple[bytes, int]]) -> ImageSet:
    import numpy as np
    from PIL import Image

    pixels = np.stack([np.asarray(Image.open(io.BytesIO(webp)).convert("RGB")) for webp, _ in rows])
    labels = torch.tensor([label for _, label in rows], dtype=torch.int64)
    return ImageSet(pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels=labels)


def _cifar10(name: str, train: ImageSet, test: ImageSet) -> Dataset:
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    return Dataset(
        name=name,
        train=train,
        test=test,
        class_names=names,
        image_size=32,
        mean=CIFAR10_MEAN,
        std=CIFAR10_STD,
        augmentation=Augmentation(pad=4, mode="reflect", flip=True),
    )


def _load_cifar10(root: Path, download: bool) -> Dataset:
    from torchvision.datasets import CIFAR10

    _provide(CIFAR10, root, download)
    train, test = (_image_set(CIFAR10(root, train=train)) for train in (True, False))
    return _cifar10("cifar10", train, test)


def _image_set(source: Any) -> ImageSet:
    pixels = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(pixels=pixels, labels=torch.tensor(source.targets, dtype=torch.int64))


def _provide(source: Any, root: Path, download: bool) -> None:
    """Leave every file of a CIFAR-like set in place and right, or raise."""
    if not _faults(source, root):
        return
    from filelock import FileLock

    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{source.base_folder}.lock"):  # two processes leave one good copy
            _fetch(source, root, download)
    except OSError as error:
        raise DataError(
            f"data root {root} cannot be written ({error.strerror}); give another with --data-root"
        ) from error


def _fetch(source: Any, root: Path, download: bool) -> None:
    faults = _faults(source, root)
    if faults and any("found md5" in fault for fault in faults):
        raise DataError(f"{faults[0]}; mend: rm -r {root / source.base_folder} and run again, or copy a good one there")
    if faults and download:
        print(f"fetching {source.filename} into {root}", file=sys.stderr, flush=True)
        try:
            with (
                contextlib.redirect_stderr(io.StringIO()),
                contextlib.redirect_stdout(io.StringIO()),
            ):  # its progress bar
                source(root, download=True)
        except Exception as error:  # whatever the network does, the user needs the same sentence
            raise DataError(_how_to_get(source, root, f"{faults[0]}; download failed: {error}")) from error
    elif faults:
        raise DataError(_how_to_get(source, root, faults[0]))


def _how_to_get(source: Any, root: Path, what: str) -> str:
    return (
        f"{what}; mend: curl -fL -o {root / source.filename} {source.url} && tar -xzf {root / source.filename} -C {root} "
        f"(md5 {source.tgz_md5})"
    )


def _faults(source: Any, root: Path) -> list[str]:
    folder = root / source.base_folder
    wanted = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
    checked = ((folder / name, md5, _md5(folder / name)) for name, md5 in wanted)
    return [
        f"{path} is missing" if not found else f"{path} is corrupt: expected md5 {md5}, found md5 {found}"
        for path, md5, found in checked
        if found != md5
    ]


def _md5(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


LOADERS: dict[str, Callable[[Path, bool], Dataset]] = {"cifar10-sample": _load_sample, "cifar10": _load_cifar10}
assert set(LOADERS) <= set(DATASETS)
