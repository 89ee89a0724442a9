"""Originals: every data set's format, constants and images against torchvision's own reading of its real files.

CIFAR-10's are read in every run; the others' only in slow tests, and in every run tiny sets of the same formats instead.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backlink_ray.data.augmentation import Augmentation
from backlink_ray.data.choice import choose, long_tail_counts
from backlink_ray.data.datasets import DATASETS, load_dataset
from backlink_ray.data.originals import long_tailed
from backlink_ray.data.tensors import Dataset, LabelledSet
from backlink_ray.errors import ConfigError
from tests.data.originals import md5, original_root
from tests.data.tiny import TEST_IMAGES, TRAIN_IMAGES, Tiny

# Section IV.C: class i keeps 5000 / 1.3^i images.
LONG_TAIL = [5000, 3846, 2958, 2275, 1750, 1346, 1035, 796, 612, 471]


def mean_and_std(pixels: Tensor) -> tuple[list[float], list[float]]:
    """Per channel in [0, 1], in float64 from the counts of the 256 levels."""
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in pixels.transpose(0, 1)])
    levels, weights = torch.arange(256).double() / 255, counts.double() / counts.sum(1, keepdim=True)
    mean = weights @ levels
    return mean.tolist(), (weights @ levels.square() - mean.square()).sqrt().tolist()


def check_constants(dataset: Dataset, tolerance: float = 5.1e-6) -> None:
    mean, std = mean_and_std(dataset.train.inputs)
    assert mean == pytest.approx(dataset.train.mean, abs=tolerance)
    assert std == pytest.approx(dataset.train.std, abs=tolerance)


def check_form(dataset: Dataset) -> None:
    for images in (dataset.train, dataset.test):
        assert images.inputs.dtype == torch.uint8
        assert images.inputs.shape == (len(images), 3, dataset.image_size, dataset.image_size)
        assert images.inputs.is_contiguous()
        assert images.labels.dtype == torch.int64
        assert set(images.labels.tolist()) <= set(range(dataset.num_classes))


def check_images(images: LabelledSet, source: Any) -> None:
    """A few images and their labels, against torchvision's own class."""
    for index in (0, 1, len(images) // 2, len(images) - 1):
        image, label = source[index]
        assert np.array_equal(images.inputs[index].numpy(), np.asarray(image).transpose(2, 0, 1))
        assert int(images.labels[index]) == label


def test_cifar10(cifar10: Dataset) -> None:
    assert (len(cifar10.train), len(cifar10.test)) == (50000, 10000)
    assert cifar10.train_counts == [5000] * 10
    check_form(cifar10)
    check_constants(cifar10)


# Slow, since the files of the other sets than CIFAR-10 may have to be made first, which takes up to half a minute each.
@pytest.mark.slow
def test_cifar100() -> None:
    from torchvision.datasets import CIFAR100

    root = original_root("cifar100")
    dataset = load_dataset("cifar100", root, download=False)
    assert (len(dataset.train), len(dataset.test)) == (DATASETS["cifar100"], 10000)
    assert dataset.train_counts == [500] * 100
    assert (dataset.class_names[0], dataset.class_names[99]) == ("apple", "worm")
    check_form(dataset)
    check_constants(dataset)
    check_images(dataset.test, CIFAR100(root, train=False))


@pytest.mark.slow
def test_stl10(monkeypatch: pytest.MonkeyPatch) -> None:
    """The training files are whole; a part of the test files is loaded under the part's own checksums."""
    from torchvision.datasets import STL10

    root = original_root("stl10")
    test_files = [[name, md5(root / "stl10_binary" / name)] for name in ("test_X.bin", "test_y.bin")]
    monkeypatch.setattr(STL10, "test_list", test_files)
    dataset = load_dataset("stl10", root, download=False)
    assert (dataset.train_counts, dataset.image_size) == ([500] * 10, 96)
    check_form(dataset)
    check_constants(dataset)


@pytest.mark.slow
def test_svhn(svhn_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real images; where only a part of the files is here, under the part's own checksums."""
    from torchvision.datasets import SVHN

    files = {split: f"{split}_32x32.mat" for split in ("train", "test")}
    parts = {split: ["", name, md5(svhn_root / name)] for split, name in files.items()}
    monkeypatch.setattr(SVHN, "split_list", parts)
    dataset = load_dataset("svhn", svhn_root, download=False)
    assert dataset.class_names == tuple("0123456789")
    assert min(dataset.train_counts) > 0
    # House numbers begin with 1 more than with others.
    assert dataset.train_counts.index(max(dataset.train_counts)) == 1
    check_form(dataset)
    for split in files:
        check_images(getattr(dataset, split), SVHN(svhn_root, split=split))
    if len(dataset.train) == DATASETS["svhn"]:
        check_constants(dataset, 5.1e-5)


def test_every_format_is_read_as_torchvision_reads_it(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.source()
    dataset = load_dataset(tiny.name, tiny.folder, download=False)
    assert (len(dataset.train), len(dataset.test)) == (TRAIN_IMAGES, TEST_IMAGES)
    check_form(dataset)
    if tiny.name == "stl10":
        monkeypatch.setattr(source, "train_list", source.train_list[:2])
    for split in ("train", "test"):
        which = {"train": split == "train"} if tiny.name.startswith("cifar") else {"split": split}
        check_images(getattr(dataset, split), source(tiny.folder, **which))


def test_augmentation_of_every_set(tiny: Tiny) -> None:
    wanted = {
        "cifar10": Augmentation(pad=4, mode="reflect", flip=True),
        "cifar100": Augmentation(pad=4, mode="reflect", flip=True),
        "stl10": Augmentation(pad=4, mode="constant", flip=True),
        "svhn": Augmentation(pad=2, mode="constant", flip=False),
    }
    assert load_dataset(tiny.name, tiny.folder, download=False).train.augmentation == wanted[tiny.name]


def test_counts_of_the_long_tail() -> None:
    assert long_tail_counts(5000, 10) == LONG_TAIL
    assert sum(LONG_TAIL) == DATASETS["cifar10-lt"] == 20089


def test_long_tailed_cifar10(cifar10: Dataset, full_root: Path) -> None:
    dataset = load_dataset("cifar10-lt", full_root, seed=3, download=False)
    assert dataset.train_counts == LONG_TAIL
    assert torch.equal(dataset.test.inputs, cifar10.test.inputs)
    assert torch.equal(dataset.test.labels, cifar10.test.labels)
    assert (dataset.train.augmentation, dataset.train.mean) == (cifar10.train.augmentation, cifar10.train.mean)
    assert dataset.num_classes == 10
    index = choose(cifar10.train.labels, LONG_TAIL, 3, "long-tail")
    assert torch.equal(dataset.train.inputs, cifar10.train.inputs[index])
    assert torch.equal(dataset.train.labels, cifar10.train.labels[index])
    assert dataset.digest != cifar10.digest


def test_the_seed_chooses_the_images_and_the_digest_shows_it(tiny_cifar10: Tiny) -> None:
    first, again, other = (load_dataset("cifar10-lt", tiny_cifar10.folder, seed=seed) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert first.train_counts == other.train_counts == [10, 7, 5, 4, 3, 2, 2, 1, 1, 0]
    assert not torch.equal(first.train.inputs, other.train.inputs)
    one, two = (load_dataset("cifar10", tiny_cifar10.folder, seed=seed) for seed in (0, 1))
    assert one.digest == two.digest


def test_a_run_of_another_seed_than_the_images_is_refused(tiny_cifar10: Tiny) -> None:
    dataset = load_dataset("cifar10-lt", tiny_cifar10.folder, seed=2)
    dataset.check_seed(2)
    with pytest.raises(ConfigError, match=r"seed=0.* seed 2.*load.*seed=0"):
        dataset.check_seed(0)
    load_dataset("cifar10", tiny_cifar10.folder, seed=2).check_seed(0)


def test_a_tail_has_its_own_digest_and_a_class_too_small_for_it_is_refused(tiny_cifar10: Tiny) -> None:
    whole = load_dataset("cifar10", tiny_cifar10.folder)
    assert long_tailed(whole, "cifar10-lt", 4).digest == load_dataset("cifar10-lt", tiny_cifar10.folder, seed=4).digest
    few = replace(whole, train=whole.train.take((whole.train.labels != 1).nonzero().flatten()))
    with pytest.raises(ConfigError, match=r"7 .*class 1 .*0\.\.0"):
        long_tailed(few, "few-lt", 0)


def test_choice_keeps_file_order_and_counts_and_no_image_twice() -> None:
    labels = torch.arange(60) % 3
    index = choose(labels, [5, 0, 20], 1, "test")
    assert index.tolist() == sorted(set(index.tolist()))
    assert labels[index].bincount(minlength=3).tolist() == [5, 0, 20]
    assert not torch.equal(index, choose(labels, [5, 0, 20], 2, "test"))
    with pytest.raises(ConfigError, match=r"21 .*class 1 .*0\.\.20"):
        choose(labels, [0, 21, 0], 1, "test")
