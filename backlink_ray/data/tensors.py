"""Tensors: a data set as it is held in memory."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backlink_ray.data.augmentation import Augmentation
from backlink_ray.data.checks import are_images, check_normalisation, read_inputs, read_labels, read_pair
from backlink_ray.data.folder import read_folder
from backlink_ray.errors import ConfigError

# Called with inputs (B, ...) and a generator on the CPU; returns inputs of the same shape and type.
Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledSet:
    """Inputs, their labels, and how the inputs are prepared for a network.

    Attributes:
        inputs: uint8 (N, C, H, W) for images, which a network gets in 0..1; any other integers (N, ...), such as tokens, which
            it gets as int64; or floating-point numbers (N, ...). (0, ...) on a stage that needs only labels.
        labels: classes, int64 (N,), or targets of a regression, floating-point (N, D).
        mean, std: per channel (dimension 1), or one for all: the network gets (input - mean) / std; () changes nothing.
        augmentation: changes each training batch, for example an `Augmentation`; None changes nothing.

    Raises:
        ConfigError: mean, std or augmentation do not fit the inputs.
    """

    inputs: Tensor
    labels: Tensor
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augmentation: Augment | None = None

    def __post_init__(self) -> None:
        check_normalisation(self.mean, self.std, self.inputs)
        if isinstance(self.augmentation, Augmentation):
            self.augmentation.check(self.inputs.shape)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_images(self) -> bool:
        """Return whether the inputs are uint8 images."""
        return are_images(self.inputs)

    @property
    def has_classes(self) -> bool:
        """Return whether the labels are classes, not targets of a regression."""
        return not self.labels.is_floating_point()

    def first(self, count: int, field: str) -> "LabelledSet":
        """Return the first `count` examples (0: all); ConfigError names `field` if there are fewer."""
        if not 0 <= count <= len(self):
            raise ConfigError(
                f"{field}={count} is out of range for a set of {len(self)} images; allowed 0 (all)..{len(self)}"
            )
        if count in (0, len(self)):
            return self
        # Cloned, since a view would keep all examples in memory, and take them along to every process it is sent to.
        return replace(self, inputs=self.inputs[:count].clone(), labels=self.labels[:count].clone())

    def take(self, indices: Tensor) -> "LabelledSet":
        """Return the examples at `indices` (int64)."""
        return replace(self, inputs=self.inputs[indices], labels=self.labels[indices])

    def prepared(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return all inputs (N, ...) as a network of that type gets them in an evaluation: for `predict`."""
        return Preparation(self, dtype, "cpu")(self.inputs)

    def without_inputs(self) -> "LabelledSet":
        """Return the labels alone."""
        return replace(self, inputs=self.inputs[:0].clone())


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return inputs or labels as a network of that type takes them: floating-point numbers in it, integers as int64."""
    return x.to(dtype) if x.is_floating_point() else x.long()


class Preparation:
    """Turns a set's inputs into a network's: images to 0..1, then (x - mean) / std, then the network's type.

    Computed in the wider of the inputs' and the network's type, and in float32 at least. Inputs of 4 dimensions come out in
    `memory_format`.
    """

    def __init__(
        self,
        of: LabelledSet,
        dtype: torch.dtype,
        device: torch.device | str,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self._is_images = of.is_images
        self._dtype = dtype if of.is_images or of.inputs.is_floating_point() else torch.int64
        self._format = memory_format if of.inputs.dim() == 4 else torch.preserve_format
        self._wide = torch.promote_types(of.inputs.dtype, torch.promote_types(dtype, torch.float32))
        shape = (1, -1, *(1,) * (of.inputs.dim() - 2))
        both = (of.mean, of.std) if of.mean else ()
        self._mean_and_std = [torch.tensor(v, dtype=self._wide).view(shape).to(device) for v in both]

    def __call__(self, inputs: Tensor) -> Tensor:
        x = inputs
        if self._is_images or self._mean_and_std:
            x = x.to(self._wide, memory_format=self._format)
        if self._is_images:
            x.div_(255)
        if self._mean_and_std:
            mean, std = self._mean_and_std
            x = (x.sub(mean) if x is inputs else x.sub_(mean)).div_(std)
        return x.to(self._dtype, memory_format=self._format)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A training and a test set.

    Attributes:
        class_names: in the order of the labels; () for a regression.
        seed: that chose the training images; -1 if none were left out.
        digest: first 16 hexadecimal digits of the sha256 over all inputs and labels.
    """

    name: str
    train: LabelledSet
    test: LabelledSet
    class_names: tuple[str, ...]
    seed: int = -1
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest(self.train, self.test))

    @classmethod
    def from_tensors(
        cls,
        train: tuple[Any, Any],
        test: tuple[Any, Any],
        *,
        name: str = "tensors",
        class_names: Sequence[str] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        augmentation: Augment | None = None,
    ) -> "Dataset":
        """Return a data set of tensors or numpy arrays: images, tables, signals, tokens.

        Args:
            train: (inputs, labels). Inputs as in `LabelledSet`. Integer labels (N,) are classes 0..C-1; floating-point labels,
                (N,) or (N, D), are targets of a regression, which are kept as (N, D), the shape of the network's answer.
            test: likewise, of the same kinds and shapes.
            name: for messages and records.
            class_names: C names; by default the classes are those of the training labels, named by their numbers.
            mean, std: per channel (dimension 1), or one for all; images are in 0..1 before. Default: no normalisation.
            augmentation: of training batches; default none.

        Raises:
            ConfigError: a set is empty, inputs and labels differ in number, a label is out of range, a value is NaN or
                infinite, or a type or shape is none of the above.
        """
        pairs = {"train": read_pair("train", train), "test": read_pair("test", test)}
        inputs = [read_inputs(which, x) for which, (x, _) in pairs.items()]
        names = () if class_names is None else tuple(map(str, class_names))
        labels, names = read_labels({which: y for which, (_, y) in pairs.items()}, [len(x) for x in inputs], names)
        if (inputs[0].shape[1:], inputs[0].dtype) != (inputs[1].shape[1:], inputs[1].dtype):
            found = [f"{x.dtype} {tuple(x.shape)}" for x in inputs]
            raise ConfigError(
                f"train inputs are {found[0]}, test inputs {found[1]}; allowed: one type, one shape but for N"
            )
        mean, std = (
            () if v is None else tuple(torch.as_tensor(v, dtype=torch.float64).flatten().tolist()) for v in (mean, std)
        )
        sets = [
            LabelledSet(inputs=x, labels=y, mean=mean, std=std, augmentation=augmentation)
            for x, y in zip(inputs, labels, strict=True)
        ]
        return cls(name=name, train=sets[0], test=sets[1], class_names=names)

    @classmethod
    def from_folder(
        cls,
        path: Path | str,
        image_size: int | None = None,
        *,
        test_fraction: float = 0.1,
        seed: int = 0,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        augmentation: Augment | None = None,
    ) -> "Dataset":
        """Return a data set of image files, path/train/<class>/* and path/test/<class>/*, as RGB.

        Args:
            path: the folder. Without a folder test, a part of every class of path/train, or else of path/<class>, is held out
                for testing, and a line on stderr says so.
            image_size: resize every image to this height and width; by default all must have one size already.
            test_fraction: the part to hold out, above 0, to 0.5.
            seed: chooses that part; it is independent of a run's seed.
            mean, std, augmentation: as in `from_tensors`; images are in 0..1 before.

        Raises:
            ConfigError, DataError: no images, a file that is none, or the first image of another size.
        """
        train, test, names = read_folder(Path(path).expanduser(), image_size, test_fraction, seed)
        name = Path(path).expanduser().resolve().name
        options: dict[str, Any] = {"mean": mean, "std": std, "augmentation": augmentation}
        return cls.from_tensors(train, test, name=name, class_names=names, **options)

    @property
    def num_classes(self) -> int:
        """Return the width of the logits: C, the number of classes, or D, the number of target columns."""
        return len(self.class_names) if self.train.has_classes else self.train.labels.shape[1]

    @property
    def image_size(self) -> int:
        """Return height and width of square images, 0 for other inputs, for which no network has a name."""
        shape = self.train.inputs.shape[1:]
        return shape[1] if len(shape) == 3 and shape[1] == shape[2] else 0

    @property
    def train_counts(self) -> list[int]:
        """Return the number of training images of each class."""
        return [int(count) for count in self.train.labels.bincount(minlength=self.num_classes)]

    def first(self, train_images: int = 0, test_images: int = 0) -> "Dataset":
        """Return the first examples of both sets (0: all), in order; ConfigError if there are fewer."""
        train, test = self.train.first(train_images, "train_images"), self.test.first(test_images, "test_images")
        return self if train is self.train and test is self.test else replace(self, train=train, test=test)

    def check_seed(self, seed: int) -> None:
        """Refuse a run whose seed did not choose these images: its result could not be reproduced from its configuration."""
        if self.seed not in (-1, seed):
            raise ConfigError(
                f"seed={seed}, but the training images of {self.name} here were chosen by seed {self.seed}; "
                f"load them with load_dataset({self.name!r}, ..., seed={seed})"
            )


def digest(*sets: LabelledSet) -> str:
    """Return the first 16 hexadecimal digits of the sha256 over all inputs and labels, in order."""
    total = hashlib.sha256()
    for one in sets:
        for tensor in (one.inputs, one.labels):
            # Read in place, as the data may fill the memory; as bytes, since numpy lacks bfloat16.
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]
