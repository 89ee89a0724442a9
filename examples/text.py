"""Text: which file of Python's own library are 64 bytes from? Encoder layers, on threads or the argument."""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

import backlink_ray as bl

FILES, LENGTH = ("turtle", "tarfile", "typing", "argparse"), 64


def network(num_classes: int, image_size: int, seed: int) -> bl.Network:
    """Return an embedding of bytes and four encoder layers as units."""
    layers = [nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True) for _ in range(4)]
    units, example = [nn.Embedding(256, 32), *layers], torch.zeros(1, LENGTH, dtype=torch.int64)
    return bl.Network(units, nn.Sequential(nn.Flatten(), nn.Linear(32 * LENGTH, num_classes)), example)


def data(root: Path, download: bool, seed: int) -> bl.Dataset:
    """Return 500 pieces of every file, every fifth of them for the test."""
    raw = b"".join(Path(find_spec(file).origin).read_bytes()[: 500 * LENGTH] for file in FILES)
    pieces, labels = torch.tensor(list(raw)).view(2000, LENGTH), torch.arange(4).repeat_interleave(500)
    test = torch.arange(2000) % 5 == 0
    return bl.Dataset.from_tensors((pieces[~test], labels[~test]), (pieces[test], labels[test]), class_names=FILES)


if __name__ == "__main__":
    executor = (*sys.argv[1:], "threads")[0]
    parts = {"network": "text:network", "dataset": "text:data", "optimizer": "torch.optim:AdamW"}
    config = bl.RunConfig(**parts, num_modules=2, propagation_length=1, epochs=4, batch_size=50, lr=0.003)
    result = bl.run(config, f"runs/text-{executor}", executor=executor)
    print(f"{executor}: test error {result['test_error_pct']:.2f} %, weights {result['weights_sha256'][:12]}")
