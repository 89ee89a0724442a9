"""The full data set, and a tiny one with its own checksums that stands in for it where files are broken on purpose."""

from pathlib import Path

import pytest

from tests.cifar10_files import cifar10_root
from tests.data.tiny_cifar import Tiny, build


@pytest.fixture(scope="session")
def full_root() -> Path:
    root = cifar10_root()
    if root is None:
        pytest.skip("the full CIFAR-10 is not on this machine (set BACKLINK_RAY_DATA to a folder that holds it)")
    return root


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    from torchvision.datasets import CIFAR10

    made = build(tmp_path / "tiny")
    for name, value in made.attributes("http://127.0.0.1:9/").items():  # port 9: nobody answers
        monkeypatch.setattr(CIFAR10, name, value)
    return made
