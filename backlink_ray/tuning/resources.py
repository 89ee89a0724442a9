"""Resources: what a cluster has, and what a trial reserves of it."""

from dataclasses import dataclass

from backlink_ray.pipeline.resources import STAGE, StageResources
from backlink_ray.runs.config import RunConfig
from backlink_ray.runs.executors import choose_executor


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterResources:
    """A cluster's GPUs and CPUs, what a stage takes of them, and how many trials run at once (0: as many as fit)."""

    num_gpus: float
    num_cpus: float
    max_concurrent: int = 0
    stage: StageResources = STAGE

    def resolve(self, config: RunConfig) -> RunConfig:
        """Return the configuration with its executor decided."""
        name, _ = choose_executor(config, self.num_gpus, self.num_cpus, self.stage)
        return config.replace(executor=name)

    def bundles(self, config: RunConfig) -> list[dict[str, float]]:
        """Return the bundles of a trial: its own, and one per stage if the stages are actors."""
        if self.resolve(config).executor == "ray":
            return self.stage.where_gpus_are(self.num_gpus).bundles(config.num_modules)
        return [{"CPU": 1.0} | ({"GPU": 1.0} if self.num_gpus and self.stage.gpus_per_stage else {})]

    def check(self, config: RunConfig) -> None:
        """Raise ConfigError if the cluster can never hold a trial."""
        if self.resolve(config).executor == "ray":
            self.stage.where_gpus_are(self.num_gpus).check(config.num_modules, self.num_cpus, self.num_gpus)
