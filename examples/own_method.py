"""A method of one's own, in a Trainer, as the base of BackLink, and as a run on an executor: threads, or the argument."""

import sys
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import backlink_ray as bl


@dataclass(frozen=True, kw_only=True)
class Doubt(bl.Method):
    """Local learning whose loss rewards doubt: less gamma times the entropy of the answer."""

    name: ClassVar[str] = "doubt"
    gamma: float = 0.1

    def loss(self, module: bl.LocalModule, features: Tensor, batch: bl.Batch) -> Tensor:
        logits = module.logits(features, batch.step_seed)
        log_p = logits.log_softmax(dim=1)
        return batch.loss(logits, batch.labels) + self.gamma * (log_p.exp() * log_p).sum(dim=1).mean()


if __name__ == "__main__":
    modules = bl.split(bl.build_network("resnet8"), num_modules=2)
    trainer = bl.Trainer(modules, bl.BackLink(propagation_length=1, alpha=0.5, base=Doubt(gamma=0.2)), lr=0.05)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    print("local losses of three steps:", *(trainer.step(images, labels).tolist() for _ in range(3)))
    executor = (*sys.argv[1:], "threads")[0]
    config = bl.RunConfig(
        network="resnet8", method="own_method:Doubt", options={"gamma": 0.2}, num_modules=2, epochs=3, batch_size=50,
        lr=0.05, train_images=500, test_images=200,
    )  # fmt: skip
    result = bl.run(config, f"runs/doubt-{executor}", executor=executor)
    print(f"{executor}: test error {result['test_error_pct']:.2f} %, weights {result['weights_sha256'][:12]}")
