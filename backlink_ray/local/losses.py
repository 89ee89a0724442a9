"""Losses of a local module."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy, a scalar, of logits (N, classes) and labels int64 (N,)."""
    return F.cross_entropy(logits, labels)


def similarity(features: Tensor) -> Tensor:
    """Return the cosine similarities (N, N), in [-1, 1], of the centred rows of features (N, ...).

    A feature map (N, C, H, W) counts by its channels' standard deviations over H and W. Source: Nøkland and Eidnes (2019),
    section 2.2.
    """
    pixels = features.dim() == 4 and features[0, 0].numel() > 1
    rows = features.flatten(2).std(dim=2) if pixels else features.flatten(1)
    rows = rows - rows.mean(dim=1, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows = rows / (norms + 1e-8)
    return (rows @ rows.T).clamp(-1, 1)
