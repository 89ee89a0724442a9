"""Batches: training inputs and labels that every process can draw on its own, without communication."""

from collections.abc import Iterator

import torch
from torch import Tensor

from backlink_ray.data.tensors import LabelledSet, Preparation, cast
from backlink_ray.errors import ConfigError
from backlink_ray.seeds import derive_seed


class Batches:
    """Training batches of one set, for any number of epochs.

    The whole set is kept on `device` in its own type. Order and augmentation follow from (seed, epoch, step) and are drawn on
    the CPU, so that they are the same on every device and in every process.

    Args:
        train: the training set; without inputs in a process that needs only labels.
        batch_size: B in 1..len(train); the incomplete batch at the end of an epoch is dropped.
        seed: the run's.
        dtype: the network's; images, floating-point inputs and targets are given in it, and other integers as int64.
        device: of the batches.
        memory_format: of inputs of 4 dimensions.

    Raises:
        ConfigError: a batch larger than the set.
    """

    def __init__(
        self,
        train: LabelledSet,
        batch_size: int,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        check_batch_size(batch_size, len(train))
        self._batch_size, self._seed, self._device = batch_size, seed, torch.device(device)
        self._inputs, self._labels = train.inputs.to(device), cast(train.labels.to(device), dtype)
        self._augmentation, self._prepare = train.augmentation, Preparation(train, dtype, device, memory_format)
        self.steps_per_epoch = len(train) // batch_size
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def labels(self, step: int) -> Tensor:
        """Return labels int64 (B,), or targets (B, D), of the global step."""
        return self._labels[self._indices(step)]

    def inputs(self, step: int) -> Tensor:
        """Return inputs (B, ...) of the global step, augmented and normalised."""
        inputs = self._inputs[self._indices(step)]
        if self._augmentation is not None:
            generator = torch.Generator().manual_seed(
                derive_seed(self._seed, "augment", *divmod(step, self.steps_per_epoch))
            )
            changed = self._augmentation(inputs, generator)
            if (changed.shape, changed.dtype) != (inputs.shape, inputs.dtype):
                raise ConfigError(
                    f"the augmentation returns {changed.dtype} {tuple(changed.shape)} for {inputs.dtype} "
                    f"{tuple(inputs.shape)}; allowed: the same type and shape"
                )
            inputs = changed
        return self._prepare(inputs)

    def _indices(self, step: int) -> Tensor:
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
            self._order = (epoch, torch.randperm(len(self._labels), generator=generator).to(self._device))
        return self._order[1][position * self._batch_size : (position + 1) * self._batch_size]


def check_batch_size(batch_size: int, examples: int) -> None:
    """Raise ConfigError unless the training set fills at least one batch."""
    if not 1 <= batch_size <= examples:
        raise ConfigError(f"batch_size={batch_size} does not fit {examples} training images; allowed 1..{examples}")


class EvaluationBatches:
    """A set in batches of (inputs (B, ...), labels (B, ...)) as `Batches` gives them, for any number of evaluations.

    In order and without augmentation; the last batch may be smaller. The whole set is kept on `device`, so that no evaluation
    copies it again. Inputs are empty, (0, ...), where the set has none. Arguments are those of `Batches`.
    """

    def __init__(
        self,
        images: LabelledSet,
        batch_size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self._batch_size, self._prepare = batch_size, Preparation(images, dtype, device, memory_format)
        self._inputs, self._labels = images.inputs.to(device), cast(images.labels.to(device), dtype)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self._labels), self._batch_size):
            part = slice(start, start + self._batch_size)
            yield self._prepare(self._inputs[part]), self._labels[part]
