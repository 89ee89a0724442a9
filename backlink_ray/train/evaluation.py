"""Evaluation: how often the last head is wrong, in total and per class."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The last head on an image set: wrong answers and images per class, in class order, and the mean loss."""

    class_wrong: tuple[int, ...]
    class_images: tuple[int, ...]
    loss: float

    @property
    def wrong(self) -> int:
        """Return the number of wrong answers."""
        return sum(self.class_wrong)

    @property
    def images(self) -> int:
        """Return the number of images."""
        return sum(self.class_images)

    @property
    def error_pct(self) -> float:
        """Return the error in percent."""
        return 100.0 * self.wrong / self.images

    @property
    def class_error_pct(self) -> list[float | None]:
        """Return the error of each class in percent; None for a class without images, as a small budget may leave."""
        pairs = zip(self.class_wrong, self.class_images, strict=True)
        return [100.0 * wrong / images if images else None for wrong, images in pairs]


class EvaluationSum:
    """Adds up errors and losses batch by batch, without synchronising with the device in between."""

    def __init__(self) -> None:
        self._wrong: list[Tensor] = []
        self._images: list[Tensor] = []
        self._loss: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits (N, classes) and labels (N,)."""
        classes = torch.zeros(logits.shape[1], dtype=torch.int64, device=labels.device)
        self._wrong.append(classes.index_add(0, labels, (logits.argmax(dim=1) != labels).long()))
        self._images.append(classes.index_add(0, labels, torch.ones_like(labels)))
        self._loss.append(torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum"))

    def result(self) -> Evaluation:
        """Return the evaluation of all images."""
        wrong, images = (tuple(torch.stack(part).sum(dim=0).tolist()) for part in (self._wrong, self._images))
        return Evaluation(wrong, images, float(torch.stack(self._loss).sum()) / sum(images))
