"""The embedded sample: whole, checked, balanced, and bit for bit the originals."""

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from backlink_ray.data import embedded
from backlink_ray.data.datasets import load_dataset
from backlink_ray.data.embedded import SAMPLE_FILE
from backlink_ray.data.sample import make_sample
from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import DataError
from tests.data.tiny import Tiny


def test_shape_and_balance() -> None:
    sample = load_dataset("cifar10-sample")
    assert sample.train.inputs.shape == (2000, 3, 32, 32)
    assert sample.test.inputs.shape == (500, 3, 32, 32)
    assert sample.train.inputs.dtype == torch.uint8
    assert sample.train.inputs.is_contiguous()
    assert sample.train.labels.dtype == torch.int64
    assert sample.train.labels.bincount().tolist() == [200] * 10
    assert sample.test.labels.bincount().tolist() == [50] * 10
    assert SAMPLE_FILE.stat().st_size < 6_000_000


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda raw: raw[:-1], embedded.SAMPLE_SHA256),
        (lambda raw: raw[:999] + bytes([raw[999] ^ 1]) + raw[1000:], embedded.SAMPLE_SHA256),
        (None, "missing"),
    ],
)
def test_a_sample_that_is_not_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm, found) -> None:
    if harm:
        (tmp_path / SAMPLE_FILE.name).write_bytes(harm(SAMPLE_FILE.read_bytes()))
    monkeypatch.setattr(embedded, "SAMPLE_FILE", tmp_path / SAMPLE_FILE.name)
    with pytest.raises(DataError, match=f"{SAMPLE_FILE.name}.*{found}.*pip install"):
        load_dataset("cifar10-sample")


def test_without_pyarrow_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    embedded._decoded.cache_clear()
    with pytest.raises(DataError, match="pyarrow"):
        load_dataset("cifar10-sample")


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_image_equals_its_original_and_the_choice_repeats(cifar10: Dataset, split: str) -> None:
    full, sample = (getattr(dataset, split) for dataset in (cifar10, load_dataset("cifar10-sample")))
    rows = pq.read_table(SAMPLE_FILE, columns=["split", "index"], filters=[("split", "=", split)])
    index = torch.tensor(rows["index"].to_pylist())
    assert torch.equal(sample.inputs, full.inputs[index])
    assert torch.equal(sample.labels, full.labels[index])
    assert torch.equal(index, make_sample.choose(full.labels, make_sample.PER_CLASS[split], split))


def test_script_is_lossless_and_repeatable(tiny_cifar10: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On noise, which lossy pictures would change most."""
    monkeypatch.setattr(make_sample, "PER_CLASS", {"train": 2, "test": 1})  # all 2,500 take over a minute to encode
    tables = []
    for name in ("first", "second"):
        arguments = ["--data-root", str(tiny_cifar10.folder), "--output", str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", ["make_sample", *arguments])
        assert make_sample.main() == 0
        tables.append(pq.read_table(tmp_path / name))
    assert tables[0].num_rows == 30
    assert tables[0].equals(tables[1])
    full = load_dataset("cifar10", tiny_cifar10.folder, download=False)
    for row in tables[0].to_pylist():
        original = getattr(full, row["split"])
        written = np.asarray(Image.open(io.BytesIO(row["webp"])).convert("RGB"))
        assert np.array_equal(written, original.inputs[row["index"]].permute(1, 2, 0).numpy())
        assert row["label"] == original.labels[row["index"]]
