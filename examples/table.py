"""A table and a number to predict (Friedman's first problem), with a loss of one's own, on threads or the argument."""

import sys
from pathlib import Path

import torch
from torch import nn

import backlink_ray as bl


def network(num_classes: int, image_size: int, seed: int) -> bl.Network:
    """Return five units for rows of ten numbers; in a regression, num_classes counts the targets."""
    units = [nn.Sequential(nn.Linear(i, 64), nn.ReLU()) for i in (10, 64, 64, 64, 64)]
    return bl.Network(units, nn.Linear(64, num_classes), example=torch.zeros(1, 10))


def data(root: Path, download: bool, seed: int) -> bl.Dataset:
    generator = torch.Generator().manual_seed(0)  # targets are floating-point numbers, so this is a regression
    x = torch.rand(2500, 10, generator=generator)
    y = 2 * (torch.pi * x[:, 0] * x[:, 1]).sin() + 4 * (x[:, 2] - 0.5) ** 2 + 2 * x[:, 3] + x[:, 4] - 2.9
    y += 0.2 * torch.randn(2500, generator=generator)
    return bl.Dataset.from_tensors((x[:2000], y[:2000]), (x[2000:], y[2000:]), name="friedman", mean=[0.5], std=[0.29])


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).cosh().log().mean()  # outliers pull less than with squares


if __name__ == "__main__":
    executor = (*sys.argv[1:], "threads")[0]
    parts = {"network": "table:network", "dataset": "table:data", "loss": "table:loss"}
    config = bl.RunConfig(**parts, num_modules=2, propagation_length=1, epochs=10, batch_size=50, lr=0.05)
    result = bl.run(config, f"runs/table-{executor}", executor=executor)
    network, test = bl.load_network(f"runs/table-{executor}"), bl.load_dataset("table:data").test
    share = (bl.predict(network, test.prepared()) - test.labels).square().mean() / test.labels.var()
    print(
        f"{executor}: loss {result['test_loss']:.4f}, {share:.1%} unexplained, weights {result['weights_sha256'][:12]}"
    )
