"""Partitioner: what a compiled unit saves for its backward; a file of its own, since inductor takes a second to import."""

from typing import Any

from torch._functorch.partitioners import default_partition
from torch._inductor.custom_graph_pass import CustomPartitionerFn


class SavingAsEager(CustomPartitionerFn):
    """Saves what eager torch saves; a class that can be pickled, else inductor caches nothing, and warns of every graph.

    By default inductor saves a ReLU's signs as booleans, which its kernels for CPUs write and read one by one: twice as slow.
    """

    def __call__(self, gm: Any, joint_inputs: Any, **options: Any) -> Any:
        return default_partition(gm, joint_inputs, **{n: v for n, v in options.items() if n != "compiler"})

    def uuid(self) -> str:
        return "default_partition"
