"""Tune BackLink on ResNet110: Optuna chooses K, l, alpha and eta by the error on a held-out tenth of the training set.

The paper preset has the paper's recipe (CIFAR-10, 200 epochs, batch 512, fc heads) and needs GPUs; the smoke preset runs the
same search on a few hundred real images.
"""

import sys

from backlink_ray import RunConfig
from backlink_ray.commands.search import main
from backlink_ray.paper.recipes import ALPHAS
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.space import Space

PAPER = RunConfig(network="resnet110", dataset="cifar10", lr=0.3, batch_size=512, epochs=200, validation_fraction=0.1)
SMOKE = PAPER.replace(
    dataset="cifar10-sample", lr=0.02, batch_size=16, epochs=3, train_images=400, test_images=200, num_modules=4,
    propagation_length=3, precision="bf16",
)  # fmt: skip
PRESETS = {
    "paper": Plan(
        base=PAPER, space=Space(num_modules=(2, 4, 8, 16), longest=4, alphas=ALPHAS, lr=(0.05, 1.0)), num_samples=50
    ),
    "smoke": Plan(
        base=SMOKE,
        space=Space(num_modules=(2, 4), longest=4, alphas=ALPHAS, lr=(0.01, 0.04)),
        first=(SMOKE.replace(num_modules=2),),
        num_samples=3,
    ),
}

if __name__ == "__main__":
    sys.exit(main("tune_resnet110", PRESETS, __doc__ or ""))
