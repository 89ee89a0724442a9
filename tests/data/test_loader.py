"""Batches, and augmentation against a slow oracle that pads, crops and flips one image after another."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from backlink_ray.data.augmentation import Augmentation
from backlink_ray.data.loader import Batches, EvaluationBatches
from backlink_ray.data.tensors import LabelledSet
from backlink_ray.errors import ConfigError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CIFAR = Augmentation(pad=4, mode="reflect", flip=True)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def _images(count: int = 50, size: int = 32) -> LabelledSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count)  # the label says which image it is
    return LabelledSet(inputs=pixels, labels=labels, mean=MEAN, std=STD, augmentation=CIFAR)


def _batches(images: LabelledSet, seed: int = 3, **options) -> Batches:
    return Batches(images, 8, seed=seed, **options)


def _one_by_one(augmentation: Augmentation, images: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """What is drawn, in which order, and the crops and flips of images (B, C, H, W) that follow from it."""
    pad, (count, _, height, width) = augmentation.pad, images.shape
    offsets = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).tolist()
    flips = (torch.rand(count, generator=generator) < (0.5 if augmentation.flip else 0.0)).tolist()
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode=augmentation.mode)
    crops = zip(padded, *offsets, flips, strict=True)
    return np.stack([x[:, i : i + height, j : j + width][:, :, :: -1 if flip else 1] for x, i, j, flip in crops])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize(("pad", "flip"), [(4, True), (2, False), (0, True), (0, False)])
def test_the_same_is_drawn_on_every_device_and_in_every_version(device: str, mode: str, pad: int, flip: bool) -> None:
    augmentation = Augmentation(pad=pad, mode=mode, flip=flip)
    images = torch.randint(0, 256, (64, 3, 5, 9), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ours, theirs = (torch.Generator().manual_seed(1) for _ in range(2))
    for _ in range(2):
        found = augmentation(images.to(device), ours)
        assert found.cpu().numpy().tobytes() == _one_by_one(augmentation, images.numpy(), theirs).tobytes()


def test_images_of_a_step_belong_to_its_labels_and_are_normalised() -> None:
    images = replace(_images(), augmentation=None)
    batches = _batches(images)
    pixels = images.inputs[batches.labels(2)].double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    result = batches.inputs(2)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), (pixels / 255 - mean) / std, rtol=1e-6, atol=1e-6)


def test_same_step_is_bit_equal_in_any_order_and_process() -> None:
    forward, backward = _batches(_images()), _batches(_images())
    steps = range(2 * forward.steps_per_epoch)
    wanted = {step: (forward.inputs(step), forward.labels(step)) for step in steps}
    for step in reversed(steps):
        assert torch.equal(backward.inputs(step), wanted[step][0])
        assert torch.equal(backward.labels(step), wanted[step][1])


def test_another_epoch_step_or_seed_differs() -> None:
    one_batch = replace(_images(8), inputs=_images(1).inputs.expand(8, -1, -1, -1))  # order cannot matter
    batches, other_seed = _batches(one_batch), _batches(one_batch, seed=4)
    assert batches.steps_per_epoch == 1
    assert not torch.equal(batches.inputs(0), batches.inputs(1))
    assert not torch.equal(batches.inputs(0), other_seed.inputs(0))
    assert not torch.equal(_batches(_images()).labels(0), _batches(_images()).labels(6))


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_no_image_repeats_in_an_epoch_and_the_rest_is_dropped(epoch: int) -> None:
    batches = _batches(_images(50))
    assert batches.steps_per_epoch == 6
    seen = torch.cat([batches.labels(epoch * 6 + step) for step in range(6)])
    assert len(seen) == 48
    assert len(seen.unique()) == 48


def test_labels_without_inputs_equal_those_with_them() -> None:
    full, bare = _batches(_images()), _batches(_images().without_inputs())
    assert bare.steps_per_epoch == full.steps_per_epoch
    assert all(torch.equal(full.labels(step), bare.labels(step)) for step in range(20))


@pytest.mark.parametrize("device", DEVICES)
def test_device_does_not_change_the_batch(device: str) -> None:
    here, there = _batches(_images()), _batches(_images(), device=device)
    assert there.inputs(3).device.type == there.labels(3).device.type == device
    assert torch.equal(here.inputs(3), there.inputs(3).cpu())
    assert torch.equal(here.labels(3), there.labels(3).cpu())


@pytest.mark.parametrize("batch_size", [0, -1, 51])
def test_batch_that_does_not_fit_is_refused(batch_size: int) -> None:
    with pytest.raises(ConfigError, match=rf"batch_size={batch_size}.*1\.\.50"):
        Batches(_images(50), batch_size, seed=0)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_evaluation_gives_every_image_once_in_file_order(batch_size: int) -> None:
    images = _images(50)
    batches = EvaluationBatches(images, batch_size)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    for pairs in (list(batches), list(batches)):
        assert torch.equal(torch.cat([labels for _, labels in pairs]), images.labels)
        assert torch.equal(torch.cat([found for found, _ in pairs]), (images.inputs.float() / 255 - mean) / std)


@pytest.mark.parametrize("device", DEVICES)
def test_a_set_is_moved_once_for_all_evaluations(device: str) -> None:
    batches = EvaluationBatches(_images(8), 3, device=device)
    found = [[(x.device.type, x.data_ptr(), y.data_ptr()) for x, y in batches] for _ in range(2)]
    assert {where for where, _, _ in found[0]} == {device}
    assert [labels for _, _, labels in found[0]] == [labels for _, _, labels in found[1]]


FORMATS = [torch.contiguous_format, torch.channels_last]
KINDS = {
    "images": _images(8),
    "one channel": replace(_images(8), inputs=_images(8).inputs[:, :1], mean=(0.5,), std=(0.2,)),
    "one pixel": replace(_images(8), inputs=_images(8).inputs[:, :, :1, :1], augmentation=None),
    "plain images": replace(_images(8), mean=(), std=(), augmentation=None),
    "floats": replace(_images(8), inputs=_images(8).inputs.float(), augmentation=None),
    "plain floats": replace(_images(8), inputs=_images(8).inputs.float(), mean=(), std=(), augmentation=None),
    "laid out": replace(_images(8), inputs=_images(8).inputs.double().to(memory_format=FORMATS[1]), augmentation=None),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_have_the_memory_format_and_the_same_bits(
    kind: str, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    images = KINDS[kind]
    before = images.inputs.clone()
    train = Batches(images, 4, seed=3, dtype=dtype, memory_format=memory_format).inputs(0)
    first, second = (x for x, _ in EvaluationBatches(images, 4, dtype=dtype, memory_format=memory_format))
    strides = torch.empty(train.shape).to(memory_format=memory_format).stride()
    assert train.stride() == first.stride() == second.stride() == strides
    assert torch.equal(train, Batches(images, 4, seed=3, dtype=dtype).inputs(0))
    assert torch.equal(torch.cat([first, second]), images.prepared(dtype))
    assert torch.equal(images.inputs, before)  # not in place


def test_other_inputs_keep_their_layout() -> None:
    rows = LabelledSet(inputs=torch.randn(8, 5, 7), labels=torch.arange(8), mean=(0.1,), std=(2.0,))
    found = Batches(rows, 4, seed=0, memory_format=torch.channels_last).inputs(0)
    assert found.stride() == (35, 7, 1)
