"""A network, data and a method of one's own, which `own_study.py` names by import path."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

import backlink_ray as bl


def network(num_classes: int, image_size: int, seed: int) -> bl.Network:
    """Return four units, which are never cut, and a classifier."""
    units = [nn.Sequential(nn.Linear(i, 32), nn.BatchNorm1d(32), nn.ReLU()) for i in (2, 32, 32, 32)]
    return bl.Network(units, nn.Linear(32, num_classes), example=torch.zeros(1, 2))


def data(root: Path, download: bool, seed: int) -> bl.Dataset:
    """Return 1,200 points (x, y) of two spirals, classes 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    labels, radius = torch.arange(1200) % 2, torch.rand(1200, generator=generator).sqrt()
    angle = 6 * radius + labels * torch.pi
    points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    points += 0.08 * torch.randn(points.shape, generator=generator)
    return bl.Dataset.from_tensors((points[:1000], labels[:1000]), (points[1000:], labels[1000:]), name="spirals")


@dataclass(frozen=True, kw_only=True)
class Doubt(bl.Method):
    """Local learning whose loss rewards doubt: less gamma times the entropy of the answer."""

    name: ClassVar[str] = "doubt"
    gamma: float = 0.1

    def loss(self, module: bl.LocalModule, features: Tensor, batch: bl.Batch) -> Tensor:
        logits = module.logits(features, batch.step_seed)
        log_p = logits.log_softmax(dim=1)
        return batch.loss(logits, batch.labels) + self.gamma * (log_p.exp() * log_p).sum(dim=1).mean()
