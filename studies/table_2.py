"""Table II: BP, GLL and BackLink with fully connected heads on CIFAR-10, CIFAR-100 and STL-10."""

import sys

from backlink_ray.commands.table import main

SMOKE = (
    "table2/cifar10/resnet32/fc/K1/l0",
    "table2/cifar10/resnet32/fc/K4/l0",
    "table2/cifar10/resnet32/fc/K4/l2",
)

if __name__ == "__main__":
    sys.exit(main(2, SMOKE, __doc__ or ""))
