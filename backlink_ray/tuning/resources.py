"""Resources: what the cluster has, and what a trial reserves of it."""

from dataclasses import dataclass

import ray

from backlink_ray.pipeline.actors import Resources
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.executors import choose_executor


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterResources:
    """The cluster as trials see it, and how many run at once (0: as many as fit)."""

    num_gpus: float
    num_cpus: float
    max_concurrent: int = 0
    cpus_per_stage: float = 0.2
    gpus_per_stage: float = 1.0

    def resolve(self, config: RunConfig) -> RunConfig:
        """Return the configuration with its executor decided."""
        name, _ = choose_executor(config, self.num_gpus, self.num_cpus, self.gpus_per_stage)
        return config.replace(executor=name)

    def resources(self) -> Resources:
        """Return what one stage reserves."""
        return Resources(cpus=self.cpus_per_stage, gpus=self.gpus_per_stage if self.num_gpus else 0.0)

    def bundles(self, config: RunConfig) -> list[dict[str, float]]:
        """Return a trial's bundles: its own, and one for each stage where the stages are actors."""
        resolved = self.resolve(config)
        if resolved.executor == "ray":
            return self.resources().bundles(config.num_modules)
        return [{"CPU": 1.0} | ({"GPU": 1.0} if self.num_gpus else {})]

    def check(self, config: RunConfig) -> None:
        """Refuse a trial that can never be placed."""
        if self.resolve(config).executor == "ray":
            self.resources().check(config.num_modules, {"CPU": self.num_cpus, "GPU": self.num_gpus})


def cluster_resources() -> ClusterResources:
    """Return what the connected Ray cluster has."""
    found = ray.cluster_resources()
    return ClusterResources(num_gpus=found.get("GPU", 0.0), num_cpus=found.get("CPU", 0.0))
