"""Fixtures: the full data sets, and tiny ones with their own checksums for tests that break files."""

from pathlib import Path

import pytest

from backlink_ray.data.datasets import load_dataset
from backlink_ray.data.tensors import Dataset
from tests.data.originals import original_root
from tests.data.tiny import BUILDERS, Tiny, install


@pytest.fixture(scope="session")
def full_root() -> Path:
    return original_root("cifar10")


@pytest.fixture(scope="session")
def cifar10(full_root: Path) -> Dataset:
    """All of CIFAR-10, read and checked once."""
    return load_dataset("cifar10", full_root, download=False)


@pytest.fixture(params=sorted(BUILDERS))
def tiny(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Every kind of original in turn."""
    return install(request.param, tmp_path / "tiny", monkeypatch)


@pytest.fixture
def tiny_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return install("cifar10", tmp_path / "tiny", monkeypatch)


@pytest.fixture
def svhn_root() -> Path:
    return original_root("svhn")
