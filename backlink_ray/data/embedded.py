"""Embedded: the sample of real CIFAR-10 images that ships with the package, checked and decoded."""

import hashlib
import io
from functools import cache
from pathlib import Path
from typing import Any

from backlink_ray.data.originals import as_cifar10
from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import DataError

SAMPLE_FILE = Path(__file__).parent / "sample" / "cifar10_sample.parquet"
SAMPLE_SHA256 = "587337df467190af382a3d054a5ba53cbaa54fd324aa29f83b3a55bf65aa3935"


def load_sample(_root: Path, _download: bool, _seed: int = 0) -> Dataset:
    """Return the embedded sample, 2,000 and 500 images; DataError if the file is missing or corrupt, or without pyarrow."""
    _check()
    train, test = _decoded()
    return as_cifar10(name="cifar10-sample", train=train, test=test)


def _check() -> None:
    raw = SAMPLE_FILE.read_bytes() if SAMPLE_FILE.exists() else b""
    found = hashlib.sha256(raw).hexdigest() if raw else "no file"
    if found != SAMPLE_SHA256:
        raise DataError(
            f"{SAMPLE_FILE.name} in the package is {'corrupt' if raw else 'missing'}: expected sha256 {SAMPLE_SHA256}, "
            f"found {found}; reinstall with pip install --force-reinstall --no-deps backlink-ray"
        )


@cache  # it takes most of a second; what is returned is copied into tensors
def _decoded() -> list[tuple[Any, list[int]]]:
    try:
        import pyarrow.parquet as pq  # imported here so that `import backlink_ray` needs only torch
    except ImportError as error:
        raise DataError(f"{SAMPLE_FILE.name} is Parquet and pyarrow is not installed; pip install pyarrow") from error
    table = pq.ParquetFile(SAMPLE_FILE).read().to_pydict()  # pq.read_table would import pandas
    rows = list(zip(table["split"], table["webp"], table["label"], strict=True))
    return [_decode([(w, y) for s, w, y in rows if s == split]) for split in ("train", "test")]


def _decode(rows: list[tuple[bytes, int]]) -> tuple[Any, list[int]]:
    import numpy as np
    from PIL import Image

    pixels = np.stack([np.asarray(Image.open(io.BytesIO(webp)).convert("RGB")) for webp, _ in rows])
    return pixels.transpose(0, 3, 1, 2), [label for _, label in rows]
