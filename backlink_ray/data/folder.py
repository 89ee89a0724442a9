"""Folder: image files in a folder for every class, decoded into tensors."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from backlink_ray.data.choice import hold_out_indices
from backlink_ray.errors import ConfigError, DataError
from backlink_ray.output import say

_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

Examples = tuple[Tensor, Tensor]


def read_folder(
    path: Path, image_size: int | None, test_fraction: float, seed: int
) -> tuple[Examples, Examples, tuple[str, ...]]:
    """Return (images, labels) for training and for testing, uint8 (N, 3, H, W) and int64 (N,), and the classes' names.

    Arguments are those of `Dataset.from_folder`.

    Raises:
        ConfigError: image_size or test_fraction is out of range.
        DataError: no images, a file that is none, an image of another size, or a class that training lacks.
    """
    if image_size is not None and image_size < 1:
        raise ConfigError(
            f"image_size={image_size} is out of range; allowed 1 or more, or None to keep the images' size"
        )
    if not 0 < test_fraction <= 0.5:
        raise ConfigError(f"test_fraction={test_fraction} is out of range; allowed above 0, to 0.5")
    has_test = (path / "test").is_dir()
    root = path / "train" if has_test or (path / "train").is_dir() else path
    names = _classes(root)
    size = (image_size, image_size) if image_size else None
    train = _read(root, names, size, resize=bool(size))
    if has_test:
        height, width = train[0].shape[2:]
        return train, _read(path / "test", names, (width, height), resize=bool(size)), names
    kept, held = hold_out_indices(train[1], test_fraction, seed)
    for label, name in enumerate(names):
        if label not in train[1][kept]:
            raise DataError(f"{root / name} has one image; expected two or more, since one is held out for testing")
    say(
        f"{path} has no folder test: {len(held)} of its {len(kept) + len(held)} images, chosen by seed {seed}, are held out "
        "for testing"
    )
    return (train[0][kept], train[1][kept]), (train[0][held], train[1][held]), names


def _classes(root: Path) -> tuple[str, ...]:
    found = [part for part in root.iterdir() if part.is_dir()] if root.is_dir() else []
    names = tuple(sorted(part.name for part in found if not part.name.startswith(".")))
    if not names:
        raise DataError(f"{root} has no folders of images; expected {root}/<class>/*")
    return names


def _read(root: Path, names: Sequence[str], size: tuple[int, int] | None, *, resize: bool) -> Examples:
    """Return the images below root and their labels; size is (width, height), None that of the first image."""
    for name in _classes(root):
        if name not in names:
            raise DataError(f"{root / name} is a class that training lacks; its classes are {', '.join(names)}")
    images, labels = [], []
    for label, name in enumerate(names):
        files = sorted(file for file in (root / name).rglob("*") if _is_image(file.relative_to(root)))
        for file in files:
            image = _decode(file, size if resize else None)
            size = size or (image.shape[2], image.shape[1])
            if (image.shape[2], image.shape[1]) != size:
                raise DataError(
                    f"{file} is {image.shape[2]} x {image.shape[1]}, the first image {size[0]} x {size[1]}; give image_size "
                    "to resize all images"
                )
            images.append(image)
        labels += [label] * len(files)
    if len(set(labels)) < len(_classes(root)):
        empty = next(name for name in _classes(root) if names.index(name) not in labels)
        raise DataError(f"{root / empty} has no images; expected files that end in {', '.join(sorted(_ENDINGS))}")
    return torch.stack(images), torch.tensor(labels)


def _is_image(file: Path) -> bool:
    """Return whether a file is named as an image and not hidden: other programs leave copies of images in hidden folders."""
    return file.suffix.lower() in _ENDINGS and not any(part.startswith(".") for part in file.parts)


def _decode(file: Path, size: tuple[int, int] | None) -> Tensor:
    """Return an image as RGB, uint8 (3, H, W), resized to (width, height) if asked."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(file) as opened:
            if opened.mode.startswith(("I", "F")):  # Pillow would cut them off at 255
                raise ValueError(f"mode {opened.mode}, more than 8 bits per channel; save it with 8")
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} cannot be read as an image ({error}); fix or remove it") from error
    image = image if size is None else image.resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
