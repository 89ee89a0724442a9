"""What users write themselves, in a module that worker processes can import: a method, an optimizer, a loss, a head."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backlink_ray as bl
from backlink_ray.local.module import ModuleSpec
from backlink_ray.train.optim import MakeOptimizer, Sgd


@dataclass(frozen=True, kw_only=True)
class Sharpened(bl.Method):
    """Local losses with a smaller temperature, and a helper that predicts the features' mean."""

    name: ClassVar[str] = "sharpened"
    temperature: float = 0.5

    def build_helper(self, spec: ModuleSpec) -> nn.Module:
        return nn.Linear(spec.num_classes, 1)

    def loss(self, module: bl.LocalModule, features: Tensor, batch: bl.Batch) -> Tensor:
        logits = module.logits(features, batch.step_seed)
        loss = batch.loss(logits / self.temperature, batch.labels)
        if module.is_last:
            return loss
        return loss + F.mse_loss(module.helper(logits), features.flatten(1).mean(dim=1, keepdim=True))


class CountedSgd(torch.optim.Optimizer):
    """SGD that counts its steps in a Python int, and divides its rate by a power of the count."""

    def __init__(self, parameters: Iterable[Tensor], lr: float = 0.1, power: float = 0.3) -> None:
        super().__init__(parameters, {"lr": lr, "power": power})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    own = self.state[p]
                    own["count"] = own.get("count", 0) + 1
                    own["rate"] = group["lr"] / own["count"] ** group["power"]
                    p.sub_(own["rate"] * p.grad)


def two_groups(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW that decays matrices and convolutions only, as is usual for transformers."""
    small = [p for p in parameters if p.dim() < 2]
    large: dict[str, Any] = {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1}
    return torch.optim.AdamW([large, {"params": small, "weight_decay": 0.0}])


OPTIMIZERS: dict[str, MakeOptimizer] = {
    "adamw": torch.optim.AdamW,
    "two groups": two_groups,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "nadam": torch.optim.NAdam,
    "plain sgd": Sgd(momentum=0.0),
    "heavy ball": Sgd(nesterov=False),
    "own": CountedSgd,
}


def mean_absolute(predictions: Tensor, targets: Tensor) -> Tensor:
    return (predictions - targets).abs().mean()


def narrow_head(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(shape[0], 2, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, num_classes))
