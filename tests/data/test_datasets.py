"""Data sets: names, budgets, digests and the held-out part."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from backlink_ray.data.datasets import DATASETS, LOADERS, data_root, hold_out, load_dataset
from backlink_ray.data.tensors import Dataset, digest
from backlink_ray.errors import ConfigError
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import dataset_of
from tests.data.tiny import Tiny


@pytest.fixture(scope="module")
def sample() -> Dataset:
    return load_dataset("cifar10-sample")


@given(st.text().filter(lambda name: name not in DATASETS))
@example("mnist")
@example("../cifar10")
@example("/etc")
@example("%2e%2f")
@example("a\\b")
@example("a\0b")
@example("x" * 300)
def test_other_and_hostile_names_are_refused_with_the_allowed_ones(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset(name)
    assert ":" in name or all(allowed in str(caught.value) for allowed in LOADERS)


def test_root_is_flag_then_environment_then_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKLINK_RAY_DATA", "from-environment")
    assert data_root("from-flag") == Path("from-flag")
    assert data_root() == Path("from-environment")
    monkeypatch.delenv("BACKLINK_RAY_DATA")
    assert data_root() == Path.home() / ".cache" / "backlink_ray"


def test_a_budget_is_the_first_images_in_file_order(sample: Dataset) -> None:
    budget = load_dataset("cifar10-sample", train_images=64, test_images=32)
    assert torch.equal(budget.train.inputs, sample.train.inputs[:64])
    assert torch.equal(budget.train.labels, sample.train.labels[:64])
    assert torch.equal(budget.test.inputs, sample.test.inputs[:32])
    assert budget.digest != sample.digest
    assert budget.digest == load_dataset("cifar10-sample", train_images=64, test_images=32).digest


@pytest.mark.parametrize("budget", [{"train_images": 2001}, {"test_images": 501}, {"train_images": -1}])
def test_a_budget_larger_than_the_set_is_refused_with_value_and_limit(budget: dict[str, int]) -> None:
    ((field, value),) = budget.items()
    with pytest.raises(ConfigError, match=rf"{field}={value}.*\.\.{2000 if field == 'train_images' else 500}"):
        load_dataset("cifar10-sample", **budget)


def test_digest_sees_pixels_and_labels(sample: Dataset) -> None:
    pixels, labels = sample.train.inputs.clone(), sample.train.labels.clone()
    pixels[7, 1, 3, 3] ^= 1
    labels[7] = (labels[7] + 1) % 10
    changes = ({}, {"inputs": pixels}, {"labels": labels})
    digests = {digest(replace(sample.train, **change), sample.test) for change in changes}
    assert len(digests) == 3
    assert digest(sample.train, sample.test) == sample.digest


def test_held_out_part_is_stratified_and_disjoint(sample: Dataset) -> None:
    kept, held = hold_out(sample, 0.1, seed=0)
    assert kept.labels.bincount().tolist() == [180] * 10
    assert held.labels.bincount().tolist() == [20] * 10
    images = {image.numpy().tobytes() for image in sample.train.inputs}
    parts = [{image.numpy().tobytes() for image in part.inputs} for part in (kept, held)]
    assert parts[0] | parts[1] == images
    assert not parts[0] & parts[1]


def test_held_out_part_follows_the_seed(sample: Dataset) -> None:
    first, again, other = (hold_out(sample, 0.1, seed=seed)[1].inputs for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_data_set_of_a_run_has_its_name_budgets_and_seed(tiny_cifar10: Tiny) -> None:
    config = RunConfig(dataset="cifar10-lt", train_images=12, test_images=7, seed=5)
    found = dataset_of(config, tiny_cifar10.folder)
    wanted = load_dataset("cifar10-lt", tiny_cifar10.folder, train_images=12, test_images=7, seed=5)
    assert (found.name, len(found.train), len(found.test), found.seed) == ("cifar10-lt", 12, 7, 5)
    assert found.digest == wanted.digest


def test_every_name_has_a_loader() -> None:
    assert list(LOADERS) == list(DATASETS)


def test_sample_and_full_set_agree_on_what_belongs_to_both(full_root: Path, cifar10: Dataset, sample: Dataset) -> None:
    from torchvision.datasets import CIFAR10

    for field in ("class_names", "image_size", "num_classes"):
        assert getattr(cifar10, field) == getattr(sample, field)
    for field in ("mean", "std", "augmentation"):
        assert getattr(cifar10.train, field) == getattr(sample.train, field)
    assert cifar10.class_names == tuple(CIFAR10(full_root, train=False).classes)


HOMELESS = """
import backlink_ray as bl
print(len(bl.load_dataset("cifar10-sample", test_images=7).test))
try:
    bl.load_dataset("cifar10")
except bl.ConfigError as error:
    print(error)
from backlink_ray.cli import main
print(main(["report"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("setpriv"), reason="becomes a user that this machine does not know"
)
def test_a_user_without_a_home_folder_needs_none_until_something_is_put_there(tmp_path: Path) -> None:
    rights = "+dac_read_search"  # to read this Python, wherever it is
    become = f"setpriv --reuid=54321 --regid=54321 --clear-groups --inh-caps {rights} --ambient-caps {rights}".split()
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "BACKLINK_RAY_DATA")}
    command = [*become, sys.executable, "-c", HOMELESS]
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    refused = (
        "data_root='~/.cache/backlink_ray' cannot be used (Could not determine home directory.); give another folder"
    )
    assert done.stdout.splitlines() == ["7", refused, "2"]
