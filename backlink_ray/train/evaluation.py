"""Evaluation: the loss of the last head, and how often it is wrong, in total and per class."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backlink_ray.methods.base import Loss


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The last head on a data set: the mean loss and, where labels are classes, wrong answers and samples per class.

    Attributes:
        class_wrong, class_images: in class order; empty for a regression.
        loss: mean over the samples.
    """

    class_wrong: tuple[int, ...]
    class_images: tuple[int, ...]
    loss: float

    @property
    def error_pct(self) -> float | None:
        """Return the error in percent; None for a regression."""
        return 100.0 * sum(self.class_wrong) / sum(self.class_images) if self.class_images else None

    @property
    def class_error_pct(self) -> list[float | None]:
        """Return the error of each class in percent, None for a class without images; [] for a regression."""
        pairs = zip(self.class_wrong, self.class_images, strict=True)
        return [100.0 * wrong / images if images else None for wrong, images in pairs]


class EvaluationSum:
    """Adds up errors and losses batch by batch, without synchronising with the device in between."""

    def __init__(self, loss: Loss = F.cross_entropy) -> None:
        self._loss_of, self._count = loss, 0
        self._wrong: list[Tensor] = []
        self._images: list[Tensor] = []
        self._loss: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits (N, width) and labels."""
        self._count += len(labels)
        self._loss.append(self._loss_of(logits, labels).double() * len(labels))
        if labels.is_floating_point():
            return
        classes = torch.zeros(logits.shape[1], dtype=torch.int64, device=labels.device)
        self._wrong.append(classes.index_add(0, labels, (logits.argmax(dim=1) != labels).long()))
        self._images.append(classes.index_add(0, labels, torch.ones_like(labels)))

    def result(self) -> Evaluation:
        """Return the evaluation of all samples."""
        wrong, images = (
            tuple(torch.stack(part).sum(dim=0).tolist()) if part else () for part in (self._wrong, self._images)
        )
        return Evaluation(wrong, images, float(torch.stack(self._loss).sum()) / self._count)
