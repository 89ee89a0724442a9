"""Modules of a user's, written where a test says, as people write them: a network of two files, data and a method."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backlink_ray import importing

PARTS = """
from torch import nn

class Block(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.conv = nn.Conv2d(a, b, 3, padding=1)

    def forward(self, x):
        return self.conv(x).tanh()
"""
MODEL = """
import backlink_ray as bl
import torch
from torch import nn
from PARTS import Block

def network(num_classes, image_size, seed):
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes))
    return bl.Network([Block(3, 6), Block(6, 6), Block(6, 6), Block(6, 6)], head, torch.zeros(1, 3, image_size, image_size))
"""
DATA = """
import backlink_ray as bl
import torch

def images(root, download, seed):
    x, y = torch.rand(80, 3, 8, 8, generator=torch.Generator().manual_seed(seed)), torch.arange(80) % 4
    return bl.Dataset.from_tensors(train=(x[:60], y[:60]), test=(x[60:], y[60:]))
"""
METHOD = """
from dataclasses import dataclass
import backlink_ray as bl
from torch import nn

def head(shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], num_classes))

def loss(logits, labels):
    return nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)

@dataclass(frozen=True, kw_only=True)
class Mine(bl.Method):
    gamma: float = 0.3
    twice: bool = False

    def loss(self, module, features, batch):
        return (1 + self.gamma) * (1 + self.twice) * super().loss(module, features, batch)
"""


def write_project(folder: Path, name: str) -> None:
    """Write NAME_parts.py, NAME_model.py and so on; a process imports a name once, so each test has its own."""
    for kind, text in (
        ("parts", PARTS),
        ("model", MODEL.replace("PARTS", f"{name}_parts")),
        ("data", DATA),
        ("method", METHOD),
    ):
        (folder / f"{name}_{kind}.py").write_text(text)


@contextmanager
def imported_from(folder: Path) -> Iterator[None]:
    """Import from a folder, and forget afterwards what was imported from it."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]
                for path in [path for path in importing._loaded if path.startswith(f"{name}:")]:
                    del importing._loaded[path]
