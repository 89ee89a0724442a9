"""Stages by turns on two machines of a Ray cluster: the weights are those of one process, and what a message takes between them.

`python -m tests.pipeline.nodes` starts the cluster, three Ray nodes on this machine, and prints a line for every transport.
"""

import json
from itertools import pairwise
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group

import backlink_ray as bl
from backlink_ray.benchmarks.links import LARGE, ROUNDS, SMALL, measure_transfer
from backlink_ray.pipeline.actors import RayExecutor
from backlink_ray.pipeline.pool import StagePool
from backlink_ray.pipeline.resources import StageResources
from backlink_ray.train.executor import Job, LocalExecutor
from tests.examples import job
from tests.pipeline.test_transparency import check_same, outcome

STAGE = StageResources(cpus_per_stage=0.4, gpus_per_stage=0)


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for i in range(2):
            cluster.add_node(num_cpus=1, resources={f"machine_{i}": 1})
        ray.init(address=cluster.address, log_to_driver=False)
        for transport in ("objectstore", "collective"):
            counts = [num_modules for num_modules in (2, 4) if is_right(num_modules, transport)]
            print(json.dumps({"transport": transport, "num_modules": counts, **hop(transport)}), flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


def is_right(num_modules: int, transport: str) -> bool:
    """Check that neighbouring stages are on different machines, neither of them the driver's, and that all weights are right."""
    stages = [{"CPU": STAGE.cpus_per_stage, f"machine_{k % 2}": 0.1} for k in range(num_modules)]
    group = placement_group([{"CPU": 0.1}, *stages])
    with StagePool(STAGE, group) as pool:
        check_same(
            outcome(lambda job: RayExecutor(job, pool), training(num_modules, transport)),
            outcome(LocalExecutor, training(num_modules)),
        )
        machines = [ray.get(actor.ready.remote()).node_id for actor in pool.actors]
        assert len({*machines, ray.get_runtime_context().get_node_id()}) == 3
        assert all(a != b for a, b in pairwise(machines))
    ray.util.remove_placement_group(group)
    return True


def hop(transport: str) -> dict[str, Any]:
    """Return the milliseconds from the beginning of a send to the end of the receipt, and between how many machines."""
    transfer, machines = measure_transfer(transport)
    hop_ms = {f"{size} bytes": round(1e3 * transfer.hop_s(size), 3) for size in (SMALL, LARGE)}
    return {"machines": machines, "hop_ms": hop_ms, "n": ROUNDS}


def training(num_modules: int, transport: str = "auto") -> Job:
    return job(bl.BackLink(propagation_length=1, alpha=0.25), num_modules, "conv", transport=transport)


if __name__ == "__main__":
    main()
