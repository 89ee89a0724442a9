"""Table III: BP, GLL and BackLink with convolutional heads on CIFAR-10, STL-10 and SVHN, and the methods it is compared with.

The paper copied the columns of DGL and InfoPro from another paper. Here they, PredSim, DNI and DDG, and BackLink on top of
three of them can be run under the common recipe, on request: --only '*/dgl', --only '*/K4/infopro*'.
"""

import sys

from backlink_ray.commands.table import main

SMOKE = (
    "table3/cifar10/resnet32/conv/K1/l0",
    "table3/cifar10/resnet32/conv/K4/l0",
    "table3/cifar10/resnet32/conv/K4/l2",
    "table3/cifar10/resnet32/conv/K4/dgl",
)

if __name__ == "__main__":
    sys.exit(main(3, SMOKE, __doc__ or ""))
