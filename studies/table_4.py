"""Table IV: BP, GLL and BackLink on long-tailed CIFAR-10.

The smoke test uses the embedded sample, which is balanced.
"""

import sys

from backlink_ray.commands.table import main

SMOKE = (
    "table4/cifar10-lt/resnet32/fc/K1/l0",
    "table4/cifar10-lt/resnet32/fc/K4/l0",
    "table4/cifar10-lt/resnet32/fc/K4/l1",
)

if __name__ == "__main__":
    sys.exit(main(4, SMOKE, __doc__ or ""))
