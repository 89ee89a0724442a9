"""Table IV: BP, GLL and BackLink on long-tailed CIFAR-10.

Every cell is a run with an address; --dry-run lists them. The paper preset is its recipe (200 epochs, 5 seeds) and needs GPUs;
the smoke preset runs a few cells on a few hundred real images; --epochs, --train-images and their like make a budget between.

The smoke test takes the embedded sample as it is, which is balanced.
"""

import sys

from backlink_ray.study.sweep import main

SMOKE = (
    "table4/cifar10-lt/resnet32/fc/K1/l0",
    "table4/cifar10-lt/resnet32/fc/K4/l0",
    "table4/cifar10-lt/resnet32/fc/K4/l1",
)

if __name__ == "__main__":
    sys.exit(main(4, SMOKE, __doc__ or ""))
