"""The full data sets, and tiny ones with their own checksums that stand in where files are broken on purpose."""

from pathlib import Path

import pytest

from tests.cifar10_files import cifar10_root
from tests.data.originals import original_root
from tests.data.tiny import BUILDERS, Tiny


@pytest.fixture(scope="session")
def full_root() -> Path:
    root = cifar10_root()
    if root is None:
        pytest.skip("the full CIFAR-10 is not on this machine (set BACKLINK_RAY_DATA to a folder that holds it)")
    return root


@pytest.fixture(params=sorted(BUILDERS))
def tiny(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Every kind of original in turn."""
    return _install(request.param, tmp_path, monkeypatch)


@pytest.fixture
def tiny_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    return _install("cifar10", tmp_path, monkeypatch)


def _install(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    made = BUILDERS[name](folder / "tiny")
    for attribute, value in made.attributes("http://127.0.0.1:9/").items():  # port 9: nobody answers
        monkeypatch.setattr(made.source(), attribute, value)
    return made


@pytest.fixture
def cifar100_root() -> Path:
    return original_root("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta")


@pytest.fixture
def stl10_root() -> Path:
    return original_root(*(f"stl10_binary/{split}_{kind}.bin" for split in ("train", "test") for kind in "Xy"))


@pytest.fixture
def svhn_root() -> Path:
    return original_root("train_32x32.mat", "test_32x32.mat")
