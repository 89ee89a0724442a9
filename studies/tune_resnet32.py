"""Tune BackLink on ResNet32, or compare BP, GLL and BackLink at a budget for CPUs.

Presets: paper (a search under the paper's recipe, needs a GPU), cpu (K = 4, fc heads: BP, GLL and BackLink with l = 1, 2, 4
on the first 10,000 training images and all test images of CIFAR-10, 8 epochs; about half an hour on 2 cores), smoke.
"""

import sys

from backlink_ray.commands.search import main
from backlink_ray.paper.cells import find
from backlink_ray.paper.recipes import ALPHAS, default_alpha, recipe
from backlink_ray.tuning.plan import Plan
from backlink_ray.tuning.space import Space

PAPER = recipe(find("table2/cifar10/resnet32/fc/K4/l2")).replace(validation_fraction=0.1)
CPU = PAPER.replace(
    lr=0.1, batch_size=128, epochs=8, train_images=10000, validation_fraction=0.0, warmup_fraction=0.125
)
SMOKE = PAPER.replace(dataset="cifar10-sample", lr=0.1, batch_size=64, epochs=2, train_images=640, test_images=200)
RUNS = (
    CPU.replace(method="bp"),
    CPU.replace(method="gll"),
    *(CPU.replace(propagation_length=length, alpha=default_alpha(length)) for length in (1, 2, 4)),
)
PRESETS = {
    "paper": Plan(
        base=PAPER, space=Space(num_modules=(2, 4, 8, 16), longest=4, alphas=ALPHAS, lr=(0.05, 1.0)), num_samples=50
    ),
    "cpu": Plan(base=CPU, runs=RUNS, metric="test_error_pct"),
    "smoke": Plan(
        base=SMOKE,
        space=Space(num_modules=(2, 4), longest=4, alphas=ALPHAS, lr=(0.02, 0.2)),
        first=(SMOKE.replace(num_modules=2, propagation_length=2, alpha=0.5),),
        num_samples=3,
    ),
}

if __name__ == "__main__":
    sys.exit(main("tune_resnet32", PRESETS, __doc__ or ""))
