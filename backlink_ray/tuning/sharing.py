"""Sharing: how many trials share a GPU, measured where they will run: the study's driver may have no GPU."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import ray

from backlink_ray.benchmarks.gpu_share import largest, measure, runs_per_gpu
from backlink_ray.data.tensors import Dataset
from backlink_ray.errors import first_line
from backlink_ray.output import say
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.data import data_key
from backlink_ray.tuning.resources import MEASURED, ClusterResources

# An autoscaling cluster starts a machine first; comparing the sizes of a few hundred runs, and compiling, takes minutes.
_TIMEOUT_S = 1800.0
References = Mapping[str, "ray.ObjectRef[Dataset]"]


def with_sharing(cluster: ClusterResources, runs: Sequence[RunConfig], datasets: References) -> ClusterResources:
    """Return the cluster with its runs_per_gpu decided, 1 if it cannot be measured; say why, unless 1 was asked for.

    Args:
        runs: among them the one that needs the most memory.
        datasets: by `data_key`.
    """
    count, why = cluster.runs_per_gpu, "as configured"
    sharing = [run for run in runs if cluster.shares_gpu(run)]
    if not sharing:
        count, why = 1, "no run here has executor local and a GPU"
    elif count == MEASURED:
        count, why = _measured(sharing, datasets)
    if cluster.runs_per_gpu != 1:
        say(f"runs per GPU: {count}; {why}")
    return replace(cluster, runs_per_gpu=count)


def _measured(runs: Sequence[RunConfig], datasets: References) -> tuple[int, str]:
    task = ray.remote(num_cpus=1, num_gpus=1, max_retries=0)(_measure_here).remote(runs, datasets)
    try:
        count, why = ray.get(task, timeout=_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        if isinstance(error, ray.exceptions.GetTimeoutError):
            ray.cancel(task, force=True)  # Ray 2.60 may abort this process if the task has just ended by itself
        return 1, f"not measured: {first_line(getattr(error, 'cause', None) or error)}"
    return count, why


def _measure_here(runs: Sequence[RunConfig], references: References) -> tuple[int, str]:
    """Decide in a process with a GPU of its own; it ends afterwards, as Ray has it for tasks on GPUs."""
    datasets = {key: ray.get(reference) for key, reference in references.items()}
    run, here = largest(runs, datasets), ray.get_runtime_context().get_node_id()
    node = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    count, why = runs_per_gpu(measure(run, datasets[data_key(run)]), node["CPU"] / node["GPU"])
    return count, f"of {run.network} {run.label} {run.run_name}, {why}"
