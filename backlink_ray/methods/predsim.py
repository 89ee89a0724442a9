"""PredSim: local learning from a prediction loss and a similarity-matching loss.

Card
    paper       Nøkland, Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019, Eqs. (1)-(3)
    loss        (1 - beta) CE(head) + beta MSE(S(branch(features)), S(one-hot labels)); the last module's is CE
    crosses     activations forward; nothing backward
    helper      similarity branch: conv3x3 without bias, same width; a linear map for features without height and width
    defaults    beta 0.99; the published predictor is the head "pool" (at most 512 pooled features, linear)
    deviations  none known
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backlink_ray.local.module import LocalModule, ModuleSpec
from backlink_ray.methods.base import Batch, Method
from backlink_ray.nets.resnet import conv3x3
from backlink_ray.options import number


@dataclass(frozen=True, kw_only=True)
class PredSimOptions:
    """Options of PredSim."""

    beta: float = number(0.99, 0.0, 1.0)
    """predsim: weight of similarity matching, 0 (GLL) to 1; the prediction's is 1 - beta."""


@dataclass(frozen=True, kw_only=True)
class PredSim(PredSimOptions, Method):
    """Prediction and similarity matching."""

    name: ClassVar[str] = "predsim"

    @property
    def needs_classes(self) -> bool:
        return True

    def build_helper(self, spec: ModuleSpec) -> nn.Module:
        return SimilarityBranch(spec.feature_shape)

    def loss(self, module: LocalModule, features: Tensor, batch: Batch) -> Tensor:
        """Return (1 - beta) CE + beta MSE of the two similarity matrices (N, N)."""
        prediction = super().loss(module, features, batch)
        if module.is_last:
            return prediction
        branch = batch.step_seed.engine.widen(module.helper(features))
        labels = branch.new_zeros(len(branch), module.spec.num_classes).scatter_(1, batch.labels[:, None], 1)
        with torch.autocast(features.device.type, enabled=False):
            matching = F.mse_loss(similarity(branch), similarity(labels))
        return (1 - self.beta) * prediction + self.beta * matching


class SimilarityBranch(nn.Module):
    """Maps features (N, C, H, W), (N, T, C) or (N, C) to features of the same shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.map = conv3x3(shape[0], shape[0]) if len(shape) == 3 else nn.Linear(shape[-1], shape[-1], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)  # type: ignore[no-any-return]


def similarity(features: Tensor) -> Tensor:
    """Return the cosine similarities (N, N), in [-1, 1], of the centred rows of features (N, ...).

    A feature map (N, C, H, W) is represented by the standard deviations of its channels over H and W. Source: Nøkland and
    Eidnes (2019), section 2.2.
    """
    pixels = features.dim() == 4 and features[0, 0].numel() > 1
    rows = features.flatten(2).std(dim=2) if pixels else features.flatten(1)
    rows = rows - rows.mean(dim=1, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows = rows / (norms + 1e-8)
    return (rows @ rows.T).clamp(-1, 1)
